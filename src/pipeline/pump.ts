import { ProxyError } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { BodyConsumer, BodySink, BodySource } from '../core/stream.ts';
import type { Verdict } from '../core/verdict.ts';

/**
 * Judges a body on its way. Sans-IO: what may pass is handed to `out` at once, the rest is held.
 * `push` and `end` return a verdict only when it ends the stream.
 */
export interface Stage {
  /** @throws ProtocolError, LimitError: the stream cannot be understood and must not go on */
  push(chunk: Buffer, out: (bytes: Buffer) => void): Verdict | null;
  end(out: (bytes: Buffer) => void): Verdict | null;
  /** Messages judged so far. */
  readonly messages: number;
  /** Trailers would go on unseen: a body that has some fails. */
  readonly refusesTrailers?: boolean;
}

export interface PumpEvents {
  ended(): void;
  /** The source broke, or the stage could not read it. The sink has not been touched. */
  failed(error: ProxyError): void;
  /** A message was denied. The sink has not been touched. */
  denied(verdict: Verdict): void;
}

/** Moves a body from source to sink through an optional stage, with back-pressure. */
export class Pump implements BodyConsumer {
  /** Payload bytes read from the source. */
  bytes = 0;
  readonly stage: Stage | null;
  readonly #source: BodySource;
  readonly #sink: BodySink;
  readonly #events: PumpEvents;
  #isOver = false;

  constructor(source: BodySource, sink: BodySink, stage: Stage | null, events: PumpEvents) {
    this.#source = source;
    this.#sink = sink;
    this.#events = events;
    this.stage = stage;
  }

  /** The body has ended, or it will not. */
  get isOver(): boolean {
    return this.#isOver;
  }

  start(): void {
    this.#sink.onDrain = () => this.#source.resume();
    this.#source.start(this);
  }

  /** Stops without an event. */
  stop(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#sink.onDrain = null;
    this.#source.cancel();
  }

  data(chunk: Buffer): void {
    if (this.#isOver) return;
    this.bytes += chunk.length;
    if (this.stage === null) {
      if (!this.#sink.write(chunk)) this.#source.pause();
      return;
    }
    this.#judge((stage) => stage.push(chunk, this.#write));
  }

  end(trailers: RawHeaders): void {
    if (this.#isOver) return;
    if (trailers.length > 0 && this.stage?.refusesTrailers === true) {
      this.fail(new ProxyError('inspection_incomplete', 'A rule reads this body, and trailers cannot be read yet.'));
      return;
    }
    if (this.stage !== null && !this.#judge((stage) => stage.end(this.#write))) return;
    this.#isOver = true;
    this.#sink.end(trailers);
    this.#events.ended();
  }

  fail(error: ProxyError): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#events.failed(error);
  }

  readonly #write = (bytes: Buffer): void => {
    if (bytes.length > 0 && !this.#sink.write(bytes)) this.#source.pause();
  };

  /** @returns false when the stream is over */
  #judge(step: (stage: Stage) => Verdict | null): boolean {
    if (this.stage === null) return true;
    let verdict: Verdict | null;
    try {
      verdict = step(this.stage);
    } catch (error) {
      this.#isOver = true;
      this.#source.cancel();
      this.#events.failed(
        error instanceof ProxyError ? error : new ProxyError('inspection_incomplete', null, { cause: error }),
      );
      return false;
    }
    if (verdict === null) return true;
    this.#isOver = true;
    this.#source.cancel();
    this.#events.denied(verdict);
    return false;
  }
}

/** A body in memory. `sink` fills it; afterwards it is a source. Bounded by the stage that feeds it. */
export class HeldBody implements BodySource {
  readonly sink: BodySink = {
    onDrain: null,
    write: (chunk) => {
      this.#chunks.push(chunk);
      this.#size += chunk.length;
      return true;
    },
    end: (trailers) => {
      this.#trailers = trailers;
    },
    abort: () => {
      this.#chunks = [];
    },
  };
  #chunks: Buffer[] = [];
  #size = 0;
  #trailers: RawHeaders = [];
  #consumer: BodyConsumer | null = null;
  #isPaused = false;

  get length(): number | null {
    return this.#trailers.length > 0 ? null : this.#size;
  }

  start(consumer: BodyConsumer): void {
    this.#consumer = consumer;
    this.resume();
  }

  pause(): void {
    this.#isPaused = true;
  }

  resume(): void {
    this.#isPaused = false;
    while (this.#canGive()) {
      const chunk = this.#chunks.shift();
      const consumer = this.#consumer;
      if (chunk !== undefined) {
        consumer?.data(chunk);
        continue;
      }
      this.#consumer = null;
      consumer?.end(this.#trailers);
    }
  }

  #canGive(): boolean {
    return !this.#isPaused && this.#consumer !== null;
  }

  cancel(): void {
    this.#consumer = null;
    this.#chunks = [];
  }
}

/** A sink that is opened by its first bytes or its end. */
export class LazySink implements BodySink {
  readonly #open: () => BodySink;
  #sink: BodySink | null = null;
  #onDrain: (() => void) | null = null;

  constructor(open: () => BodySink) {
    this.#open = open;
  }

  get onDrain(): (() => void) | null {
    return this.#onDrain;
  }

  set onDrain(listener: (() => void) | null) {
    this.#onDrain = listener;
    if (this.#sink !== null) this.#sink.onDrain = listener;
  }

  write(chunk: Buffer): boolean {
    return this.#opened().write(chunk);
  }

  end(trailers: RawHeaders): void {
    this.#opened().end(trailers);
  }

  abort(error: ProxyError): void {
    this.#sink?.abort(error);
  }

  #opened(): BodySink {
    if (this.#sink === null) {
      this.#sink = this.#open();
      this.#sink.onDrain = this.#onDrain;
    }
    return this.#sink;
  }
}
