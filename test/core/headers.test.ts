import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  endToEndHeaders,
  hasHeader,
  headerValue,
  headerValues,
  listTokens,
  withoutHeaders,
} from '../../src/core/headers.ts';

const sample = ['Host', 'example.com', 'Set-Cookie', 'a=1', 'set-cookie', 'b=2', 'X-Empty', ''];

describe('reading headers', () => {
  it('finds every value of a repeated header in wire order, whatever the case', () => {
    expect(headerValues(sample, 'set-cookie')).toEqual(['a=1', 'b=2']);
    expect(headerValues(sample, 'cookie')).toEqual([]);
  });

  it('finds the first value', () => {
    expect(headerValue(sample, 'set-cookie')).toBe('a=1');
    expect(headerValue(sample, 'cookie')).toBeUndefined();
  });

  it('tells an empty header from a missing one', () => {
    expect(hasHeader(sample, 'x-empty')).toBe(true);
    expect(headerValue(sample, 'x-empty')).toBe('');
    expect(hasHeader(sample, 'x-none')).toBe(false);
  });

  it('never takes a value for a name', () => {
    expect(headerValue(['X-A', 'host', 'Host', 'example.com'], 'host')).toBe('example.com');
  });

  it('splits lists over several lines, lower-cased, without empty elements', () => {
    expect(listTokens(['Connection', 'Keep-Alive, ,X-One', 'connection', ',close,'], 'connection')).toEqual([
      'keep-alive',
      'x-one',
      'close',
    ]);
  });
});

describe('withoutHeaders', () => {
  it('drops by name in any case and keeps order, case and duplicates of the rest', () => {
    expect(withoutHeaders(sample, new Set(['host', 'x-empty']))).toEqual(['Set-Cookie', 'a=1', 'set-cookie', 'b=2']);
  });
});

describe('what travels on to the next connection', () => {
  it.each([
    'Connection',
    'Keep-Alive',
    'Proxy-Connection',
    'Proxy-Authenticate',
    'Proxy-Authorization',
    'TE',
    'Trailer',
    'Transfer-Encoding',
    'Upgrade',
    'HTTP2-Settings',
  ])('is without %s', (name) => {
    expect(endToEndHeaders(['Accept', '*/*', name, 'x', 'Via', 'y'])).toEqual(['Accept', '*/*', 'Via', 'y']);
  });

  it('is without what Connection names', () => {
    expect(endToEndHeaders(['Connection', 'close, X-Hop', 'x-hop', '1', 'X-HOP', '2', 'X-Stay', '3'])).toEqual([
      'X-Stay',
      '3',
    ]);
  });

  it.each(['Host', 'Content-Length', 'Content-Type', 'Authorization', 'Cookie'])(
    'keeps %s although Connection names it',
    (name) => {
      expect(endToEndHeaders(['Connection', name, name, 'value'])).toEqual([name, 'value']);
    },
  );

  it('is without the names that the caller adds', () => {
    expect(endToEndHeaders(['Alt-Svc', 'h3', 'Server', 'x'], new Set(['alt-svc']))).toEqual(['Server', 'x']);
  });

  it('is an ordered part of what came, and the same when it is cleaned twice', () => {
    const name = fc.constantFrom('Connection', 'X-A', 'x-a', 'TE', 'Host', 'Upgrade', 'Cookie');
    const value = fc.constantFrom('x-a', 'close', 'host, te', '', 'cookie,x-b');
    fc.assert(
      fc.property(fc.array(fc.tuple(name, value)), (pairs) => {
        const headers = pairs.flat();
        const kept = endToEndHeaders(headers);
        let from = 0;
        for (let i = 0; i < kept.length; i += 2) {
          while (from < headers.length && (headers[from] !== kept[i] || headers[from + 1] !== kept[i + 1])) from += 2;
          expect(from).toBeLessThan(headers.length);
          from += 2;
        }
        expect(endToEndHeaders(kept)).toEqual(kept);
      }),
    );
  });
});
