import type { UpstreamHandler, UpstreamRequest, UpstreamStream } from './stream.ts';

/** Where a request goes and whose it is: upstream connections are kept by this, never shared between agents. */
export interface Origin {
  readonly agentId: string;
  readonly scheme: 'http' | 'https';
  readonly host: string;
  readonly port: number;
}

/** What the record says of an upstream connection. */
export interface UpstreamFacts {
  readonly address: string;
  readonly port: number;
  readonly alpn: 'h2' | 'http/1.1';
  readonly tls: string | null;
}

/** A connection that is ready for one request: either `request` or `release` is called, once. */
export interface Lease {
  readonly facts: UpstreamFacts;
  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream;
  /** Gives the connection back unused. */
  release(): void;
}

export interface AcquireOptions {
  /** Protocol that needs no translation; the other is offered too unless `only`. */
  readonly prefer: 'h2' | 'http/1.1';
  /** Upgrades, gRPC and h2c prior knowledge allow no other protocol. */
  readonly only: boolean;
  /** Do not reuse a pooled connection (second try after a stale one). */
  readonly fresh: boolean;
}

/** Source of upstream connections; `proxy/pool.ts` is the real one. */
export interface Upstreams {
  /** A pooled connection if one is free now, else null; saves a promise on the hot path. */
  tryAcquire(origin: Origin, options: AcquireOptions): Lease | null;
  /**
   * @param signal the exchange is over: it leaves the queue, and a dial for it is given up
   * @throws UpstreamError any of the upstream codes and `address_denied`; LimitError when too many wait; ProxyError `client_aborted`
   */
  acquire(origin: Origin, options: AcquireOptions, signal?: AbortSignal): Promise<Lease>;
}
