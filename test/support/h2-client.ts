import { connect as connectHttp2 } from 'node:http2';
import type { ClientHttp2Session, ClientHttp2Stream, IncomingHttpHeaders, OutgoingHttpHeaders } from 'node:http2';
import type { Socket } from 'node:net';
import { tlsThrough } from './raw-client.ts';
import type { TlsTunnelOptions } from './raw-client.ts';
import { within } from './waiting.ts';

export interface H2Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly body: Buffer;
  readonly trailers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** 1xx that came before. */
  readonly informational: readonly number[];
  /** RST code of the server, 0 for a clean end. */
  readonly resetCode: number;
}

export interface H2Client {
  readonly session: ClientHttp2Session;
  /** One request to its end; a stream that is reset rejects unless its code is wanted (`resetCode` in the answer). */
  ask(headers: OutgoingHttpHeaders, body?: Buffer | string): Promise<H2Answer>;
  close(): void;
}

/** HTTP/2 inside CONNECT and TLS. */
export async function h2Through(proxyPort: number, host: string, options: TlsTunnelOptions): Promise<H2Client> {
  const socket = await tlsThrough(proxyPort, host, { ...options, alpn: options.alpn ?? ['h2'] });
  if (socket.alpnProtocol !== 'h2') throw new Error(`agreed on ${String(socket.alpnProtocol)}, not on h2`);
  return h2On(socket, `https://${host}`);
}

/** HTTP/2 on a socket that is ready for it. */
export function h2On(socket: Socket, origin: string): H2Client {
  const session = connectHttp2(origin, { createConnection: () => socket, settings: { enablePush: false } });
  session.on('error', () => undefined);
  return {
    session,
    ask: (headers, body) => {
      const stream = session.request(
        { ':method': body === undefined ? 'GET' : 'POST', ':path': '/', ...headers },
        { endStream: body === undefined },
      );
      if (body !== undefined) stream.end(body);
      return within(`an h2 answer to ${String(headers[':path'] ?? '/')}`, answerOf(stream));
    },
    close: () => session.destroy(),
  };
}

/** Collects an answer; a reset is told by `resetCode`, and rejects only when no head had come. */
export function answerOf(stream: ClientHttp2Stream): Promise<H2Answer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const informational: number[] = [];
    let status = 0;
    let headers: H2Answer['headers'] = {};
    let trailers: H2Answer['trailers'] = {};
    let failure: Error | null = null;
    stream.on('headers', (interim) => informational.push(Number(interim[':status'])));
    stream.on('response', (head: IncomingHttpHeaders) => {
      status = Number(head[':status']);
      headers = { ...head };
    });
    stream.on('trailers', (fields) => {
      trailers = { ...fields } as H2Answer['trailers'];
    });
    stream.on('data', (chunk: Buffer) => chunks.push(chunk));
    stream.on('error', (error: Error) => {
      failure = error;
    });
    stream.on('close', () => {
      if (status === 0) {
        reject(failure ?? new Error(`the stream closed with code ${stream.rstCode} and no answer`));
        return;
      }
      resolve({
        status,
        headers,
        body: Buffer.concat(chunks),
        trailers,
        informational,
        resetCode: stream.rstCode,
      });
    });
  });
}
