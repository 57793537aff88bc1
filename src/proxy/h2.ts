import { constants, performServerHandshake } from 'node:http2';
import type { IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { LimitError, ProtocolError, ProxyError } from '../core/errors.ts';
import { Registry } from '../core/registry.ts';
import type { Limits } from '../core/settings.ts';
import type { ClientStream } from '../core/stream.ts';
import { H2ClientStream } from './h2-client-stream.ts';
import type { H2StreamOwner } from './h2-client-stream.ts';
import { sessionHeaderLimits } from './h2-headers.ts';
import type { Deadlines, Expiring } from './limits.ts';

export interface H2Options {
  readonly limits: Limits;
  readonly deadlines: Deadlines;
  readonly scheme: 'http' | 'https';
  onStream(stream: ClientStream): void;
  /** The session is ended for a reason of its own: flood, protocol error. */
  onError(error: ProxyError): void;
  /** The session is over; called once. */
  onClose(): void;
}

export interface H2Server {
  readonly activeStreams: number;
  /** GOAWAY; open streams finish. */
  drain(): void;
  destroy(error: ProxyError | null): void;
}

/**
 * Bytes a client may send on one stream, and on all together, before somebody has read them. Agents are near: a quarter of a megabyte each millisecond is enough.
 * With a megabyte, git's pushes over libcurl-gnutls 7.88 stall at its end, with any server.
 */
const STREAM_WINDOW = 256 * 1024;
const SESSION_WINDOW = 2 * 1024 * 1024;

/** Serves HTTP/2 on a socket whose TLS is already ended (or on a clear one, with prior knowledge). */
export function serveH2(socket: Socket, options: H2Options): H2Server {
  return new Session(socket, options);
}

class Session implements H2Server, H2StreamOwner, Expiring {
  slot = -1;
  deadlineMs: number;
  readonly #session: ServerHttp2Session;
  readonly #options: H2Options;
  readonly #streams = new Registry<H2ClientStream>();
  #resets = 0;
  #resetsSinceMs: number;
  #isOver = false;
  #isDraining = false;
  #isFlooded = false;

  constructor(socket: Socket, options: H2Options) {
    this.#options = options;
    const { limits, deadlines } = options;
    this.#resetsSinceMs = deadlines.now;
    const header = sessionHeaderLimits(limits);
    const session = performServerHandshake(socket, {
      settings: {
        maxConcurrentStreams: limits.h2StreamsPerConnection,
        maxHeaderListSize: header.listBytes,
        initialWindowSize: STREAM_WINDOW,
        enableConnectProtocol: true,
        enablePush: false,
      },
      maxHeaderListPairs: header.listPairs,
      maxSendHeaderBlockLength: header.sendBytes,
      maxSettings: 32,
      maxOutstandingPings: 10,
      maxSessionInvalidFrames: 100,
      maxSessionRejectedStreams: 100,
      maxSessionMemory: 32,
    });
    this.#session = session;
    session.on('error', (error: NodeJS.ErrnoException) => this.#end(sessionError(error)));
    session.on(
      'stream',
      (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, rawHeaders: string[]) =>
        this.#onStream(stream, headers, rawHeaders),
    );
    session.on('close', () => this.#end(null));
    session.on('frameError', () => undefined);
    socket.on('error', () => undefined);
    // HTTP/2 has no half-close: a client that ends its side without GOAWAY is gone.
    socket.on('end', () => {
      if (!session.destroyed) session.destroy();
    });
    socket.on('close', () => {
      if (!session.destroyed) session.destroy();
      // The session tells its error after this event, and then its own 'close'.
      setImmediate(() => this.#end(null));
    });
    session.once('connect', () => session.setLocalWindowSize(SESSION_WINDOW));
    this.deadlineMs = deadlines.now + limits.headMs;
    deadlines.add(this);
  }

  get activeStreams(): number {
    return this.#streams.size;
  }

  get #checkMs(): number {
    const { slowWriteMs, idleMs, halfCloseMs } = this.#options.limits;
    return Math.min(slowWriteMs, idleMs, halfCloseMs) / 2;
  }

  expire(nowMs: number): void {
    if (this.#streams.size === 0) {
      this.#session.close();
      this.#session.destroy();
      return;
    }
    const streams = this.#streams.snapshot();
    // A reset that has not gone out since the last look never will: the client reads nothing, or nghttp2 has ended the session without an event and without
    // closing the connection (it does so for DATA on a half-closed stream).
    if (streams.some((stream) => stream.isStuck)) {
      this.destroy(new LimitError('slow_peer'));
      return;
    }
    for (const stream of streams) stream.checkProgress(nowMs);
    this.deadlineMs = nowMs + this.#checkMs;
  }

  drain(): void {
    this.#isDraining = true;
    if (!this.#session.destroyed) this.#session.close();
  }

  destroy(error: ProxyError | null): void {
    if (!this.#session.destroyed) this.#session.destroy();
    this.#end(error);
  }

  /** A client that opens streams only to reset them costs us a judged request each time (CVE-2023-44487). */
  countReset(): void {
    const { deadlines, limits } = this.#options;
    if (deadlines.now - this.#resetsSinceMs > 60_000) {
      this.#resets = 0;
      this.#resetsSinceMs = deadlines.now;
    }
    if (++this.#resets <= limits.h2ResetsPerMinute || this.#isOver || this.#isFlooded) return;
    this.#isFlooded = true;
    this.#isDraining = true;
    if (!this.#session.destroyed) this.#session.goaway(constants.NGHTTP2_ENHANCE_YOUR_CALM);
    // Since Node 24 a session that is destroyed in the same turn takes its GOAWAY with it.
    setImmediate(() => {
      if (!this.#session.destroyed) this.#session.destroy(undefined, constants.NGHTTP2_ENHANCE_YOUR_CALM);
      this.#end(new LimitError('h2_flood'));
    });
  }

  closed(stream: H2ClientStream): void {
    this.#streams.delete(stream);
    if (this.#streams.size > 0) return;
    const { deadlines, limits } = this.#options;
    this.deadlineMs = deadlines.now + limits.keepAliveMs;
  }

  #onStream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: string[]): void {
    stream.on('error', () => undefined);
    if (this.#isOver || this.#isDraining) {
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return;
    }
    const { limits, deadlines } = this.#options;
    const client = new H2ClientStream(this, stream, headers, rawHeaders, this.#options.scheme, limits, deadlines);
    if (this.#streams.size === 0) this.deadlineMs = deadlines.now + this.#checkMs;
    this.#streams.add(client);
    this.#options.onStream(client);
  }

  #end(error: ProxyError | null): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#options.deadlines.delete(this);
    for (const stream of this.#streams.snapshot()) stream.gone(error ?? new ProxyError('client_aborted'));
    this.#streams.clear();
    if (error !== null) this.#options.onError(error);
    this.#options.onClose();
  }
}

/** Why Node gave up a session; null when it was the client, or the way to it, that went away. */
function sessionError(error: NodeJS.ErrnoException): ProxyError | null {
  switch (error.code) {
    case 'ERR_HTTP2_TOO_MANY_INVALID_FRAMES':
      return new LimitError('h2_flood', null, { cause: error });
    case 'ERR_HTTP2_ERROR':
      return new ProtocolError('bad_request', 'HTTP/2 protocol error.', { cause: error });
    default:
      return null;
  }
}
