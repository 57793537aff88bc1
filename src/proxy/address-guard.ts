import { networkInterfaces } from 'node:os';
import { ConfigError } from '../core/errors.ts';
import type { ListenAddress } from '../core/settings.ts';
import { canonicalHost, isIpLiteral } from '../core/url.ts';

/** Why an address is refused. Safe for the agent: it names a registered range, not the address. */
export interface AddressRefusal {
  /** CIDR of the range that refuses. */
  readonly range: string;
  /** Kind of that range in a word or two: `private`, `loopback`, `metadata`, … */
  readonly reason: string;
}

export interface AddressGuardOptions {
  /** CIDRs or single addresses from `addresses.allow`. */
  readonly allow: readonly string[];
  /** Where this process listens (proxy and admin), asked at every check because ports may be chosen at start. */
  readonly ownListeners: () => readonly ListenAddress[];
  /** Addresses of this machine; `os.networkInterfaces` by default. */
  readonly localAddresses?: () => readonly string[];
}

/** An address or a prefix: 32-bit words, one for IPv4, four for IPv6. */
interface Prefix {
  readonly words: readonly number[];
  readonly bits: number;
}
interface Range extends Prefix, AddressRefusal {}

/**
 * Services that hand out credentials or control a host. They are refused even inside an allowed range; only an allow entry that names
 * the single address (/32, /128) opens one.
 */
const METADATA: readonly string[] = [
  '169.254.169.254/32', // AWS, GCP, Azure, OCI, DigitalOcean, OpenStack
  '169.254.169.253/32', // AWS resolver
  '169.254.170.2/32', // AWS ECS task credentials
  '169.254.170.23/32', // AWS EKS pod identity
  '168.63.129.16/32', // Azure WireServer, a public address
  '100.100.100.200/32', // Alibaba Cloud
  '192.0.0.192/32', // Oracle Cloud classic
  'fd00:ec2::254/128', // AWS
  'fd00:ec2::253/128', // AWS resolver
  'fd00:ec2::23/128', // AWS EKS pod identity
  'fd20:ce::254/128', // GCP
];

/** IANA special-purpose registries (RFC 6890 and its updates), the most telling range first. */
const REFUSED: readonly (readonly [cidr: string, reason: string])[] = [
  ['0.0.0.0/8', 'this network'], // RFC 791; 0.0.0.0 reaches the own machine
  ['10.0.0.0/8', 'private'], // RFC 1918
  ['100.64.0.0/10', 'shared address space'], // RFC 6598, carrier-grade NAT
  ['127.0.0.0/8', 'loopback'],
  ['169.254.0.0/16', 'link-local'], // RFC 3927
  ['172.16.0.0/12', 'private'],
  ['192.0.0.0/24', 'protocol assignments'], // RFC 6890
  ['192.0.2.0/24', 'documentation'], // RFC 5737
  ['192.88.99.0/24', '6to4 relay'], // RFC 7526
  ['192.168.0.0/16', 'private'],
  ['198.18.0.0/15', 'benchmarking'], // RFC 2544
  ['198.51.100.0/24', 'documentation'],
  ['203.0.113.0/24', 'documentation'],
  ['224.0.0.0/4', 'multicast'],
  ['255.255.255.255/32', 'broadcast'],
  ['240.0.0.0/4', 'reserved'], // RFC 1112
  ['::/128', 'unspecified'],
  ['::1/128', 'loopback'],
  ['::/96', 'IPv4-compatible'], // RFC 4291, deprecated
  ['::ffff:0:0:0/96', 'IPv4-translated'], // RFC 2765
  ['64:ff9b::/96', 'NAT64'], // RFC 6052
  ['64:ff9b:1::/48', 'NAT64'], // RFC 8215
  ['100::/64', 'discard'], // RFC 6666
  ['2001::/32', 'Teredo'], // RFC 4380
  ['2001:10::/28', 'ORCHID'], // RFC 4843
  ['2001:20::/28', 'ORCHID'], // RFC 7343
  ['2001::/23', 'protocol assignments'], // RFC 2928
  ['2001:db8::/32', 'documentation'], // RFC 3849
  ['2002::/16', '6to4'], // RFC 3056
  ['3fff::/20', 'documentation'], // RFC 9637
  ['5f00::/16', 'segment routing'], // RFC 9602
  ['fc00::/7', 'private'], // RFC 4193, unique local
  ['fe80::/10', 'link-local'],
  ['fec0::/10', 'site-local'], // RFC 3879
  ['ff00::/8', 'multicast'],
];

