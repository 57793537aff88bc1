import type { Socket } from 'node:net';
import { LimitError, ProtocolError, ProxyError, asProxyError } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Limits } from '../core/settings.ts';
import type { BodyConsumer, ClientStream } from '../core/stream.ts';
import { BodyDecoder } from '../protocols/http1-body.ts';
import type { BodyEvents } from '../protocols/http1-body.ts';
import { HeadCollector, parseRequestHead } from '../protocols/http1.ts';
import type { Http1RequestHead } from '../protocols/http1.ts';
import { H1ClientStream } from './h1-client-stream.ts';
import type { Deadlines, Expiring } from './limits.ts';

/** What a connection tells its owner. None of these may throw. */
export interface H1Handlers {
  /** A request whose head is well-formed. The stream must be answered, upgraded or aborted. */
  request(stream: ClientStream, head: Http1RequestHead): void;
  /** A CONNECT request; the connection has let go of the socket. `rest` holds bytes already sent after the head. */
  connect(head: Http1RequestHead, rest: Buffer): void;
  /** A head that cannot be parsed. Resolves to the bytes of the answer, after its record is written; null for none. */
  malformed(error: ProxyError): Promise<Buffer | null>;
  /** The socket is closed; called once, not after `connect`. */
  closed(error: ProxyError | null): void;
}

export interface H1Options {
  readonly socket: Socket;
  readonly scheme: 'http' | 'https';
  readonly limits: Limits;
  readonly deadlines: Deadlines;
  readonly handlers: H1Handlers;
}

type State = 'head' | 'body' | 'waiting' | 'raw' | 'closing' | 'closed';

/** Time for the RST of a closed socket to come back. */
const PROBE_MS = 200;
/** Bytes held while nobody can take them; then the socket is paused, and the client waits. */
const HOLD_BYTES = 64 * 1024;

/**
 * The agent's side of HTTP/1: reads requests one after the other, answers them in order, keeps the connection. The next pipelined request is not looked at
 * before the answer to the one before is complete.
 */
export class H1Connection implements Expiring, BodyEvents {
  slot = -1;
  deadlineMs: number;
  readonly socket: Socket;
  readonly #options: H1Options;
  #state: State = 'head';
  #collector: HeadCollector;
  #decoder: BodyDecoder | null = null;
  #stream: H1ClientStream | null = null;
  #held: Buffer[] = [];
  #heldBytes = 0;
  #isPaused = false;
  #isReaderSlow = false;
  #isProcessing = false;
  #requestDone = false;
  #responseDone = false;
  #closeAfter = false;
  #clientEnded = false;
  #isDraining = false;
  #blocked = false;
  #probes = 0;
  /** Our sending side is closed after an upgrade. */
  #hasEnded = false;
  #raw: BodyConsumer | null = null;

