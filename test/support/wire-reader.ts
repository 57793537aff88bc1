import type { Duplex } from 'node:stream';
import { PATIENCE_MS } from './waiting.ts';

/** An HTTP/1 answer as it was on the wire. */
export interface WireResponse {
  readonly version: string;
  readonly status: number;
  readonly reason: string;
  /** Name, value, name, value … as sent. */
  readonly rawHeaders: readonly string[];
  readonly body: Buffer;
  readonly rawTrailers: readonly string[];
  readonly framing: 'none' | 'length' | 'chunked' | 'close';
  /** Interim answers before it. */
  readonly informational: readonly { readonly status: number; readonly rawHeaders: readonly string[] }[];
}

/** All values of a header in wire order. */
export function valuesOf(rawHeaders: readonly string[], name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() === name.toLowerCase()) values.push(rawHeaders[i + 1] ?? '');
  }
  return values;
}

/** The peer ended or cut the stream before what was waited for had come. */
export class TruncatedError extends Error {
  readonly received: Buffer;

  constructor(what: string, received: Buffer) {
    super(`the stream ended inside ${what}`);
    this.name = 'TruncatedError';
    this.received = received;
  }
}

/** Reads a socket piece by piece. It is a deliberately naive, lenient reader: what we send must be readable for it. */
export class WireReader {
  readonly socket: Duplex;
  #held: Buffer[] = [];
  #heldBytes = 0;
  #isEnded = false;
  #error: Error | null = null;
  #wake: (() => void) | null = null;
  readonly #limit: number;

