import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { expect, onTestFinished } from 'vitest';
import { UpstreamError } from '../../src/core/errors.ts';
import type { ProxyError } from '../../src/core/errors.ts';
import type { RawHeaders } from '../../src/core/headers.ts';
import type { Limits } from '../../src/core/settings.ts';
import type { BodySource, ResponseHead, UpstreamRequest, UpstreamStream } from '../../src/core/stream.ts';
import { Deadlines } from '../../src/proxy/limits.ts';
import { H2Upstream } from '../../src/proxy/upstream-h2.ts';
import { closeAfterTest } from '../support/closing.ts';
import { TEST_LIMITS } from '../support/proxy.ts';
import { frame2, headerBlock, headersFrame } from '../support/raw-h2.ts';
import type { H2Frame } from '../support/raw-h2.ts';
import { startRawServer } from '../support/raw-server.ts';

// Frame types and error codes of RFC 9113, sections 6 and 7.
export const DATA = 0;
export const HEADERS = 1;
export const RST_STREAM = 3;
export const SETTINGS = 4;
export const PUSH_PROMISE = 5;
export const GOAWAY = 7;
export const CONTINUATION = 9;
export const NO_ERROR = 0;
export const INTERNAL_ERROR = 2;
export const REFUSED_STREAM = 7;
export const CANCEL = 8;
export const ENHANCE_YOUR_CALM = 11;

/** What a handler was told. */
export interface Asked {
  readonly stream: UpstreamStream;
  readonly informational: ResponseHead[];
  head: ResponseHead | null;
  body: BodySource | null;
  received: Buffer;
  trailers: RawHeaders;
  /** `whole`, or the code of the error, with `retry-safe` where the request may be sent again. */
  readonly outcome: Promise<string>;
  isOver: boolean;
}

const EMPTY: UpstreamRequest = {
  method: 'GET',
  scheme: 'http',
  authority: 'server.test',
  target: '/',
  headers: [],
  length: 0,
  upgrade: null,
  expectsContinue: false,
  wantsTrailers: false,
};

/** Sends a request; the answer is read at once unless it is to wait. */
export function ask(
  upstream: H2Upstream,
  over: Partial<UpstreamRequest> = {},
  onHead?: (body: BodySource) => void,
): Asked {
  let settle: (outcome: string) => void = () => undefined;
  const outcome = new Promise<string>((resolve) => {
    settle = (text) => {
      expect(asked.isOver, `told twice, the second time: ${text}`).toBe(false);
      asked.isOver = true;
      resolve(text);
    };
  });
  const fail = (error: ProxyError): void => {
    settle(error instanceof UpstreamError && error.isRetrySafe ? `${error.code} retry-safe` : error.code);
  };
  const asked: Asked = {
    stream: upstream.request(
      { ...EMPTY, ...over },
      {
        informational: (head) => asked.informational.push(head),
        upgraded: () => settle('upgraded'),
        fail,
        response: (head, body) => {
          asked.head = head;
          asked.body = body;
          body.start({
            fail,
            data: (chunk) => {
              expect(asked.isOver, 'bytes after the end').toBe(false);
              asked.received = Buffer.concat([asked.received, chunk]);
            },
            end: (trailers) => {
              asked.trailers = trailers;
              settle('whole');
            },
          });
          onHead?.(body);
        },
      },
    ),
    informational: [],
    head: null,
    body: null,
    received: Buffer.alloc(0),
    trailers: [],
    outcome,
    isOver: false,
  };
  if ((over.length ?? 0) === 0 && over.length !== null) asked.stream.body.end([]);
  return asked;
}