  constructor(options: H1Options, firstBytes: Buffer) {
    this.#options = options;
    this.socket = options.socket;
    this.#collector = new HeadCollector(options.limits.headerBytes);
    this.deadlineMs = options.deadlines.now + options.limits.headMs;
    options.deadlines.add(this);
    this.socket.on('error', this.#onError);
    this.socket.on('data', this.#onData);
    this.socket.on('end', this.#onEnd);
    this.socket.on('close', this.#onClose);
    this.socket.on('drain', this.#onDrain);
    if (firstBytes.length > 0) this.#onData(firstBytes);
  }

  /** True while no request is being answered and none has begun. */
  get isIdle(): boolean {
    return this.#state === 'head' && !this.#collector.isStarted;
  }

  /** No further request is taken; an open one is finished with `Connection: close`. */
  drain(): void {
    this.#isDraining = true;
    if (this.isIdle) this.destroy(null);
    else this.#closeAfter = true;
  }

  destroy(error: ProxyError | null): void {
    if (this.#state === 'closed') return;
    const stream = this.#stream;
    this.#release();
    this.socket.destroy();
    if (stream !== null && !this.#responseDone) stream.closed(error ?? new ProxyError('client_aborted'));
    this.#options.handlers.closed(error);
  }

  expire(nowMs: number): void {
    if (this.#state === 'head') {
      if (this.#collector.isStarted) this.#refuse(new LimitError('head_timeout'));
      else this.destroy(null);
    } else if (this.#state === 'closing') {
      this.destroy(null);
    } else if (this.#blocked) {
      this.destroy(new LimitError('slow_peer'));
    } else if (this.#clientEnded) {
      if (this.#probes === 1) this.#probe();
      else this.destroy(new ProxyError('client_aborted'));
    } else if (this.#state === 'body' && !this.#isPaused) {
      if (this.#responseDone) this.destroy(null);
      else this.destroy(new LimitError('idle_timeout'));
    } else if (this.#state === 'raw') {
      this.destroy(new LimitError('idle_timeout'));
    } else {
      this.deadlineMs = nowMs + this.#options.limits.idleMs;
    }
  }

  // BodyEvents: what the decoder finds in the running request.
  data(chunk: Buffer): void {
    this.#stream?.bodyData(chunk);
  }

  end(trailers: RawHeaders): void {
    this.#requestDone = true;
    this.#state = 'waiting';
    // While the server works on its answer nothing is expected of the agent.
    this.deadlineMs = Infinity;
    this.#stream?.bodyEnd(trailers);
  }

  // Called by the stream of the running exchange.

  /** The body has a reader now. */
  readBody(): void {
    this.#processHeld();
  }

  pauseReading(): void {
    this.#isReaderSlow = true;
    this.#updatePause();
  }

  resumeReading(): void {
    this.#isReaderSlow = false;
    this.#processHeld();
    this.#updatePause();
  }

  /** Two things stop us from reading: a reader that is slower than the agent, and bytes held because there is no reader. Neither lifts the other. */
  #updatePause(): void {
    const mustPause = this.#isReaderSlow || this.#heldBytes >= HOLD_BYTES;
    if (mustPause === this.#isPaused || this.#state === 'closed') return;
    this.#isPaused = mustPause;
    if (mustPause) this.socket.pause();
    else {
      this.socket.resume();
      this.#touch();
    }
  }

  get mustClose(): boolean {
    return this.#closeAfter || this.#clientEnded;
  }

  closeAfterAnswer(): void {
    this.#closeAfter = true;
  }

  get isRequestDone(): boolean {
    return this.#requestDone;
  }

  /** The answer is complete. */
  answered(stream: H1ClientStream): void {
    if (stream !== this.#stream || this.#state === 'closed') return;
    this.#responseDone = true;
    if (this.#closeAfter || this.#clientEnded) {
      this.#finish();
      return;
    }
    if (this.#requestDone) this.#nextRequest();
    else {
      // The rest of the body is read and dropped, so that a client that only reads after writing gets its answer.
      this.deadlineMs = this.#options.deadlines.now + this.#options.limits.slowWriteMs;
      this.resumeReading();
    }
  }

  /** Back-pressure of the agent. */
  wrote(isKeepingUp: boolean): void {
    const { deadlines, limits } = this.#options;
    if (!isKeepingUp) {
      if (!this.#blocked) this.deadlineMs = deadlines.now + limits.slowWriteMs;
      this.#blocked = true;
    } else if (this.#clientEnded) this.deadlineMs = deadlines.now + limits.halfCloseMs;
    else if (this.#state === 'raw') this.deadlineMs = deadlines.now + limits.idleMs;
  }

  /** After an upgrade the bytes belong to `consumer`. */
  becomeRaw(): void {
    this.#state = 'raw';
    this.deadlineMs = this.#options.deadlines.now + this.#options.limits.idleMs;
  }

  readRaw(consumer: BodyConsumer): void {
    this.#raw = consumer;
    this.#processHeld();
  }

  /** Ends our side after an upgrade or a close-delimited answer. */
  endSocket(): void {
    if (this.#state === 'closed' || this.#hasEnded) return;
    this.#hasEnded = true;
    this.deadlineMs = this.#options.deadlines.now + this.#options.limits.slowWriteMs;
    this.socket.end();
    if (this.#clientEnded) this.#state = 'closing';
  }

  readonly #onData = (chunk: Buffer): void => {
    if (this.#heldBytes > 0 || this.#isProcessing) this.#hold(chunk);
    else this.#process(chunk);
  };

  readonly #onDrain = (): void => {
    if (this.#blocked) {
      this.#blocked = false;
      this.#touch();
    }
    this.#stream?.drained();
  };

  readonly #onError = (): void => {
    // 'close' follows and does the work; the listener is here so that an error cannot end the process.
  };

  readonly #onEnd = (): void => {
    this.#clientEnded = true;
    switch (this.#state) {
      case 'head':
        // An unfinished head is no request; nothing was asked, so nothing is answered.
        this.destroy(null);
        break;
      case 'body':
        if (this.#responseDone) this.#finish();
        else if (this.#heldBytes === 0) this.#truncated();
        break;
      case 'waiting':
        // Closing the sending side after the request is legal: the answer is still delivered, but not waited for without end.
        this.#probe();
        break;
      case 'raw':
        if (this.#heldBytes === 0) this.#raw?.end([]);
        if (this.#hasEnded) this.destroy(null);
        break;
      case 'closing':
        this.destroy(null);
        break;
      case 'closed':
        break;
    }
  };

  readonly #onClose = (): void => {
    this.destroy(this.#stream !== null && !this.#responseDone ? new ProxyError('client_aborted') : null);
  };

  /**
   * A FIN does not tell a client that still reads from one that is gone. An interim answer does: every client has to ignore it (RFC 9110 section 15.2), and a
   * closed socket answers it with RST, which shows at the next write. So two of them, a little apart, before the answer has begun.
   */
  #probe(): void {
    const { deadlines, limits } = this.#options;
    if (this.#stream?.isUnanswered !== true) {
      this.deadlineMs = deadlines.now + limits.halfCloseMs;
      return;
    }
    this.#probes++;
    this.socket.write('HTTP/1.1 100 Continue\r\n\r\n', 'latin1');
    this.deadlineMs = deadlines.now + (this.#probes === 1 ? PROBE_MS : limits.halfCloseMs);
  }

  #truncated(): void {
    const stream = this.#stream;
    this.#state = 'waiting';
    stream?.bodyFail(new ProxyError('client_aborted', 'The body ended early.'));
  }

  #touch(): void {
    const { deadlines, limits } = this.#options;
    if (this.#state === 'body' || this.#state === 'raw') this.deadlineMs = deadlines.now + limits.idleMs;
    else if (this.#state === 'waiting')
      this.deadlineMs = this.#clientEnded ? deadlines.now + limits.halfCloseMs : Infinity;
  }

  #hold(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#held.push(chunk);
    this.#heldBytes += chunk.length;
    this.#updatePause();
  }

  #processHeld(): void {
    if (this.#isProcessing) return;
    while (this.#heldBytes > 0 && this.#canProcess()) {
      const bytes = this.#held.length === 1 ? this.#held[0] : Buffer.concat(this.#held);
      this.#held = [];
      this.#heldBytes = 0;
      if (bytes !== undefined) this.#process(bytes);
    }
    this.#updatePause();
    if (this.#heldBytes === 0 && this.#clientEnded) {
      if (this.#state === 'body' && !this.#responseDone && this.#stream?.hasReader === true) this.#truncated();
      else if (this.#state === 'raw') this.#raw?.end([]);
    }
  }

  #canProcess(): boolean {
    switch (this.#state) {
      case 'head':
        return true;
      case 'body':
        return this.#responseDone || this.#stream?.hasReader === true;
      case 'raw':
        return this.#raw !== null;
      default:
        return false;
    }
  }

  /** Reads as far as it can; what nobody can take yet is held. */
  #process(chunk: Buffer): void {
    this.#isProcessing = true;
    let bytes = chunk;
    try {
      while (bytes.length > 0 && this.#canProcess()) bytes = this.#step(bytes);
    } catch (error) {
      this.#isProcessing = false;
      this.#fail(asProxyError(error));
      return;
    }
    this.#isProcessing = false;
    if (bytes.length > 0 && this.#state !== 'closed' && this.#state !== 'closing') this.#hold(bytes);
    else this.#updatePause();
  }

  #step(bytes: Buffer): Buffer {
    switch (this.#state) {
      case 'head': {
        let from = bytes;
        if (!this.#collector.isStarted) {
          // One empty line before a request is tolerated (RFC 9112 section 2.2).
          if (from[0] === 13 && from[1] === 10) {
            from = from.subarray(2);
            if (from.length === 0) return from;
          }
          this.deadlineMs = this.#options.deadlines.now + this.#options.limits.headMs;
        }
        const found = this.#collector.push(from);
        if (found === null) return EMPTY;
        return this.#begin(parseRequestHead(found.head, this.#options.limits), found.rest);
      }
      case 'body': {
        this.#touch();
        const used = this.#decoder?.push(bytes, this) ?? bytes.length;
        // The answer was complete before the request: now both are.
        if (this.#requestDone && this.#responseDone) this.#nextRequest();
        return bytes.subarray(used);
      }
      case 'raw':
        this.#touch();
        this.#raw?.data(bytes);
        return EMPTY;
      default:
        return bytes;
    }
  }

  #begin(head: Http1RequestHead, rest: Buffer): Buffer {
    const { handlers, limits } = this.#options;
    if (head.method === 'CONNECT') {
      if (head.framing.kind !== 'none') throw new ProtocolError('bad_framing', 'CONNECT has no body.');
      this.#release();
      handlers.connect(head, rest);
      return EMPTY;
    }
    if (head.expect !== null && head.expect !== '100-continue') throw new ProtocolError('expectation_failed');
    this.#requestDone = head.framing.kind === 'none';
    this.#responseDone = false;
    this.#closeAfter = !head.keepAlive || this.#isDraining;
    this.#decoder = this.#requestDone ? null : new BodyDecoder(head.framing, limits, 'bad_chunk');
    this.#state = this.#requestDone ? 'waiting' : 'body';
    this.deadlineMs = this.#requestDone ? Infinity : this.#options.deadlines.now + limits.idleMs;
    const stream = new H1ClientStream(this, this.#options.scheme, head);
    this.#stream = stream;
    handlers.request(stream, head);
    return rest;
  }

  /** Where we are now; calls in between may have moved us, which the compiler does not see. */
  #isAt(state: State): boolean {
    return this.#state === state;
  }

  #nextRequest(): void {
    this.#stream = null;
    this.#decoder = null;
    this.#state = 'head';
    this.#isReaderSlow = false;
    this.deadlineMs = this.#options.deadlines.now + this.#options.limits.keepAliveMs;
    if (this.#isProcessing) return;
    this.#processHeld();
    if (this.#isAt('head') && this.#clientEnded) this.#finish();
  }

  /** Answers what is out, then closes: our FIN first, and what still comes is dropped until the peer closes or the deadline passes. */
  #finish(): void {
    this.#stream = null;
    this.#held = [];
    this.#heldBytes = 0;
    this.#state = 'closing';
    this.deadlineMs = this.#options.deadlines.now + this.#options.limits.slowWriteMs;
    this.socket.end();
    this.#isReaderSlow = false;
    this.#updatePause();
  }

  /** Malformed bytes: in a body they end the running exchange, in a head they are answered here. */
  #fail(error: ProxyError): void {
    if (this.#state === 'body' && this.#stream !== null && !this.#responseDone) {
      const stream = this.#stream;
      this.#closeAfter = true;
      this.#state = 'waiting';
      this.#held = [];
      this.#heldBytes = 0;
      this.pauseReading();
      stream.bodyFail(error);
    } else if (this.#state === 'head') this.#refuse(error);
    else this.destroy(error);
  }

  #refuse(error: ProxyError): void {
    this.#state = 'waiting';
    this.deadlineMs = this.#options.deadlines.now + this.#options.limits.slowWriteMs;
    this.#held = [];
    this.#heldBytes = 0;
    this.pauseReading();
    this.#options.handlers.malformed(error).then(
      (answer) => {
        if (this.#state === 'closed') return;
        if (answer !== null) this.socket.write(answer);
        this.#finish();
      },
      () => this.destroy(error),
    );
  }

  /** Lets go of the socket. */
  #release(): void {
    this.#state = 'closed';
    this.#stream = null;
    this.#held = [];
    this.#heldBytes = 0;
    this.#options.deadlines.delete(this);
    this.socket.off('data', this.#onData);
    this.socket.off('end', this.#onEnd);
    this.socket.off('close', this.#onClose);
    this.socket.off('drain', this.#onDrain);
  }
}

const EMPTY = Buffer.alloc(0);
