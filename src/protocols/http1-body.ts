import { ProtocolError } from '../core/errors.ts';
import type { Code } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import { HeadCollector, parseFields } from './http1.ts';
import type { Framing, Http1Limits } from './http1.ts';

const CR = 13;
const LF = 10;

/** Longest chunk-size line with its extensions; extensions are dropped, so they only cost the sender. */
const MAX_CHUNK_LINE = 1024;
/** Trailers that would change framing, routing or identity after the fact (RFC 9110 section 6.5.1). */
const FORBIDDEN_TRAILERS: ReadonlySet<string> = new Set([
  'transfer-encoding',
  'content-length',
  'host',
  'content-encoding',
  'content-type',
  'content-range',
  'trailer',
  'te',
  'connection',
  'upgrade',
  'authorization',
  'proxy-authorization',
  'cookie',
  'set-cookie',
  'expect',
]);

type ChunkState = 'size' | 'extension' | 'size_lf' | 'data' | 'data_cr' | 'data_lf' | 'trailer';

/** Takes what a body decoder finds. */
export interface BodyEvents {
  data(chunk: Buffer): void;
  end(trailers: RawHeaders): void;
}

/** Cuts one body out of a byte stream. Data is passed on without copying. */
export class BodyDecoder {
  readonly #code: Code;
  readonly #limits: Http1Limits;
  readonly #framing: Framing;
  #remaining: number;
  #state: ChunkState = 'size';
  #digits = 0;
  #line = 0;
  #trailer: HeadCollector | null = null;
  #done: boolean;

  /** @param code what malformed chunks are called: `bad_chunk` for requests, `upstream_protocol` for responses */
  constructor(framing: Framing, limits: Http1Limits, code: Code) {
    this.#framing = framing;
    this.#limits = limits;
    this.#code = code;
    this.#remaining = framing.kind === 'length' ? framing.length : 0;
    this.#done = framing.kind === 'none';
  }

  get isDone(): boolean {
    return this.#done;
  }

  /**
   * Consumes bytes up to the end of the body; returns how many were consumed. After the last one `events.end` has been called.
   * @throws ProtocolError with the constructor's code; LimitError for trailers over the limit
   */
  push(bytes: Buffer, events: BodyEvents): number {
    switch (this.#framing.kind) {
      case 'none':
        return 0;
      case 'close':
        if (bytes.length > 0) events.data(bytes);
        return bytes.length;
      case 'length': {
        const take = Math.min(this.#remaining, bytes.length);
        this.#remaining -= take;
        if (this.#remaining === 0) this.#done = true;
        if (take > 0) events.data(take === bytes.length ? bytes : bytes.subarray(0, take));
        if (this.#done) events.end([]);
        return take;
      }
      case 'chunked':
        return this.#pushChunked(bytes, events);
    }
  }

  /** The connection ended. @returns true when that is a clean end of this body (close-delimited), else the message is truncated */
  finish(events: BodyEvents): boolean {
    if (this.#framing.kind !== 'close' || this.#done) return false;
    this.#done = true;
    events.end([]);
    return true;
  }

  #bad(detail: string): ProtocolError {
    return new ProtocolError(this.#code, detail);
  }

  #pushChunked(bytes: Buffer, events: BodyEvents): number {
    let at = 0;
    while (at < bytes.length) {
      switch (this.#state) {
        case 'size': {
          const code = bytes[at] ?? 0;
          const digit = hexDigit(code);
          if (digit >= 0) {
            // 12 hex digits stay below 2^53; leading zeros count, or they would be a slow way to send nothing.
            if (++this.#digits > 12) throw this.#bad('A chunk size is too long.');
            this.#remaining = this.#remaining * 16 + digit;
            at++;
          } else if (this.#digits === 0) {
            throw this.#bad('A chunk size is missing.');
          } else if (code === CR) {
            this.#state = 'size_lf';
            at++;
          } else if (code === 0x3b) {
            this.#state = 'extension';
            this.#line = 0;
            at++;
          } else {
            throw this.#bad('A chunk size is malformed.');
          }
          break;
        }
        case 'extension': {
          const code = bytes[at] ?? 0;
          if (code === CR) this.#state = 'size_lf';
          else if ((code < 0x20 && code !== 0x09) || code === 0x7f)
            throw this.#bad('A chunk extension has control characters.');
          else if (++this.#line > MAX_CHUNK_LINE) throw this.#bad('A chunk extension is too long.');
          at++;
          break;
        }
        case 'size_lf':
          if (bytes[at] !== LF) throw this.#bad('A chunk size line ends with CR alone.');
          at++;
          this.#digits = 0;
          this.#state = this.#remaining === 0 ? 'trailer' : 'data';
          break;
        case 'data': {
          const take = Math.min(this.#remaining, bytes.length - at);
          this.#remaining -= take;
          if (this.#remaining === 0) this.#state = 'data_cr';
          const from = at;
          at += take;
          events.data(bytes.subarray(from, at));
          break;
        }
        case 'data_cr':
          if (bytes[at] !== CR) throw this.#bad('Chunk data is not followed by CRLF.');
          at++;
          this.#state = 'data_lf';
          break;
        case 'data_lf':
          if (bytes[at] !== LF) throw this.#bad('Chunk data is not followed by CRLF.');
          at++;
          this.#state = 'size';
          break;
        case 'trailer':
          return this.#pushTrailer(bytes, at, events);
      }
    }
    return at;
  }

  /** The trailer section looks like a head without start line, so an imagined empty line in front makes one collector serve both. */
  #pushTrailer(bytes: Buffer, at: number, events: BodyEvents): number {
    const isFirst = this.#trailer === null;
    this.#trailer ??= new HeadCollector(
      this.#limits.headerBytes,
      this.#code === 'bad_chunk' ? 'header_too_large' : 'upstream_header_too_large',
      this.#code === 'bad_chunk' ? 'bad_header' : this.#code,
    );
    const rest = at === 0 ? bytes : bytes.subarray(at);
    const result = this.#trailer.push(isFirst ? Buffer.concat([CRLF, rest]) : rest);
    if (result === null) return bytes.length;
    const trailers =
      result.head.length <= 2
        ? []
        : parseFields(
            result.head,
            2,
            this.#limits.headerCount,
            this.#code === 'bad_chunk' ? 'too_many_headers' : 'upstream_header_too_large',
          );
    for (let i = 0; i < trailers.length; i += 2) {
      const name = (trailers[i] ?? '').toLowerCase();
      if (FORBIDDEN_TRAILERS.has(name)) throw this.#bad(`The trailer ${name} is not allowed.`);
    }
    this.#done = true;
    events.end(trailers);
    return bytes.length - result.rest.length;
  }
}

const CRLF = Buffer.from('\r\n');

function hexDigit(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  if (code >= 0x41 && code <= 0x46) return code - 0x37;
  if (code >= 0x61 && code <= 0x66) return code - 0x57;
  return -1;
}

/** Last chunk with trailers. */
export function encodeLastChunk(trailers: RawHeaders): string {
  if (trailers.length === 0) return '0\r\n\r\n';
  let text = '0\r\n';
  for (let i = 0; i + 1 < trailers.length; i += 2) {
    const name = trailers[i] ?? '';
    if (!FORBIDDEN_TRAILERS.has(name.toLowerCase())) text += `${name}: ${trailers[i + 1] ?? ''}\r\n`;
  }
  return `${text}\r\n`;
}
