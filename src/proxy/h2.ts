import { constants, performServerHandshake } from 'node:http2';
import type { IncomingHttpHeaders, OutgoingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { LimitError, ProtocolError, ProxyError, codeFacts } from '../core/errors.ts';
import { sectionExcess } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import { Registry } from '../core/registry.ts';
import type { Registered } from '../core/registry.ts';
import type { Limits } from '../core/settings.ts';
import type {
  BodyConsumer,
  BodySink,
  BodySource,
  ClientStream,
  RawDuplex,
  RequestHead,
  ResponseHead,
} from '../core/stream.ts';
import { objectHeaders, plainHeaders, sessionHeaderLimits } from './h2-headers.ts';
import { onPeerEnd } from './h2-peer-end.ts';
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

class Session implements H2Server, Expiring {
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

/** One stream of a session, both directions. */
class H2ClientStream implements ClientStream, BodySource, BodySink, Registered {
  slot = -1;
  readonly request: RequestHead;
  readonly body: BodySource;
  readonly length: number | null;
  onClose: ((error: ProxyError) => void) | null = null;
  onDrain: (() => void) | null = null;
  /** Was aborted before the last check, and is still here. */
  isStuck = false;
  readonly #session: Session;
  readonly #stream: ServerHttp2Stream;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  #consumer: BodyConsumer | null = null;
  #trailers: RawHeaders = [];
  /** The client ended its side with END_STREAM: its request is whole. */
  #hasPeerEnded = false;
  /** The whole request has been given to the consumer, or there was nothing to give. */
  #requestDone = false;
  #responseDone = false;
  #isAborted = false;
  #outgoingTrailers: RawHeaders = [];
  #waitsForTrailers = false;
  /** All of the answer has left us: nghttp2 has taken its last byte, window and all. */
  #isFlushed = false;
  #isRaw = false;
  #movedAtMs: number;
  #isBlocked = false;

  constructor(
    session: Session,
    stream: ServerHttp2Stream,
    headers: IncomingHttpHeaders,
    rawHeaders: readonly string[],
    scheme: 'http' | 'https',
    limits: Limits,
    deadlines: Deadlines,
  ) {
    this.#session = session;
    this.#stream = stream;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#movedAtMs = deadlines.now;
    const protocol = headers[':protocol'];
    const declared = headers['content-length'];
    this.length = stream.endAfterHeaders ? 0 : declared === undefined ? null : Number(declared);
    this.body = this.length === 0 && stream.endAfterHeaders ? NO_BODY : this;
    this.#hasPeerEnded = stream.endAfterHeaders;
    this.#requestDone = stream.endAfterHeaders;
    this.request = {
      httpVersion: '2',
      method: headers[':method'] ?? '',
      scheme,
      authority: headers[':authority'] ?? null,
      target: headers[':path'] ?? '',
      headers: plainHeaders(rawHeaders),
      upgrade: typeof protocol === 'string' ? protocol.toLowerCase() : null,
      expectsContinue: headers['expect']?.toLowerCase() === '100-continue',
    };
    stream.on('close', this.#onClose);
    stream.on('drain', this.#onDrain);
    if (!stream.endAfterHeaders) {
      stream.on('trailers', (_trailers: IncomingHttpHeaders, _flags: number, raw?: string[]) => {
        this.#trailers = plainHeaders(raw ?? []);
      });
    }
    onPeerEnd(
      stream,
      () => {
        this.#hasPeerEnded = true;
      },
      // Node waits for its reader and writer before it closes a stream that was reset with NO_ERROR. Both may wait for the client, who is gone.
      () => {
        if (!this.#isRaw || !this.#hasPeerEnded || !this.#isFlushed) stream.destroy();
      },
    );
  }

  /** Called now and then: a stream on which nothing moves while bytes wait is given up. */
  checkProgress(nowMs: number): void {
    this.isStuck = this.#isAborted;
    const { slowWriteMs, idleMs, halfCloseMs } = this.#limits;
    const quietMs = nowMs - this.#movedAtMs;
    const isWaiting = this.#isBlocked || (this.#responseDone && !this.#isFlushed);
    const isReading = !this.#requestDone && this.#consumer !== null && !this.#stream.isPaused();
    if (isWaiting && quietMs > slowWriteMs) this.abort(new LimitError('slow_peer'), true);
    else if (isReading && quietMs > (this.#responseDone ? halfCloseMs : idleMs))
      this.abort(new LimitError('idle_timeout'), true);
  }

  // BodySource

  start(consumer: BodyConsumer): void {
    this.#consumer = consumer;
    this.#stream.on('data', this.#onData);
    this.#stream.on('end', this.#onEnd);
  }

  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
  }

  cancel(): void {
    this.#consumer = null;
    if (!this.#requestDone) this.#stream.resume();
    if (this.#isRaw && this.#isFlushed) setImmediate(this.#stopRequest);
  }

  // ClientStream

  inform(head: ResponseHead): void {
    if (this.#stream.headersSent || this.#stream.destroyed || this.#stream.closed) return;
    const headers = objectHeaders(head.headers, 'first');
    headers[':status'] = head.status;
    // Clients take an interim answer with a length for a broken one (RFC 9110 section 8.6).
    delete headers['content-length'];
    this.#stream.additionalHeaders(headers);
  }

  respond(head: ResponseHead, length: number | null): BodySink {
    const { status } = head;
    // Node ends the stream behind a 205 by itself; it has no content (RFC 9110 section 15.3.6).
    const isBodiless = this.request.method === 'HEAD' || status === 204 || status === 205 || status === 304;
    const headers: OutgoingHttpHeaders = objectHeaders(head.headers, 'first');
    headers[':status'] = status;
    if (!isBodiless && length !== null) headers['content-length'] = length;
    else if (!isBodiless || status === 204 || status === 205) delete headers['content-length'];
    const endStream = isBodiless || length === 0;
    this.#isFlushed = endStream;
    if (this.#stream.destroyed || this.#stream.closed) return this;
    try {
      this.#stream.respond(headers, { endStream, waitForTrailers: !endStream });
      if (!endStream) this.#stream.once('wantTrailers', this.#onWantTrailers);
      this.#waitsForTrailers = !endStream;
    } catch (error) {
      this.abort(
        new ProtocolError('upstream_protocol', 'The answer cannot be sent over HTTP/2.', { cause: error }),
        true,
      );
    }
    return this;
  }

  upgrade(head: ResponseHead): RawDuplex {
    this.#isRaw = true;
    const headers: OutgoingHttpHeaders = objectHeaders(head.headers, 'first');
    headers[':status'] = 200;
    delete headers['content-length'];
    this.#stream.respond(headers, { waitForTrailers: true });
    this.#stream.once('wantTrailers', this.#onWantTrailers);
    this.#waitsForTrailers = true;
    const source: BodySource = {
      length: null,
      start: (consumer) => this.start(consumer),
      pause: () => this.pause(),
      resume: () => this.resume(),
      cancel: () => this.cancel(),
    };
    return { source, sink: this };
  }

  // BodySink

  write(chunk: Buffer): boolean {
    if (this.#stream.destroyed || this.#responseDone) return true;
    this.#movedAtMs = this.#deadlines.now;
    const isKeepingUp = this.#stream.write(chunk);
    this.#isBlocked = !isKeepingUp;
    return isKeepingUp;
  }

  end(trailers: RawHeaders): void {
    if (this.#responseDone) return;
    this.#responseDone = true;
    this.#outgoingTrailers = trailers;
    this.#movedAtMs = this.#deadlines.now;
    this.onClose = null;
    if (!this.#stream.writableEnded && !this.#stream.destroyed) this.#stream.end();
    // Nobody needs the rest of the request: NO_ERROR tells the client to stop, its answer is whole (RFC 9113 section 8.1).
    if (this.#hasPeerEnded || this.#waitsForTrailers) return;
    if (this.#stream.writableFinished) this.#stopRequest();
    else this.#stream.once('finish', this.#stopRequest);
  }

  /** As `ClientStream` and as `BodySink`: the client must not take what it has for the whole. */
  abort(error: ProxyError, tellOwner = false): void {
    if (this.#isAborted) return;
    this.#isAborted = true;
    const onClose = this.onClose;
    const consumer = this.#consumer;
    this.onClose = null;
    this.#consumer = null;
    this.#responseDone = true;
    if (!this.#stream.closed) this.#stream.close(resetCode(error));
    if (!tellOwner) return;
    if (onClose !== null) onClose(error);
    else consumer?.fail(error);
  }

  /** The session is gone. */
  gone(error: ProxyError): void {
    const onClose = this.onClose;
    const consumer = this.#consumer;
    this.onClose = null;
    this.#consumer = null;
    if (onClose !== null) onClose(error);
    else if (!this.#responseDone || this.#isRaw) consumer?.fail(error);
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#movedAtMs = this.#deadlines.now;
    this.#consumer?.data(chunk);
  };

  readonly #onEnd = (): void => {
    // A stream that was reset ends, too.
    if (!this.#hasPeerEnded) return;
    this.#requestDone = true;
    const consumer = this.#consumer;
    this.#consumer = null;
    // Node takes larger sections than we do (`sessionHeaderLimits`).
    const excess = sectionExcess(this.#trailers, this.#limits);
    if (excess === null) consumer?.end(this.#trailers);
    else consumer?.fail(new LimitError(excess));
  };

  readonly #onDrain = (): void => {
    this.#movedAtMs = this.#deadlines.now;
    this.#isBlocked = false;
    this.onDrain?.();
  };

  readonly #onWantTrailers = (): void => {
    this.#isFlushed = true;
    if (this.#stream.destroyed || this.#stream.closed) return;
    // Without trailers this sends the empty DATA frame that ends the stream; close() would sometimes send nothing.
    this.#stream.sendTrailers(objectHeaders(this.#outgoingTrailers, 'first'));
    // In this turn the reset would overtake the trailers.
    if (!this.#hasPeerEnded && (!this.#isRaw || this.#consumer === null)) setImmediate(this.#stopRequest);
  };

  readonly #stopRequest = (): void => {
    if (!this.#hasPeerEnded && !this.#stream.closed && !this.#stream.destroyed)
      this.#stream.close(constants.NGHTTP2_NO_ERROR);
  };

  readonly #onClose = (): void => {
    // With whatever code, NO_ERROR included: what counts is that we worked for nothing.
    const wasReset = !this.#isAborted && (!this.#isFlushed || this.#stream.rstCode !== constants.NGHTTP2_NO_ERROR);
    if (wasReset) this.#session.countReset();
    this.#session.closed(this);
    if (!this.#responseDone || (this.#isRaw && this.#consumer !== null)) this.gone(new ProxyError('client_aborted'));
  };
}

const NO_BODY: BodySource = {
  length: 0,
  start: (consumer) => consumer.end([]),
  pause: () => undefined,
  resume: () => undefined,
  cancel: () => undefined,
};

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

function resetCode(error: ProxyError): number {
  switch (codeFacts(error.code).kind) {
    case 'limit':
      return constants.NGHTTP2_ENHANCE_YOUR_CALM;
    case 'client':
      return constants.NGHTTP2_PROTOCOL_ERROR;
    case 'policy':
      return constants.NGHTTP2_CANCEL;
    default:
      return constants.NGHTTP2_INTERNAL_ERROR;
  }
}
