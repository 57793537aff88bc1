import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { UpstreamError } from '../../src/core/errors.ts';
import { Resolver, type Lookup } from '../../src/proxy/resolve.ts';

afterEach(() => vi.useRealTimers());

/** A name server in the test's hands: each lookup waits until it is answered. */
class Names {
  readonly asked: string[] = [];
  readonly #open: { readonly name: string; readonly answer: Parameters<Lookup>[1] }[] = [];
  readonly lookup: Lookup = (name, answer) => {
    this.asked.push(name);
    this.#open.push({ name, answer });
  };

  answer(...addresses: readonly string[]): void {
    this.#open.shift()?.answer(null, addresses);
  }

  fail(code: string): void {
    this.#open.shift()?.answer(Object.assign(new Error(code), { code }), []);
  }
}

const answering =
  (...addresses: readonly string[]): Lookup =>
  (_name, callback) =>
    callback(null, addresses);

describe('a destination', () => {
  test.each(['127.0.0.1', '::1'])('that is the literal %s is itself and never looked up', async (host) => {
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup });
    expect(await resolver.resolve(host, 443)).toEqual([{ address: host, port: 443, source: 'literal' }]);
    expect(names.asked).toEqual([]);
  });

  test('gets all addresses in the order of the answer, once each, in canonical form', async () => {
    const lookup = answering('2001:DB8:0::1', '192.0.2.1', '::ffff:192.0.2.1', 'fe80::1%eth0');
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup });
    expect(await resolver.resolve('example.com', 80)).toEqual([
      { address: '2001:db8::1', port: 80, source: 'dns' },
      { address: '192.0.2.1', port: 80, source: 'dns' },
    ]);
  });

  test('is looked up by the system by default', async () => {
    const resolver = new Resolver({ hosts: {}, dnsMs: 5000 });
    const addresses = await resolver.resolve('localhost', 80);
    expect(addresses.every(({ address }) => ['127.0.0.1', '::1'].includes(address))).toBe(true);
  });
});

describe('upstream.hosts', () => {
  const hosts = {
    'api.example.com': { address: '127.0.0.1', port: 9443 },
    'plain.example.com': { address: '::1', port: null },
    'plain.example.com:8443': { address: '10.0.0.1', port: null },
    '192.0.2.1': { address: '127.0.0.2', port: null },
    'other.example.com': { address: 'Alias.example.com', port: 1 },
  };

  test.each([
    ['api.example.com', 443, '127.0.0.1', 9443],
    ['plain.example.com', 443, '::1', 443],
    ['plain.example.com', 8443, '10.0.0.1', 8443],
    ['192.0.2.1', 80, '127.0.0.2', 80],
  ])('sends %s:%i to %s:%i without a lookup', async (host, port, address, finalPort) => {
    const names = new Names();
    const resolver = new Resolver({ hosts, dnsMs: 1000, lookup: names.lookup });
    expect(await resolver.resolve(host, port)).toEqual([{ address, port: finalPort, source: 'override' }]);
    expect(names.asked).toEqual([]);
  });

  test('may name another host', async () => {
    const resolver = new Resolver({ hosts, dnsMs: 1000, lookup: answering('192.0.2.9') });
    expect(await resolver.resolve('other.example.com', 80)).toEqual([
      { address: '192.0.2.9', port: 1, source: 'override' },
    ]);
  });
});

