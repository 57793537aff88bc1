import { describe, expect, it } from 'vitest';
import { CertificateError } from '../../src/core/errors.ts';
import type { Leaf } from '../../src/tls/authority.ts';
import { LeafCache } from '../../src/tls/leaf-cache.ts';
import { testCa } from './support.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** A mint with a clock of its own that counts, and can be held or made to fail. */
async function fixture(lifeMs = 7 * DAY_MS) {
  const { cert, key } = await (await testCa()).issue('a.example.com');
  const state = {
    nowMs: Date.UTC(2026, 0, 1),
    minted: [] as string[],
    running: 0,
    mostRunning: 0,
    fail: false,
    gate: Promise.resolve(),
  };
  const authority = {
    async mintLeaf(host: string): Promise<Leaf> {
      state.minted.push(host);
      state.running += 1;
      state.mostRunning = Math.max(state.mostRunning, state.running);
      await state.gate;
      state.running -= 1;
      if (state.fail) throw new CertificateError('certificate_failed');
      return { certificateChainPem: cert, keyPem: key, notAfterMs: state.nowMs + lifeMs };
    },
  };
  return { state, cache: (max: number) => new LeafCache(authority, { max, now: () => state.nowMs }) };
}

/** Lets background renewals finish: each needs a few turns of the event loop. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

describe('LeafCache', () => {
  it('mints once per host however many ask at the same time, and then answers at once', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(10);
    const contexts = await Promise.all(Array.from({ length: 20 }, async () => leaves.get('a.example.com')));
    expect(new Set(contexts).size).toBe(1);
    expect(state.minted).toEqual(['a.example.com']);
    expect(leaves.get('a.example.com')).toBe(contexts[0]);
  });

  it('keeps as many hosts as it may and drops the one used longest ago', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(2);
    await leaves.get('one.example');
    await leaves.get('two.example');
    await leaves.get('one.example');
    await leaves.get('three.example');
    expect(leaves.size).toBe(2);
    expect(leaves.get('one.example')).not.toBeInstanceOf(Promise);
    expect(leaves.get('three.example')).not.toBeInstanceOf(Promise);
    await leaves.get('two.example');
    expect(state.minted).toEqual(['one.example', 'two.example', 'three.example', 'two.example']);
  });

  it('renews in the background at half life, while the old leaf still serves', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(10);
    const old = await leaves.get('a.example.com');
    state.nowMs += 3 * DAY_MS;
    expect(leaves.get('a.example.com')).toBe(old);
    expect(state.minted).toHaveLength(1);
    state.nowMs += DAY_MS;
    expect(leaves.get('a.example.com')).toBe(old);
    expect(leaves.get('a.example.com')).toBe(old);
    await settle();
    expect(state.minted).toHaveLength(2);
    expect(leaves.get('a.example.com')).not.toBe(old);
    expect(leaves.size).toBe(1);
  });

  it('keeps serving when a renewal fails, tries again after a minute, and fails once the leaf has ended', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(10);
    const old = await leaves.get('a.example.com');
    state.fail = true;
    state.nowMs += 4 * DAY_MS;
    for (let attempt = 0; attempt < 3; attempt += 1) {
      expect(leaves.get('a.example.com')).toBe(old);
      await settle();
    }
    expect(state.minted).toHaveLength(2);
    state.nowMs += 61_000;
    expect(leaves.get('a.example.com')).toBe(old);
    await settle();
    expect(state.minted).toHaveLength(3);
    state.nowMs += 3 * DAY_MS;
    await expect(leaves.get('a.example.com')).rejects.toThrow(CertificateError);
    state.fail = false;
    await expect(leaves.get('a.example.com')).resolves.toBeDefined();
  });

  it('shows no leaf that is about to end, nor one from a future that the clock took back', async () => {
    const { state, cache } = await fixture(HOUR_MS);
    const leaves = cache(10);
    await leaves.get('a.example.com');
    state.nowMs += HOUR_MS - 4 * 60_000;
    await leaves.get('a.example.com');
    expect(state.minted).toHaveLength(2);
    state.nowMs -= DAY_MS;
    await leaves.get('a.example.com');
    expect(state.minted).toHaveLength(3);
  });

  it('works on few hosts at a time, in the order in which they came', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(100);
    const hosts = Array.from({ length: 50 }, (_, index) => `h${index}.example`);
    const ready: string[] = [];
    await Promise.all(hosts.map((host) => Promise.resolve(leaves.get(host)).then(() => ready.push(host))));
    expect(state.mostRunning).toBe(2);
    expect(state.minted).toEqual(hosts);
    expect(ready).toEqual(hosts);
  });

  it('lets the event loop turn between two new hosts', async () => {
    const { cache } = await fixture();
    const leaves = cache(100);
    let turns = 0;
    let isDone = false;
    const count = (): void => {
      turns += 1;
      if (!isDone) setImmediate(count);
    };
    setImmediate(count);
    await Promise.all(Array.from({ length: 40 }, async (_, index) => leaves.get(`h${index}.example`)));
    isDone = true;
    expect(turns).toBeGreaterThanOrEqual(20);
  });

  it('refuses a flood of new hosts instead of remembering them all', async () => {
    const { state, cache } = await fixture();
    let open: (() => void) | undefined;
    state.gate = new Promise<void>((resolve) => (open = resolve));
    const leaves = cache(4);
    const asked = Array.from({ length: 4200 }, (_, index) => Promise.resolve(leaves.get(`h${index}.example`)));
    const refused = asked.slice(4096).map((one) => expect(one).rejects.toThrow('Too many new hosts'));
    await Promise.all(refused);
    state.fail = true;
    open?.();
    const rest = await Promise.allSettled(asked);
    expect(rest.every(({ status }) => status === 'rejected')).toBe(true);
    state.fail = false;
    await expect(leaves.get('h0.example')).resolves.toBeDefined();
  });

  it('forgets a failure: the next one who asks gets another try', async () => {
    const { state, cache } = await fixture();
    const leaves = cache(4);
    state.fail = true;
    await expect(leaves.get('a.example.com')).rejects.toThrow(CertificateError);
    state.fail = false;
    await expect(leaves.get('a.example.com')).resolves.toBeDefined();
    expect(leaves.size).toBe(1);
  });
});