  /** @param pauseAtBytes stops reading from the socket when so much is held */
  constructor(socket: Duplex, pauseAtBytes = 16 * 1024 * 1024) {
    this.socket = socket;
    this.#limit = pauseAtBytes;
    socket.on('data', (chunk: Buffer) => {
      this.#held.push(chunk);
      this.#heldBytes += chunk.length;
      if (this.#heldBytes > this.#limit) socket.pause();
      this.#signal();
    });
    const end = (): void => {
      this.#isEnded = true;
      this.#signal();
    };
    socket.on('end', end);
    socket.on('close', end);
    socket.on('error', (error: Error) => {
      this.#error = error;
      end();
    });
    // A socket that was paused by hand does not flow again for a listener alone.
    socket.resume();
  }

  /** Error that ended the socket, if one did. */
  get error(): Error | null {
    return this.#error;
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  /** What has come and was not taken yet. */
  get held(): Buffer {
    return this.#joined();
  }

  /** Waits until the peer ends the stream, however; answers all that came. */
  async toEnd(timeoutMs = PATIENCE_MS): Promise<Buffer> {
    await this.#until(() => this.#isEnded, 'the end of the stream', timeoutMs);
    return this.#take(this.#heldBytes);
  }

  async bytes(count: number, what = `${count} bytes`, timeoutMs = PATIENCE_MS): Promise<Buffer> {
    await this.#until(() => this.#heldBytes >= count || this.#isEnded, what, timeoutMs);
    if (this.#heldBytes < count) throw new TruncatedError(what, this.#joined());
    return this.#take(count);
  }

  /** Up to and without `mark`; the mark is taken too. */
  async upTo(mark: string, what = JSON.stringify(mark), timeoutMs = PATIENCE_MS): Promise<Buffer> {
    let at = -1;
    await this.#until(() => (at = this.#joined().indexOf(mark)) >= 0 || this.#isEnded, what, timeoutMs);
    if (at < 0) throw new TruncatedError(what, this.#joined());
    const found = this.#take(at);
    this.#take(mark.length);
    return found;
  }

  async line(what = 'a line', timeoutMs = PATIENCE_MS): Promise<string> {
    return (await this.upTo('\r\n', what, timeoutMs)).toString('latin1');
  }

  /** A start line with its headers. */
  async head(timeoutMs = PATIENCE_MS): Promise<{ readonly start: string; readonly rawHeaders: string[] }> {
    const text = (await this.upTo('\r\n\r\n', 'a head', timeoutMs)).toString('latin1');
    const [start = '', ...lines] = text.split('\r\n');
    return { start, rawHeaders: fieldsOf(lines) };
  }

  /** One whole answer, interim ones before it included. @throws TruncatedError when it is cut short */
  async response(options: { readonly method?: string; readonly timeoutMs?: number } = {}): Promise<WireResponse> {
    const { method = 'GET', timeoutMs = PATIENCE_MS } = options;
    const informational: { status: number; rawHeaders: string[] }[] = [];
    for (;;) {
      const { start, rawHeaders } = await this.head(timeoutMs);
      const match = /^HTTP\/(\d\.\d) (\d{3})(?: (.*))?$/.exec(start);
      if (match === null) throw new Error(`not a status line: ${JSON.stringify(start)}`);
      const status = Number(match[2]);
      if (status < 200 && status !== 101) {
        informational.push({ status, rawHeaders });
        continue;
      }
      const head = { version: match[1] ?? '', status, reason: match[3] ?? '', rawHeaders, informational };
      const length = valuesOf(rawHeaders, 'content-length')[0];
      const isChunked = valuesOf(rawHeaders, 'transfer-encoding').length > 0;
      const isBodiless =
        method === 'HEAD' ||
        status === 101 ||
        status === 204 ||
        status === 304 ||
        (method === 'CONNECT' && status >= 200 && status < 300);
      if (isBodiless) return { ...head, framing: 'none', body: Buffer.alloc(0), rawTrailers: [] };
      if (isChunked) return { ...head, framing: 'chunked', ...(await this.#chunked(timeoutMs)) };
      if (length !== undefined) {
        const body = await this.bytes(Number(length), `a body of ${length} bytes`, timeoutMs);
        return { ...head, framing: 'length', body, rawTrailers: [] };
      }
      const body = await this.toEnd(timeoutMs);
      if (this.#error !== null) throw new TruncatedError('a close-delimited body', body);
      return { ...head, framing: 'close', body, rawTrailers: [] };
    }
  }

  /** One HTTP/1 request, as a scripted server reads it. */
  async request(timeoutMs = PATIENCE_MS): Promise<WireRequest> {
    const { start, rawHeaders } = await this.head(timeoutMs);
    const [method = '', target = ''] = start.split(' ');
    const length = valuesOf(rawHeaders, 'content-length')[0];
    if (valuesOf(rawHeaders, 'transfer-encoding').length > 0) {
      return { start, method, target, rawHeaders, ...(await this.#chunked(timeoutMs)) };
    }
    const body = await this.bytes(Number(length ?? 0), 'a request body', timeoutMs);
    return { start, method, target, rawHeaders, body, rawTrailers: [] };
  }

  async #chunked(timeoutMs: number): Promise<{ body: Buffer; rawTrailers: string[] }> {
    const parts: Buffer[] = [];
    for (;;) {
      const size = Number.parseInt(await this.line('a chunk size', timeoutMs), 16);
      if (Number.isNaN(size)) throw new Error('not a chunk size');
      if (size === 0) break;
      parts.push(await this.bytes(size, 'a chunk', timeoutMs));
      await this.bytes(2, 'the end of a chunk', timeoutMs);
    }
    const trailers: string[] = [];
    for (;;) {
      const line = await this.line('trailers', timeoutMs);
      if (line === '') return { body: Buffer.concat(parts), rawTrailers: fieldsOf(trailers) };
      trailers.push(line);
    }
  }

  #joined(): Buffer {
    const first = this.#held[0];
    if (this.#held.length === 1 && first !== undefined) return first;
    const all = Buffer.concat(this.#held);
    this.#held = all.length === 0 ? [] : [all];
    return all;
  }

  #take(count: number): Buffer {
    const all = this.#joined();
    const taken = all.subarray(0, count);
    const rest = all.subarray(count);
    this.#held = rest.length === 0 ? [] : [rest];
    this.#heldBytes = rest.length;
    if (this.socket.isPaused() && this.#heldBytes <= this.#limit) this.socket.resume();
    return taken;
  }

  async #until(isDone: () => boolean, what: string, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!isDone()) {
      const left = deadline - performance.now();
      if (left <= 0) {
        throw new Error(
          `waited ${timeoutMs} ms in vain for ${what}; held: ${JSON.stringify(this.#joined().toString('latin1', 0, 300))}`,
        );
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = null;
    }
  }

  #signal(): void {
    this.#wake?.();
  }
}

export interface WireRequest {
  readonly start: string;
  readonly method: string;
  readonly target: string;
  readonly rawHeaders: readonly string[];
  readonly body: Buffer;
  readonly rawTrailers: readonly string[];
}

function fieldsOf(lines: readonly string[]): string[] {
  const fields: string[] = [];
  for (const line of lines) {
    const colon = line.indexOf(':');
    fields.push(line.slice(0, colon), line.slice(colon + 1).trim());
  }
  return fields;
}
