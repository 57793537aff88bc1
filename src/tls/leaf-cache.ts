import { constants, randomBytes } from 'node:crypto';
import { createSecureContext, type SecureContext } from 'node:tls';
import { CertificateError } from '../core/errors.ts';
import { handshakePace } from '../core/handshake-pace.ts';
import type { Leaf } from './authority.ts';

export interface LeafCacheOptions {
  /** Most contexts kept; the one used longest ago goes first. About 20 KB each. */
  readonly max: number;
  readonly now?: () => number;
}

interface Entry {
  readonly context: SecureContext;
  readonly mintedAtMs: number;
  readonly notAfterMs: number;
  /** From here on a new one is made in the background while this one still serves. */
  renewAtMs: number;
}

const MINUTE_MS = 60_000;
/** A leaf this close to its end is not shown any more: the client's clock may be ahead of ours. */
const LAST_USE_MS = 5 * MINUTE_MS;
/** A leaf from further in the future than this was made while our clock was wrong; leaves are dated back by a day. */
const CLOCK_JUMP_MS = 12 * 60 * MINUTE_MS;
const RETRY_MS = MINUTE_MS;
/** New contexts get new ticket keys after a day: who later learns a key from memory cannot open older TLS 1.2 sessions. */
const TICKET_KEY_LIFE_MS = 24 * 60 * MINUTE_MS;
/** Two at a time: signing overlaps with building, and no turn of the event loop builds more than two contexts (0.8 ms each). */
const MAX_RUNNING = 2;
/** New hosts that may wait for their turn; beyond it a flood of invented names gets an error, not memory. */
const MAX_WAITING = 4096;

/**
 * One ready TLS context per host: minted once however many connections ask at the same time, renewed before it ends, bounded.
 *
 * How to end TLS with it over a socket that is already connected, on Node 20 to 26 (test/tls/termination.test.ts holds each point):
 * ```
 * socket.unshift(clientHelloBytes);   // what was read to see the SNI; TLSSocket takes buffered bytes over
 * const tls = new TLSSocket(socket, { isServer: true, secureContext, ALPNProtocols: ['h2', 'http/1.1'] });
 * tls.on('error', …);                 // before anything else
 * tls.once('secure', () => { tls._releaseControl(); … });
 * ```
 * - `secure` ends the handshake on this side; there is no `secureConnect`. Use `once`: a refused renegotiation emits it again.
 * - Before `secure`, a failure emits `_tlsError` and `error`, then `close`. After it, TLS errors reach `error` only if
 *   `_releaseControl()` was called, as `tls.Server` does; else they end in `_tlsError` and the socket stays open.
 * - A client that distrusts us without an alert (Node, npm, Deno) gives neither: only `end` before `secure`, and no `close` when
 *   the socket allows half-open. Destroy on it. With TLS 1.2 even `secure` may come first.
 * - Take the SNI from `readClientHello`: `tls.servername` is `false` after a TLS 1.2 resumption.
 * - Resumption needs nothing more: ticket keys and session id context live in the contexts, so a session resumes on any
 *   connection to the same host, also after its context was evicted or renewed. `tls.isSessionReused()` tells.
 * - `requestCert` and `rejectUnauthorized` stay unset: agents are identified on the proxy's listener, not inside the tunnel.
 * - ALPN lists with no common entry end the handshake with an alert; clients that offer none are served with `alpnProtocol` false.
 * - Renegotiation is refused by OpenSSL itself (SSL_OP_NO_RENEGOTIATION); Node's own counter would allow three per connection.
 */
export class LeafCache {
  readonly #mint: (host: string) => Promise<Leaf>;
  readonly #max: number;
  readonly #now: () => number;
  /** In the order of use: the first key was used longest ago. */
  readonly #entries = new Map<string, Entry>();
  readonly #pending = new Map<string, Promise<SecureContext>>();
  readonly #waiting: (() => void)[] = [];
  #running = 0;
  #ticketKeys = randomBytes(48);
  #ticketKeysFromMs: number;
  readonly #sessionIdContext = randomBytes(16).toString('hex');

  constructor(authority: { mintLeaf(host: string): Promise<Leaf> }, options: LeafCacheOptions) {
    this.#mint = (host) => authority.mintLeaf(host);
    this.#max = Math.max(1, options.max);
    this.#now = options.now ?? Date.now;
    this.#ticketKeysFromMs = this.#now();
  }

