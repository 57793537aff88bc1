import type { Writable } from 'node:stream';
import { AuditError, causeOf } from '../core/errors.ts';
import type { AuditEvent } from '../core/exchange.ts';
import type { AuditSink } from '../core/ports.ts';
import { createFormatter } from './formatter.ts';
import type { AuditFormat, Formatter } from './formatter.ts';

export interface StdoutSinkOptions {
  readonly format: AuditFormat;
  readonly productVersion: string;
  /** Told once, with an error code, when the stream breaks. */
  readonly onError?: (cause: string) => void;
  /** `process.stdout` by default. */
  readonly stream?: Writable;
  /** Bytes that may wait in the stream, 64 MiB by default; beyond, `record` rejects. */
  readonly maxQueueBytes?: number;
  /** Longest wait for a durable record in milliseconds, 10 s by default; then it rejects. */
  readonly commitMs?: number;
}

/** The audit trail on standard output (`audit.file: "-"`), for containers whose runtime collects it. */
export function openStdoutSink(options: StdoutSinkOptions): StdoutSink {
  return new StdoutSink(options);
}

/**
 * `durable` means here: handed to the operating system. What becomes of it after that is up to whoever reads; where denials must survive a crash, use a
 * file. A broken stream stays broken: the sink is unhealthy from then on.
 */
export class StdoutSink implements AuditSink {
  readonly #stream: Writable;
  readonly #formatter: Formatter;
  readonly #maxQueueBytes: number;
  readonly #commitMs: number;
  readonly #onError: (cause: string) => void;
  #isBroken = false;
  #isClosed = false;

  constructor(options: StdoutSinkOptions) {
    this.#stream = options.stream ?? process.stdout;
    this.#formatter = createFormatter(options);
    this.#maxQueueBytes = options.maxQueueBytes ?? 67_108_864;
    this.#commitMs = options.commitMs ?? 10_000;
    this.#onError = options.onError ?? (() => undefined);
    this.#stream.on('error', (error: unknown) => {
      this.#break(error);
    });
  }

  get isHealthy(): boolean {
    return !this.#isBroken && !this.#isClosed && this.#stream.writableLength < this.#maxQueueBytes;
  }

  record(event: AuditEvent, durable: boolean): Promise<void> {
    if (!this.isHealthy) {
      this.#formatter.skip();
      return Promise.reject(new AuditError('audit_unavailable'));
    }
    const line = this.#formatter.line(event);
    if (!durable) {
      this.#stream.write(line, 'latin1');
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new AuditError('audit_unavailable'));
      }, this.#commitMs);
      this.#stream.write(line, 'latin1', (error) => {
        clearTimeout(timer);
        if (error == null) resolve();
        else reject(new AuditError('audit_unavailable', null, { cause: error }));
      });
    });
  }

  /** Waits until all is handed over. The stream itself stays open: it is not ours. */
  close(): Promise<void> {
    if (this.#isClosed) return Promise.resolve();
    this.#isClosed = true;
    if (this.#isBroken || this.#stream.writableLength === 0) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, CLOSE_MS);
      this.#stream.write('', () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  #break(error: unknown): void {
    if (this.#isBroken) return;
    this.#isBroken = true;
    this.#onError(causeOf(error));
  }
}

/** A reader that has stopped reading must not hold up the end of the process. */
const CLOSE_MS = 5000;
