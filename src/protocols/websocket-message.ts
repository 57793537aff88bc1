import { createHash } from 'node:crypto';
import { TextDecoder } from 'node:util';
import { LimitError, ProtocolError } from '../core/errors.ts';

/** What a reader found. `bytes` are exactly the bytes of the wire, to be forwarded when the event may pass. */
export type WsEvent =
  | {
      readonly kind: 'message';
      readonly isText: boolean;
      readonly text: string | null;
      readonly size: number;
      readonly bytes: readonly Buffer[];
    }
  | { readonly kind: 'control'; readonly bytes: Buffer }
  | { readonly kind: 'close'; readonly code: number | null; readonly reason: string; readonly bytes: Buffer }
  /** Frames of a message that nobody has to see whole; `ends` marks its last bytes. Only with `inspect: false`. */
  | { readonly kind: 'part'; readonly ends: boolean; readonly bytes: Buffer };

export interface WebSocketReaderOptions {
  /** Who sent the bytes: frames of a client are masked, those of a server are not (RFC 6455 section 5.1). */
  readonly role: 'client' | 'server';
  /** Largest message, over all its fragments. */
  readonly maxMessageBytes: number;
  /** Hold each message until it is whole. Without it frames are checked and passed on as they come. */
  readonly inspect: boolean;
}

interface Header {
  readonly size: number;
  readonly fin: boolean;
  readonly opcode: number;
  readonly length: number;
  readonly mask: Buffer | null;
}

const CONTINUATION = 0;
const TEXT = 1;
const BINARY = 2;
const CLOSE = 8;
const PONG = 10;

/** Frames one message may be cut into: more is a way to make us keep headers for nothing. */
const MAX_FRAGMENTS = 65_536;

/**
 * Reads the frames of one direction, sans-IO. The same bytes give the same messages and bytes however they are chunked (for `part` the cuts differ, the bytes do not).
 * No extension is ever negotiated (see `withoutExtensions`), so reserved bits are errors and a payload is what it seems.
 * Source: RFC 6455 sections 5 and 7.4
 */
export class WebSocketReader {
  readonly #options: WebSocketReaderOptions;
  #held: Buffer = EMPTY;
  /** Frame whose payload is passing through (`inspect: false`): bytes still to come, and where in the mask we are. */
  #passing: { header: Header; left: number; at: number } | null = null;
  /** Opcode of the message that is being received, or null between messages. */
  #opcode: number | null = null;
  #size = 0;
  #frames: Buffer[] = [];
  #payloads: Buffer[] = [];
  #decoder: TextDecoder | null = null;
  #isClosed = false;

  constructor(options: WebSocketReaderOptions) {
    this.#options = options;
  }

  /** True after a close frame: nothing may follow. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** True in the middle of a frame or message: an end here is no clean end. */
  get isInside(): boolean {
    return this.#held.length > 0 || this.#passing !== null || this.#opcode !== null;
  }

