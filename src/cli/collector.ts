import { setFlagsFromString } from 'node:v8';

/**
 * Tells V8's collector what it cannot know about a proxy; before the first connection.
 *
 * V8 watches which allocations of the first seconds survive and makes those kinds of objects in the old generation from then on. The few exchanges that are open
 * during a collection are enough to convince it, and every dead exchange there keeps alive all that it refers to: one fifth of everything allocated was
 * promoted, and a quarter of the time of a busy proxy went into collecting it (bench/results.md).
 *
 * The other setting, a young generation of 16 MB, can only be made when the process starts (`--min-semi-space-size=16` in the start script): otherwise each 64 MB of
 * carried bytes bring a full collection, since their buffers count against the small limit of a small heap.
 */
export function tuneCollector(): void {
  setFlagsFromString('--no-allocation-site-pretenuring');
}
