import { isUtf8 } from 'node:buffer';
import { LimitError, ProtocolError } from '../core/errors.ts';
import { HeldBytes } from './held-bytes.ts';
import { FrameHeaderReader, OPCODES, applyMask } from './websocket-frame.ts';
import type { FrameHeader } from './websocket-frame.ts';

export { acceptOf, encodeClose, encodeFrame, isKey } from './websocket-frame.ts';

/** What a reader found. `bytes` are exactly the bytes of the wire, to be forwarded when the event may pass: what was judged is what is sent, mask included. */
export type WsEvent =
  | {
      readonly kind: 'message';
      readonly isText: boolean;
      readonly text: string | null;
      readonly size: number;
      readonly bytes: readonly Buffer[];
    }
  /** Ping or pong; may stand between the fragments of a message. */
  | { readonly kind: 'control'; readonly bytes: Buffer }
  | { readonly kind: 'close'; readonly code: number | null; readonly reason: string; readonly bytes: Buffer }
  /** Bytes of a message that nobody has to see whole; `ends` marks its last ones. Only without `inspect`. */
  | { readonly kind: 'part'; readonly ends: boolean; readonly bytes: Buffer };

export interface WebSocketReaderOptions {
  /** Who sent the bytes: frames of a client are masked, those of a server are not (RFC 6455 section 5.1). */
  readonly role: 'client' | 'server';
  /** Largest message, over all its fragments. */
  readonly maxMessageBytes: number;
  /** Hold each message until it is whole. Without it frames are checked and passed on as they come. */
  readonly inspect: boolean;
}

/** Frames one message may be cut into: more is a way to make us keep headers for nothing. */
const MAX_FRAGMENTS = 65_536;
/** First guess at the size of a text that comes in pieces; what a header announces has not been paid for yet. */
const FIRST_TEXT_BYTES = 65_536;

/**
 * Reads the frames of one direction, sans-IO. The same bytes give the same messages and bytes however they are chunked (for `part` the cuts differ, the bytes
 * do not). Work and memory are linear in the bytes read, in chunks of any size.
 *
 * No extension is ever negotiated: neither offers nor choices of `Sec-WebSocket-Extensions` pass the handshake, so reserved bits are errors and a payload is what
 * it seems. With permessage-deflate (RFC 7692) a message would have to be inflated to be judged, which invites bombs, and what was judged would no longer be what
 * is sent; its place would be between the unmasked payload and `#decode`.
 * Source: RFC 6455 sections 5 and 7.4
 */
export class WebSocketReader {
  /** May be changed at any time; the next message follows it. */
  inspect: boolean;
  readonly #options: WebSocketReaderOptions;
  readonly #headers = new FrameHeaderReader();
  /** The frame whose payload is coming in, and how much of that is still missing. */
  #frame: FrameHeader | null = null;
  #left = 0;
  /** A control frame is kept apart: it may stand between the fragments of a held message. */
  readonly #control = new HeldBytes();
  /** Opcode of the message that is coming in, or null between messages. */
  #opcode: number | null = null;
  #isHolding = false;
  #size = 0;
  #fragments = 0;
  readonly #message = new HeldBytes();
  #text: Buffer = EMPTY;
  #textBytes = 0;
  readonly #utf8 = new Utf8Check();
  #isClosed = false;

  constructor(options: WebSocketReaderOptions) {
    this.#options = options;
    this.inspect = options.inspect;
  }

  /** True after a close frame: nothing may follow. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** True in the middle of a frame or message: an end here is no clean end. */
  get isInside(): boolean {
    return this.#headers.length > 0 || this.#frame !== null || this.#opcode !== null;
  }

  /** True in the middle of a message whose beginning has been passed on without being read. */
  get isPassing(): boolean {
    return this.#opcode !== null && !this.#isHolding;
  }

