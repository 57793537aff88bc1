import { createHash } from 'node:crypto';
import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage, Server as HttpServer, ServerResponse } from 'node:http';
import { createServer as createTcpServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { createSecureContext, createServer as createTlsServer } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { gzipSync } from 'node:zlib';
import { testCa } from './ca.ts';
import type { TestCa } from './ca.ts';

/** What an origin was asked, as it came off the wire. */
export interface OriginRequest {
  readonly method: string;
  readonly url: string;
  readonly rawHeaders: readonly string[];
  readonly httpVersion: string;
  /** Number of the connection it came on, from 0. */
  readonly connection: number;
  /** Set when the body was complete. */
  body: Buffer | null;
  bodyBytes: number;
  bodySha256: string | null;
  rawTrailers: readonly string[];
  /** The client went away before the answer was complete. */
  wasAborted: boolean;
  /** Name in the TLS handshake. */
  readonly sni: string | null;
}

/** An HTTP/1.1 server that plays every name, on TLS and in the clear, and remembers what it saw. */
export interface Origin {
  readonly port: number;
  readonly plainPort: number;
  readonly requests: OriginRequest[];
  /** Connections accepted so far. */
  readonly connections: number;
  /** Connections open now. */
  readonly open: number;
  /** The only request to that path. @throws when there are none or several */
  only(path: string): OriginRequest;
  /** Closes idle keep-alive connections, as servers do at the worst moment. */
  dropConnections(): void;
  readonly sockets: ReadonlySet<Socket>;
  close(): Promise<void>;
}

export interface OriginOptions {
  readonly ca?: TestCa;
  /** Answers instead of the usual routes; returns false to leave it to them. */
  readonly answer?: (request: IncomingMessage, response: ServerResponse) => boolean;
  /** Certificate for this name, whatever SNI asks for. */
  readonly certificateFor?: string;
  /** Ask for and demand a client certificate that this CA signed. */
  readonly clientCa?: string;
  readonly keepAliveTimeoutMs?: number;
}

/** Largest body that is kept; larger ones are hashed only. */
const KEPT_BODY_BYTES = 1024 * 1024;
/** A megabyte of text that compresses badly enough. */
const MEGABYTE = Buffer.alloc(1024 * 1024, createHash('sha256').update('subfloor').digest());

export async function startOrigin(options: OriginOptions = {}): Promise<Origin> {
  const ca = options.ca ?? (await testCa());
  const requests: OriginRequest[] = [];
  const sockets = new Set<Socket>();
  const numbers = new WeakMap<object, number>();
  let connections = 0;

  const http = createHttpServer({
    maxHeaderSize: 1024 * 1024,
    keepAliveTimeout: options.keepAliveTimeoutMs ?? 60_000,
    requestTimeout: 0,
    headersTimeout: 0,
  });
  http.maxHeadersCount = 0;
  const serve = (request: IncomingMessage, response: ServerResponse): void => {
    const record = remember(request, numbers.get(request.socket) ?? -1, requests);
    response.on('error', () => undefined);
    response.on('close', () => {
      if (!response.writableFinished) record.wasAborted = true;
    });
    if (options.answer?.(request, response) === true) return;
    route(request, response, record);
  };
  http.on('request', serve);
  http.on('checkContinue', (request: IncomingMessage, response: ServerResponse) => {
    if (!(request.url ?? '').startsWith('/refuse-continue')) response.writeContinue();
    serve(request, response);
  });
  http.on('clientError', (_error, socket) => socket.destroy());

  const track = (socket: Socket): void => {
    numbers.set(socket, connections++);
    sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    http.emit('connection', socket);
  };
  const fixed = await ca.context(options.certificateFor ?? 'localhost');
  const secure = createTlsServer(
    {
      SNICallback: (name, done) => {
        if (options.certificateFor !== undefined) {
          done(null, fixed);
          return;
        }
        // A context that SNI chooses also says whose client certificates count.
        const { clientCa } = options;
        const context =
          clientCa === undefined
            ? ca.context(name)
            : ca.leaf(name).then((pair) => createSecureContext({ ...pair, ca: clientCa }));
        context.then(
          (chosen) => done(null, chosen),
          (error: unknown) => done(error instanceof Error ? error : new Error('no certificate')),
        );
      },
      ...(await ca.leaf(options.certificateFor ?? '127.0.0.1')),
      ...(options.clientCa === undefined ? {} : { requestCert: true, rejectUnauthorized: true, ca: options.clientCa }),
      ALPNProtocols: ['http/1.1'],
    },
    track,
  );
  secure.on('tlsClientError', () => undefined);
  const plain = createTcpServer(track);
  const port = await listen(secure);
  const plainPort = await listen(plain);
  return {
    port,
    plainPort,
    requests,
    sockets,
    get connections() {
      return connections;
    },
    get open() {
      return sockets.size;
    },
    only: (path) => {
      const found = requests.filter((request) => request.url === path);
      const [first] = found;
      if (first === undefined || found.length > 1) throw new Error(`${found.length} requests to ${path}, not one`);
      return first;
    },
    dropConnections: () => {
      for (const socket of sockets) socket.destroy();
    },
    close: () => closeServers([secure, plain], sockets, http),
  };
}

function remember(request: IncomingMessage, connection: number, requests: OriginRequest[]): OriginRequest {
  const record: OriginRequest = {
    method: request.method ?? '',
    url: request.url ?? '',
    rawHeaders: request.rawHeaders,
    httpVersion: request.httpVersion,
    connection,
    body: null,
    bodyBytes: 0,
    bodySha256: null,
    rawTrailers: [],
    wasAborted: false,
    sni: sniOf(request.socket),
  };
  requests.push(record);
  const hash = createHash('sha256');
  const kept: Buffer[] = [];
  request.on('data', (chunk: Buffer) => {
    record.bodyBytes += chunk.length;
    hash.update(chunk);
    if (record.bodyBytes <= KEPT_BODY_BYTES) kept.push(chunk);
  });
  request.on('end', () => {
    record.body = Buffer.concat(kept);
    record.bodySha256 = hash.digest('hex');
    record.rawTrailers = request.rawTrailers;
  });
  request.on('error', () => {
    record.wasAborted = true;
  });
  return record;
}

function sniOf(socket: Socket): string | null {
  const name: unknown = 'servername' in socket ? (socket as TLSSocket).servername : null;
  return typeof name === 'string' ? name : null;
}

function route(request: IncomingMessage, response: ServerResponse, record: OriginRequest): void {
  const url = new URL(request.url ?? '/', 'http://origin.test');
  switch (url.pathname) {
    case '/sse':
      sse(response, Number(url.searchParams.get('events') ?? 3));
      return;
    case '/big':
      big(response, Number(url.searchParams.get('mb') ?? 1), url.searchParams.has('chunked'));
      return;
    case '/never':
      return;
    case '/trailers':
      response.writeHead(200, { Trailer: 'X-Checksum, X-Other', 'Content-Type': 'text/plain' });
      response.write('body');
      response.addTrailers([
        ['X-Checksum', 'abc'],
        ['X-Other', 'def'],
      ]);
      response.end();
      return;
    case '/early-hints':
      response.writeEarlyHints({ link: '</style.css>; rel=preload', 'x-hint': 'yes' });
      request.on('end', () => response.end('after hints'));
      request.resume();
      return;
    case '/cookies':
      response.sendDate = false;
      response.writeHead(200, [
        'X-First',
        'one',
        'Set-Cookie',
        'a=1; Path=/',
        'x-MiXeD-cAsE',
        'kept',
        'Set-Cookie',
        'b=2; Path=/',
        'X-First',
        'two',
        'Content-Length',
        '2',
        'Alt-Svc',
        'h3=":443"',
        'Connection',
        'X-Hop',
        'X-Hop',
        'secret',
        'Proxy-Authenticate',
        'Basic',
      ] as unknown as Record<string, string>);
      response.end('ok');
      return;
    case '/large-headers':
      response.setHeader('X-Large', 'v'.repeat(Number(url.searchParams.get('bytes') ?? 20_480)));
      response.end('ok');
      return;
    case '/gzip-bomb':
      response.writeHead(200, { 'Content-Encoding': 'gzip', 'Content-Type': 'application/json' });
      response.end(gzipSync(Buffer.alloc(64 * 1024 * 1024), { level: 9 }));
      return;
    case '/204':
      response.writeHead(204);
      response.end();
      return;
    case '/304':
      response.writeHead(304, { 'Content-Length': '1234', ETag: '"x"' });
      response.end();
      return;
    case '/head':
      response.writeHead(200, { 'Content-Length': '5', 'Content-Type': 'text/plain' });
      response.end('hello');
      return;
    case '/status':
      response.writeHead(Number(url.searchParams.get('code') ?? 200), { 'Content-Type': 'text/plain' });
      response.end('status');
      return;
    case '/refuse-continue':
      response.writeHead(417, { 'Content-Length': '2' });
      response.end('no');
      return;
    case '/early-answer':
      // Answers before the body has come, and reads the rest without looking at it.
      response.writeHead(413, { 'Content-Length': '9' });
      request.resume();
      response.end('too large');
      return;
    default:
      echo(request, response, record);
  }
}

/** Says what arrived, once the body is complete. */
function echo(request: IncomingMessage, response: ServerResponse, record: OriginRequest): void {
  request.on('end', () => {
    const text = JSON.stringify({
      method: record.method,
      url: record.url,
      rawHeaders: record.rawHeaders,
      bodyBytes: record.bodyBytes,
      sha256: record.bodySha256,
    });
    response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) });
    response.end(text);
  });
}