  /** @throws ProtocolError `bad_websocket`; LimitError `message_too_large` */
  push(chunk: Buffer): WsEvent[] {
    const events: WsEvent[] = [];
    let bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    this.#held = EMPTY;
    while (bytes.length > 0) {
      if (this.#passing !== null) {
        bytes = this.#pass(bytes, events);
        continue;
      }
      if (this.#isClosed) throw bad('Bytes after the close frame.');
      const header = readHeader(bytes);
      if (header === null) break;
      this.#check(header);
      const isControl = header.opcode >= CLOSE;
      if (!isControl && !this.#options.inspect) {
        this.#begin(header);
        this.#passing = { header, left: header.size + header.length, at: -header.size };
        bytes = this.#pass(bytes, events);
        continue;
      }
      const end = header.size + header.length;
      if (bytes.length < end) break;
      const frame = bytes.subarray(0, end);
      const payload = unmask(frame.subarray(header.size), header.mask);
      bytes = bytes.subarray(end);
      if (isControl) events.push(this.#control(header.opcode, payload, frame));
      else this.#data(header, payload, frame, events);
    }
    this.#held = bytes;
    return events;
  }

  #check(header: Header): void {
    const wantsMask = this.#options.role === 'client';
    if ((header.mask !== null) !== wantsMask)
      throw bad(wantsMask ? 'A frame of the client is not masked.' : 'A frame of the server is masked.');
    if (header.opcode >= CLOSE) {
      if (header.opcode > PONG) throw bad('An unknown opcode.');
      if (!header.fin) throw bad('A control frame is fragmented.');
      if (header.length > 125) throw bad('A control frame is too long.');
      return;
    }
    if (header.opcode > BINARY) throw bad('An unknown opcode.');
    if (header.opcode === CONTINUATION ? this.#opcode === null : this.#opcode !== null)
      throw bad('Fragments are out of order.');
    if (this.#size + header.length > this.#options.maxMessageBytes) throw new LimitError('message_too_large');
  }

  #begin(header: Header): void {
    if (header.opcode !== CONTINUATION) {
      this.#opcode = header.opcode;
      this.#decoder = header.opcode === TEXT ? new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }) : null;
    }
    this.#size += header.length;
  }

  #reset(): void {
    this.#opcode = null;
    this.#size = 0;
    this.#frames = [];
    this.#payloads = [];
    this.#decoder = null;
  }

  #data(header: Header, payload: Buffer, frame: Buffer, events: WsEvent[]): void {
    this.#begin(header);
    this.#frames.push(frame);
    this.#payloads.push(payload);
    if (this.#frames.length > MAX_FRAGMENTS) throw new LimitError('message_too_large', 'Too many fragments.');
    if (!header.fin) return;
    const isText = this.#opcode === TEXT;
    const whole = this.#payloads.length === 1 ? payload : Buffer.concat(this.#payloads);
    const text = isText ? this.#decode(whole, false) : null;
    events.push({ kind: 'message', isText, text, size: this.#size, bytes: this.#frames });
    this.#reset();
  }

  #decode(bytes: Buffer, stream: boolean): string {
    try {
      return this.#decoder?.decode(bytes, { stream }) ?? '';
    } catch {
      throw bad('A text message is not UTF-8.');
    }
  }

  /** Passes bytes of the running frame on; the text of fragments is still held to UTF-8. */
  #pass(bytes: Buffer, events: WsEvent[]): Buffer {
    const passing = this.#passing;
    if (passing === null) return bytes;
    const take = Math.min(passing.left, bytes.length);
    const part = bytes.subarray(0, take);
    passing.left -= take;
    if (this.#decoder !== null) {
      const skip = Math.max(0, -passing.at);
      const payload = part.subarray(Math.min(skip, part.length));
      if (payload.length > 0) this.#decode(unmask(payload, passing.header.mask, Math.max(0, passing.at)), true);
    }
    passing.at += take;
    const isFrameEnd = passing.left === 0;
    const ends = isFrameEnd && passing.header.fin;
    if (isFrameEnd) {
      this.#passing = null;
      if (ends) {
        if (this.#decoder !== null) this.#decode(EMPTY, false);
        this.#reset();
      }
    }
    events.push({ kind: 'part', ends, bytes: part });
    return bytes.subarray(take);
  }

  #control(opcode: number, payload: Buffer, frame: Buffer): WsEvent {
    if (opcode !== CLOSE) return { kind: 'control', bytes: frame };
    this.#isClosed = true;
    if (payload.length === 0) return { kind: 'close', code: null, reason: '', bytes: frame };
    if (payload.length === 1) throw bad('A close frame has half a code.');
    const code = payload.readUInt16BE(0);
    if (!isCloseCode(code)) throw bad('A close code is not allowed on the wire.');
    let reason: string;
    try {
      reason = new TextDecoder('utf-8', { fatal: true }).decode(payload.subarray(2));
    } catch {
      throw bad('A close reason is not UTF-8.');
    }
    return { kind: 'close', code, reason, bytes: frame };
  }
}

const EMPTY: Buffer = Buffer.alloc(0);

function bad(detail: string): ProtocolError {
  return new ProtocolError('bad_websocket', detail);
}

/** RFC 6455 section 7.4 and the IANA registry: 1004 to 1006 and 1015 never travel. */
function isCloseCode(code: number): boolean {
  return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

/** @returns null when the header is not complete yet */
function readHeader(bytes: Buffer): Header | null {
  const first = bytes[0];
  const second = bytes[1];
  if (first === undefined) return null;
  if ((first & 0x70) !== 0) throw bad('A reserved bit is set; no extension was negotiated.');
  if (second === undefined) return null;
  const isMasked = (second & 0x80) !== 0;
  let length = second & 0x7f;
  let size = 2;
  if (length === 126) {
    if (bytes.length < 4) return null;
    length = bytes.readUInt16BE(2);
    if (length < 126) throw bad('A length is not in its shortest form.');
    size = 4;
  } else if (length === 127) {
    if (bytes.length < 10) return null;
    const long = bytes.readBigUInt64BE(2);
    if (long < 65_536n) throw bad('A length is not in its shortest form.');
    if (long > BigInt(Number.MAX_SAFE_INTEGER)) throw new LimitError('message_too_large');
    length = Number(long);
    size = 10;
  }
  if (!isMasked) return { size, fin: (first & 0x80) !== 0, opcode: first & 0x0f, length, mask: null };
  if (bytes.length < size + 4) return null;
  return {
    size: size + 4,
    fin: (first & 0x80) !== 0,
    opcode: first & 0x0f,
    length,
    mask: bytes.subarray(size, size + 4),
  };
}

function unmask(payload: Buffer, mask: Buffer | null, from = 0): Buffer {
  if (mask === null) return payload;
  const clear = Buffer.allocUnsafe(payload.length);
  for (let i = 0; i < payload.length; i++) clear[i] = (payload[i] ?? 0) ^ (mask[(from + i) & 3] ?? 0);
  return clear;
}

/** One frame. `mask`: four bytes for frames to a server, null for frames to a client. */
export function encodeFrame(opcode: number, payload: Buffer, mask: Buffer | null): Buffer {
  const { length } = payload;
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const head = Buffer.alloc(2 + extended);
  head[0] = 0x80 | opcode;
  head[1] = (mask === null ? 0 : 0x80) | (extended === 0 ? length : extended === 2 ? 126 : 127);
  if (extended === 2) head.writeUInt16BE(length, 2);
  else if (extended === 8) head.writeBigUInt64BE(BigInt(length), 2);
  return mask === null ? Buffer.concat([head, payload]) : Buffer.concat([head, mask, unmask(payload, mask)]);
}

/** A close frame; `reason` must fit 123 bytes of UTF-8. */
export function encodeClose(code: number, reason: string, mask: Buffer | null): Buffer {
  const text = Buffer.from(reason, 'utf8').subarray(0, 123);
  const payload = Buffer.alloc(2 + text.length);
  payload.writeUInt16BE(code, 0);
  text.copy(payload, 2);
  return encodeFrame(CLOSE, payload, mask);
}

/** `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2). */
export function acceptOf(key: string): string {
  return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`, 'latin1').digest('base64');
}

/** Whether a `Sec-WebSocket-Key` is 16 bytes in base64 (RFC 6455 section 4.1). */
export function isKey(key: string): boolean {
  return /^[A-Za-z0-9+/]{21}[AQgw]==$/.test(key);
}