  /** @throws ProtocolError `bad_websocket`; LimitError `message_too_large`. After a throw the reader is of no more use. */
  push(chunk: Buffer): WsEvent[] {
    const events: WsEvent[] = [];
    let at = 0;
    while (at < chunk.length) {
      if (this.#isClosed) throw bad('Bytes after the close frame.');
      if (this.#frame !== null) {
        at += this.#payload(this.#frame, chunk.subarray(at, at + this.#left), events);
        continue;
      }
      const had = this.#headers.length;
      const header = this.#headers.read(chunk, at);
      if (header === null) break;
      const from = at;
      at += header.size - had;
      if (had === 0 && this.#isWholeMessage(header, chunk.length - at)) {
        const end = at + header.length;
        events.push(this.#whole(header, chunk.subarray(at, end), chunk.subarray(from, end)));
        at = end;
      } else this.#begin(header, had === 0 ? chunk.subarray(from, at) : this.#headers.copyOf(header), events);
    }
    return events;
  }

  /** The usual case: an unfragmented message in one chunk. */
  #isWholeMessage(header: FrameHeader, available: number): boolean {
    return (
      this.inspect && this.#opcode === null && header.fin && header.length <= available && header.opcode < OPCODES.close
    );
  }

  #whole(header: FrameHeader, payload: Buffer, frame: Buffer): WsEvent {
    this.#check(header);
    const isText = header.opcode === OPCODES.text;
    let text: string | null = null;
    if (isText) {
      this.#keepText(header, payload, 0);
      text = this.#decode();
    }
    return { kind: 'message', isText, text, size: header.length, bytes: [frame] };
  }

  #begin(header: FrameHeader, bytes: Buffer, events: WsEvent[]): void {
    this.#check(header);
    const isControl = header.opcode >= OPCODES.close;
    if (!isControl) {
      if (this.#opcode === null) {
        this.#opcode = header.opcode;
        this.#isHolding = this.inspect;
      }
      this.#size += header.length;
      if (++this.#fragments > MAX_FRAGMENTS) throw new LimitError('message_too_large', 'Too many fragments.');
    }
    this.#frame = header;
    this.#left = header.length;
    if (isControl) this.#control.push(bytes);
    else if (this.#isHolding) this.#message.push(bytes);
    else events.push({ kind: 'part', ends: header.fin && header.length === 0, bytes });
    if (header.length === 0) this.#endFrame(header, events);
  }

  /** @returns the bytes taken, which are all of `bytes` */
  #payload(header: FrameHeader, bytes: Buffer, events: WsEvent[]): number {
    const offset = header.length - this.#left;
    this.#left -= bytes.length;
    const isFrameEnd = this.#left === 0;
    if (header.opcode >= OPCODES.close) this.#control.push(bytes);
    else {
      const isText = this.#opcode === OPCODES.text;
      if (this.#isHolding) {
        this.#message.push(bytes);
        if (isText) this.#keepText(header, bytes, offset);
      } else {
        if (isText) this.#checkText(header, bytes, offset);
        events.push({ kind: 'part', ends: isFrameEnd && header.fin, bytes });
      }
    }
    if (isFrameEnd) this.#endFrame(header, events);
    return bytes.length;
  }

