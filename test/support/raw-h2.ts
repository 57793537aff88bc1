import type { Socket } from 'node:net';
import { tlsThrough } from './raw-client.ts';
import { PATIENCE_MS } from './waiting.ts';
import { WireReader } from './wire-reader.ts';

/** HTTP/2 in frames (RFC 9113), for what Node's client would refuse to send. */
export interface RawH2 {
  /** To pause and resume reading. */
  readonly socket: Socket;
  send(bytes: Buffer): void;
  /** What became of a stream. */
  outcomeOf(stream: number, timeoutMs?: number): Promise<H2Outcome>;
  /** The next frame, whatever it is; settings are acknowledged on the way. Null at the end of the connection. */
  frame(timeoutMs?: number): Promise<H2Frame | null>;
  close(): void;
}

export interface H2Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

export type H2Outcome =
  | { readonly kind: 'answer'; readonly status: number }
  | { readonly kind: 'reset'; readonly code: number }
  | { readonly kind: 'goaway'; readonly code: number }
  | { readonly kind: 'closed' };

const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n');
const DATA = 0;
const HEADERS = 1;
const RST_STREAM = 3;
const SETTINGS = 4;
const GOAWAY = 7;
const END_STREAM = 1;
const END_HEADERS = 4;

/** Any frame. */
export function frame2(type: number, flags: number, stream: number, payload: Buffer): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A header block of literals without indexing or Huffman code (RFC 7541 section 6.2.2): any bytes at all fit in. */
export function headerBlock(headers: readonly (readonly [string, string])[]): Buffer {
  return Buffer.concat(headers.flatMap(([name, value]) => [Buffer.from([0]), literal(name), literal(value)]));
}

export function headersFrame(
  stream: number,
  headers: readonly (readonly [string, string])[],
  options: { readonly endStream: boolean },
): Buffer {
  return frame2(HEADERS, END_HEADERS | (options.endStream ? END_STREAM : 0), stream, headerBlock(headers));
}

export function resetFrame(stream: number, code: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(code);
  return frame2(RST_STREAM, 0, stream, payload);
}

function literal(text: string): Buffer {
  const bytes = Buffer.from(text, 'latin1');
  if (bytes.length < 127) return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  const size: number[] = [127];
  let rest = bytes.length - 127;
  for (; rest >= 128; rest = Math.floor(rest / 128)) size.push((rest % 128) + 128);
  size.push(rest);
  return Buffer.concat([Buffer.from(size), bytes]);
}

/** CONNECT, TLS with ALPN h2, preface and settings. */
export async function rawH2(proxyPort: number, host: string, ca: string): Promise<RawH2> {
  const socket = await tlsThrough(proxyPort, host, { ca, alpn: ['h2'] });
  const reader = new WireReader(socket);
  socket.write(Buffer.concat([PREFACE, frame2(SETTINGS, 0, 0, Buffer.alloc(0))]));
  const next = async (timeoutMs = PATIENCE_MS): Promise<H2Frame | null> => {
    for (;;) {
      let head: Buffer;
      let payload: Buffer;
      try {
        head = await reader.bytes(9, 'a frame', timeoutMs);
        payload = await reader.bytes(head.readUIntBE(0, 3), 'the payload of a frame', timeoutMs);
      } catch (error) {
        if (reader.isEnded) return null;
        throw error;
      }
      const frame = { type: head[3] ?? 0, flags: head[4] ?? 0, stream: head.readUInt32BE(5) & 0x7fffffff, payload };
      if (frame.type === SETTINGS && (frame.flags & 1) === 0) socket.write(frame2(SETTINGS, 1, 0, Buffer.alloc(0)));
      else return frame;
    }
  };
  return {
    socket,
    send: (bytes) => {
      socket.write(bytes);
    },
    frame: next,
    outcomeOf: async (stream, timeoutMs = PATIENCE_MS) => {
      for (;;) {
        const frame = await next(timeoutMs);
        if (frame === null) return { kind: 'closed' };
        if (frame.type === GOAWAY) return { kind: 'goaway', code: frame.payload.readUInt32BE(4) };
        if (frame.stream !== stream) continue;
        if (frame.type === RST_STREAM) return { kind: 'reset', code: frame.payload.readUInt32BE(0) };
        if (frame.type === HEADERS) return { kind: 'answer', status: statusOf(frame.payload) };
        if (frame.type === DATA) continue;
      }
    },
    close: () => {
      socket.destroy();
    },
  };
}

/** Statuses with an entry in HPACK's static table (RFC 7541 appendix A). */
const INDEXED_STATUS: Readonly<Record<number, number>> = {
  8: 200,
  9: 204,
  10: 206,
  11: 304,
  12: 400,
  13: 404,
  14: 500,
};

/** `:status` of a header block, which encoders put first; digits may be in Huffman code. */
function statusOf(block: Buffer): number {
  let at = 0;
  // Dynamic table size updates come before the first field.
  while (((block[at] ?? 0) & 0xe0) === 0x20) at++;
  const first = block[at] ?? 0;
  if ((first & 0x80) !== 0) return INDEXED_STATUS[first & 0x7f] ?? -1;
  // A literal whose name is one of the :status entries of the static table.
  const length = block[at + 1] ?? 0;
  const value = block.subarray(at + 2, at + 2 + (length & 0x7f));
  if ((length & 0x80) === 0) return Number(value.toString('latin1'));
  return Number(digitsOf(value));
}

/** Huffman code of the ten digits (RFC 7541 appendix B): 0 to 2 have five bits, 3 to 9 six. */
function digitsOf(bytes: Buffer): string {
  const bits = [...bytes].map((byte) => byte.toString(2).padStart(8, '0')).join('');
  let digits = '';
  let at = 0;
  while (digits.length < 3 && at < bits.length) {
    const five = Number.parseInt(bits.slice(at, at + 5), 2);
    if (five <= 2) {
      digits += String(five);
      at += 5;
      continue;
    }
    digits += String(Number.parseInt(bits.slice(at, at + 6), 2) - 0x19 + 3);
    at += 6;
  }
  return digits;
}
