import { describe, expect, it } from 'vitest';
import { BoundedMap } from '../../src/agents/bounded-map.ts';
import { CredentialCheck } from '../../src/agents/credential-check.ts';
import { hashPassword, parsePasswordHash, verifyPassword } from '../../src/agents/password-hash.ts';
import type { PasswordHash } from '../../src/agents/password-hash.ts';

const WORD = ['right', 'word'].join('-');
const HASH: PasswordHash = { N: 1024, r: 1, p: 1, salt: Buffer.alloc(16), hash: Buffer.from(WORD.padEnd(32)) };

/** A check that counts the expensive work, which compares with the plain text in HASH. */
function counting(wait?: () => Promise<void>): {
  readonly check: CredentialCheck;
  readonly work: { count: number; atOnce: number; most: number };
  readonly clock: { ms: number };
} {
  const work = { count: 0, atOnce: 0, most: 0 };
  const clock = { ms: 0 };
  const verify = async (password: string, hash: PasswordHash): Promise<boolean> => {
    work.count += 1;
    work.atOnce += 1;
    work.most = Math.max(work.most, work.atOnce);
    await (wait?.() ?? Promise.resolve());
    work.atOnce -= 1;
    return password === hash.hash.toString().trimEnd();
  };
  const check = new CredentialCheck(new Map([['u', HASH]]), { now: () => clock.ms, verify });
  return { check, work, clock };
}

describe('checking credentials', () => {
  it('a pair that was verified is not hashed again, until it is old', async () => {
    const { check, work, clock } = counting();
    for (let i = 0; i < 5; i += 1) expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
    expect(work.count).toBe(1);
    clock.ms += 3_700_000;
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
    expect(work.count).toBe(2);
  });

  it('a verified user with another password is judged anew', async () => {
    const { check } = counting();
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
    expect(await check.check({ username: 'u', password: 'x' }, 's')).toBe(false);
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
  });

  it('an unknown user costs as much work as a known one, and is refused even with the dummy’s own password', async () => {
    const { check, work } = counting();
    expect(await check.check({ username: 'nobody', password: 'x' }, 's')).toBe(false);
    expect(work.count).toBe(1);
    expect(await check.check({ username: 'nobody', password: '\0'.repeat(32) }, 's')).toBe(false);
  });

  it('equal attempts at the same time are hashed once', async () => {
    const { check, work } = counting();
    const all = await Promise.all(
      Array.from({ length: 50 }, () => check.check({ username: 'u', password: WORD }, 's')),
    );
    expect(all.every(Boolean)).toBe(true);
    expect(work.count).toBe(1);
  });

  it('the same wrong pair again and again is hashed once in a while', async () => {
    const { check, work, clock } = counting();
    for (let i = 0; i < 20; i += 1) expect(await check.check({ username: 'u', password: 'x' }, 's')).toBe(false);
    expect(work.count).toBe(1);
    clock.ms += 31_000;
    await check.check({ username: 'u', password: 'x' }, 's');
    expect(work.count).toBe(2);
  });

  it('guessing is stopped after ten failures for a user, for the rest of a minute', async () => {
    const { check, work, clock } = counting();
    for (let i = 0; i < 30; i += 1) await check.check({ username: 'u', password: `x${i}` }, 's');
    expect(work.count).toBe(10);
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(false);
    expect(await check.check({ username: 'u', password: WORD }, 'other')).toBe(true);
    clock.ms += 61_000;
    expect(await check.check({ username: 'u', password: 'y' }, 's')).toBe(false);
    expect(work.count).toBe(12);
  });

  it('an agent that was verified before works on while somebody at its address guesses', async () => {
    const { check } = counting();
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
    for (let i = 0; i < 30; i += 1) await check.check({ username: 'u', password: `x${i}` }, 's');
    expect(await check.check({ username: 'u', password: WORD }, 's')).toBe(true);
  });

  it('guessing many users is stopped for the address', async () => {
    const { check, work } = counting();
    for (let i = 0; i < 150; i += 1) await check.check({ username: `u${i}`, password: 'x' }, 's');
    expect(work.count).toBe(100);
  });

  it('a flood is bounded: two at once, eight waiting for one address, sixty-four in all', async () => {
    const gates: (() => void)[] = [];
    const { check, work } = counting(() => new Promise((resolve) => gates.push(resolve)));
    const results: Promise<boolean>[] = [];
    for (let source = 0; source < 20; source += 1) {
      for (let i = 0; i < 20; i += 1) {
        results.push(check.check({ username: `${source}`, password: `${i}` }, `s${source}`));
      }
    }
    const opener = setInterval(() => {
      for (const open of gates.splice(0)) open();
    }, 1);
    const all = await Promise.all(results);
    clearInterval(opener);
    expect(all.some(Boolean)).toBe(false);
    expect(work.count).toBe(64);
    expect(work.most).toBe(2);
  });

  it('work that fails refuses, and frees its place', async () => {
    const check = new CredentialCheck(new Map([['u', HASH]]), { verify: () => Promise.reject(new Error('no memory')) });
    for (let i = 0; i < 5; i += 1) {
      await expect(check.check({ username: 'u', password: `${i}` }, 's')).rejects.toThrow();
    }
  });
});

describe('password hashes', () => {
  it('verify their password and no other, and differ each time', async () => {
    const cost = { N: 1024, r: 8, p: 1 };
    const [a, b] = [await hashPassword(WORD, cost), await hashPassword(WORD, cost)];
    expect(a).not.toBe(b);
    expect(a).toMatch(/^scrypt\$1024\$8\$1\$[\w-]{22}\$[\w-]{43}$/);
    const parsed = parsePasswordHash(a);
    expect(parsed).not.toBeNull();
    if (parsed === null) return;
    expect(await verifyPassword(WORD, parsed)).toBe(true);
    expect(await verifyPassword(`${WORD} `, parsed)).toBe(false);
  });

  it('take a password that was typed on another system for the same', async () => {
    const parsed = parsePasswordHash(await hashPassword('u\u0308ber', { N: 1024, r: 1, p: 1 }));
    expect(parsed !== null && (await verifyPassword('\u00fcber', parsed))).toBe(true);
  });

  const salt = 'A'.repeat(22);
  const hash = 'A'.repeat(43);
  it.each([
    ['another scheme', `bcrypt$1024$8$1$${salt}$${hash}`],
    ['too cheap', `scrypt$512$8$1$${salt}$${hash}`],
    ['no power of two', `scrypt$1025$8$1$${salt}$${hash}`],
    ['too much memory', `scrypt$8388608$8$1$${salt}$${hash}`],
    ['too long', `scrypt$1024$8$99$${salt}$${hash}`],
    ['a short salt', `scrypt$1024$8$1$AAAA$${hash}`],
    ['a short hash', `scrypt$1024$8$1$${salt}$AAAA`],
    ['plain text', WORD],
    ['nothing', ''],
  ])('%s is refused', (_name, text) => {
    expect(parsePasswordHash(text)).toBeNull();
  });
});

describe('bounded map', () => {
  it('drops what was used longest ago, and what is old', () => {
    let now = 0;
    const map = new BoundedMap<number>(2, 10, () => now);
    map.set('a', 1);
    map.set('b', 2);
    expect(map.get('a')).toBe(1);
    map.set('c', 3);
    expect([map.get('a'), map.get('b'), map.get('c'), map.size]).toEqual([1, undefined, 3, 2]);
    now = 11;
    expect(map.get('a')).toBeUndefined();
  });
});
