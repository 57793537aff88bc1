import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createIds, newId } from '../../src/core/ids.ts';

const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** Reads a ULID back, the slow and obvious way. */
function readUlid(id: string): { timeMs: bigint; random: bigint } {
  let value = 0n;
  for (const character of id) value = value * 32n + BigInt(ALPHABET.indexOf(character));
  return { timeMs: value >> 80n, random: value & (2n ** 80n - 1n) };
}

describe('newId', () => {
  it('is a ULID of the time and the ten bytes given', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 2 ** 48 - 1 }),
        fc.uint8Array({ minLength: 10, maxLength: 10 }),
        (timeMs, bytes) => {
          const id = newId(timeMs, bytes);
          expect(id).toMatch(/^[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
          expect(readUlid(id)).toEqual({
            timeMs: BigInt(timeMs),
            random: BigInt(`0x${Buffer.from(bytes).toString('hex')}`),
          });
        },
      ),
    );
  });

  it('brings an impossible time to the nearest possible one', () => {
    const bytes = new Uint8Array(10);
    expect(newId(-5, bytes)).toBe('0'.repeat(26));
    expect(newId(2 ** 60, bytes).slice(0, 10)).toBe('7ZZZZZZZZZ');
    expect(newId(Number.NaN, bytes)).toBe('0'.repeat(26));
  });
});

describe('createIds', () => {
  it('gives unique ids in sort order within one millisecond', () => {
    const next = createIds({ now: () => 1_700_000_000_000 });
    const made = Array.from({ length: 5000 }, () => next());
    expect(new Set(made).size).toBe(made.length);
    expect([...made].sort()).toEqual(made);
    expect(readUlid(made[0] ?? '').timeMs).toBe(1_700_000_000_000n);
  });

  it('keeps the order when the clock steps back', () => {
    const times = [1000, 1001, 900, 900, 1001, 5, 1002, 1002];
    let i = 0;
    const next = createIds({ now: () => times[i++] ?? 2000 });
    const made = times.map(() => next());
    expect([...made].sort()).toEqual(made);
    expect(new Set(made).size).toBe(made.length);
  });

  it('carries into the next characters after 2^20 ids in one millisecond', () => {
    const next = createIds({ now: () => 7 });
    let last = next();
    for (let i = 0; i < 2 ** 20 + 10; i++) {
      const id = next();
      if (id <= last) throw new Error(`${id} is not after ${last}`);
      last = id;
    }
    expect(last).toHaveLength(26);
  });

  it('gives two sources different ids in the same millisecond', () => {
    const first = createIds({ now: () => 7 });
    const second = createIds({ now: () => 7 });
    expect(first()).not.toBe(second());
  });
});
