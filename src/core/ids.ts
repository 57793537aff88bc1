import { randomFillSync } from 'node:crypto';

/** Crockford base 32, the alphabet of ULID. */
const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ';

/** Every pair of characters: ten bits at a time makes an id from eight look-ups of the random part and five of the time. */
const PAIRS: readonly string[] = Array.from(
  { length: 1024 },
  (_, i) => ALPHABET.charAt(i >> 5) + ALPHABET.charAt(i & 31),
);

const TWENTY_BITS = 0x100000;
const MAX_TIME_MS = 2 ** 48 - 1;
/** Random bytes fetched at a time; one id takes ten, and only the first of its millisecond takes any. */
const POOL_BYTES = 1280;

function pair(tenBits: number): string {
  return PAIRS[tenBits & 1023] ?? '';
}

function fourCharacters(twentyBits: number): string {
  return pair(twentyBits >>> 10) + pair(twentyBits);
}

function timeCharacters(nowMs: number): string {
  const high = Math.floor(nowMs / TWENTY_BITS);
  return pair(high >>> 20) + fourCharacters(high & 0xfffff) + fourCharacters(nowMs % TWENTY_BITS);
}

/** Four numbers of 20 bits from ten bytes of `bytes` at `at`. */
function randomParts(bytes: Uint8Array, at: number): [number, number, number, number] {
  const byte = (i: number): number => bytes[at + i] ?? 0;
  return [
    (byte(0) << 12) | (byte(1) << 4) | (byte(2) >> 4),
    ((byte(2) & 15) << 16) | (byte(3) << 8) | byte(4),
    (byte(5) << 12) | (byte(6) << 4) | (byte(7) >> 4),
    ((byte(7) & 15) << 16) | (byte(8) << 8) | byte(9),
  ];
}

/**
 * One ULID: 26 characters, 48 bits of time and 80 of randomness.
 * @param nowMs epoch milliseconds, 0 to 2^48-1; values outside are brought to the nearest end
 * @param random ten bytes
 */
export function newId(nowMs: number, random: Uint8Array): string {
  const [a, b, c, d] = randomParts(random, 0);
  return (
    timeCharacters(clampTime(nowMs)) + fourCharacters(a) + fourCharacters(b) + fourCharacters(c) + fourCharacters(d)
  );
}

function clampTime(nowMs: number): number {
  return nowMs >= 0 ? Math.min(Math.floor(nowMs), MAX_TIME_MS) : 0;
}

/**
 * Makes a source of ULIDs that are unique and sort in the order in which they were made, also when several fall into one
 * millisecond or the clock steps back. Ids name things; they are not secrets: within a millisecond the next one is the last one plus one.
 * @param options.now epoch milliseconds, `Date.now` by default
 */
export function createIds(options: { readonly now?: () => number } = {}): () => string {
  const now = options.now ?? Date.now;
  const pool = new Uint8Array(POOL_BYTES);
  let used = POOL_BYTES;
  let lastMs = -1;
  let time = '';
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  let head = '';

  const startMillisecond = (nowMs: number): void => {
    if (used + 10 > POOL_BYTES) {
      randomFillSync(pool);
      used = 0;
    }
    [a, b, c, d] = randomParts(pool, used);
    used += 10;
    lastMs = nowMs;
    time = timeCharacters(nowMs);
    head = time + fourCharacters(a) + fourCharacters(b) + fourCharacters(c);
  };

  return () => {
    const nowMs = clampTime(now());
    if (nowMs > lastMs) {
      startMillisecond(nowMs);
    } else if (++d === TWENTY_BITS) {
      d = 0;
      if (++c === TWENTY_BITS) {
        c = 0;
        if (++b === TWENTY_BITS) {
          b = 0;
          if (++a === TWENTY_BITS) startMillisecond(lastMs + 1);
        }
      }
      head = time + fourCharacters(a) + fourCharacters(b) + fourCharacters(c);
    }
    return head + fourCharacters(d);
  };
}