/** All that IANA has given out as global unicast; the rest of IPv6 is refused as reserved. */
const GLOBAL_UNICAST = parsePrefix('2000::/3');
const METADATA_RANGES: readonly Range[] = METADATA.map((cidr) => range(cidr, 'metadata'));
const REFUSED_RANGES: readonly Range[] = REFUSED.map(([cidr, reason]) => range(cidr, reason));

/**
 * Refuses addresses that an agent has no business with, after name resolution and before the dial. Order: own listeners, always;
 * metadata services, unless allowed one by one; allowed ranges; refused ranges. Addresses that carry an IPv4 address (NAT64, 6to4,
 * Teredo, IPv4-compatible) need both allowed, IPv4-mapped ones are judged as IPv4.
 */
export class AddressGuard {
  readonly #allow: readonly Prefix[];
  readonly #ownListeners: () => readonly ListenAddress[];
  readonly #localAddresses: () => readonly string[];

  /** @throws ConfigError naming the entry of `allow` that is no CIDR */
  constructor(options: AddressGuardOptions) {
    this.#allow = options.allow.map(parseAllowed);
    this.#ownListeners = options.ownListeners;
    this.#localAddresses = options.localAddresses ?? interfaceAddresses;
  }

  /**
   * @param address an IP literal; a name is refused, never looked up
   * @returns null when the address may be dialed
   */
  check(address: string, port: number): AddressRefusal | null {
    const canonical = canonicalHost(address);
    if (canonical === null || !isIpLiteral(canonical)) return { range: 'none', reason: 'not an address' };
    if (this.isOwnListener(canonical, port)) return { range: 'own listener', reason: 'this proxy itself' };
    return this.#judge(wordsOf(canonical));
  }

  /**
   * True for a port of ours on any address of this machine, whichever of them we listen on: a dial to it would come back to us.
   * @param canonical an IP literal as `canonicalHost` gives it
   */
  isOwnListener(canonical: string, port: number): boolean {
    const listeners = this.#ownListeners();
    if (!listeners.some((listener) => listener.port === port)) return false;
    if (listeners.some((listener) => listener.port === port && listener.host === canonical)) return true;
    const words = wordsOf(canonical);
    return LOCAL.some((prefix) => contains(prefix, words)) || this.#localAddresses().includes(canonical);
  }

  #judge(words: readonly number[]): AddressRefusal | null {
    const metadata = METADATA_RANGES.find((candidate) => contains(candidate, words));
    if (metadata !== undefined) {
      const isNamed = this.#allow.some((prefix) => prefix.bits === metadata.bits && contains(prefix, words));
      return isNamed ? null : refusal(metadata);
    }
    if (!this.#allow.some((prefix) => contains(prefix, words))) {
      const refused = REFUSED_RANGES.find((candidate) => contains(candidate, words));
      if (refused !== undefined) return refusal(refused);
      if (words.length === 4 && !contains(GLOBAL_UNICAST, words)) return { range: '::/0', reason: 'reserved' };
    }
    const embedded = embeddedIpv4(words);
    return embedded === null ? null : this.#judge([embedded]);
  }
}

/** Addresses that reach this machine whatever its interfaces are. */
const LOCAL: readonly Prefix[] = ['0.0.0.0/8', '127.0.0.0/8', '::/127'].map(parsePrefix);

function refusal(found: Range): AddressRefusal {
  return { range: found.range, reason: found.reason };
}

function range(cidr: string, reason: string): Range {
  return { ...parsePrefix(cidr), range: cidr, reason };
}

