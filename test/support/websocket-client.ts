import { randomBytes } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { WebSocket } from 'ws';
import type { ClientOptions } from 'ws';
import { within } from './waiting.ts';
import { WireReader } from './wire-reader.ts';

/** A WebSocket with what came and how it ended. */
export interface WsClient {
  readonly ws: WebSocket;
  readonly messages: readonly { readonly text: string; readonly isBinary: boolean }[];
  /** Resolves to the next message that has not been taken. */
  next(): Promise<string>;
  readonly closed: Promise<{ readonly code: number; readonly reason: string }>;
  close(): void;
}

/** Wraps a `ws` socket that is just being opened. @throws when it is refused: the error carries `status` and `body` */
export function openWebSocket(url: string, protocols: readonly string[], options: ClientOptions): Promise<WsClient> {
  const ws = new WebSocket(url, [...protocols], options);
  const messages: { text: string; isBinary: boolean }[] = [];
  const waiting: (() => void)[] = [];
  let taken = 0;
  ws.on('message', (data, isBinary) => {
    const bytes = Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data as ArrayBuffer);
    messages.push({ text: bytes.toString('latin1'), isBinary });
    waiting.shift()?.();
  });
  const closed = new Promise<{ code: number; reason: string }>((resolve) => {
    ws.on('close', (code, reason) => resolve({ code, reason: reason.toString() }));
  });
  const client: WsClient = {
    ws,
    messages,
    closed,
    next: async () => {
      if (messages.length <= taken) {
        await within('a WebSocket message', new Promise<void>((resolve) => waiting.push(resolve)));
      }
      return messages[taken++]?.text ?? '';
    },
    close: () => ws.terminate(),
  };
  return within(
    'a WebSocket handshake',
    new Promise((resolve, reject) => {
      ws.on('open', () => resolve(client));
      ws.on('error', reject);
      ws.on('unexpected-response', (_request, response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () =>
          reject(new RefusedUpgrade(response.statusCode ?? 0, Buffer.concat(chunks).toString(), response.headers)),
        );
      });
    }),
  );
}

/** The server answered the upgrade with something else than 101. */
export class RefusedUpgrade extends Error {
  readonly status: number;
  readonly body: string;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;

  constructor(status: number, body: string, headers: RefusedUpgrade['headers']) {
    super(`the upgrade was answered with ${status}`);
    this.status = status;
    this.body = body;
    this.headers = headers;
  }
}

/** A frame as a client sends it, masked. */
export function frame(
  opcode: number,
  payload: string | Buffer,
  options: { readonly fin?: boolean; readonly rsv1?: boolean; readonly isMasked?: boolean } = {},
): Buffer {
  const { fin = true, rsv1 = false, isMasked = true } = options;
  const bytes = Buffer.from(payload);
  const length = bytes.length;
  const head =
    length < 126
      ? Buffer.from([0, length])
      : length < 65_536
        ? Buffer.from([0, 126, length >> 8, length & 255])
        : Buffer.concat([Buffer.from([0, 127, 0, 0, 0, 0]), uint32(length)]);
  head[0] = (fin ? 0x80 : 0) | (rsv1 ? 0x40 : 0) | opcode;
  if (!isMasked) return Buffer.concat([head, bytes]);
  head[1] = (head[1] ?? 0) | 0x80;
  const mask = randomBytes(4);
  const masked = Buffer.from(bytes.map((byte, index) => byte ^ (mask[index % 4] ?? 0)));
  return Buffer.concat([head, mask, masked]);
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export interface WireFrame {
  readonly fin: boolean;
  readonly rsv1: boolean;
  readonly opcode: number;
  readonly payload: Buffer;
}

/** Reads one frame of a server off the wire. */
export async function readFrame(reader: WireReader): Promise<WireFrame> {
  const head = await reader.bytes(2, 'the head of a frame');
  const first = head[0] ?? 0;
  let length = (head[1] ?? 0) & 0x7f;
  if (length === 126) length = (await reader.bytes(2, 'a frame length')).readUInt16BE();
  else if (length === 127) length = Number((await reader.bytes(8, 'a frame length')).readBigUInt64BE());
  const payload = await reader.bytes(length, 'the payload of a frame');
  return { fin: (first & 0x80) !== 0, rsv1: (first & 0x40) !== 0, opcode: first & 15, payload };
}

/** Close code and reason of a close frame. */
export function closeOf({ payload }: WireFrame): { readonly code: number; readonly reason: string } {
  return { code: payload.length < 2 ? 1005 : payload.readUInt16BE(), reason: payload.subarray(2).toString() };
}

/** A reader for frames on any duplex, e.g. an h2 stream. */
export function frameReader(duplex: Duplex): WireReader {
  return new WireReader(duplex);
}
