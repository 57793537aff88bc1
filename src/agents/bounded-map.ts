/** A map with a bound and an age: the entry used longest ago leaves when the bound is reached. */
export class BoundedMap<Value> {
  readonly #max: number;
  readonly #maxAgeMs: number;
  readonly #now: () => number;
  readonly #entries = new Map<string, { readonly value: Value; readonly since: number }>();

  constructor(max: number, maxAgeMs: number, now: () => number) {
    this.#max = max;
    this.#maxAgeMs = maxAgeMs;
    this.#now = now;
  }

  get size(): number {
    return this.#entries.size;
  }

  get(key: string): Value | undefined {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    this.#entries.delete(key);
    if (this.#now() - entry.since > this.#maxAgeMs) return undefined;
    // Maps keep the order of insertion: put last, this one leaves last.
    this.#entries.set(key, entry);
    return entry.value;
  }

  set(key: string, value: Value): void {
    this.#entries.delete(key);
    if (this.#entries.size >= this.#max) {
      const [oldest] = this.#entries.keys();
      if (oldest !== undefined) this.#entries.delete(oldest);
    }
    this.#entries.set(key, { value, since: this.#now() });
  }

  delete(key: string): void {
    this.#entries.delete(key);
  }
}
