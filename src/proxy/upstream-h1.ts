import type { Socket } from 'node:net';
import type { ProxyError } from '../core/errors.ts';
import { LimitError, ProtocolError, UpstreamError, asProxyError } from '../core/errors.ts';
import { headerValue, listTokens } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Limits } from '../core/settings.ts';
import type {
  BodyConsumer,
  BodySink,
  BodySource,
  RawDuplex,
  ResponseHead,
  UpstreamHandler,
  UpstreamRequest,
  UpstreamStream,
} from '../core/stream.ts';
import { BodyDecoder } from '../protocols/http1-body.ts';
import type { BodyEvents } from '../protocols/http1-body.ts';
import { HeadCollector, isSafeField, isSafeRequestLine, parseResponseHead } from '../protocols/http1.ts';
import { classifyUpstreamTlsError } from '../tls/upstream-context.ts';
import { H1Writer } from './h1-writer.ts';
import type { WriteFraming } from './h1-writer.ts';
import type { Deadlines, Expiring } from './limits.ts';
import { NO_BODY } from './no-body.ts';

export interface H1UpstreamOwner {
  /** The exchange is over and the connection can take another. */
  idle(connection: H1Upstream): void;
  /** The connection is closed; called once. */
  closed(connection: H1Upstream): void;
}

type State = 'idle' | 'head' | 'body' | 'raw' | 'closed';

/** Interim answers a server may send before its final one; more is a way to keep us busy. */
const MAX_INFORMATIONAL = 16;

/** The server's side of HTTP/1: one request at a time on one connection. */
export class H1Upstream implements Expiring, BodyEvents {
  slot = -1;
  deadlineMs: number;
  readonly socket: Socket;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #owner: H1UpstreamOwner;
  #state: State = 'idle';
  #served = 0;
  #method = '';
  #collector: HeadCollector;
  #decoder: BodyDecoder | null = null;
  #handler: UpstreamHandler | null = null;
  #consumer: BodyConsumer | null = null;
  #held: Buffer[] = [];
  #isPaused = false;
  #writer: H1Writer | null = null;
  #rawSink: BodySink | null = null;
  #isUpgrade = false;
  #requestDone = true;
  #responseDone = true;
  #keepAlive = false;
  #serverEnded = false;
  #blocked = false;
  #informational = 0;
  #idleMs: number;
  #sawBytes = false;