/** Connects to a port on which HTTP/2 is spoken without TLS. */
export async function upstreamTo(
  port: number,
  limits: Partial<Limits> = {},
): Promise<H2Upstream & { readonly socket: Socket; closed(): boolean }> {
  const socket = await new Promise<Socket>((resolve, reject) => {
    const connecting = connect({ port, host: '127.0.0.1', noDelay: true }, () => resolve(connecting));
    connecting.once('error', reject);
  });
  const deadlines = new Deadlines(20);
  let closes = 0;
  const upstream = new H2Upstream(socket, { ...TEST_LIMITS, ...limits }, deadlines, { onClose: () => closes++ });
  onTestFinished(() => {
    upstream.destroy();
    deadlines.close();
    expect(closes).toBe(1);
  });
  return Object.assign(upstream, { socket, closed: () => closes === 1 });
}

/** A server that speaks in frames. */
export interface Peer {
  readonly socket: Socket;
  send(...frames: Buffer[]): void;
  /** The next frame of a type; others are skipped, settings acknowledged. Null at the end. */
  frame(type: number): Promise<H2Frame | null>;
}

/** The script runs when the first request has come, which is stream 1. */
export async function rawServer(
  script: (peer: Peer) => Promise<void> | void,
  settings: Buffer = Buffer.alloc(0),
): Promise<number> {
  const server = closeAfterTest(
    await startRawServer({
      tls: false,
      script: async (connection) => {
        const { socket, reader } = connection;
        const send = (bytes: Buffer): void => connection.send(bytes);
        await reader.bytes(24);
        send(frame2(SETTINGS, 0, 0, settings));
        const peer: Peer = {
          socket,
          send: (...frames) => send(Buffer.concat(frames)),
          frame: async (type) => {
            for (;;) {
              const head = await reader.bytes(9, 'a frame').catch(() => null);
              if (head === null) return null;
              const payload = await reader.bytes(head.readUIntBE(0, 3));
              const flags = head[4] ?? 0;
              if (head[3] === SETTINGS && (flags & 1) === 0) send(frame2(SETTINGS, 1, 0, Buffer.alloc(0)));
              if (head[3] === type) return { type, flags, stream: head.readUInt32BE(5), payload };
            }
          },
        };
        await peer.frame(HEADERS);
        await script(peer);
      },
    }),
  );
  return server.port;
}

export const head = (status = '200', ...more: [string, string][]): Buffer =>
  headersFrame(1, [[':status', status], ...more], { endStream: false });
export const lastHead = (status = '200', ...more: [string, string][]): Buffer =>
  headersFrame(1, [[':status', status], ...more], { endStream: true });
export const lastTrailers = (...fields: [string, string][]): Buffer => headersFrame(1, fields, { endStream: true });
export const data = (text: string | Buffer, stream = 1): Buffer => frame2(DATA, 0, stream, Buffer.from(text));
export const lastData = (text: string | Buffer, stream = 1): Buffer => frame2(DATA, 1, stream, Buffer.from(text));
export const goaway = (last: number, code: number): Buffer => {
  const payload = Buffer.alloc(8);
  payload.writeUInt32BE(last);
  payload.writeUInt32BE(code, 4);
  return frame2(GOAWAY, 0, 0, payload);
};
export const setting = (id: number, value: number): Buffer => {
  const payload = Buffer.alloc(6);
  payload.writeUInt16BE(id);
  payload.writeUInt32BE(value, 2);
  return payload;
};
/** A header section of about this many bytes. */
export const large = (bytes: number): [string, string][] =>
  Array.from({ length: Math.ceil(bytes / 1000) }, (_, i): [string, string] => [`x-${i}`, 'v'.repeat(990)]);
/** HEADERS and CONTINUATION: a frame holds 16 KB. */
export function split(headers: readonly [string, string][], flags: number): Buffer {
  const block = headerBlock(headers);
  const parts: Buffer[] = [];
  for (let at = 0; at < block.length; at += 16_000) {
    const isLast = at + 16_000 >= block.length;
    const type = at === 0 ? HEADERS : CONTINUATION;
    parts.push(frame2(type, (at === 0 ? flags : 0) | (isLast ? 4 : 0), 1, block.subarray(at, at + 16_000)));
  }
  return Buffer.concat(parts);
}