/** An event now, the next ones when the test says so by `GET /sse-next`; here they come with a short pause. */
function sse(response: ServerResponse, events: number): void {
  response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
  let sent = 0;
  const next = (): void => {
    response.write(`id: ${sent}\ndata: event ${sent}\n\n`);
    if (++sent < events) setTimeout(next, 100);
    else response.end();
  };
  next();
}

function big(response: ServerResponse, megabytes: number, isChunked: boolean): void {
  response.writeHead(200, {
    'Content-Type': 'application/octet-stream',
    ...(isChunked ? {} : { 'Content-Length': String(megabytes * MEGABYTE.length) }),
  });
  let left = megabytes;
  const more = (): void => {
    while (left > 0) {
      left--;
      if (!response.write(MEGABYTE)) {
        response.once('drain', more);
        return;
      }
    }
    response.end();
  };
  more();
}

/** Listens on loopback; answers the port. */
export function listen(server: Server): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
  });
}

/** Closes listeners and what they accepted. */
export async function closeServers(
  servers: readonly Server[],
  sockets: Iterable<Socket>,
  http?: HttpServer,
): Promise<void> {
  for (const socket of sockets) socket.destroy();
  http?.closeAllConnections();
  await Promise.all(
    servers.map(
      (server) =>
        new Promise<void>((resolve) => {
          server.close(() => resolve());
        }),
    ),
  );
}
