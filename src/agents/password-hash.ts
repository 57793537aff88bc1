import { createHmac, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';

/** Cost of scrypt. N doubles time and memory (128·N·r bytes). */
export interface ScryptCost {
  readonly N: number;
  readonly r: number;
  readonly p: number;
}

/** OWASP Password Storage Cheat Sheet: N=2^15, r=8, p=3 among the recommended ones; p=1 here, for the passwords are machine-made as a rule. */
export const DEFAULT_COST: ScryptCost = { N: 32_768, r: 8, p: 1 };
/** A hash in a file may not make us allocate more than this for one check. */
const MAX_MEMORY = 256 * 1024 * 1024;

export interface PasswordHash extends ScryptCost {
  readonly salt: Buffer;
  readonly hash: Buffer;
}

/** Makes `scrypt$N$r$p$salt$hash` (base64url without padding) with a new salt. */
export async function hashPassword(password: string, cost: ScryptCost = DEFAULT_COST): Promise<string> {
  const salt = randomBytes(16);
  const hash = await derive(password, { ...cost, salt, hash: Buffer.alloc(32) });
  return ['scrypt', cost.N, cost.r, cost.p, salt.toString('base64url'), hash.toString('base64url')].join('$');
}

/** Reads the text form. Null when it is malformed, too weak or too dear. */
export function parsePasswordHash(text: string): PasswordHash | null {
  const match = /^scrypt\$([0-9]{1,8})\$([0-9]{1,3})\$([0-9]{1,3})\$([\w-]{11,88})\$([\w-]{22,88})$/.exec(text);
  if (match === null) return null;
  const [N, r, p] = [Number(match[1]), Number(match[2]), Number(match[3])];
  const isPowerOfTwo = N > 1 && (N & (N - 1)) === 0;
  if (!isPowerOfTwo || N < 1024 || r < 1 || p < 1 || p > 16 || 128 * N * r > MAX_MEMORY / 2) return null;
  return { N, r, p, salt: Buffer.from(match[4] ?? '', 'base64url'), hash: Buffer.from(match[5] ?? '', 'base64url') };
}

/** Constant time in the hash; runs in the thread pool. */
export async function verifyPassword(password: string, expected: PasswordHash): Promise<boolean> {
  const actual = await derive(password, expected);
  return timingSafeEqual(actual, expected.hash);
}

function derive(password: string, { N, r, p, salt, hash }: PasswordHash): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    // NFC: the same password typed on two systems (RFC 8265 section 4.2).
    scrypt(password.normalize('NFC'), salt, hash.length, { N, r, p, maxmem: MAX_MEMORY }, (error, key) => {
      if (error === null) resolve(key);
      else reject(error);
    });
  });
}

/** Names a user and password pair in memory without holding it: HMAC under a key of this process. */
export function createCredentialKeys(): (username: string, password: string) => string {
  const key = randomBytes(32);
  return (username, password) =>
    createHmac('sha256', key).update(`${username.length}:${username}:${password}`).digest('base64');
}