/** IPv4 address inside an IPv6 one, for the ranges where packets end up at that IPv4 address. */
function embeddedIpv4(words: readonly number[]): number | null {
  const [w0 = 0, w1 = 0, w2 = 0, w3 = 0] = words;
  if (words.length !== 4) return null;
  if (w0 === 0x0064ff9b && w1 === 0 && w2 === 0) return w3;
  // RFC 8215 leaves the prefix length to the operator; /96 is what translators use.
  if (w0 === 0x0064ff9b && w1 >>> 16 === 1) return w3;
  if (w0 >>> 16 === 0x2002) return ((w0 << 16) | (w1 >>> 16)) >>> 0;
  // RFC 4380 section 4: the client's address is stored inverted.
  if (w0 === 0x20010000) return ~w3 >>> 0;
  if (w0 === 0 && w1 === 0 && w2 === 0 && w3 > 1) return w3;
  if (w0 === 0 && w1 === 0 && w2 === 0xffff0000) return w3;
  return null;
}

function contains(prefix: Prefix, words: readonly number[]): boolean {
  if (prefix.words.length !== words.length) return false;
  let left = prefix.bits;
  for (let i = 0; left > 0; i++, left -= 32) {
    const difference = (prefix.words[i] ?? 0) ^ (words[i] ?? 0);
    // A shift by 32 is a shift by 0 in JavaScript: full words are compared whole.
    if ((left >= 32 ? difference : difference >>> (32 - left)) !== 0) return false;
  }
  return true;
}

/** @param canonical an IP literal as `canonicalHost` gives it */
function wordsOf(canonical: string): readonly number[] {
  if (!canonical.includes(':')) return [wordOf(canonical.split('.').map(Number), 256)];
  const [left = '', right] = canonical.split('::');
  const head = groupsOf(left);
  const tail = right === undefined ? [] : groupsOf(right);
  const groups = [...head, ...Array.from({ length: 8 - head.length - tail.length }, () => 0), ...tail];
  return [0, 2, 4, 6].map((at) => wordOf(groups.slice(at, at + 2), 65_536));
}

function groupsOf(text: string): readonly number[] {
  return text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16));
}

function wordOf(parts: readonly number[], base: number): number {
  return parts.reduce((word, part) => word * base + part, 0);
}

function parsePrefix(cidr: string): Prefix {
  const [address = '', bits] = cidr.split('/');
  return { words: wordsOf(canonicalHost(address) ?? '::'), bits: Number(bits) };
}

function parseAllowed(text: string): Prefix {
  const slash = text.indexOf('/');
  const address = slash === -1 ? text : text.slice(0, slash);
  const canonical = canonicalHost(address);
  if (canonical === null || !isIpLiteral(canonical) || (canonical !== address && !address.includes(':'))) {
    throw new ConfigError(`addresses.allow: ${JSON.stringify(text)} is not a CIDR or an IP address`);
  }
  const words = wordsOf(canonical);
  const spelled = address.includes(':') ? 128 : 32;
  const lengthText = slash === -1 ? String(spelled) : text.slice(slash + 1);
  // An IPv4-mapped range is the IPv4 range it maps.
  const bits = Number(lengthText) - (spelled - words.length * 32);
  if (!/^(?:0|[1-9][0-9]{0,2})$/.test(lengthText) || bits < 0 || bits > words.length * 32) {
    throw new ConfigError(`addresses.allow: ${JSON.stringify(text)} has no valid prefix length`);
  }
  const prefix = { words, bits };
  if (!isAligned(prefix)) {
    throw new ConfigError(`addresses.allow: ${JSON.stringify(text)} has bits set after its prefix`);
  }
  return prefix;
}

function isAligned({ words, bits }: Prefix): boolean {
  return words.every((word, i) => {
    const kept = Math.min(32, Math.max(0, bits - i * 32));
    return word % 2 ** (32 - kept) === 0;
  });
}

function interfaceAddresses(): readonly string[] {
  return Object.values(networkInterfaces()).flatMap((entries) =>
    (entries ?? []).map((entry) => canonicalHost(entry.address.replace(/%.*$/, '')) ?? ''),
  );
}
