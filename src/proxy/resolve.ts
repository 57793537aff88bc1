import { lookup as systemLookup } from 'node:dns';
import { UpstreamError } from '../core/errors.ts';
import type { Settings } from '../core/settings.ts';
import { canonicalHost, isIpLiteral, parseAuthority } from '../core/url.ts';

/** One address to dial. */
export interface ResolvedAddress {
  /** IP literal, canonical, without brackets. */
  readonly address: string;
  readonly port: number;
  /** `override`: from `upstream.hosts`. */
  readonly source: 'literal' | 'override' | 'dns';
}

/** Asks the system for all addresses of a name, in the order it prefers. */
export type Lookup = (name: string, callback: (error: Error | null, addresses: readonly string[]) => void) => void;

export interface ResolverOptions {
  readonly hosts: Settings['upstream']['hosts'];
  /** Deadline for one resolution, waiting in the queue included. */
  readonly dnsMs: number;
  /** `dns.lookup` by default: getaddrinfo, so `/etc/hosts` and nsswitch count. */
  readonly lookup?: Lookup;
  /** Monotonic milliseconds. */
  readonly now?: () => number;
  /**
   * getaddrinfo calls at once, 3 by default. They cannot be canceled and sit in libuv's pool of four threads, which files and
   * signatures need as well: a resolver that hangs must not take the last one.
   */
  readonly maxLookups?: number;
}

/**
 * How long an answer is used again. Long enough for the burst of connections of one page or client, short enough to follow a
 * failover. It opens no rebinding window: what is dialed is an address that was checked, never a name.
 */
const CACHE_MS = 5000;
/** A failure is remembered shortly, so that a retry loop of an agent does not fill the lookup queue. */
const FAILURE_CACHE_MS = 1000;
/** Answers kept; the oldest goes first. */
const MAX_CACHED = 1000;
/** Names waiting for a free lookup; one more gets `dns_failed`. */
const MAX_WAITING = 1000;

interface Entry {
  readonly addresses: Promise<readonly string[]>;
  /** Infinity while the lookup runs. */
  expiresAtMs: number;
}

/** Turns a destination into addresses, in the order in which the system prefers them. Checks nothing: see `AddressGuard`. */
export class Resolver {
  readonly #overrides: ReadonlyMap<string, { readonly address: string; readonly port: number | null }>;
  readonly #dnsMs: number;
  readonly #lookup: Lookup;
  readonly #now: () => number;
  readonly #maxLookups: number;
  readonly #cache = new Map<string, Entry>();
  readonly #waiting = new Set<() => void>();
  #running = 0;

  constructor(options: ResolverOptions) {
    this.#overrides = normalizeKeys(options.hosts);
    this.#dnsMs = options.dnsMs;
    this.#lookup = options.lookup ?? getaddrinfo;
    this.#now = options.now ?? (() => performance.now());
    this.#maxLookups = options.maxLookups ?? 3;
  }

  /**
   * @param host as `canonicalHost` gives it
   * @returns at least one address
   * @throws UpstreamError `dns_failed`, `dns_timeout`
   */
  async resolve(host: string, port: number): Promise<readonly ResolvedAddress[]> {
    const override = this.#overrides.get(`${host} ${port}`) ?? this.#overrides.get(host);
    const name = override === undefined ? host : (canonicalHost(override.address) ?? override.address);
    const finalPort = override?.port ?? port;
    if (isIpLiteral(name)) {
      return [{ address: name, port: finalPort, source: override === undefined ? 'literal' : 'override' }];
    }
    const addresses = await this.#cached(name);
    const source = override === undefined ? 'dns' : 'override';
    return addresses.map((address) => ({ address, port: finalPort, source }));
  }

  /** One lookup per name at a time; its answer serves everybody who asks before it expires. */
  #cached(name: string): Promise<readonly string[]> {
    const known = this.#cache.get(name);
    if (known !== undefined && known.expiresAtMs > this.#now()) return known.addresses;
    this.#cache.delete(name);
    if (this.#cache.size >= MAX_CACHED) {
      for (const oldest of this.#cache.keys()) {
        this.#cache.delete(oldest);
        break;
      }
    }
    const addresses = this.#ask(name);
    const entry: Entry = { addresses, expiresAtMs: Infinity };
    this.#cache.set(name, entry);
    addresses.then(
      () => {
        entry.expiresAtMs = this.#now() + CACHE_MS;
      },
      () => {
        entry.expiresAtMs = this.#now() + FAILURE_CACHE_MS;
      },
    );
    return addresses;
  }

  #ask(name: string): Promise<readonly string[]> {
    return new Promise((resolve, reject) => {
      if (this.#running >= this.#maxLookups && this.#waiting.size >= MAX_WAITING) {
        reject(new UpstreamError('dns_failed', 'Too many names wait to be resolved.'));
        return;
      }
      const start = (): void => {
        this.#running++;
        this.#lookup(name, (error, found) => {
          this.#running--;
          this.#next();
          clearTimeout(timer);
          const addresses = found.flatMap((address) => {
            // Addresses with a zone id (fe80::1%eth0) fall out here; the guard would refuse them anyway.
            const canonical = canonicalHost(address);
            return canonical !== null && isIpLiteral(canonical) ? [canonical] : [];
          });
          if (error !== null) reject(new UpstreamError('dns_failed', null, { cause: error }));
          else if (addresses.length === 0)
            reject(new UpstreamError('dns_failed', 'The answer holds no usable address.'));
          else resolve([...new Set(addresses)]);
        });
      };
      const timer = setTimeout(() => {
        // A lookup that runs keeps its slot until the system answers: getaddrinfo cannot be canceled.
        this.#waiting.delete(start);
        reject(new UpstreamError('dns_timeout'));
      }, this.#dnsMs);
      if (this.#running < this.#maxLookups) start();
      else this.#waiting.add(start);
    });
  }

  #next(): void {
    for (const start of this.#waiting) {
      this.#waiting.delete(start);
      start();
      break;
    }
  }
}

/** Keys become `host` or `host port`. Keys that are neither a host nor `host:port` are dropped; the configuration refuses them earlier. */
function normalizeKeys(
  hosts: Settings['upstream']['hosts'],
): ReadonlyMap<string, Settings['upstream']['hosts'][string]> {
  const overrides = new Map<string, Settings['upstream']['hosts'][string]>();
  for (const [key, value] of Object.entries(hosts)) {
    const destination = parseAuthority(key, null);
    const host = canonicalHost(key);
    if (host !== null) overrides.set(host, value);
    else if (destination !== null) overrides.set(`${destination.host} ${destination.port}`, value);
  }
  return overrides;
}

function getaddrinfo(name: string, callback: (error: Error | null, addresses: readonly string[]) => void): void {
  systemLookup(name, { all: true, order: 'verbatim' }, (error, found) => {
    callback(error, error === null ? found.map((entry) => entry.address) : []);
  });
}
