import { Registry } from '../core/registry.ts';
import type { Registered } from '../core/registry.ts';

/** Something with a deadline. Moving the deadline is one assignment, so it can be done on every chunk. */
export interface Expiring extends Registered {
  /** Milliseconds on the clock of `Deadlines.now`; Infinity for none. */
  deadlineMs: number;
  /** Called once per passed deadline; sets a new one or ends the thing. Must not throw. */
  expire(nowMs: number): void;
}

/**
 * One coarse timer for all connections. A timer per request costs more than the policy decision; a scan of ten thousand numbers twice a second costs nothing.
 * Deadlines are met late by up to one tick, never early.
 */
export class Deadlines {
  readonly #entries = new Registry<Expiring>();
  readonly #timer: NodeJS.Timeout;
  /** Coarse monotonic clock in milliseconds, renewed every tick. */
  now: number;

  constructor(tickMs: number) {
    this.now = performance.now();
    this.#timer = setInterval(() => this.#tick(), tickMs);
    this.#timer.unref();
  }

  /** Does nothing when the entry is already here. */
  add(entry: Expiring): void {
    if (entry.slot < 0) this.#entries.add(entry);
  }

  delete(entry: Expiring): void {
    this.#entries.delete(entry);
  }

  close(): void {
    clearInterval(this.#timer);
    this.#entries.clear();
  }

  #tick(): void {
    const now = performance.now();
    this.now = now;
    for (const entry of this.#entries) {
      if (entry.deadlineMs > now) continue;
      entry.deadlineMs = Infinity;
      entry.expire(now);
    }
  }
}

/** Counts what is open, in all and per agent. */
export class OpenCounter {
  readonly #perAgent = new Map<string, number>();
  readonly #limit: number;
  readonly #limitPerAgent: number;
  #open = 0;

  constructor(limit: number, limitPerAgent: number) {
    this.#limit = limit;
    this.#limitPerAgent = limitPerAgent;
  }

  get open(): number {
    return this.#open;
  }

  /** Takes a place; false at either limit. */
  tryOpen(agentId: string): boolean {
    const mine = this.#perAgent.get(agentId) ?? 0;
    if (this.#open >= this.#limit || mine >= this.#limitPerAgent) return false;
    this.#open++;
    this.#perAgent.set(agentId, mine + 1);
    return true;
  }

  close(agentId: string): void {
    const mine = this.#perAgent.get(agentId) ?? 0;
    if (mine === 0) return;
    this.#open--;
    if (mine === 1) this.#perAgent.delete(agentId);
    else this.#perAgent.set(agentId, mine - 1);
  }
}
