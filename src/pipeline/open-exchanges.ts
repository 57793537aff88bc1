import { LimitError } from '../core/errors.ts';
import type { Agent } from '../core/agent.ts';
import type { ProxyError } from '../core/errors.ts';
import { Registry } from '../core/registry.ts';
import type { Registered } from '../core/registry.ts';
import type { Policy } from '../core/facts.ts';
import type { Limits } from '../core/settings.ts';

/** An exchange that has not concluded. */
export interface OpenExchange extends Registered {
  readonly agent: Agent;
  /** New rules are in force: goes on, or is cut. */
  rejudge(policy: Policy): void;
  cut(error: ProxyError): void;
}

/** Whole bodies of the largest size that may be held at once, in all and for one agent; and never less than so many bytes. */
const WHOLE_BODIES = 32;
const WHOLE_BODIES_PER_AGENT = 16;
const MIN_HELD_BYTES = 16 * 1024 * 1024;

/** All open exchanges, with their limits. */
export class OpenExchanges {
  readonly #all = new Registry<OpenExchange>();
  readonly #perAgent = new Map<string, number>();
  readonly #limits: Limits;
  /** Bytes of bodies that are held whole, by exchange and by agent. */
  readonly #held = new Map<OpenExchange, number>();
  readonly #heldPerAgent = new Map<string, number>();
  #heldBytes = 0;
  #onEmpty: (() => void) | null = null;

  constructor(limits: Limits) {
    this.#limits = limits;
  }

  get size(): number {
    return this.#all.size;
  }

  /** False at the limit of all streams or of those of one agent. */
  add(exchange: OpenExchange): boolean {
    const mine = this.#perAgent.get(exchange.agent.id) ?? 0;
    if (this.#all.size >= this.#limits.streams || mine >= this.#limits.streamsPerAgent) return false;
    this.#all.add(exchange);
    this.#perAgent.set(exchange.agent.id, mine + 1);
    return true;
  }

  /**
   * Counts bytes that an exchange holds until it ends. One body is bounded by its own limit; this bounds all of them together.
   * @throws LimitError `too_many_streams`
   */
  hold(exchange: OpenExchange, bytes: number): void {
    const mine = this.#heldPerAgent.get(exchange.agent.id) ?? 0;
    const most = (bodies: number): number => Math.max(MIN_HELD_BYTES, bodies * this.#limits.messageBytes);
    if (this.#heldBytes + bytes > most(WHOLE_BODIES) || mine + bytes > most(WHOLE_BODIES_PER_AGENT)) {
      throw new LimitError('too_many_streams', 'Too many bodies are held for inspection.');
    }
    this.#heldBytes += bytes;
    this.#heldPerAgent.set(exchange.agent.id, mine + bytes);
    this.#held.set(exchange, (this.#held.get(exchange) ?? 0) + bytes);
  }

  #letGo(exchange: OpenExchange): void {
    const bytes = this.#held.get(exchange);
    if (bytes === undefined) return;
    this.#held.delete(exchange);
    this.#heldBytes -= bytes;
    const mine = (this.#heldPerAgent.get(exchange.agent.id) ?? bytes) - bytes;
    if (mine > 0) this.#heldPerAgent.set(exchange.agent.id, mine);
    else this.#heldPerAgent.delete(exchange.agent.id);
  }

  delete(exchange: OpenExchange): void {
    if (!this.#all.delete(exchange)) return;
    this.#letGo(exchange);
    const mine = this.#perAgent.get(exchange.agent.id) ?? 1;
    if (mine <= 1) this.#perAgent.delete(exchange.agent.id);
    else this.#perAgent.set(exchange.agent.id, mine - 1);
    if (this.#all.size === 0) this.#onEmpty?.();
  }

  rejudge(policy: Policy): void {
    for (const exchange of this.#all.snapshot()) exchange.rejudge(policy);
  }

  /** @param isMeant all of them when absent */
  cut(error: ProxyError, isMeant: (exchange: OpenExchange) => boolean = () => true): void {
    for (const exchange of this.#all.snapshot()) if (isMeant(exchange)) exchange.cut(error);
  }

  /** Resolves when nothing is open any more. */
  drained(): Promise<void> {
    if (this.#all.size === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.#onEmpty = resolve;
    });
  }
}
