import type { Socket } from 'node:net';
import {
  checkServerIdentity,
  connect as connectTls,
  type ConnectionOptions,
  type SecureContext,
  type TLSSocket,
} from 'node:tls';
import { ProxyError, UpstreamError } from '../core/errors.ts';
import type { Limits, Settings } from '../core/settings.ts';
import type { Destination } from '../core/tunnel.ts';
import { formatAuthority, isIpLiteral } from '../core/url.ts';
import { classifyUpstreamTlsError } from '../tls/upstream-context.ts';
import type { AddressGuard, AddressRefusal } from './address-guard.ts';
import { handshakePace } from '../core/handshake-pace.ts';
import { connectFirst, ignoreError, SOCKET_BUFFER_BYTES } from './connect-race.ts';
import type { ResolvedAddress, Resolver } from './resolve.ts';
import { SessionCache } from './session-cache.ts';
import { requestTunnel } from './upstream-proxy.ts';

/** A connected socket. `address` and `port` are what was dialed: the upstream proxy's when there is one. */
export interface Dialed {
  readonly socket: Socket;
  readonly address: string;
  readonly port: number;
}

/** The same after a TLS handshake with a verified server. */
export interface DialedTls extends Dialed {
  readonly socket: TLSSocket;
  /** What the server chose, or null when it chose nothing. */
  readonly alpn: string | null;
  /** `TLSv1.2` or `TLSv1.3`. */
  readonly tlsVersion: string;
}

export interface DialTlsOptions {
  /** Protocols to offer in order of preference; none means no ALPN extension. */
  readonly alpn: readonly string[];
  /** Whose TLS sessions may be resumed, usually the agent's id; without one none is kept. Sessions never cross keys. */
  readonly sessionKey?: string;
  readonly signal?: AbortSignal;
}

/** Where TLS contexts for servers come from: trusted roots and client certificates, TLS 1.2 at least. */
export interface ContextSource {
  contextFor(host: string): SecureContext;
}

export interface DialerOptions {
  readonly resolver: Pick<Resolver, 'resolve'>;
  readonly guard: Pick<AddressGuard, 'check' | 'isOwnListener'>;
  readonly limits: Pick<Limits, 'connectMs' | 'handshakeMs'>;
  readonly upstreamProxy: Settings['upstream']['proxy'];
  readonly upstreamContexts: ContextSource;
}

/**
 * Opens connections to servers. Order: resolve, check every address, dial the literal addresses that passed, TLS with the name
 * verified. Nothing is looked up a second time, so what was checked is what is dialed.
 *
 * With an upstream proxy that one resolves the name again and we cannot pin its choice. Names are therefore resolved here as well and
 * refused if any of their addresses is; only where our DNS knows no answer does the proxy decide alone, as networks with a mandatory
 * proxy often resolve nothing outside. The proxy itself is the operator's word and not checked, except that it must not be us.
 *
 * Sockets come with a no-op 'error' listener that may stay. An owner that attaches its listeners in the turn in which the promise
 * resolves misses nothing; before that it looks at `destroyed`. TCP sockets are `allowHalfOpen`, TLS sockets are not: who gives a TCP
 * socket to node:http2 sets it to false, or the session never learns that the server has gone.
 */
export class Dialer {
  readonly #options: DialerOptions;
  readonly #sessions = new SessionCache();

  constructor(options: DialerOptions) {
    this.#options = options;
  }

  /**
   * Dials without TLS (on our part: the bytes of a tunnel may well be TLS).
   * @throws UpstreamError `address_denied`, `dns_failed`, `dns_timeout`, `connect_refused`, `connect_timeout`, `connect_failed`,
   *   `upstream_proxy_failed`; ProxyError `client_aborted` when `signal` fires
   */
  async dialTcp(destination: Destination, signal?: AbortSignal): Promise<Dialed> {
    const { upstreamProxy } = this.#options;
    if (upstreamProxy !== null) return this.#dialThrough(upstreamProxy, destination, signal);
    const resolved = await orAbort(this.#options.resolver.resolve(destination.host, destination.port), signal);
    const { socket, target } = await connectFirst(this.#allowed(resolved), this.#options.limits.connectMs, signal);
    return { socket, address: target.address, port: target.port };
  }

  /**
   * Dials and shakes hands. The server's chain and name are verified, always; for an IP literal its IP SAN.
   * @throws all of `dialTcp`, and UpstreamError `upstream_tls_untrusted`, `upstream_tls_name`, `upstream_tls_failed`, `connect_timeout`
   *   when the handshake takes longer than `handshakeMs`
   */
  async dialTls(destination: Destination, options: DialTlsOptions): Promise<DialedTls> {
    const dialed = await this.dialTcp(destination, options.signal);
    const turn = handshakePace.turn();
    if (turn !== null) await turn;
    const socket = await this.#secure(dialed.socket, destination, options);
    const { alpnProtocol } = socket;
    return {
      socket,
      address: dialed.address,
      port: dialed.port,
      alpn: typeof alpnProtocol === 'string' ? alpnProtocol : null,
      tlsVersion: socket.getProtocol() ?? 'unknown',
    };
  }

  /** Addresses that the guard lets pass; a name with good and bad ones is dialed at the good ones only. */
  #allowed(resolved: readonly ResolvedAddress[]): readonly ResolvedAddress[] {
    const judged = resolved.map((target) => ({
      target,
      refusal: this.#options.guard.check(target.address, target.port),
    }));
    const allowed = judged.flatMap(({ target, refusal }) => (refusal === null ? [target] : []));
    if (allowed.length > 0) return allowed;
    const refusal = judged.find((one) => one.refusal !== null)?.refusal ?? null;
    throw refusal === null ? new UpstreamError('dns_failed') : deniedError(refusal);
  }

  async #dialThrough(
    proxy: NonNullable<Settings['upstream']['proxy']>,
    destination: Destination,
    signal: AbortSignal | undefined,
  ): Promise<Dialed> {
    const target = await orAbort(this.#checkForProxy(destination), signal);
    const { guard, limits, resolver } = this.#options;
    let dialed: Dialed;
    try {
      const addresses = await orAbort(resolver.resolve(proxy.host, proxy.port), signal);
      if (addresses.some(({ address, port }) => guard.isOwnListener(address, port))) {
        throw new UpstreamError('loop_detected');
      }
      const connected = await connectFirst(addresses, limits.connectMs, signal);
      const { address, port } = connected.target;
      let { socket } = connected;
      if (proxy.tls) socket = await this.#secure(socket, proxy, withSignal({ alpn: [], sessionKey: '' }, signal));
      dialed = { socket, address, port };
    } catch (error) {
      if (error instanceof ProxyError && error.code === 'client_aborted') throw error;
      throw new UpstreamError('upstream_proxy_failed', null, { cause: error });
    }
    await requestTunnel(dialed.socket, target, proxy.credentials, limits.connectMs, signal);
    return dialed;
  }

  /** Checks what can be checked before a proxy resolves the name; `upstream.hosts` decides what it is asked for. */
  async #checkForProxy(destination: Destination): Promise<Destination> {
    let resolved: readonly ResolvedAddress[];
    try {
      resolved = await this.#options.resolver.resolve(destination.host, destination.port);
    } catch {
      return destination;
    }
    for (const { address, port } of resolved) {
      const refusal = this.#options.guard.check(address, port);
      if (refusal !== null) throw deniedError(refusal);
    }
    const [first] = resolved;
    return first?.source === 'override' ? { host: first.address, port: first.port } : destination;
  }

