import { createServer as createHttpServer } from 'node:http';
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { WebSocketServer } from 'ws';
import type { WebSocket } from 'ws';
import { testCa } from './ca.ts';
import { closeServers, listen } from './https-server.ts';

/** A WebSocket server: greets first, echoes, closes on demand. */
export interface WsOrigin {
  readonly port: number;
  readonly plainPort: number;
  readonly upgrades: readonly IncomingMessage[];
  /** Requests without an upgrade; answered with 200. */
  readonly requests: readonly IncomingMessage[];
  /** Open sockets and the ones that were. */
  readonly sockets: readonly WebSocket[];
  readonly messages: readonly { readonly text: string; readonly isBinary: boolean }[];
  /** How each socket closed. */
  readonly closes: readonly { readonly code: number; readonly reason: string }[];
  readonly pings: readonly string[];
  close(): Promise<void>;
}

/**
 * Paths: `/greet` says hello first, `/refuse` answers 403, `/close?code=4001` closes at once; everything else echoes. A message `close 4002 why` closes
 * with that code. Chooses the last subprotocol that was offered. Offers permessage-deflate.
 */
export async function startWsOrigin(): Promise<WsOrigin> {
  const ca = await testCa();
  const upgrades: IncomingMessage[] = [];
  const requests: IncomingMessage[] = [];
  const sockets: WebSocket[] = [];
  const messages: { text: string; isBinary: boolean }[] = [];
  const closes: { code: number; reason: string }[] = [];
  const pings: string[] = [];
  const tcp = new Set<Socket>();
  const wss = new WebSocketServer({
    noServer: true,
    perMessageDeflate: { threshold: 0 },
    handleProtocols: (protocols) => [...protocols].at(-1) ?? false,
  });
  const http = createHttpServer((request, response) => {
    requests.push(request);
    response.end('plain');
  });
  http.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    upgrades.push(request);
    socket.on('error', () => undefined);
    if (request.url === '/refuse') {
      socket.end(
        'HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 11\r\nX-Why: members\r\n\r\nnot for you',
      );
      return;
    }
    wss.handleUpgrade(request, socket, head, (ws) => serve(ws, request));
  });
  const serve = (ws: WebSocket, request: IncomingMessage): void => {
    sockets.push(ws);
    ws.on('error', () => undefined);
    ws.on('ping', (data) => pings.push(data.toString()));
    ws.on('close', (code, reason) => closes.push({ code, reason: reason.toString() }));
    ws.on('message', (data, isBinary) => {
      const bytes = Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data as ArrayBuffer);
      const text = bytes.toString('latin1');
      messages.push({ text: text.slice(0, 2000), isBinary });
      const close = /^close (\d+) (.*)$/.exec(text);
      if (close === null) ws.send(bytes, { binary: isBinary });
      else ws.close(Number(close[1]), close[2]);
    });
    const url = new URL(request.url ?? '/', 'https://origin.test');
    if (url.pathname === '/greet') ws.send('hello from the server');
    if (url.pathname === '/close') ws.close(Number(url.searchParams.get('code') ?? 1000), 'as asked');
    if (url.pathname === '/ping') ws.ping('are you there');
  };
  const accept = (socket: Socket): void => {
    tcp.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => tcp.delete(socket));
    http.emit('connection', socket);
  };
  const secure = createTlsServer(
    {
      ...(await ca.leaf('localhost')),
      ALPNProtocols: ['http/1.1'],
      SNICallback: (name, done) => {
        ca.context(name).then(
          (context) => done(null, context),
          (error: unknown) => done(error instanceof Error ? error : new Error('no certificate')),
        );
      },
    },
    accept,
  );
  secure.on('tlsClientError', () => undefined);
  const plain = createHttpServer();
  plain.on('connection', (socket: Socket) => {
    tcp.add(socket);
    socket.on('close', () => tcp.delete(socket));
  });
  plain.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    http.emit('upgrade', request, socket, head);
  });
  const port = await listen(secure);
  const plainPort = await listen(plain);
  return {
    port,
    plainPort,
    upgrades,
    requests,
    sockets,
    messages,
    closes,
    pings,
    close: async () => {
      for (const ws of wss.clients) ws.terminate();
      wss.close();
      await closeServers([secure, plain], tcp, http);
    },
  };
}
