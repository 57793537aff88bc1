import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  canonicalHost,
  formatAuthority,
  isIpLiteral,
  normalizePath,
  parseAbsoluteUrl,
  parseAuthority,
  pathReadings,
} from '../../src/core/url.ts';

const anyText = fc.oneof(
  fc.string(),
  fc.string({ unit: 'binary' }),
  fc.string({ unit: fc.constantFrom(...Array.from('aA0.:[]%/\\@-_x。．１\u00ad\u200b\ud800 \t')), maxLength: 40 }),
);
const label = fc
  .stringMatching(/^[a-z_][a-z0-9_-]{0,20}$/)
  .filter((text) => !text.startsWith('xn--') && !/^[0-9]+$/.test(text));
const name = fc.array(label, { minLength: 1, maxLength: 4 }).map((labels) => labels.join('.'));
const octet = fc.integer({ min: 0, max: 255 });
const quad = fc.tuple(octet, octet, octet, octet);
const group = fc.integer({ min: 0, max: 0xffff });
const groups = fc.tuple(group, group, group, group, group, group, group, group);
const port = fc.integer({ min: 1, max: 65_535 });
const mixCase = (text: string, upper: readonly boolean[]): string =>
  Array.from(text)
    .map((letter, i) => (upper[i % upper.length] === true ? letter.toUpperCase() : letter))
    .join('');
const casing = fc.array(fc.boolean(), { minLength: 1 });

describe('hosts', () => {
  test('any text gives a canonical host or nothing, and a canonical host stays as it is', () => {
    fc.assert(
      fc.property(anyText, (text) => {
        const host = canonicalHost(text);
        if (host === null) return;
        expect(host).toMatch(/^(?:[a-z0-9_.-]{1,253}|[0-9a-f:]{2,39})$/);
        expect(canonicalHost(host)).toBe(host);
      }),
      { numRuns: 2000 },
    );
  });

  test('case and a trailing dot make no difference', () => {
    fc.assert(
      fc.property(name, casing, (text, upper) => {
        expect(canonicalHost(mixCase(text, upper))).toBe(text);
        expect(canonicalHost(`${mixCase(text, upper)}.`)).toBe(text);
      }),
    );
  });

  test('all spellings of an IPv4 address are one', () => {
    fc.assert(
      fc.property(quad, ([a, b, c, d]) => {
        const canonical = `${a}.${b}.${c}.${d}`;
        const number = ((a * 256 + b) * 256 + c) * 256 + d;
        const hex = (value: number): string => value.toString(16);
        const spellings = [
          canonical,
          `${canonical}.`,
          String(number),
          `0x${hex(number)}`,
          `0${number.toString(8)}`,
          `${a}.${b}.${c * 256 + d}`,
          `${a}.${(b * 256 + c) * 256 + d}`,
          `0x${hex(a)}.0${b.toString(8)}.${c}.${d}`,
          `::ffff:${canonical}`,
          `[::ffff:${hex(a * 256 + b)}:${hex(c * 256 + d)}]`,
          `0:0:0:0:0:FFFF:${canonical}`,
        ];
        for (const spelling of spellings) expect(canonicalHost(spelling)).toBe(canonical);
      }),
    );
  });

  test('all spellings of an IPv6 address are one', () => {
    fc.assert(
      fc.property(groups, casing, (parts, upper) => {
        const full = parts.map((part) => part.toString(16)).join(':');
        const padded = parts.map((part) => part.toString(16).padStart(4, '0')).join(':');
        const canonical = canonicalHost(full);
        expect(canonical).not.toBeNull();
        expect(isIpLiteral(canonical ?? '')).toBe(true);
        expect(canonicalHost(mixCase(padded, upper))).toBe(canonical);
        expect(canonicalHost(`[${full}]`)).toBe(canonical);
      }),
    );
  });
});