  constructor(socket: Socket, limits: Limits, deadlines: Deadlines, owner: H1UpstreamOwner) {
    this.socket = socket;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#owner = owner;
    this.#collector = newCollector(limits);
    this.#idleMs = limits.upstreamIdleMs;
    this.deadlineMs = deadlines.now + limits.upstreamIdleMs;
    deadlines.add(this);
    socket.on('error', this.#onError);
    socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('close', this.#onClose);
    socket.on('drain', this.#onDrain);
  }

  get isIdle(): boolean {
    return this.#state === 'idle' && !this.#serverEnded && !this.socket.destroyed;
  }

  /** Starts a request; only when `isIdle`, or the handler is told that the connection is gone. */
  request(request: UpstreamRequest, handler: UpstreamHandler): UpstreamStream {
    const head = requestText(request);
    if (!this.isIdle) return goneStream(handler);
    this.#handler = handler;
    this.#method = request.method;
    this.#isUpgrade = request.upgrade !== null;
    this.#requestDone = false;
    this.#responseDone = false;
    this.#keepAlive = false;
    this.#informational = 0;
    this.#sawBytes = false;
    this.#state = 'head';
    this.deadlineMs = this.#deadlines.now + this.#limits.responseHeadMs;
    const reused = this.#served > 0;
    const turn = ++this.#served;
    const framing: WriteFraming =
      request.upgrade !== null || request.length === 0
        ? { kind: 'none' }
        : request.length === null
          ? { kind: 'chunked' }
          : { kind: 'length', length: request.length };
    const writer = new H1Writer(
      this.socket,
      {
        written: () => {
          this.#requestDone = true;
          this.#maybeIdle();
        },
        broken: () => {
          this.destroy();
        },
        progress: (isKeepingUp) => {
          if (isKeepingUp) return;
          if (!this.#blocked) this.deadlineMs = this.#deadlines.now + this.#limits.slowWriteMs;
          this.#blocked = true;
        },
      },
      head,
      framing,
    );
    this.#writer = writer;
    return {
      body: writer,
      reused,
      sawBytes: () => this.#sawBytes,
      abort: () => {
        if (turn !== this.#served || this.#state === 'idle' || this.#state === 'closed') return;
        this.#handler = null;
        this.#consumer = null;
        this.destroy();
      },
    };
  }

  destroy(): void {
    this.#close(new UpstreamError('upstream_reset'));
  }

  expire(nowMs: number): void {
    switch (this.#state) {
      case 'idle':
        this.destroy();
        break;
      case 'head':
        this.#close(this.#blocked ? new LimitError('upstream_idle') : new UpstreamError('upstream_timeout'));
        break;
      case 'body':
      case 'raw':
        if (this.#blocked || !this.#isPaused) this.#close(new UpstreamError('upstream_idle'));
        // While the agent is slower than the server, its own deadline watches.
        else this.deadlineMs = nowMs + this.#limits.idleMs;
        break;
      case 'closed':
        break;
    }
  }

  // BodyEvents
  data(chunk: Buffer): void {
    this.#consumer?.data(chunk);
  }

  end(trailers: RawHeaders): void {
    const consumer = this.#consumer;
    this.#consumer = null;
    this.#responseDone = true;
    this.#handler = null;
    consumer?.end(trailers);
    this.#maybeIdle();
  }

  readonly #onData = (chunk: Buffer): void => {
    this.#sawBytes = true;
    if (this.#state === 'idle') {
      // Bytes nobody asked for: the next exchange would take them for its answer.
      this.destroy();
      return;
    }
    try {
      this.#process(chunk);
    } catch (error) {
      this.#close(asProxyError(error));
    }
  };

  readonly #onDrain = (): void => {
    if (this.#blocked) {
      this.#blocked = false;
      this.#touch();
    }
    (this.#rawSink ?? this.#writer)?.onDrain?.();
  };

  readonly #onError = (error: Error): void => {
    // Under TLS 1.3 a server rejects our certificate, or its lack, only after the handshake.
    const isTls = 'code' in error && typeof error.code === 'string' && error.code.startsWith('ERR_SSL');
    this.#close(
      new UpstreamError(isTls && !this.#sawBytes ? classifyUpstreamTlsError(error) : 'upstream_reset', null, {
        cause: error,
      }),
    );
  };

  readonly #onEnd = (): void => {
    this.#serverEnded = true;
    if (this.#state === 'raw') {
      if (this.#held.length === 0) this.#endRaw();
      return;
    }
    if (this.#state === 'body' && this.#held.length === 0 && this.#decoder?.finish(this) === true) {
      this.destroy();
      return;
    }
    if (this.#state === 'body' && this.#held.length > 0) return;
    this.#close(new UpstreamError('upstream_reset'));
  };

  readonly #onClose = (): void => {
    if (this.#state === 'body' && this.#held.length > 0 && this.#serverEnded) return;
    this.#close(new UpstreamError('upstream_reset'));
  };

  #touch(): void {
    if (this.#state === 'head') this.deadlineMs = this.#deadlines.now + this.#limits.responseHeadMs;
    else this.deadlineMs = this.#deadlines.now + this.#limits.idleMs;
  }

  #process(chunk: Buffer): void {
    let bytes = chunk;
    while (bytes.length > 0) {
      switch (this.#state) {
        case 'head': {
          const found = this.#collector.push(bytes);
          if (found === null) return;
          bytes = found.rest;
          if (this.#begin(found.head, bytes)) return;
          break;
        }
        case 'body': {
          if (this.#consumer === null || this.#held.length > 0) {
            this.#hold(bytes);
            return;
          }
          this.#touch();
          const used = this.#decoder?.push(bytes, this) ?? bytes.length;
          bytes = bytes.subarray(used);
          break;
        }
        case 'raw':
          if (this.#consumer === null) this.#hold(bytes);
          else {
            this.#touch();
            this.#consumer.data(bytes);
          }
          return;
        case 'idle':
          // More than one answer to one request.
          this.destroy();
          return;
        case 'closed':
          return;
      }
    }
  }

  /** @returns true when `rest` has been taken, after an upgrade */
  #begin(text: string, rest: Buffer): boolean {
    const head = parseResponseHead(text, this.#method, this.#limits);
    const handler = this.#handler;
    const out: ResponseHead = {
      httpVersion: head.version,
      status: head.status,
      reason: head.reason,
      headers: head.headers,
    };
    if (head.status === 101) {
      if (!this.#isUpgrade || handler === null)
        throw new ProtocolError('upstream_protocol', '101 without an upgrade request.');
      // What follows is read as WebSocket frames; a server that switches to something else would be misread.
      if (!listTokens(head.headers, 'upgrade').includes('websocket'))
        throw new ProtocolError('upstream_protocol', '101 to another protocol.');
      this.#state = 'raw';
      this.#handler = null;
      this.#touch();
      if (rest.length > 0) this.#hold(rest);
      handler.upgraded(out, this.#duplex());
      return true;
    }
    if (head.status < 200) {
      if (++this.#informational > MAX_INFORMATIONAL)
        throw new ProtocolError('upstream_protocol', 'Too many interim answers.');
      this.#collector = newCollector(this.#limits);
      handler?.informational(out);
      return false;
    }
    this.#collector = newCollector(this.#limits);
    this.#keepAlive = head.keepAlive;
    this.#idleMs = Math.min(this.#limits.upstreamIdleMs, announcedIdleMs(head.headers));
    const { framing } = head;
    if (framing.kind === 'none') {
      this.#responseDone = true;
      this.#handler = null;
      this.#state = 'body';
      handler?.response(out, NO_BODY);
      this.#maybeIdle();
      return false;
    }
    this.#decoder = new BodyDecoder(framing, this.#limits, 'upstream_protocol');
    this.#state = 'body';
    this.#touch();
    handler?.response(out, this.#source(framing.kind === 'length' ? framing.length : null));
    return false;
  }

  #source(length: number | null): BodySource {
    return {
      length,
      start: (consumer) => {
        this.#consumer = consumer;
        this.#release();
      },
      pause: () => this.#pause(),
      resume: () => this.#resume(),
      cancel: () => {
        this.#consumer = null;
        this.#handler = null;
        this.destroy();
      },
    };
  }

  #duplex(): RawDuplex {
    const source: BodySource = {
      ...this.#source(null),
      cancel: () => {
        this.#consumer = { data: () => undefined, end: () => undefined, fail: () => undefined };
        this.#release();
      },
    };
    const sink: BodySink = {
      onDrain: null,
      write: (chunk) => {
        const isKeepingUp = this.socket.write(chunk);
        if (!isKeepingUp && !this.#blocked) {
          this.#blocked = true;
          this.deadlineMs = this.#deadlines.now + this.#limits.slowWriteMs;
        } else if (isKeepingUp) this.#touch();
        return isKeepingUp;
      },
      end: () => {
        this.socket.end();
        this.deadlineMs = this.#deadlines.now + this.#limits.slowWriteMs;
      },
      abort: () => this.destroy(),
    };
    this.#rawSink = sink;
    return { source, sink };
  }

  #hold(bytes: Buffer): void {
    this.#held.push(bytes);
    this.#pause();
  }

  /** Delivers what was held before a reader came. */
  #release(): void {
    const held = this.#held;
    this.#held = [];
    try {
      for (let i = 0; i < held.length; i++) {
        const chunk = held[i];
        if (chunk !== undefined) this.#process(chunk);
      }
    } catch (error) {
      this.#close(asProxyError(error));
      return;
    }
    if (this.#state === 'closed') return;
    if (this.#serverEnded || this.socket.destroyed) {
      if (this.#state === 'raw') this.#endRaw();
      else if (this.#state === 'body' && this.#decoder?.finish(this) !== true)
        this.#close(new UpstreamError('upstream_reset'));
      return;
    }
    this.#resume();
  }

  #endRaw(): void {
    const consumer = this.#consumer;
    this.#consumer = null;
    consumer?.end([]);
  }

  #pause(): void {
    if (this.#isPaused) return;
    this.#isPaused = true;
    this.socket.pause();
  }

  #resume(): void {
    if (!this.#isPaused || this.#held.length > 0) return;
    this.#isPaused = false;
    this.socket.resume();
    this.#touch();
  }

  #maybeIdle(): void {
    if (!this.#responseDone || this.#state === 'closed' || this.#state === 'raw') return;
    if (!this.#requestDone) {
      // Early answer. When the server will close, there is nobody left to take the rest.
      if (!this.#keepAlive) this.destroy();
      return;
    }
    if (!this.#keepAlive || this.#serverEnded || this.socket.destroyed) {
      this.destroy();
      return;
    }
    this.#state = 'idle';
    this.#decoder = null;
    this.#writer = null;
    this.#handler = null;
    this.#consumer = null;
    this.deadlineMs = this.#deadlines.now + this.#idleMs;
    this.#resume();
    this.#owner.idle(this);
  }

  #close(error: ProxyError): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#deadlines.delete(this);
    const handler = this.#handler;
    const consumer = this.#consumer;
    this.#handler = null;
    this.#consumer = null;
    this.#held = [];
    this.socket.off('data', this.#onData);
    this.socket.off('end', this.#onEnd);
    this.socket.off('close', this.#onClose);
    this.socket.off('drain', this.#onDrain);
    this.socket.destroy();
    this.#owner.closed(this);
    if (consumer !== null) consumer.fail(error);
    else handler?.fail(error);
  }
}

/**
 * How long the server says it keeps an unused connection (`Keep-Alive: timeout=5`), less a second: a POST that is sent as the server closes is lost, and may not
 * be repeated.
 */
function announcedIdleMs(headers: RawHeaders): number {
  const value = headerValue(headers, 'keep-alive');
  const match = value === undefined ? null : /(?:^|[,\s])timeout=(\d{1,6})/i.exec(value);
  return match === null ? Infinity : Math.max(500, Number(match[1]) * 1000 - 1000);
}

function newCollector(limits: Limits): HeadCollector {
  return new HeadCollector(limits.headerBytes, 'upstream_header_too_large', 'upstream_protocol');
}

/** The connection ended between its promise and its use: as if it had been stale. */
function goneStream(handler: UpstreamHandler): UpstreamStream {
  let isAborted = false;
  process.nextTick(() => {
    if (!isAborted) handler.fail(new UpstreamError('upstream_reset'));
  });
  const abort = (): void => {
    isAborted = true;
  };
  const body: BodySink = { onDrain: null, write: () => true, end: () => undefined, abort };
  return { body, reused: true, sawBytes: () => false, abort };
}

/** Request head as text. Host goes where the agent had it, else first (RFC 9110 section 7.2). */
function requestText(request: UpstreamRequest): string {
  if (!isSafeRequestLine(request.method, request.target)) throw new ProtocolError('bad_request_line');
  const { headers } = request;
  let hasHost = false;
  let lines = '';
  let hasLength = false;
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i] ?? '';
    let value = headers[i + 1] ?? '';
    if (name.length === 4 && name.toLowerCase() === 'host') {
      if (hasHost) continue;
      hasHost = true;
      value = request.authority;
    } else if (name.length === 14 && name.toLowerCase() === 'content-length') {
      if (hasLength || request.length === null || request.upgrade !== null) continue;
      hasLength = true;
      value = String(request.length);
    } else if (name.length === 17 && name.toLowerCase() === 'transfer-encoding') continue;
    else if (name.length === 6 && name.toLowerCase() === 'expect') continue;
    if (!isSafeField(name, value)) throw new ProtocolError('bad_header', 'A header cannot be sent over HTTP/1.');
    lines += `${name}: ${value}\r\n`;
  }
  let text = `${request.method} ${request.target} HTTP/1.1\r\n`;
  if (!hasHost) text += `Host: ${request.authority}\r\n`;
  text += lines;
  if (request.upgrade !== null) text += `Connection: Upgrade\r\nUpgrade: ${request.upgrade}\r\n`;
  else if (request.length === null) text += 'Transfer-Encoding: chunked\r\n';
  else if (request.length > 0 && !hasLength) text += `Content-Length: ${request.length}\r\n`;
  if (request.expectsContinue) text += 'Expect: 100-continue\r\n';
  if (request.wantsTrailers) text += 'Connection: TE\r\nTE: trailers\r\n';
  return `${text}\r\n`;
}
