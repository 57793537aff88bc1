import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatLimit } from '../../src/config/schema.ts';
import { parseListenAddress, parseQuantity } from '../../src/config/values.ts';

describe('sizes, durations and counts', () => {
  const good: readonly (readonly [text: string, unit: 'size' | 'duration' | 'count', number: number])[] = [
    ['65536', 'size', 65_536],
    ['64KiB', 'size', 65_536],
    ['64 KiB', 'size', 65_536],
    ['64kb', 'size', 64_000],
    ['16MB', 'size', 16_000_000],
    ['1.5MiB', 'size', 1_572_864],
    ['7b', 'size', 7],
    ['30s', 'duration', 30_000],
    ['0.5s', 'duration', 500],
    ['0.001s', 'duration', 1],
    ['5m', 'duration', 300_000],
    ['5min', 'duration', 300_000],
    ['2h', 'duration', 7_200_000],
    ['250ms', 'duration', 250],
    ['250', 'duration', 250],
    ['12', 'count', 12],
  ];
  it.each(good)('%s is a %s of %d', (text, unit, number) => {
    expect(parseQuantity(text, text, unit)).toBe(number);
  });

  const bad: readonly (readonly [text: string, unit: 'size' | 'duration' | 'count'])[] = [
    ['', 'size'],
    ['-1', 'size'],
    ['1e3', 'count'],
    ['0x10', 'count'],
    ['1s', 'size'],
    ['1KiB', 'duration'],
    ['1k', 'count'],
    ['1.5', 'count'],
    ['1.0001ms', 'duration'],
    ['99999999999999999', 'count'],
    ['1 000', 'count'],
    ['Infinity', 'count'],
  ];
  it.each(bad)('%j is no %s', (text, unit) => {
    expect(parseQuantity(text, text, unit)).toBeNull();
  });

  it('what is printed reads back to the same number', () => {
    fc.assert(
      fc.property(fc.constantFrom('size', 'duration', 'count'), fc.nat(2_000_000_000), (unit, number) => {
        const text = formatLimit(unit, number);
        expect(parseQuantity(text, text, unit)).toBe(number);
      }),
    );
  });

  it('no text throws', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const number = parseQuantity(text, text, 'size');
        expect(number === null || Number.isSafeInteger(number)).toBe(true);
      }),
    );
  });
});

describe('addresses to listen on', () => {
  it.each([
    ['127.0.0.1:8080', '127.0.0.1', 8080],
    ['[::1]:0', '::1', 0],
    ['localhost:65535', 'localhost', 65_535],
    ['0.0.0.0:80', '0.0.0.0', 80],
    ['Proxy.Example.com:1', 'proxy.example.com', 1],
  ])('%s', (text, host, port) => {
    expect(parseListenAddress(text)).toEqual({ host, port });
  });

  it.each([
    '',
    '8080',
    ':8080',
    'localhost',
    '::1:8080',
    '[::1]',
    '[::1',
    '127.0.0.1:',
    'a:b',
    'a:99999',
    'a b:1',
    'http://a:1',
  ])('%j is none', (text) => {
    expect(typeof parseListenAddress(text)).toBe('string');
  });
});