  #secure(raw: Socket, destination: Destination, options: DialTlsOptions): Promise<TLSSocket> {
    const { host } = destination;
    const { signal, sessionKey } = options;
    const context = this.#options.upstreamContexts.contextFor(host);
    const cacheKey =
      sessionKey === undefined ? null : `${sessionKey} ${formatAuthority(destination)} ${options.alpn.join()}`;
    const session = cacheKey === null ? undefined : this.#sessions.get(context, cacheKey);
    return new Promise((resolve, reject) => {
      // The handshake writes and reads in the background; from here on the TLS socket answers the end of the stream.
      raw.allowHalfOpen = false;
      // A constant, because @types/node does not know that connect takes highWaterMark.
      const tlsOptions: ConnectionOptions & { highWaterMark: number } = {
        socket: raw,
        secureContext: context,
        host,
        // RFC 6066 section 3: no SNI for IP literals.
        ...(isIpLiteral(host) ? {} : { servername: host }),
        ...(options.alpn.length === 0 ? {} : { ALPNProtocols: [...options.alpn] }),
        ...(session === undefined ? {} : { session }),
        // Written out, because NODE_TLS_REJECT_UNAUTHORIZED=0 changes the default.
        rejectUnauthorized: true,
        checkServerIdentity: (_name, certificate) => checkServerIdentity(host, certificate),
        highWaterMark: SOCKET_BUFFER_BYTES,
      };
      const socket = connectTls(tlsOptions);
      socket.on('error', ignoreError);
      let isVerified = false;
      let early: Buffer | null = null;
      if (cacheKey !== null) {
        // TLS 1.3 tickets come after the handshake, TLS 1.2 sessions before the chain is verified.
        socket.on('session', (ticket: Buffer) => {
          if (isVerified) this.#sessions.set(context, cacheKey, ticket);
          else early = ticket;
        });
      }

      const settle = (error: ProxyError | null): void => {
        clearTimeout(deadline);
        signal?.removeEventListener('abort', onAbort);
        socket.off('error', onError);
        socket.off('close', onClose);
        socket.off('secureConnect', onSecure);
        if (error === null) {
          isVerified = true;
          if (cacheKey !== null && early !== null) this.#sessions.set(context, cacheKey, early);
          resolve(socket);
          return;
        }
        if (cacheKey !== null) this.#sessions.delete(context, cacheKey);
        socket.destroy();
        raw.destroy();
        reject(error);
      };
      const onAbort = (): void => settle(new ProxyError('client_aborted'));
      const onError = (error: Error): void =>
        settle(new UpstreamError(classifyUpstreamTlsError(error), null, { cause: error }));
      const onClose = (): void => settle(new UpstreamError('upstream_tls_failed', 'The server closed the connection.'));
      const onSecure = (): void => settle(null);
      const deadline = setTimeout(
        () => settle(new UpstreamError('connect_timeout', 'The TLS handshake took too long.')),
        this.#options.limits.handshakeMs,
      );
      socket.on('error', onError);
      socket.on('close', onClose);
      socket.on('secureConnect', onSecure);
      if (signal?.aborted === true) onAbort();
      else signal?.addEventListener('abort', onAbort, { once: true });
    });
  }
}

/** The agent learns the range, never the address: that would map the inside for it. */
function deniedError(refusal: AddressRefusal): UpstreamError {
  return new UpstreamError('address_denied', `Refused as ${refusal.reason} (${refusal.range}).`);
}

function withSignal(options: DialTlsOptions, signal: AbortSignal | undefined): DialTlsOptions {
  return signal === undefined ? options : { ...options, signal };
}

/** Waits for a promise that cannot be canceled, but not longer than the signal allows. */
function orAbort<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(new ProxyError('client_aborted'));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
