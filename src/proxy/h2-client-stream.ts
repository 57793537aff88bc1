import { constants } from 'node:http2';
import type { IncomingHttpHeaders, OutgoingHttpHeaders, ServerHttp2Stream } from 'node:http2';
import { LimitError, ProtocolError, ProxyError, codeFacts } from '../core/errors.ts';
import { sectionExcess } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
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
import { objectHeaders, plainHeaders } from './h2-headers.ts';
import { onPeerEnd } from './h2-peer-end.ts';
import type { Deadlines } from './limits.ts';
import { NO_BODY } from './no-body.ts';

/** The session of a stream. */
export interface H2StreamOwner {
  /** The client reset a stream for which work was done. */
  countReset(): void;
  /** The stream is over. */
  closed(stream: H2ClientStream): void;
}

/** One stream of a session, both directions. */
export class H2ClientStream implements ClientStream, BodySource, BodySink, Registered {
  slot = -1;
  readonly request: RequestHead;
  readonly body: BodySource;
  readonly length: number | null;
  onClose: ((error: ProxyError) => void) | null = null;
  onDrain: (() => void) | null = null;
  /** Was aborted before the last check, and is still here. */
  isStuck = false;
  readonly #session: H2StreamOwner;
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
    session: H2StreamOwner,
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
