import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createSecureServer } from 'node:http2';
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2';
import { createServer as createTcpServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createHash } from 'node:crypto';
import type { Duplex } from 'node:stream';
import { createSecureContext } from 'node:tls';
import { Authority } from '../tls/authority.ts';

/** Local stand-ins for the internet: https servers with certificates of a CA that only the demo's proxy trusts. */
export interface DemoWorld {
  readonly folder: string;
  /** Port of the https server that plays all names. */
  readonly httpsPort: number;
  /** Port of a plain TCP echo service. */
  readonly echoPort: number;
  /** CA file for `upstream.ca`. */
  readonly caFile: string;
  /** What the servers were asked, in order: proof of what got through. */
  readonly arrived: readonly string[];
  close(): Promise<void>;
}

export async function startWorld(): Promise<DemoWorld> {
  const folder = await mkdtemp(join(tmpdir(), 'subfloor-demo-'));
  const { authority } = await Authority.open(join(folder, 'internet-ca'));
  const caFile = join(folder, 'internet-ca.pem');
  await writeFile(caFile, authority.certificatePem);
  const arrived: string[] = [];
  const sockets = new Set<Socket>();

  const fallback = await authority.mintLeaf('localhost');
  const server = createSecureServer(
    {
      key: fallback.keyPem,
      cert: fallback.certificateChainPem,
      allowHTTP1: true,
      SNICallback: (name, done) => {
        authority.mintLeaf(name).then(
          (leaf) => done(null, createSecureContext({ key: leaf.keyPem, cert: leaf.certificateChainPem })),
          (error: unknown) => done(error instanceof Error ? error : new Error('no certificate')),
        );
      },
    },
    (request, response) => answer(request, response, arrived),
  );
  server.on('upgrade', (request: { headers: Record<string, string | undefined> }, socket: Duplex) => {
    arrived.push(`WebSocket ${request.headers['host'] ?? ''}`);
    webSocketEcho(request.headers['sec-websocket-key'] ?? '', socket);
  });
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  const echo = createTcpServer((socket) => {
    arrived.push('raw bytes');
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    socket.pipe(socket);
  });
  const httpsPort = await listen(server);
  const echoPort = await listen(echo);
  return {
    folder,
    httpsPort,
    echoPort,
    caFile,
    arrived,
    close: async () => {
      server.close();
      echo.close();
      for (const socket of sockets) socket.destroy();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function listen(server: Pick<Server, 'listen' | 'address'>): Promise<number> {
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port));
  });
}

function answer(request: Http2ServerRequest, response: Http2ServerResponse, arrived: string[]): void {
  const host = request.headers[':authority'] ?? request.headers.host ?? '';
  arrived.push(`${request.method} ${host}${request.url}`);
  if (request.url === '/events') {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    let sent = 0;
    const timer = setInterval(() => {
      response.write(`data: token ${++sent}\n\n`);
      if (sent < 3) return;
      clearInterval(timer);
      response.end();
    }, 60);
    return;
  }
  let size = 0;
  request.on('data', (chunk: Buffer) => {
    size += chunk.length;
  });
  request.on('end', () => {
    const body = JSON.stringify({ ok: true, method: request.method, path: request.url, received: size });
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
    response.end(body);
  });
}

/** Enough of RFC 6455 to send short text messages back as they came. */
function webSocketEcho(key: string, socket: Duplex): void {
  const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
  );
  socket.on('error', () => undefined);
  socket.on('data', (frame: Buffer) => {
    const opcode = (frame[0] ?? 0) & 15;
    const length = (frame[1] ?? 0) & 127;
    if (opcode === 8 || length > 125) {
      socket.end();
      return;
    }
    const mask = frame.subarray(2, 6);
    const text = Buffer.from(frame.subarray(6, 6 + length).map((byte, i) => byte ^ (mask[i % 4] ?? 0)));
    socket.write(Buffer.concat([Buffer.from([0x80 | opcode, text.length]), text]));
  });
}