describe('authorities', () => {
  test('what is written can be read', () => {
    const host = fc.oneof(
      name,
      quad.map((parts) => parts.join('.')),
      groups.map((parts) => parts.map((part) => part.toString(16)).join(':')),
    );
    fc.assert(
      fc.property(host, port, (text, number) => {
        const destination = { host: canonicalHost(text) ?? '', port: number };
        expect(parseAuthority(formatAuthority(destination), null)).toEqual(destination);
        expect(parseAuthority(formatAuthority(destination, 443), 443)).toEqual(destination);
      }),
    );
  });

  test('any text gives a canonical destination or nothing', () => {
    const suffixed = fc
      .tuple(anyText, fc.constantFrom('', ':', ':1', ':0', ':65536', ':x'))
      .map((parts) => parts.join(''));
    fc.assert(
      fc.property(fc.oneof(anyText, suffixed), fc.option(port), (text, defaultPort) => {
        const destination = parseAuthority(text, defaultPort);
        if (destination === null) return;
        expect(canonicalHost(destination.host)).toBe(destination.host);
        expect(destination.port).toBeGreaterThan(0);
        expect(destination.port).toBeLessThan(65_536);
      }),
      { numRuns: 1000 },
    );
  });

  test('where WHATWG URL and we both read a URL, we read the same host, and we keep the target', () => {
    const url = fc.tuple(
      fc.constantFrom('http', 'https'),
      anyText,
      fc.constantFrom('', ':1', ':8080'),
      fc.constantFrom('', '/', '/a?b', '?c', '/%2e'),
    );
    fc.assert(
      fc.property(url, ([scheme, authority, suffix, target]) => {
        const text = `${scheme}://${authority}${suffix}${target}`;
        const ours = parseAbsoluteUrl(text);
        if (ours === null || !URL.canParse(text)) return;
        const theirs = new URL(text);
        expect(theirs.username).toBe('');
        expect(canonicalHost(theirs.hostname)).toBe(ours.destination.host);
        expect(Number(theirs.port || (ours.scheme === 'https' ? 443 : 80))).toBe(ours.destination.port);
        expect(text.endsWith(ours.target) || text.endsWith(ours.target.slice(1))).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});

describe('paths', () => {
  const piece = fc.constantFrom(
    '/',
    '/',
    'a',
    'B',
    '.',
    '..',
    '%2e',
    '%2E',
    '%2f',
    '%5C',
    '\\',
    ';',
    '%3b',
    '%61',
    '%25',
    '2e',
    '%',
    '%00',
    '?',
    '#',
    '|',
    ':',
    '%3A',
    'ü',
    ' ',
    '*',
    '%c0%ae',
    '%C3%BC',
    '~',
  );
  const target = fc.oneof(
    anyText,
    fc.array(piece, { maxLength: 12 }).map((parts) => `/${parts.join('')}`),
  );

  test('any text gives a normalized path or nothing, and a normalized path stays as it is', () => {
    fc.assert(
      fc.property(target, (text) => {
        const normalized = normalizePath(text);
        if (normalized === null) return;
        expect(normalizePath(normalized.path)).toEqual({ path: normalized.path, query: '' });
      }),
      { numRuns: 5000 },
    );
  });

  test('no reading of a normalized path has a dot segment', () => {
    fc.assert(
      fc.property(target, (text) => {
        const normalized = normalizePath(text);
        if (normalized === null) return;
        for (const reading of pathReadings(normalized.path)) {
          const decoded = decodeURIComponentOrRaw(reading);
          const segments = decoded.split('/').map((segment) => segment.replace(/;.*$/, ''));
          // `%25` decodes to a per cent sign here, never to part of a dot.
          expect(segments).not.toContain('..');
          expect(segments).not.toContain('.');
        }
      }),
      { numRuns: 5000 },
    );
  });

  test('escaping any character of a path that may be escaped changes nothing', () => {
    const segment = fc.stringMatching(/^[A-Za-z0-9\-_~!$&'()*+,=:@]{1,20}$/);
    fc.assert(
      fc.property(fc.array(segment, { minLength: 1, maxLength: 5 }), casing, casing, (segments, escape, upper) => {
        const plain = `/${segments.join('/')}`;
        const escaped = Array.from(plain)
          .map((letter, i) => {
            if (letter === '/' || escape[i % escape.length] !== true) return letter;
            return mixCase(`%${letter.charCodeAt(0).toString(16).padStart(2, '0')}`, upper);
          })
          .join('');
        expect(normalizePath(escaped)).toEqual({ path: plain, query: '' });
      }),
    );
  });
});

function decodeURIComponentOrRaw(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
