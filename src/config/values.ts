import { isAbsolute, resolve } from 'node:path';
import { parseCidr } from '../core/cidr.ts';
import { described, nearest, quoted } from '../core/located.ts';
import type { Located, LocatedMap, Place, Problems } from '../core/located.ts';
import type { ListenAddress } from '../core/settings.ts';
import { canonicalHost, isIpLiteral } from '../core/url.ts';
import type { LimitKey } from './schema.ts';
import { formatLimit } from './schema.ts';

/**
 * Readers for single values. Each takes a value with its place and gives the typed value, or null after it has noted what is wrong,
 * with the value and a remedy.
 */

/** Longest text of a value; none of ours comes near. */
const MAX_TEXT = 4096;

/** Text that is not empty. Numbers and booleans are taken as they were written: `name: 007` is the name `007`. */
export function readText(value: Located, problems: Problems, what: string): string | null {
  if (value.type !== 'scalar' || value.value === null) {
    problems.add(value.at, `${what} expected here, found ${described(value)}`);
    return null;
  }
  const text = typeof value.value === 'string' ? value.value : value.text;
  if (text === '' || text.length > MAX_TEXT || /[\x00-\x1f\x7f]/.test(text)) {
    problems.add(value.at, `${what} expected here, found ${text === '' ? 'an empty text' : quoted(text)}`);
    return null;
  }
  return text;
}

/** One of a few words. */
export function readChoice<const Word extends string>(
  value: Located,
  words: readonly Word[],
  problems: Problems,
): Word | null {
  const found = value.type === 'scalar' ? words.find((word) => word === value.value) : undefined;
  if (found !== undefined) return found;
  const near = value.type === 'scalar' ? nearest(value.text, words) : null;
  const hint = near === null ? '' : `; did you mean ${quoted(near)}?`;
  problems.add(value.at, `${described(value)} is none of ${words.join(', ')}${hint}`);
  return null;
}

export function readBoolean(value: Located, problems: Problems): boolean | null {
  if (value.type === 'scalar') {
    if (value.value === true || value.value === 'true') return true;
    if (value.value === false || value.value === 'false') return false;
  }
  problems.add(value.at, `${described(value)} is neither true nor false`);
  return null;
}

/** A path made absolute from the folder of the file, or the working folder for variables and flags. */
export function readPath(value: Located, base: string, problems: Problems): string | null {
  const text = readText(value, problems, 'a path');
  if (text === null) return null;
  return isAbsolute(text) ? resolve(text) : resolve(base, text);
}

/** A list, or one item where a list of one is meant. */
export function readList<Item>(value: Located, read: (item: Located) => Item | null): Item[] {
  const items = value.type === 'list' ? value.items : [value];
  return items.map(read).filter((item) => item !== null);
}

const UNITS: Readonly<Record<'size' | 'duration', Readonly<Record<string, number>>>> = {
  size: {
    b: 1,
    kib: 1024,
    mib: 1024 ** 2,
    gib: 1024 ** 3,
    kb: 1000,
    mb: 1000 ** 2,
    gb: 1000 ** 3,
  },
  duration: { ms: 1, s: 1000, m: 60_000, min: 60_000, h: 3_600_000 },
};

const EXAMPLE = { size: '65536, 64KiB or 16MB', duration: '30000, 30s or 5m', count: '1000' } as const;

/** A size, a duration or a count within its range. Plain numbers are bytes and milliseconds. */
export function readLimit(value: Located, limit: LimitKey, problems: Problems): number | null {
  const number = value.type === 'scalar' ? parseQuantity(value.value, value.text, limit.unit) : null;
  if (number === null) {
    const kind = limit.unit === 'count' ? 'a whole number' : `a ${limit.unit}`;
    problems.add(value.at, `${described(value)} is not ${kind}; write for example ${EXAMPLE[limit.unit]}`);
    return null;
  }
  if (number < limit.min || number > limit.max) {
    const { unit, min, max } = limit;
    problems.add(
      value.at,
      `${described(value)} is out of range; allowed is ${formatLimit(unit, min)} to ${formatLimit(unit, max)}`,
    );
    return null;
  }
  return number;
}

