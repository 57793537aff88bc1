import { connect as connectTcp } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { within } from './waiting.ts';
import { WireReader } from './wire-reader.ts';
import type { WireResponse } from './wire-reader.ts';

/** A client that speaks in bytes. */
export interface RawClient {
  readonly socket: Socket;
  readonly reader: WireReader;
  send(bytes: string | Buffer): void;
  /** Sends the bytes and reads one answer. */
  ask(bytes: string | Buffer, method?: string): Promise<WireResponse>;
  close(): void;
}

export function rawClient(socket: Socket): RawClient {
  const reader = new WireReader(socket);
  return {
    socket,
    reader,
    send: (bytes) => {
      socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
    },
    ask: (bytes, method = 'GET') => {
      socket.write(typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes);
      return reader.response({ method });
    },
    close: () => {
      socket.destroy();
    },
  };
}

/** A plain connection to a port here. */
export async function tcp(port: number, options: { readonly allowHalfOpen?: boolean } = {}): Promise<Socket> {
  const socket = connectTcp({ port, host: '127.0.0.1', noDelay: true, ...options });
  socket.on('error', () => undefined);
  await within(
    'a TCP connection',
    new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    }),
  );
  return socket;
}

/** A connection to the proxy port in bytes: for absolute-form and odd CONNECT requests. */
export async function proxyClient(
  proxyPort: number,
  options: { readonly allowHalfOpen?: boolean } = {},
): Promise<RawClient> {
  return rawClient(await tcp(proxyPort, options));
}

/** `user:password` as a header line for the proxy. */
export function basicLine(credentials: string): string {
  return `Proxy-Authorization: Basic ${Buffer.from(credentials).toString('base64')}\r\n`;
}

/** Sends CONNECT; answers the response and, for 200, the open socket. */
export async function connectThrough(
  proxyPort: number,
  authority: string,
  options: { readonly headers?: string; readonly socket?: Socket } = {},
): Promise<{ readonly response: WireResponse; readonly socket: Socket }> {
  const socket = options.socket ?? (await tcp(proxyPort));
  const response = await connectAnswer(
    socket,
    `CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n${options.headers ?? ''}\r\n`,
  );
  return { response, socket };
}

/** Writes the head and reads the answer without taking a byte behind it. */
async function connectAnswer(socket: Socket, head: string): Promise<WireResponse> {
  const reader = new WireReader(socket);
  socket.write(head, 'latin1');
  const response = await reader.response({ method: 'CONNECT' });
  socket.removeAllListeners('data');
  if (response.status === 200) {
    socket.pause();
    if (reader.held.length > 0) socket.unshift(reader.held);
  }
  return response;
}

export interface TlsTunnelOptions {
  readonly ca: string;
  readonly servername?: string | null;
  readonly alpn?: readonly string[];
  readonly headers?: string;
  /** Port of the CONNECT target; 443 by default. */
  readonly port?: number;
  readonly rejectUnauthorized?: boolean;
  readonly session?: Buffer;
  readonly allowHalfOpen?: boolean;
}

/** CONNECT, then TLS. @throws when the proxy refuses, or the handshake fails */
export async function tlsThrough(proxyPort: number, host: string, options: TlsTunnelOptions): Promise<TLSSocket> {
  const bracketed = host.includes(':') ? `[${host}]` : host;
  const { response, socket } = await connectThrough(proxyPort, `${bracketed}:${options.port ?? 443}`, {
    ...(options.headers === undefined ? {} : { headers: options.headers }),
  });
  if (response.status !== 200) {
    socket.destroy();
    throw new Error(`CONNECT was answered with ${response.status}: ${response.body.toString()}`);
  }
  return startTls(socket, host, options);
}

/** TLS on a socket that is already through. */
export async function startTls(socket: Socket, host: string, options: TlsTunnelOptions): Promise<TLSSocket> {
  const isIp = /^[\d.]+$|:/.test(host);
  const servername = options.servername === undefined ? (isIp ? null : host) : options.servername;
  const secure = connectTls({
    socket,
    ca: options.ca,
    host,
    ...(servername === null ? { servername: '' } : { servername }),
    ALPNProtocols: [...(options.alpn ?? ['http/1.1'])],
    rejectUnauthorized: options.rejectUnauthorized ?? true,
    ...(options.session === undefined ? {} : { session: options.session }),
    ...(options.allowHalfOpen === undefined ? {} : { allowHalfOpen: options.allowHalfOpen }),
  });
  secure.on('error', () => undefined);
  await within(
    'a TLS handshake',
    new Promise<void>((resolve, reject) => {
      secure.once('secureConnect', resolve);
      secure.once('error', reject);
      secure.once('close', () => reject(new Error('closed during the TLS handshake')));
    }),
  );
  return secure;
}

/** CONNECT and TLS with HTTP/1.1, ready to send bytes. */
export async function secureClient(proxyPort: number, host: string, options: TlsTunnelOptions): Promise<RawClient> {
  return rawClient(await tlsThrough(proxyPort, host, options));
}
