import { createHash } from 'node:crypto';
import { LimitError, ProtocolError } from '../core/errors.ts';

/** Opcodes of RFC 6455 section 11.8. */
export const OPCODES = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 } as const;

export interface FrameHeader {
  readonly fin: boolean;
  readonly opcode: number;
  /** Payload bytes that follow. */
  readonly length: number;
  readonly mask: Buffer | null;
  /** Bytes of the header itself. */
  readonly size: number;
}

const MAX_HEADER_BYTES = 14;

/** Puts a frame header together from pieces of any size. */
export class FrameHeaderReader {
  readonly #bytes = Buffer.alloc(MAX_HEADER_BYTES);
  #length = 0;

  /** The last header that `read` gave, as it was on the wire. Only when it came in several pieces. */
  copyOf(header: FrameHeader): Buffer {
    return Buffer.from(this.#bytes.subarray(0, header.size));
  }

  /** Bytes of an unfinished header that were taken from earlier pieces. */
  get length(): number {
    return this.#length;
  }

  /**
   * Reads on at `chunk[at]`. The header ends `header.size - length` bytes after `at`, with `length` as it was before the call.
   * @returns null when the chunk ends first; all of it is taken then
   * @throws ProtocolError `bad_websocket`; LimitError `message_too_large` for a length beyond 2^53
   */
  read(chunk: Buffer, at: number): FrameHeader | null {
    const had = this.#length;
    if (had === 0) {
      const header = parse(chunk, at, chunk.length);
      if (header !== null) return header;
    }
    const have = had + chunk.copy(this.#bytes, had, at);
    const header = parse(this.#bytes, 0, have);
    this.#length = header === null ? have : 0;
    return header;
  }
}

function parse(bytes: Buffer, at: number, end: number): FrameHeader | null {
  if (at >= end) return null;
  const first = bytes[at] ?? 0;
  if ((first & 0x70) !== 0) throw bad('A reserved bit is set; no extension was negotiated.');
  if (at + 2 > end) return null;
  const second = bytes[at + 1] ?? 0;
  let length = second & 0x7f;
  let size = 2;
  if (length === 126) {
    if (at + 4 > end) return null;
    length = bytes.readUInt16BE(at + 2);
    if (length < 126) throw bad('A length is not in its shortest form.');
    size = 4;
  } else if (length === 127) {
    if (at + 10 > end) return null;
    const long = bytes.readBigUInt64BE(at + 2);
    if (long < 65_536n) throw bad('A length is not in its shortest form.');
    if (long > BigInt(Number.MAX_SAFE_INTEGER)) throw new LimitError('message_too_large');
    length = Number(long);
    size = 10;
  }
  const isMasked = (second & 0x80) !== 0;
  if (isMasked) size += 4;
  if (at + size > end) return null;
  // A copy: the next header overwrites the reader's own bytes, and a mask must not keep a large chunk alive.
  const mask = isMasked ? Buffer.from(bytes.subarray(at + size - 4, at + size)) : null;
  return { fin: (first & 0x80) !== 0, opcode: first & 0x0f, length, mask, size };
}

/**
 * Masks or unmasks in place (RFC 6455 section 5.3); a word at a time, since every text byte of every client goes through here.
 * @param offset position of `bytes` in the payload of its frame
 */
export function applyMask(bytes: Buffer, mask: Buffer, offset: number): void {
  const { length } = bytes;
  const lead = length < 32 ? length : (4 - (bytes.byteOffset & 3)) & 3;
  for (let i = 0; i < lead; i++) bytes[i] = (bytes[i] ?? 0) ^ (mask[(offset + i) & 3] ?? 0);
  if (lead === length) return;
  const turned = new Uint8Array(4);
  for (let i = 0; i < 4; i++) turned[i] = mask[(offset + lead + i) & 3] ?? 0;
  const word = new Uint32Array(turned.buffer)[0] ?? 0;
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset + lead, (length - lead) >>> 2);
  for (let i = 0; i < words.length; i++) words[i] = (words[i] ?? 0) ^ word;
  for (let i = lead + words.length * 4; i < length; i++) bytes[i] = (bytes[i] ?? 0) ^ (mask[(offset + i) & 3] ?? 0);
}

/** One unfragmented frame. `mask`: four bytes for frames to a server, null for frames to a client. */
export function encodeFrame(opcode: number, payload: Buffer, mask: Buffer | null): Buffer {
  const { length } = payload;
  const extended = length < 126 ? 0 : length < 65_536 ? 2 : 8;
  const size = 2 + extended + (mask === null ? 0 : 4);
  const frame = Buffer.allocUnsafe(size + length);
  frame[0] = 0x80 | opcode;
  frame[1] = (mask === null ? 0 : 0x80) | (extended === 0 ? length : extended === 2 ? 126 : 127);
  if (extended === 2) frame.writeUInt16BE(length, 2);
  else if (extended === 8) frame.writeBigUInt64BE(BigInt(length), 2);
  payload.copy(frame, size);
  if (mask !== null) {
    mask.copy(frame, size - 4);
    applyMask(frame.subarray(size), mask, 0);
  }
  return frame;
}

/** A close frame. Of `reason` as many whole characters are sent as fit into 123 bytes of UTF-8 (RFC 6455 section 5.5). */
export function encodeClose(code: number, reason: string, mask: Buffer | null): Buffer {
  const text = Buffer.from(reason, 'utf8');
  let end = Math.min(text.length, 123);
  while (end < text.length && ((text[end] ?? 0) & 0xc0) === 0x80) end--;
  const payload = Buffer.allocUnsafe(2 + end);
  payload.writeUInt16BE(code, 0);
  text.copy(payload, 2, 0, end);
  return encodeFrame(OPCODES.close, payload, mask);
}

/** `Sec-WebSocket-Accept` for a key (RFC 6455 section 4.2.2). */
export function acceptOf(key: string): string {
  return createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`, 'latin1').digest('base64');
}

/** Whether a `Sec-WebSocket-Key` is 16 bytes in base64 (RFC 6455 section 4.1). */
export function isKey(key: string): boolean {
  return /^[A-Za-z0-9+/]{21}[AQgw]==$/.test(key);
}

function bad(detail: string): ProtocolError {
  return new ProtocolError('bad_websocket', detail);
}