/** @returns a whole number of bytes, milliseconds or things; null if the text is no such number */
export function parseQuantity(value: unknown, text: string, unit: LimitKey['unit']): number | null {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? value : null;
  if (typeof value !== 'string') return null;
  const match = /^([0-9]{1,16}(?:\.[0-9]{1,6})?) ?([a-z]{0,3})$/i.exec(text.trim());
  if (match === null) return null;
  const [, digits = '', suffix = ''] = match;
  let factor = 1;
  if (suffix !== '') {
    if (unit === 'count') return null;
    // `hasOwn`: a unit named `constructor` would be found otherwise.
    const word = suffix.toLowerCase();
    if (!Object.hasOwn(UNITS[unit], word)) return null;
    factor = UNITS[unit][word] ?? 1;
  }
  // In whole numbers, for decimal fractions are off by a hair in binary: `0.001s` is 1 ms, `1.0001ms` is nothing.
  const [whole = '', fraction = ''] = digits.split('.');
  const scaled = BigInt(whole + fraction) * BigInt(factor);
  const scale = 10n ** BigInt(fraction.length);
  const number = Number(scaled / scale);
  return scaled % scale === 0n && Number.isSafeInteger(number) ? number : null;
}

const ADDRESS_HELP = 'write host:port, for example 127.0.0.1:8080 or [::1]:8080';

/** `127.0.0.1:8080`, `[::1]:8080`, `localhost:0`. */
export function readListenAddress(value: Located, problems: Problems): ListenAddress | null {
  const text = readText(value, problems, 'an address');
  if (text === null) return null;
  const address = parseListenAddress(text);
  if (typeof address === 'string') {
    problems.add(value.at, `${quoted(text)} ${address}`);
    return null;
  }
  return address;
}

/** @returns a sentence about what is wrong with it instead, when something is */
export function parseListenAddress(text: string): ListenAddress | string {
  const match = /^(\[[^\]]*\]|[^:[\]]*):([0-9]{1,5})$/.exec(text);
  if (match === null) return `is not an address to listen on; ${ADDRESS_HELP}`;
  const [, hostText = '', portText = ''] = match;
  if (hostText === '') return `names no host; write 127.0.0.1:${portText}, or 0.0.0.0:${portText} for all addresses`;
  const host = canonicalHost(hostText);
  if (host === null) return `has no valid host; ${ADDRESS_HELP}`;
  const port = Number(portText);
  return port <= 65_535 ? { host, port } : 'has a port above 65535';
}

/** A CIDR or a single address, kept as it was written. */
export function readCidrText(value: Located, problems: Problems): string | null {
  const text = readText(value, problems, 'an address or range');
  if (text === null) return null;
  const cidr = parseCidr(text);
  if (typeof cidr !== 'string') return text;
  problems.add(value.at, `${quoted(text)} ${cidr}`);
  return null;
}

/** An IP address with an optional port: `127.0.0.1`, `127.0.0.1:9443`, `::1`, `[::1]:9443`. */
export function readAddressWithPort(
  value: Located,
  problems: Problems,
): { readonly address: string; readonly port: number | null } | null {
  const text = readText(value, problems, 'an address');
  if (text === null) return null;
  const whole = canonicalHost(text);
  if (whole !== null && isIpLiteral(whole)) return { address: whole, port: null };
  const split = parseListenAddress(text);
  if (typeof split !== 'string' && split.port > 0 && isIpLiteral(split.host)) {
    return { address: split.host, port: split.port };
  }
  problems.add(value.at, `${quoted(text)} is no IP address or address:port; names cannot stand here`);
  return null;
}

/** Values of a mapping whose keys are known; others are problems with the nearest key named. */
export function readFields(
  value: Located,
  known: readonly string[],
  problems: Problems,
  what: string,
): { readonly at: Place; readonly fields: ReadonlyMap<string, Located> } | null {
  if (value.type !== 'map') {
    problems.add(value.at, `${what} expected here (${known.join(', ')}), found ${described(value)}`);
    return null;
  }
  const fields = new Map<string, Located>();
  for (const entry of value.entries) {
    if (known.includes(entry.key)) fields.set(entry.key, entry.value);
    else problems.add(entry.keyAt, unknownKey(entry.key, known));
  }
  return { at: value.at, fields };
}

/** `unknown key "lsten"; did you mean "listen"?` */
export function unknownKey(key: string, known: readonly string[]): string {
  const near = nearest(key, known);
  const hint = near === null ? `; allowed are ${known.join(', ')}` : `; did you mean ${quoted(near)}?`;
  return `unknown key ${quoted(key)}${hint}`;
}

/** True for a mapping, for readers that take several forms. */
export function isMapping(value: Located): value is LocatedMap {
  return value.type === 'map';
}
