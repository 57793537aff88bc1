/** Something that a registry holds; `slot` is the registry's own note of where. One object can be in one registry at a time. */
export interface Registered {
  /** -1 outside of a registry. */
  slot: number;
}

/** A place in a second registry, for an item whose own `slot` is taken. */
export class Seat<Item> implements Registered {
  slot = -1;
  readonly item: Item;

  constructor(item: Item) {
    this.item = item;
  }
}

/**
 * What is open right now: add, remove and walk, in no particular order. For things that come and go thousands of times a second.
 *
 * A `Set` would do the same and cost a third of the collector's time: V8 keeps its old table when it makes a new one and links it to the next, so a dead table
 * that has reached the old generation keeps alive all that passed through the set since, until the next full collection.
 */
export class Registry<Item extends Registered> {
  readonly #items: Item[] = [];

  get size(): number {
    return this.#items.length;
  }

  /** Adds an item that is in no registry. */
  add(item: Item): void {
    item.slot = this.#items.length;
    this.#items.push(item);
  }

  /** @returns false when the item is not in here */
  delete(item: Item): boolean {
    const { slot } = item;
    if (slot < 0 || this.#items[slot] !== item) return false;
    item.slot = -1;
    const last = this.#items.pop();
    if (last !== undefined && last !== item) {
      last.slot = slot;
      this.#items[slot] = last;
    }
    return true;
  }

  /** The items as they are now; adding and removing does not change the answer. */
  snapshot(): readonly Item[] {
    return [...this.#items];
  }

  /** From the last to the first, so that an item may remove itself. One that removes others can make the walk miss some. */
  *[Symbol.iterator](): Generator<Item> {
    for (let i = this.#items.length - 1; i >= 0; i--) {
      const item = this.#items[i];
      if (item !== undefined) yield item;
    }
  }

  clear(): void {
    for (const item of this.#items.splice(0)) item.slot = -1;
  }
}
