import { connect, constants } from 'node:http2';
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders, OutgoingHttpHeaders } from 'node:http2';
import type { Socket } from 'node:net';
import type { ProxyError } from '../core/errors.ts';
import { LimitError, ProtocolError, UpstreamError } from '../core/errors.ts';
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
import { objectHeaders } from './h2-headers.ts';
import type { Deadlines, Expiring } from './limits.ts';

const STREAM_WINDOW = 2 * 1024 * 1024;
const SESSION_WINDOW = 16 * 1024 * 1024;

/** An HTTP/2 connection to a server; many requests at once. */
export class H2Upstream {
  readonly #session: ClientHttp2Session;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #streams = new Set<H2Stream>();
  readonly #onGone: () => void;
  #isUsable = true;
  #isOver = false;
  #served = 0;

  /** @param socket TLS with ALPN h2, or a clear socket for prior knowledge */
  constructor(socket: Socket, limits: Limits, deadlines: Deadlines, hooks: { onClose(): void }) {
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#onGone = () => hooks.onClose();
    const session = connect('https://upstream.invalid', {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW, maxHeaderListSize: limits.headerBytes },
      maxHeaderListPairs: limits.headerCount + 8,
      maxSettings: 64,
      maxSessionMemory: 64,
    });
    this.#session = session;
    session.on('error', () => this.#stop());
    session.on('goaway', (_code: number, lastStreamId: number) => {
      this.#isUsable = false;
      for (const stream of [...this.#streams]) stream.refusedAfter(lastStreamId);
    });
    session.on('close', () => this.#stop());
    session.on('frameError', () => undefined);
    // A pushed stream was never asked for.
    session.on('stream', (pushed) => pushed.close(constants.NGHTTP2_REFUSED_STREAM));
    session.once('connect', () => session.setLocalWindowSize(SESSION_WINDOW));
    socket.on('close', () => {
      if (!session.destroyed) session.destroy();
      this.#stop();
    });
  }

  get isUsable(): boolean {
    return this.#isUsable && !this.#session.destroyed && !this.#session.closed;
  }

  get activeStreams(): number {
    return this.#streams.size;
  }

  /** Streams the server takes at once. */
  get capacity(): number {
    const max = this.#session.remoteSettings.maxConcurrentStreams;
    return max === undefined ? 100 : Math.min(max, 1000);
  }

  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream {
    const headers: OutgoingHttpHeaders = objectHeaders(request.headers);
    headers[':method'] = request.method;
    headers[':scheme'] = request.scheme;
    headers[':authority'] = request.authority;
    headers[':path'] = request.target;
    if (request.length !== null && request.length > 0) headers['content-length'] = request.length;
    else if (request.length === null) delete headers['content-length'];
    if (request.wantsTrailers) headers['te'] = 'trailers';
    if (request.expectsContinue) headers['expect'] = '100-continue';
    else delete headers['expect'];
    if (request.upgrade !== null)
      throw new ProtocolError('upgrade_not_supported', 'WebSocket to a server is spoken over HTTP/1.1.');
    let stream: ClientHttp2Stream;
    try {
      stream = this.#session.request(headers, {
        endStream: request.length === 0,
        waitForTrailers: request.length !== 0,
      });
    } catch (error) {
      throw new UpstreamError('upstream_reset', null, { cause: error });
    }
    const running: H2Stream = new H2Stream(
      stream,
      request,
      handler,
      this.#limits,
      this.#deadlines,
      this.#served++ > 0,
      () => this.#streams.delete(running),
    );
    this.#streams.add(running);
    return running;
  }

  destroy(): void {
    if (!this.#session.destroyed) this.#session.destroy();
    this.#stop();
  }

  #stop(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#isUsable = false;
    for (const stream of [...this.#streams]) stream.broken(new UpstreamError('upstream_reset'));
    this.#streams.clear();
    this.#onGone();
  }
}

/** One request: its body is written to `body`, its answer goes to the handler. */
class H2Stream implements UpstreamStream, BodySink, BodySource, Expiring {
  deadlineMs: number;
  readonly reused: boolean;
  readonly body: BodySink = this;
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
  #isEnded = false;
  #isOver = false;
  #isBlocked = false;

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
    this.reused = reused;
    this.#onGone = onGone;
    this.deadlineMs = deadlines.now + limits.responseHeadMs;
    deadlines.add(this);
    stream.on('error', () => undefined);
    stream.on(
      'headers',
      (headers: IncomingHttpHeaders & { ':status'?: number | undefined }, _flags: number, raw?: string[]) => {
        this.#handler?.informational(headOf(headers[':status'] ?? 0, raw ?? []));
      },
    );
    stream.on('response', (headers, _flags: number, raw?: string[]) => this.#onResponse(headers, raw ?? []));
    stream.on('trailers', (_headers: IncomingHttpHeaders, _flags: number, raw?: string[]) => {
      this.#trailers = withoutPseudo(raw ?? []);
    });
    stream.on('drain', () => {
      this.#isBlocked = false;
      this.#touch();
      this.onDrain?.();
    });
    stream.on('wantTrailers', () => {
      if (stream.destroyed || stream.closed) return;
      stream.sendTrailers(objectHeaders(this.#outgoingTrailers));
    });
    stream.on('close', () => this.#onClose());
  }

  expire(nowMs: number): void {
    if (!this.#hasResponse)
      this.#fail(this.#isBlocked ? new LimitError('upstream_idle') : new UpstreamError('upstream_timeout'));
    else if (this.#isBlocked || !this.#stream.isPaused()) this.#fail(new UpstreamError('upstream_idle'));
    else this.deadlineMs = nowMs + this.#limits.idleMs;
  }

  // BodySink: the request body.

  write(chunk: Buffer): boolean {
    if (this.#isOver || this.#stream.destroyed || this.#isEnded) return true;
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

  abort(): void {
    if (this.#isOver) return;
    this.#handler = null;
    this.#consumer = null;
    if (!this.#stream.closed) this.#stream.close(constants.NGHTTP2_CANCEL);
    this.#done();
  }

  // BodySource: the answer.

  start(consumer: BodyConsumer): void {
    this.#consumer = consumer;
    this.#stream.on('data', (chunk: Buffer) => {
      this.#touch();
      this.#consumer?.data(chunk);
    });
    this.#stream.on('end', () => this.#onEnd());
  }

  pause(): void {
    this.#stream.pause();
  }

  resume(): void {
    this.#stream.resume();
    this.#touch();
  }

  cancel(): void {
    this.abort();
  }

  /** GOAWAY: streams after the last one were never processed and may be sent again (RFC 9113 section 6.8). */
  refusedAfter(lastStreamId: number): void {
    if (this.#stream.id !== undefined && this.#stream.id > lastStreamId)
      this.#fail(new UpstreamError('upstream_reset', null, { isRetrySafe: true }));
  }

  broken(error: UpstreamError): void {
    this.#fail(error);
  }

  #touch(): void {
    this.deadlineMs =
      this.#deadlines.now +
      (this.#isBlocked
        ? this.#limits.slowWriteMs
        : this.#hasResponse
          ? this.#limits.idleMs
          : this.#limits.responseHeadMs);
  }

  #onResponse(headers: IncomingHttpHeaders & { ':status'?: number | undefined }, raw: readonly string[]): void {
    const handler = this.#handler;
    if (handler === null) return;
    this.#hasResponse = true;
    this.#touch();
    const status = headers[':status'] ?? 0;
    const declared = headers['content-length'];
    const isBodiless = this.#method === 'HEAD' || status === 204 || status === 304 || this.#stream.endAfterHeaders;
    this.length = isBodiless ? 0 : declared === undefined ? null : Number(declared);
    if (this.#stream.endAfterHeaders) {
      this.#handler = null;
      handler.response(headOf(status, raw), NO_BODY);
      return;
    }
    handler.response(headOf(status, raw), this);
  }

  #onEnd(): void {
    // A reset stream ends, too; only without an error code is that the end of the answer.
    if (this.#stream.rstCode !== constants.NGHTTP2_NO_ERROR || this.#stream.aborted) return;
    const consumer = this.#consumer;
    this.#consumer = null;
    this.#handler = null;
    consumer?.end(this.#trailers);
  }

  #onClose(): void {
    const code = this.#stream.rstCode;
    if (code === constants.NGHTTP2_REFUSED_STREAM)
      this.#fail(new UpstreamError('upstream_reset', null, { isRetrySafe: true }));
    else
      this.#fail(
        new UpstreamError('upstream_reset', code === constants.NGHTTP2_NO_ERROR ? null : `RST_STREAM ${code}.`),
      );
  }

  #fail(error: ProxyError): void {
    if (this.#isOver) return;
    const handler = this.#handler;
    const consumer = this.#consumer;
    this.#handler = null;
    this.#consumer = null;
    if (!this.#stream.closed) this.#stream.close(constants.NGHTTP2_CANCEL);
    this.#done();
    if (consumer !== null) consumer.fail(error);
    else handler?.fail(error);
  }

  #done(): void {
    this.#isOver = true;
    this.#deadlines.delete(this);
    this.#onGone();
  }
}

const NO_BODY: BodySource = {
  length: 0,
  start: (consumer) => consumer.end([]),
  pause: () => undefined,
  resume: () => undefined,
  cancel: () => undefined,
};

function withoutPseudo(raw: readonly string[]): string[] {
  const headers: string[] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i] ?? '';
    if (name.charCodeAt(0) !== 0x3a) headers.push(name, raw[i + 1] ?? '');
  }
  return headers;
}

function headOf(status: number, raw: readonly string[]): ResponseHead {
  return { httpVersion: '2', status, reason: '', headers: withoutPseudo(raw) };
}