  #endFrame(header: FrameHeader, events: WsEvent[]): void {
    this.#frame = null;
    if (header.opcode >= OPCODES.close) {
      events.push(this.#controlEvent(header, Buffer.concat(this.#control.take())));
      return;
    }
    if (!header.fin) return;
    const isText = this.#opcode === OPCODES.text;
    if (this.#isHolding) {
      const text = isText ? this.#decode() : null;
      events.push({ kind: 'message', isText, text, size: this.#size, bytes: this.#message.take() });
    } else if (isText && !this.#utf8.end()) throw bad(NOT_UTF8);
    this.#opcode = null;
    this.#size = 0;
    this.#fragments = 0;
  }

  #check(header: FrameHeader): void {
    const wantsMask = this.#options.role === 'client';
    if ((header.mask !== null) !== wantsMask)
      throw bad(wantsMask ? 'A frame of the client is not masked.' : 'A frame of the server is masked.');
    if (header.opcode >= OPCODES.close) {
      if (header.opcode > OPCODES.pong) throw bad('An unknown opcode.');
      if (!header.fin) throw bad('A control frame is fragmented.');
      if (header.length > 125) throw bad('A control frame is too long.');
      return;
    }
    if (header.opcode > OPCODES.binary) throw bad('An unknown opcode.');
    if (header.opcode === OPCODES.continuation ? this.#opcode === null : this.#opcode !== null)
      throw bad('Fragments are out of order.');
    if (this.#size + header.length > this.#options.maxMessageBytes) throw new LimitError('message_too_large');
  }

  #keepText(header: FrameHeader, payload: Buffer, offset: number): void {
    const needed = this.#textBytes + payload.length;
    if (this.#text.length < needed) {
      const isWhole = header.fin && payload.length === header.length && this.#textBytes === 0;
      const grown = Buffer.allocUnsafe(isWhole ? needed : Math.max(needed, this.#text.length * 2, FIRST_TEXT_BYTES));
      this.#text.copy(grown, 0, 0, this.#textBytes);
      this.#text = grown;
    }
    payload.copy(this.#text, this.#textBytes);
    if (header.mask !== null) applyMask(this.#text.subarray(this.#textBytes, needed), header.mask, offset);
    this.#textBytes = needed;
  }

  #decode(): string {
    const bytes = this.#text.subarray(0, this.#textBytes);
    this.#text = EMPTY;
    this.#textBytes = 0;
    if (!isUtf8(bytes)) throw bad(NOT_UTF8);
    return bytes.toString('utf8');
  }

  /** Text that passes unread is still held to UTF-8, over all its fragments. */
  #checkText(header: FrameHeader, payload: Buffer, offset: number): void {
    let clear = payload;
    if (header.mask !== null) {
      clear = Buffer.from(payload);
      applyMask(clear, header.mask, offset);
    }
    if (!this.#utf8.push(clear)) throw bad(NOT_UTF8);
  }

  #controlEvent(header: FrameHeader, frame: Buffer): WsEvent {
    if (header.opcode !== OPCODES.close) return { kind: 'control', bytes: frame };
    this.#isClosed = true;
    const payload = Buffer.from(frame.subarray(header.size));
    if (header.mask !== null) applyMask(payload, header.mask, 0);
    if (payload.length === 0) return { kind: 'close', code: null, reason: '', bytes: frame };
    if (payload.length === 1) throw bad('A close frame has half a code.');
    const code = payload.readUInt16BE(0);
    if (!isCloseCode(code)) throw bad('A close code is not allowed on the wire.');
    const reason = payload.subarray(2);
    if (!isUtf8(reason)) throw bad('A close reason is not UTF-8.');
    return { kind: 'close', code, reason: reason.toString('utf8'), bytes: frame };
  }
}

const EMPTY: Buffer = Buffer.alloc(0);
const NOT_UTF8 = 'A text message is not UTF-8.';

function bad(detail: string): ProtocolError {
  return new ProtocolError('bad_websocket', detail);
}

/** RFC 6455 section 7.4 and the IANA registry: 1004 to 1006 and 1015 never travel. */
function isCloseCode(code: number): boolean {
  return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

/** Whether bytes that come in pieces are UTF-8. */
class Utf8Check {
  /** An unfinished character at the end of the last piece: three bytes at most. */
  #rest: Buffer = EMPTY;

  push(piece: Buffer): boolean {
    const bytes = this.#rest.length === 0 ? piece : Buffer.concat([this.#rest, piece]);
    const end = bytes.length - unfinishedBytes(bytes);
    this.#rest = end === bytes.length ? EMPTY : Buffer.from(bytes.subarray(end));
    return isUtf8(bytes.subarray(0, end));
  }

  /** Begins anew. @returns false in the middle of a character */
  end(): boolean {
    const isWhole = this.#rest.length === 0;
    this.#rest = EMPTY;
    return isWhole;
  }
}

function unfinishedBytes(bytes: Buffer): number {
  for (let back = 1; back <= 3 && back <= bytes.length; back++) {
    const byte = bytes[bytes.length - back] ?? 0;
    if ((byte & 0xc0) === 0x80) continue;
    const needed = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
    return needed > back ? back : 0;
  }
  return 0;
}
