import { canonicalHost, isIpLiteral } from './url.ts';

/** A range of addresses. IPv4-mapped ranges are the IPv4 ranges that they map. */
export interface Cidr {
  readonly family: 4 | 6;
  /** First address of the range. */
  readonly first: bigint;
  readonly bits: number;
  /** Canonical spelling, with its prefix length. */
  readonly text: string;
}

/** An address as a number; compares with ranges of the same family. */
export interface AddressNumber {
  readonly family: 4 | 6;
  readonly value: bigint;
}

/**
 * Reads `10.0.0.0/8`, `fd00::/8`, or a single address.
 * @returns a sentence about what is wrong with it instead, when something is
 */
export function parseCidr(text: string): Cidr | string {
  const slash = text.indexOf('/');
  const address = slash === -1 ? text : text.slice(0, slash);
  const canonical = address.includes('[') ? null : canonicalHost(address);
  // `10.1` and `0x0a000001` are addresses to some programs and typing mistakes to people.
  if (canonical === null || !isIpLiteral(canonical) || (canonical !== address && !address.includes(':'))) {
    return 'is no IP address or range such as 10.0.0.0/8';
  }
  const { family, value } = numberOf(canonical);
  const width = family === 4 ? 32 : 128;
  const spelledWidth = address.includes(':') ? 128 : 32;
  const lengthText = slash === -1 ? String(spelledWidth) : text.slice(slash + 1);
  const bits = Number(lengthText) - (spelledWidth - width);
  if (!/^(?:0|[1-9][0-9]{0,2})$/.test(lengthText) || bits < 0 || bits > width) {
    return `has no valid prefix length (0 to ${spelledWidth})`;
  }
  const shift = BigInt(width - bits);
  const first = (value >> shift) << shift;
  const spelled = `${addressText(family, first)}/${bits}`;
  if (first !== value) return `has bits set after its prefix; did you mean ${spelled}?`;
  return { family, first, bits, text: spelled };
}

/** Reads an address in any spelling; IPv4-mapped IPv6 becomes IPv4, a zone is dropped. Null for anything else. */
export function parseAddress(text: string): AddressNumber | null {
  const canonical = canonicalHost(text.replace(/%.*$/, ''));
  return canonical === null || !isIpLiteral(canonical) ? null : numberOf(canonical);
}

export function cidrContains(cidr: Cidr, address: AddressNumber): boolean {
  if (cidr.family !== address.family) return false;
  const shift = BigInt((cidr.family === 4 ? 32 : 128) - cidr.bits);
  return address.value >> shift === cidr.first >> shift;
}

function numberOf(canonical: string): AddressNumber {
  if (!canonical.includes(':')) {
    const value = canonical.split('.').reduce((sum, part) => sum * 256n + BigInt(part), 0n);
    return { family: 4, value };
  }
  const [head = '', tail] = canonical.split('::');
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = Array.from({ length: tail === undefined ? 0 : 8 - left.length - right.length }, () => '0');
  const value = [...left, ...zeros, ...right].reduce((sum, group) => sum * 65536n + BigInt(`0x${group}`), 0n);
  return { family: 6, value };
}

function addressText(family: 4 | 6, value: bigint): string {
  if (family === 4) return [24n, 16n, 8n, 0n].map((shift) => String((value >> shift) & 255n)).join('.');
  const groups = Array.from({ length: 8 }, (_, i) => ((value >> BigInt(112 - i * 16)) & 65535n).toString(16));
  return canonicalHost(groups.join(':')) ?? groups.join(':');
}
