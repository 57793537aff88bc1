import { constants } from 'node:http2';
import type { ClientHttp2Stream, IncomingHttpHeaders } from 'node:http2';
import { UpstreamError } from '../core/errors.ts';
import type { ProxyError } from '../core/errors.ts';
import { sectionExcess } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Limits } from '../core/settings.ts';
import type {
  BodyConsumer,
  BodySink,
  BodySource,
  ResponseHead,
  UpstreamHandler,
  UpstreamRequest,
  UpstreamStream,
} from '../core/stream.ts';
import { objectHeaders, plainHeaders } from './h2-headers.ts';
import { onPeerEnd } from './h2-peer-end.ts';
import type { Deadlines, Expiring } from './limits.ts';
import { NO_BODY } from './no-body.ts';

type ResponseHeaders = IncomingHttpHeaders & { ':status'?: number | undefined };

/** One request of an HTTP/2 connection to a server: its body is written to `body`, its answer goes to the handler. */
export class H2UpstreamStream implements UpstreamStream, BodySink, BodySource, Expiring {
  slot = -1;
  deadlineMs: number;
  readonly reused: boolean;
  readonly body: BodySink;
  length: number | null = null;
  onDrain: (() => void) | null = null;
  readonly #stream: ClientHttp2Stream;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #onGone: () => void;
  readonly #method: string;
  #handler: UpstreamHandler | null;
  #consumer: BodyConsumer | null = null;
  #trailers: RawHeaders = [];
  #outgoingTrailers: RawHeaders = [];
  #hasResponse = false;
  /** The server ended its side with END_STREAM: whatever happens to the stream now, its answer is whole. */
  #hasPeerEnded = false;
  #isEnded = false;
  #isOver = false;
  #isBlocked = false;
  #isPaused = false;
  /** What Node had read of a whole answer when the stream was torn down under a slow reader; null as long as the stream gives it. */
  #rest: Buffer[] | null = null;

