import { connect, constants } from 'node:http2';
import type { ClientHttp2Session, ClientHttp2Stream, OutgoingHttpHeaders, Settings } from 'node:http2';
import type { Socket } from 'node:net';
import { ProtocolError, UpstreamError } from '../core/errors.ts';
import { Registry, Seat } from '../core/registry.ts';
import type { Limits } from '../core/settings.ts';
import type { UpstreamHandler, UpstreamRequest, UpstreamStream } from '../core/stream.ts';
import { http2Transport } from './clear-transport.ts';
import { objectHeaders, sessionHeaderLimits } from './h2-headers.ts';
import type { Deadlines } from './limits.ts';
import { H2UpstreamStream } from './upstream-h2-stream.ts';

/** Bytes a server may send on one stream before the agent has taken them: what a stalled reader costs. Bounds a stream to 20 MB/s at 50 ms distance. */
const STREAM_WINDOW = 1024 * 1024;
const SESSION_WINDOW = 16 * 1024 * 1024;
/** Streams opened before the server has said how many it takes; RFC 9113 section 6.5.2 recommends no less. */
const FIRST_CAPACITY = 100;
const MAX_CAPACITY = 1000;
/** A connection that has taken nothing of a request for so long gets no further ones. */
const STUCK_MS = 2000;

/** An HTTP/2 connection to a server; many requests at once. The owner closes it when it has been idle for long enough. */
export class H2Upstream {
  readonly #session: ClientHttp2Session;
  readonly #socket: Socket;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #streams = new Registry<Seat<H2UpstreamStream>>();
  readonly #onGone: () => void;
  #isUsable = true;
  #isOver = false;
  #served = 0;
  #capacity = FIRST_CAPACITY;
  /** What had been written before a request of late; null when that request is known to be on its way. */
  #unsent: { readonly atMs: number; readonly bytesWritten: number } | null = null;

  /** @param socket TLS with ALPN h2, or a clear socket for prior knowledge */
  constructor(socket: Socket, limits: Limits, deadlines: Deadlines, hooks: { onClose(): void }) {
    this.#socket = socket;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#onGone = () => hooks.onClose();
    socket.on('error', () => undefined);
    const header = sessionHeaderLimits(limits);
    const session = connect('https://upstream.invalid', {
      createConnection: () => http2Transport(socket),
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW, maxHeaderListSize: header.listBytes },
      maxHeaderListPairs: header.listPairs,
      maxSendHeaderBlockLength: header.sendBytes,
      maxSettings: 64,
      maxOutstandingPings: 10,
      maxSessionMemory: 64,
    });
    this.#session = session;
    session.on('error', () => this.#stop());
    session.on('goaway', (_code: number, lastStreamId: number) => {
      this.#isUsable = false;
      for (const { item } of this.#streams.snapshot()) item.refusedAfter(lastStreamId);
    });
    session.on('close', () => this.#stop());
    session.on('frameError', () => undefined);
    session.on('remoteSettings', (settings: Settings) => {
      this.#capacity = Math.min(settings.maxConcurrentStreams ?? MAX_CAPACITY, MAX_CAPACITY);
    });
    // A pushed stream was never asked for.
    session.on('stream', (pushed) => {
      pushed.on('error', () => undefined);
      pushed.close(constants.NGHTTP2_REFUSED_STREAM);
    });
    session.once('connect', () => {
      // The event comes for a session that was destroyed before it, too.
      if (!session.destroyed) session.setLocalWindowSize(SESSION_WINDOW);
    });
    socket.on('close', () => {
      if (!session.destroyed) session.destroy();
      this.#stop();
    });
  }

  /** Whether new requests may be sent. */
  get isUsable(): boolean {
    return this.#isUsable && !this.#session.destroyed && !this.#session.closed && !this.#isStuck();
  }

  get activeStreams(): number {
    return this.#streams.size;
  }

  /** Streams the server takes at once. */
  get capacity(): number {
    return this.#capacity;
  }

  /**
   * Sends a request. Upgrades go over HTTP/1.1 connections, whatever the agent speaks.
   * @throws ProtocolError `bad_header`, `upgrade_not_supported`; UpstreamError `upstream_reset` when the connection takes nothing more
   */
  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream {
    const { length } = request;
    if (request.upgrade !== null)
      throw new ProtocolError('upgrade_not_supported', 'An upgrade needs a connection of its own.');
    const headers = headersOf(request);
    // Node 24 gives out a stream that fails later, as one that was under way would.
    if (this.#session.destroyed || this.#session.closed)
      throw new UpstreamError('upstream_reset', null, { isRetrySafe: true });
    let stream: ClientHttp2Stream;
    this.#unsent ??= { atMs: this.#deadlines.now, bytesWritten: this.#socket.bytesWritten };
    try {
      stream = this.#session.request(headers, {
        endStream: length === 0,
        waitForTrailers: length !== 0,
      });
    } catch (error) {
      throw new UpstreamError('upstream_reset', null, { cause: error, isRetrySafe: true });
    }
    const running = new H2UpstreamStream(
      stream,
      request,
      handler,
      this.#limits,
      this.#deadlines,
      this.#served++ > 0,
      () => this.#streams.delete(seat),
    );
    const seat = new Seat(running);
    this.#streams.add(seat);
    return running;
  }

  destroy(): void {
    if (!this.#session.destroyed) this.#session.destroy();
    // After GOAWAY Node only ends its side, and would wait for the server to do the same for ever.
    this.#socket.destroy();
    this.#stop();
  }

  /**
   * Node 20 says nothing when nghttp2 gives a connection up because the server broke its rules: it neither reads nor writes any more, not even the end of the
   * socket is seen. What shows is that requests stay in the queue.
   */
  #isStuck(): boolean {
    const unsent = this.#unsent;
    if (unsent === null || this.#deadlines.now - unsent.atMs < STUCK_MS) return false;
    this.#unsent = null;
    if (this.#socket.bytesWritten !== unsent.bytesWritten || this.#streams.size > this.#capacity) return false;
    if (this.#session.state.outboundQueueSize === 0) return false;
    this.#isUsable = false;
    return true;
  }

  #stop(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#isUsable = false;
    for (const { item } of this.#streams.snapshot()) item.broken(new UpstreamError('upstream_reset'));
    this.#onGone();
  }
}

function headersOf(request: UpstreamRequest): OutgoingHttpHeaders {
  const { length } = request;
  const headers = objectHeaders(request.headers, 'refuse');
  headers[':method'] = request.method;
  headers[':scheme'] = request.scheme;
  headers[':authority'] = request.authority;
  headers[':path'] = request.target;
  if (length !== null && length > 0) headers['content-length'] = length;
  // A Content-Length of 0 stays as it was sent: servers do ask for one with an empty POST.
  else if (length === null) delete headers['content-length'];
  if (request.wantsTrailers) headers['te'] = 'trailers';
  if (request.expectsContinue) headers['expect'] = '100-continue';
  else delete headers['expect'];
  return headers;
}
