import type { TLSSocket } from 'node:tls';
import type { Socket } from 'node:net';
import { LimitError, ProxyError } from '../core/errors.ts';
import { Registry } from '../core/registry.ts';
import type { Registered } from '../core/registry.ts';
import type { Limits } from '../core/settings.ts';
import type { UpstreamHandler, UpstreamRequest, UpstreamStream } from '../core/stream.ts';
import type { Destination } from '../core/tunnel.ts';
import type { AcquireOptions, Lease, Origin, UpstreamFacts, Upstreams } from '../core/upstream.ts';
import type { Deadlines, Expiring } from './limits.ts';
import { H1Upstream } from './upstream-h1.ts';
import { H2Upstream } from './upstream-h2.ts';

/** What the pool needs of the dialer. */
export interface PoolDialer {
  dialTcp(destination: Destination, signal?: AbortSignal): Promise<{ socket: Socket; address: string; port: number }>;
  dialTls(
    destination: Destination,
    options: { alpn: readonly string[]; sessionKey?: string; signal?: AbortSignal },
  ): Promise<{ socket: TLSSocket; alpn: string | null; tlsVersion: string; address: string; port: number }>;
}

interface Waiter {
  readonly options: AcquireOptions;
  readonly signal: AbortSignal | undefined;
  readonly resolve: (lease: Lease) => void;
  readonly reject: (error: unknown) => void;
}

/** Requests that may wait for a connection of one origin; more are refused. */
const MAX_WAITERS = 1000;

/**
 * Upstream connections by agent and origin. A connection never serves two agents: what one agent negotiated, proved or left half-done
 * on a connection must not become another one's.
 */
export class UpstreamPools implements Upstreams {
  readonly #pools = new Map<string, OriginPool>();
  readonly #dialer: PoolDialer;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  /** Idle connections of all pools. Agents choose hosts: without a bound they choose how many sockets we keep. */
  readonly #idle = new Registry<H1Entry>();

  constructor(dialer: PoolDialer, limits: Limits, deadlines: Deadlines) {
    this.#dialer = dialer;
    this.#limits = limits;
    this.#deadlines = deadlines;
  }

  /** An idle connection if there is one now, else null; saves a promise on the hot path. */
  tryAcquire(origin: Origin, options: AcquireOptions): Lease | null {
    return this.#pools.get(keyOf(origin))?.tryAcquire(options) ?? null;
  }