describe('a lookup', () => {
  test('that fails is dns_failed with the cause', async () => {
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup });
    const failed = resolver.resolve('nowhere.example', 80);
    names.fail('ENOTFOUND');
    await expect(failed).rejects.toMatchObject({ code: 'dns_failed', cause: { code: 'ENOTFOUND' } });
  });

  test.each([[[]], [['fe80::1%eth0', 'garbage']]])('that answers %j is dns_failed', async (addresses) => {
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: answering(...addresses) });
    await expect(resolver.resolve('a.example', 80)).rejects.toMatchObject({ code: 'dns_failed' });
  });

  test('that hangs is dns_timeout, and its late answer harms nobody', async () => {
    vi.useFakeTimers();
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup });
    const hung = expect(resolver.resolve('slow.example', 80)).rejects.toMatchObject({ code: 'dns_timeout' });
    vi.advanceTimersByTime(1000);
    await hung;
    names.answer('192.0.2.1');
    await expect(resolver.resolve('slow.example', 80)).rejects.toBeInstanceOf(UpstreamError);
  });

  test('is shared by all who ask for the name meanwhile, and for five seconds', async () => {
    let nowMs = 0;
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup, now: () => nowMs });
    const both = Promise.all([resolver.resolve('a.example', 80), resolver.resolve('a.example', 443)]);
    names.answer('192.0.2.1');
    expect(await both).toEqual([
      [{ address: '192.0.2.1', port: 80, source: 'dns' }],
      [{ address: '192.0.2.1', port: 443, source: 'dns' }],
    ]);
    nowMs = 4999;
    await resolver.resolve('a.example', 80);
    expect(names.asked).toHaveLength(1);
    nowMs = 5000;
    const again = resolver.resolve('a.example', 80);
    names.answer('192.0.2.2');
    expect(await again).toMatchObject([{ address: '192.0.2.2' }]);
    expect(names.asked).toHaveLength(2);
  });

  test('that failed is not repeated for a second', async () => {
    let nowMs = 0;
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup, now: () => nowMs });
    const failed = resolver.resolve('a.example', 80);
    names.fail('EAI_AGAIN');
    await expect(failed).rejects.toMatchObject({ code: 'dns_failed' });
    await expect(resolver.resolve('a.example', 80)).rejects.toMatchObject({ code: 'dns_failed' });
    nowMs = 1000;
    const again = resolver.resolve('a.example', 80);
    names.answer('192.0.2.1');
    expect(await again).toHaveLength(1);
  });

  test('waits for its turn when as many as allowed are running', async () => {
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup, maxLookups: 2 });
    const all = ['a', 'b', 'c'].map((name) => resolver.resolve(name, 80));
    expect(names.asked).toEqual(['a', 'b']);
    names.answer('192.0.2.1');
    expect(names.asked).toEqual(['a', 'b', 'c']);
    names.answer('192.0.2.2');
    names.answer('192.0.2.3');
    expect((await Promise.all(all)).flat().map(({ address }) => address)).toEqual([
      '192.0.2.1',
      '192.0.2.2',
      '192.0.2.3',
    ]);
  });

  test('that waits too long for its turn is dns_timeout and never starts', async () => {
    vi.useFakeTimers();
    const names = new Names();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: names.lookup, maxLookups: 1 });
    const all = Promise.allSettled([resolver.resolve('a', 80), resolver.resolve('b', 80)]);
    vi.advanceTimersByTime(1000);
    expect(await all).toMatchObject([{ reason: { code: 'dns_timeout' } }, { reason: { code: 'dns_timeout' } }]);
    names.answer('192.0.2.1');
    expect(names.asked).toEqual(['a']);
  });

  test('is refused when too many wait already', async () => {
    vi.useFakeTimers();
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup: new Names().lookup, maxLookups: 1 });
    const all = Promise.allSettled(Array.from({ length: 1002 }, (_, i) => resolver.resolve(`n${i}`, 80)));
    await expect(resolver.resolve('one-more', 80)).rejects.toMatchObject({ code: 'dns_failed' });
    vi.advanceTimersByTime(1000);
    await all;
  });

  test('of one more name than are remembered pushes out the oldest', async () => {
    const asked: string[] = [];
    const lookup: Lookup = (name, callback) => {
      asked.push(name);
      callback(null, ['192.0.2.1']);
    };
    const resolver = new Resolver({ hosts: {}, dnsMs: 1000, lookup, now: () => 0 });
    for (let i = 0; i <= 1000; i++) await resolver.resolve(`n${i}`, 80);
    await nextTurn();
    asked.length = 0;
    await resolver.resolve('n1000', 80);
    await resolver.resolve('n0', 80);
    expect(asked).toEqual(['n0']);
  });
});