  /** Contexts held now. */
  get size(): number {
    return this.#entries.size;
  }

  /**
   * The context for a host: at once when it is there, else a promise.
   * @param host lower-case A-label name without trailing dot, or a canonical IP literal without brackets
   * @throws (rejects) CertificateError `certificate_failed`: not a host, the CA has expired, or too many new hosts at once
   */
  get(host: string): SecureContext | Promise<SecureContext> {
    const entry = this.#entries.get(host);
    if (entry !== undefined) {
      const nowMs = this.#now();
      if (nowMs < entry.notAfterMs - LAST_USE_MS && nowMs > entry.mintedAtMs - CLOCK_JUMP_MS) {
        this.#entries.delete(host);
        this.#entries.set(host, entry);
        if (nowMs >= entry.renewAtMs) this.#renew(host, entry, nowMs);
        return entry.context;
      }
    }
    return this.#pending.get(host) ?? this.#start(host);
  }

  #renew(host: string, entry: Entry, nowMs: number): void {
    if (this.#pending.has(host)) return;
    entry.renewAtMs = nowMs + RETRY_MS;
    // A failure is tried again after a minute; the present leaf serves until then, and its end makes the failure visible.
    this.#start(host).catch(() => undefined);
  }

  #start(host: string): Promise<SecureContext> {
    if (this.#pending.size >= MAX_WAITING) {
      return Promise.reject(new CertificateError('certificate_failed', 'Too many new hosts at once.'));
    }
    const made = this.#make(host).finally(() => this.#pending.delete(host));
    this.#pending.set(host, made);
    return made;
  }

  async #make(host: string): Promise<SecureContext> {
    await this.#enter();
    try {
      const leaf = await this.#mint(host);
      // Building the context is the part that blocks; in a turn of its own, others get theirs in between.
      await handshakePace.turn();
      const nowMs = this.#now();
      const context = this.#contextOf(leaf, nowMs);
      this.#entries.delete(host);
      this.#entries.set(host, {
        context,
        mintedAtMs: nowMs,
        notAfterMs: leaf.notAfterMs,
        renewAtMs: nowMs + (leaf.notAfterMs - nowMs) / 2,
      });
      this.#evict();
      return context;
    } finally {
      this.#leave();
    }
  }

  #evict(): void {
    for (const host of this.#entries.keys()) {
      if (this.#entries.size <= this.#max) return;
      this.#entries.delete(host);
    }
  }

  #enter(): Promise<void> | undefined {
    if (this.#running < MAX_RUNNING) {
      this.#running += 1;
      return undefined;
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  /** Hands the place to the next one in line, so nobody overtakes. */
  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#running -= 1;
    else next();
  }

  #contextOf(leaf: Leaf, nowMs: number): SecureContext {
    if (Math.abs(nowMs - this.#ticketKeysFromMs) > TICKET_KEY_LIFE_MS) {
      this.#ticketKeys = randomBytes(48);
      this.#ticketKeysFromMs = nowMs;
    }
    return createSecureContext({
      key: leaf.keyPem,
      cert: leaf.certificateChainPem,
      // Without this Node attaches all public roots, which serve nothing here: no client certificate is asked for.
      ca: [],
      minVersion: 'TLSv1.2',
      ciphers: CIPHERS,
      honorCipherOrder: true,
      ecdhCurve: 'X25519:P-256:P-384',
      secureOptions: constants.SSL_OP_NO_RENEGOTIATION | constants.SSL_OP_PRIORITIZE_CHACHA,
      ticketKeys: this.#ticketKeys,
      sessionIdContext: this.#sessionIdContext,
      sessionTimeout: SESSION_LIFE_S,
    });
  }
}

/** Node's default is five minutes; agents come back after longer pauses. RFC 8446 section 4.6.1 allows up to seven days. */
const SESSION_LIFE_S = 2 * 3600;

/**
 * Forward secrecy and AEAD only (RFC 9325 section 4.2), for our ECDSA leaves. AES-128 first: the cheapest per byte and ample;
 * a client that puts ChaCha20 first, having no AES in hardware, gets it.
 */
const CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
].join(':');