  /** @throws UpstreamError any of the upstream codes and `address_denied`; LimitError `too_many_streams` */
  acquire(origin: Origin, options: AcquireOptions, signal?: AbortSignal): Promise<Lease> {
    const key = keyOf(origin);
    let pool = this.#pools.get(key);
    if (pool === undefined) {
      pool = new OriginPool(origin, this.#dialer, this.#limits, this.#deadlines, {
        empty: () => this.#pools.delete(key),
        idle: (entry) => this.#keep(entry),
        used: (entry) => this.#idle.delete(entry),
      });
      this.#pools.set(key, pool);
    }
    return pool.acquire(options, signal);
  }

  #keep(entry: H1Entry): void {
    entry.idleSinceMs = this.#deadlines.now;
    this.#idle.add(entry);
    if (this.#idle.size <= this.#limits.connections) return;
    let oldest = entry;
    for (const other of this.#idle) if (other.idleSinceMs < oldest.idleSinceMs) oldest = other;
    oldest.connection.destroy();
  }

  /** Closes idle connections; busy ones close when their exchange ends. */
  retire(): void {
    for (const pool of this.#pools.values()) pool.retire();
  }

  close(): void {
    for (const pool of this.#pools.values()) pool.close();
    this.#pools.clear();
  }

  /** Open upstream connections, for metrics and tests. */
  get size(): number {
    let size = 0;
    for (const pool of this.#pools.values()) size += pool.size;
    return size;
  }
}

function keyOf(origin: Origin): string {
  return `${origin.agentId} ${origin.scheme} ${origin.host} ${origin.port}`;
}

class H1Entry implements Lease, Registered {
  slot = -1;
  idleSinceMs = 0;
  readonly connection: H1Upstream;
  readonly facts: UpstreamFacts;
  retired = false;
  readonly #giveBack: (entry: H1Entry) => void;

  constructor(connection: H1Upstream, facts: UpstreamFacts, giveBack: (entry: H1Entry) => void) {
    this.connection = connection;
    this.facts = facts;
    this.#giveBack = giveBack;
  }

  release(): void {
    if (this.connection.isIdle) this.#giveBack(this);
  }

  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream {
    return this.connection.request(request, handler);
  }
}

class H2Entry implements Lease, Expiring {
  slot = -1;
  deadlineMs = Infinity;
  readonly session: H2Upstream;
  readonly facts: UpstreamFacts;
  retired = false;
  readonly #idleMs: number;

  constructor(session: H2Upstream, facts: UpstreamFacts, idleMs: number) {
    this.session = session;
    this.facts = facts;
    this.#idleMs = idleMs;
  }

  get canTake(): boolean {
    return !this.retired && this.session.isUsable && this.session.activeStreams < this.session.capacity;
  }

  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream {
    return this.session.request(request, handler);
  }

  release(): void {
    // A session serves many at once; nothing was taken.
  }

  expire(nowMs: number): void {
    if (this.session.activeStreams === 0) this.session.destroy();
    else this.deadlineMs = nowMs + this.#idleMs;
  }
}

interface PoolOwner {
  empty(): void;
  idle(entry: H1Entry): void;
  /** Not idle any more: taken or closed. */
  used(entry: H1Entry): void;
}

class OriginPool {
  readonly #origin: Origin;
  readonly #dialer: PoolDialer;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #owner: PoolOwner;
  readonly #idle: H1Entry[] = [];
  readonly #h1 = new Set<H1Entry>();
  readonly #h2 = new Set<H2Entry>();
  readonly #waiters: Waiter[] = [];
  #dialing = 0;
  /** What the server chose last; null while nobody has asked it. */
  #known: 'h2' | 'http/1.1' | null = null;

  constructor(origin: Origin, dialer: PoolDialer, limits: Limits, deadlines: Deadlines, owner: PoolOwner) {
    this.#origin = origin;
    this.#dialer = dialer;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#owner = owner;
  }

  get size(): number {
    return this.#h1.size + this.#h2.size;
  }

  tryAcquire(options: AcquireOptions): Lease | null {
    if (options.fresh) return null;
    if (options.prefer === 'h2' || !options.only) {
      for (const entry of this.#h2) {
        if (entry.canTake) {
          entry.deadlineMs = this.#deadlines.now + this.#limits.upstreamIdleMs;
          return entry;
        }
      }
    }
    if (options.prefer === 'http/1.1' || !options.only) {
      for (let entry = this.#idle.pop(); entry !== undefined; entry = this.#idle.pop()) {
        this.#owner.used(entry);
        if (entry.connection.isIdle) return entry;
      }
    }
    return null;
  }

  acquire(options: AcquireOptions, signal?: AbortSignal): Promise<Lease> {
    const ready = this.tryAcquire(options);
    if (ready !== null) return Promise.resolve(ready);
    // Until the server has chosen a protocol, one dial answers for all: it may become an h2 connection that serves everybody.
    const mayShare = !options.fresh && !options.only && this.#known !== 'http/1.1' && this.#dialing > 0;
    if (!mayShare && this.#h1.size + this.#dialing < this.#limits.upstreamConnectionsPerOrigin)
      return this.#dial(options, signal);
    if (this.#waiters.length >= MAX_WAITERS)
      return Promise.reject(new LimitError('too_many_streams', 'Too many requests wait for this server.'));
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
      };
      const leave = (error: ProxyError): void => {
        const at = this.#waiters.indexOf(waiter);
        // No longer in the queue: it is being dialed for, and the dial knows the signal.
        if (at < 0) return;
        this.#waiters.splice(at, 1);
        waiter.reject(error);
      };
      const onAbort = (): void => leave(new ProxyError('client_aborted'));
      const timer = setTimeout(
        () => leave(new LimitError('connect_timeout', 'No connection to the server came free.')),
        this.#limits.connectMs * 2,
      );
      const waiter: Waiter = {
        options,
        signal,
        resolve: (lease) => {
          settle();
          resolve(lease);
        },
        reject: (error) => {
          settle();
          reject(error instanceof Error ? error : new ProxyError('internal_error'));
        },
      };
      this.#waiters.push(waiter);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  retire(): void {
    for (const entry of this.#h1) {
      entry.retired = true;
      if (entry.connection.isIdle) entry.connection.destroy();
    }
    for (const entry of this.#h2) {
      entry.retired = true;
      if (entry.session.activeStreams === 0) entry.session.destroy();
    }
  }

  close(): void {
    for (const entry of this.#h1) entry.connection.destroy();
    for (const entry of this.#h2) entry.session.destroy();
    for (const waiter of this.#waiters.splice(0)) waiter.reject(new ProxyError('draining'));
  }

  async #dial(options: AcquireOptions, signal: AbortSignal | undefined): Promise<Lease> {
    this.#dialing++;
    try {
      const entry = await this.#connect(options, signal);
      this.#dialing--;
      return entry;
    } catch (error) {
      this.#dialing--;
      // Whoever waited for this dial gets its own try, or the same refusal.
      this.#freed();
      throw error;
    }
  }

  async #connect(options: AcquireOptions, signal: AbortSignal | undefined): Promise<Lease> {
    const { scheme, host, port, agentId } = this.#origin;
    let socket: Socket;
    let facts: UpstreamFacts;
    if (scheme === 'http') {
      const dialed = await this.#dialer.dialTcp({ host, port }, signal);
      socket = dialed.socket;
      facts = {
        address: dialed.address,
        port: dialed.port,
        alpn: options.only && options.prefer === 'h2' ? 'h2' : 'http/1.1',
        tls: null,
      };
    } else {
      const other = options.prefer === 'h2' ? 'http/1.1' : 'h2';
      const alpn = options.only ? [options.prefer] : [options.prefer, other];
      const dialed = await this.#dialer.dialTls(
        { host, port },
        { alpn, sessionKey: agentId, ...(signal === undefined ? {} : { signal }) },
      );
      socket = dialed.socket;
      // A server without ALPN speaks HTTP/1.1.
      facts = {
        address: dialed.address,
        port: dialed.port,
        alpn: dialed.alpn === 'h2' ? 'h2' : 'http/1.1',
        tls: dialed.tlsVersion,
      };
      if (!options.only) this.#known = facts.alpn;
    }
    return facts.alpn === 'h2' ? this.#addH2(socket, facts) : this.#addH1(socket, facts);
  }

  #addH1(socket: Socket, facts: UpstreamFacts): Lease {
    const connection = new H1Upstream(socket, this.#limits, this.#deadlines, {
      idle: () => this.#returned(entry),
      closed: () => {
        this.#h1.delete(entry);
        this.#owner.used(entry);
        const at = this.#idle.indexOf(entry);
        if (at >= 0) this.#idle.splice(at, 1);
        this.#freed();
      },
    });
    const entry = new H1Entry(connection, facts, (returned) => this.#returned(returned));
    this.#h1.add(entry);
    // Those who waited to learn the protocol can now dial for themselves.
    this.#dialForWaiters();
    return entry;
  }

  #addH2(socket: Socket, facts: UpstreamFacts): Lease {
    // A session on a half-open socket would never notice that the server has left.
    socket.allowHalfOpen = false;
    const session = new H2Upstream(socket, this.#limits, this.#deadlines, {
      onClose: () => {
        this.#h2.delete(entry);
        this.#deadlines.delete(entry);
        this.#freed();
      },
    });
    const entry = new H2Entry(session, facts, this.#limits.upstreamIdleMs);
    this.#h2.add(entry);
    entry.deadlineMs = this.#deadlines.now + this.#limits.upstreamIdleMs;
    this.#deadlines.add(entry);
    for (const waiter of this.#waiters.splice(0)) {
      if (waiter.options.only && waiter.options.prefer !== 'h2') this.#waiters.push(waiter);
      else if (entry.canTake) waiter.resolve(entry);
      else this.#dialFor(waiter);
    }
    // An h2 session is no use to those who need HTTP/1.1, and nobody else dials for them.
    this.#dialForWaiters();
    return entry;
  }

  /** From within a dial that is done but still counted. */
  #dialForWaiters(): void {
    while (this.#h1.size + this.#dialing <= this.#limits.upstreamConnectionsPerOrigin) {
      const waiter = this.#waiters.shift();
      if (waiter === undefined) return;
      this.#dialFor(waiter);
    }
  }

  #dialFor(waiter: Waiter): void {
    this.#dial(waiter.options, waiter.signal).then(waiter.resolve, waiter.reject);
  }

  #returned(entry: H1Entry): void {
    if (entry.retired) {
      entry.connection.destroy();
      return;
    }
    const at = this.#waiters.findIndex(
      (waiter) => !(waiter.options.only && waiter.options.prefer === 'h2') && !waiter.options.fresh,
    );
    const waiter = at < 0 ? undefined : this.#waiters.splice(at, 1)[0];
    if (waiter !== undefined) waiter.resolve(entry);
    else {
      this.#idle.push(entry);
      this.#owner.idle(entry);
    }
  }

  #freed(): void {
    const waiter = this.#waiters.shift();
    if (waiter !== undefined) this.#dialFor(waiter);
    else if (this.size === 0 && this.#dialing === 0) this.#owner.empty();
  }
}
