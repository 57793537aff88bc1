import type { ProxyError } from '../core/errors.ts';
import type { Policy } from '../core/facts.ts';
import type { Limits } from '../core/settings.ts';

/** An exchange that has not concluded. */
export interface OpenExchange {
  readonly agentId: string;
  /** New rules are in force: goes on, or is cut. */
  rejudge(policy: Policy): void;
  cut(error: ProxyError): void;
}

/** All open exchanges, with their limits. */
export class OpenExchanges {
  readonly #all = new Set<OpenExchange>();
  readonly #perAgent = new Map<string, number>();
  readonly #limits: Limits;
  #onEmpty: (() => void) | null = null;

  constructor(limits: Limits) {
    this.#limits = limits;
  }

  get size(): number {
    return this.#all.size;
  }

  /** False at the limit of all streams or of those of one agent. */
  add(exchange: OpenExchange): boolean {
    const mine = this.#perAgent.get(exchange.agentId) ?? 0;
    if (this.#all.size >= this.#limits.streams || mine >= this.#limits.streamsPerAgent) return false;
    this.#all.add(exchange);
    this.#perAgent.set(exchange.agentId, mine + 1);
    return true;
  }

  delete(exchange: OpenExchange): void {
    if (!this.#all.delete(exchange)) return;
    const mine = this.#perAgent.get(exchange.agentId) ?? 1;
    if (mine <= 1) this.#perAgent.delete(exchange.agentId);
    else this.#perAgent.set(exchange.agentId, mine - 1);
    if (this.#all.size === 0) this.#onEmpty?.();
  }

  rejudge(policy: Policy): void {
    for (const exchange of this.#all) exchange.rejudge(policy);
  }

  cut(error: ProxyError): void {
    for (const exchange of this.#all) exchange.cut(error);
  }

  /** Resolves when nothing is open any more. */
  drained(): Promise<void> {
    if (this.#all.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onEmpty = resolve;
    });
  }
}