  constructor(
    stream: ClientHttp2Stream,
    request: UpstreamRequest,
    handler: UpstreamHandler,
    limits: Limits,
    deadlines: Deadlines,
    reused: boolean,
    onGone: () => void,
  ) {
    this.#stream = stream;
    this.#handler = handler;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#method = request.method;
    this.body = this;
    this.reused = reused;
    this.#onGone = onGone;
    this.deadlineMs = deadlines.now + limits.responseHeadMs;
    deadlines.add(this);
    stream.on('error', IGNORE);
    stream.on('headers', (headers: ResponseHeaders, _flags: number, raw?: string[]) =>
      this.#onInformational(headers, raw ?? []),
    );
    stream.on('response', (headers, flags: number, raw?: string[]) => this.#onResponse(headers, flags, raw ?? []));
    stream.on('trailers', (_headers: IncomingHttpHeaders, _flags: number, raw?: string[]) =>
      this.#onTrailers(raw ?? []),
    );
    stream.on('drain', this.#onDrain);
    stream.on('wantTrailers', this.#onWantTrailers);
    stream.on('close', this.#onClose);
    onPeerEnd(stream, () => {
      this.#hasPeerEnded = true;
    });
  }

  expire(nowMs: number): void {
    if (!this.#hasResponse) this.#fail(new UpstreamError(this.#isBlocked ? 'upstream_idle' : 'upstream_timeout'));
    else if (this.#isBlocked || !this.#isPaused) this.#fail(new UpstreamError('upstream_idle'));
    else this.deadlineMs = nowMs + this.#limits.idleMs;
  }

  // BodySink: the request body.

  write(chunk: Buffer): boolean {
    if (this.#isOver || this.#isEnded || this.#stream.destroyed || this.#stream.closed) return true;
    const isKeepingUp = this.#stream.write(chunk);
    if (!isKeepingUp) this.#isBlocked = true;
    this.#touch();
    return isKeepingUp;
  }

  end(trailers: RawHeaders): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#outgoingTrailers = trailers;
    if (!this.#stream.writableEnded && !this.#stream.destroyed) this.#stream.end();
  }

  sawBytes(): boolean {
    return this.#hasResponse;
  }

  /** Also the `abort` of the body: the server must not take what it has for the whole. */
  abort(): void {
    if (this.#isOver) return;
    this.#handler = null;
    this.#consumer = null;
    this.#reset();
    this.#done();
  }

  // BodySource: the answer.

  start(consumer: BodyConsumer): void {
    this.#consumer = consumer;
    this.#stream.on('data', this.#onData);
    this.#stream.on('end', this.#onEnd);
  }

  pause(): void {
    this.#isPaused = true;
    this.#stream.pause();
  }

  resume(): void {
    this.#isPaused = false;
    this.#touch();
    if (this.#rest === null) this.#stream.resume();
    else this.#giveRest(this.#rest);
  }

  cancel(): void {
    this.abort();
  }

  /** The server has said which streams it still takes: those after the last one were never processed and may be sent again (RFC 9113 section 6.8). */
  refusedAfter(lastStreamId: number): void {
    const { id } = this.#stream;
    if (id === undefined || id > lastStreamId)
      this.#fail(new UpstreamError('upstream_reset', 'GOAWAY.', { isRetrySafe: true }));
  }

  /** The connection is gone. A whole answer that is still being read is not affected. */
  broken(error: UpstreamError): void {
    if (!this.#hasPeerEnded) this.#fail(error);
  }

  #touch(): void {
    const { slowWriteMs, idleMs, responseHeadMs } = this.#limits;
    const waitMs = this.#isBlocked ? slowWriteMs : this.#hasResponse ? idleMs : responseHeadMs;
    this.deadlineMs = this.#deadlines.now + waitMs;
  }

  #onInformational(headers: ResponseHeaders, raw: readonly string[]): void {
    const plain = plainHeaders(raw);
    if (sectionExcess(plain, this.#limits) !== null) this.#fail(new UpstreamError('upstream_header_too_large'));
    else this.#handler?.informational(headOf(headers[':status'] ?? 0, plain));
  }

  #onResponse(headers: ResponseHeaders, flags: number, raw: readonly string[]): void {
    const handler = this.#handler;
    if (handler === null) return;
    this.#hasResponse = true;
    this.#touch();
    const plain = plainHeaders(raw);
    if (sectionExcess(plain, this.#limits) !== null) {
      this.#fail(new UpstreamError('upstream_header_too_large'));
      return;
    }
    const status = headers[':status'] ?? 0;
    const head = headOf(status, plain);
    // `endAfterHeaders` is about requests: on our side of a stream it is never set. A gRPC answer of trailers only is none unless it ends with its head.
    if ((flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0) {
      this.length = 0;
      this.#handler = null;
      handler.response(head, NO_BODY);
      return;
    }
    const declared = headers['content-length'];
    const isBodiless = this.#method === 'HEAD' || status === 204 || status === 304;
    this.length = isBodiless ? 0 : declared === undefined ? null : Number(declared);
    handler.response(head, this);
  }

  #onTrailers(raw: readonly string[]): void {
    this.#trailers = plainHeaders(raw);
    // Those that we take are larger than those that another connection may take.
    if (sectionExcess(this.#trailers, this.#limits) !== null)
      this.#fail(new UpstreamError('upstream_header_too_large'));
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#touch();
    this.#consumer?.data(chunk);
  };

  readonly #onDrain = (): void => {
    this.#isBlocked = false;
    this.#touch();
    this.onDrain?.();
  };

  readonly #onWantTrailers = (): void => {
    if (this.#stream.destroyed || this.#stream.closed) return;
    this.#stream.sendTrailers(objectHeaders(this.#outgoingTrailers, 'first'));
  };

  readonly #onEnd = (): void => {
    // A stream that was reset ends, too.
    if (!this.#hasPeerEnded) return;
    const consumer = this.#consumer;
    this.#consumer = null;
    this.#handler = null;
    consumer?.end(this.#trailers);
  };

  readonly #onClose = (): void => {
    if (this.#isOver) return;
    if (this.#hasPeerEnded && this.#consumer !== null) {
      // Node tears all streams down when the socket closes, those that are whole but not read to the end included. What it has read is still there, at most a window.
      const rest: Buffer[] = [];
      for (let chunk: unknown = this.#stream.read(); Buffer.isBuffer(chunk); chunk = this.#stream.read())
        rest.push(chunk);
      this.#rest = rest;
      this.#giveRest(rest);
      return;
    }
    if (this.#hasPeerEnded && this.#handler === null) {
      this.#done();
      return;
    }
    this.#fail(resetError(this.#stream.rstCode));
  };

  #giveRest(rest: Buffer[]): void {
    while (!this.#isPaused && this.#consumer !== null) {
      const chunk = rest.shift();
      if (chunk !== undefined) this.#onData(chunk);
      else this.#onEnd();
    }
    if (this.#consumer === null && !this.#isOver) this.#done();
  }

  #fail(error: ProxyError): void {
    if (this.#isOver) return;
    const handler = this.#handler;
    const consumer = this.#consumer;
    this.#handler = null;
    this.#consumer = null;
    this.#reset();
    this.#done();
    if (consumer !== null) consumer.fail(error);
    else handler?.fail(error);
  }

  #reset(): void {
    if (!this.#stream.closed && !this.#stream.destroyed) this.#stream.close(constants.NGHTTP2_CANCEL);
  }

  #done(): void {
    this.#isOver = true;
    this.#rest = null;
    this.#deadlines.delete(this);
    this.#onGone();
  }
}

const IGNORE = (): void => undefined;

function headOf(status: number, headers: RawHeaders): ResponseHead {
  return { httpVersion: '2', status, reason: '', headers };
}

/** Why a stream was closed before its answer was whole, by the server or by nghttp2 on our side. */
function resetError(code: number): UpstreamError {
  switch (code) {
    case constants.NGHTTP2_NO_ERROR:
      return new UpstreamError('upstream_reset');
    case constants.NGHTTP2_REFUSED_STREAM:
      return new UpstreamError('upstream_reset', 'REFUSED_STREAM.', { isRetrySafe: true });
    case constants.NGHTTP2_PROTOCOL_ERROR:
      // Among others: headers that HTTP/2 forbids, and a body that is not as long as it was said to be.
      return new UpstreamError('upstream_protocol');
    default:
      return new UpstreamError('upstream_reset', `RST_STREAM with code ${code}.`);
  }
}
