import { setTimeout as sleep } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import { ECHO_SERVICE, startGrpcOrigin } from './grpc-server.ts';
import type { GrpcOrigin } from './grpc-server.ts';
import { h2Through, answerOf } from './h2-client.ts';
import { startH2Origin } from './h2-server.ts';
import type { H2Origin } from './h2-server.ts';
import { startOrigin } from './https-server.ts';
import type { Origin } from './https-server.ts';
import { startProxy } from './proxy.ts';
import type { TestProxy } from './proxy.ts';
import { connectThrough, proxyClient, rawClient, startTls, tlsThrough } from './raw-client.ts';
import { startRawServer } from './raw-server.ts';
import type { RawServer } from './raw-server.ts';
import { socksConnect } from './socks-client.ts';
import { RefusedUpgrade, closeOf, frame, frameReader, openWebSocket, readFrame } from './websocket-client.ts';
import { startWsOrigin } from './ws-server.ts';
import type { WsOrigin } from './ws-server.ts';

/** What an agent got, whatever it speaks. */
export interface Answer {
  readonly isAllowed: boolean;
  /** HTTP status of the final answer (also to CONNECT), gRPC code, SOCKS reply. */
  readonly code: number;
  /** What a person or a model can read: body, gRPC message. */
  readonly text: string;
  readonly contentType: string | null;
  /** The audit file as it was at the moment the answer was complete. */
  readonly auditAtAnswer: string;
}

export interface World {
  readonly proxy: TestProxy;
  readonly origin: Origin;
  readonly h2: H2Origin;
  readonly ws: WsOrigin;
  readonly grpc: GrpcOrigin;
  /** Stands behind every denied name; nobody may ever connect. */
  readonly trap: RawServer;
  close(): Promise<void>;
}

const RULES = `
version: 1
rules:
  - id: allowed-hosts
    description: the names that tests may reach
    match: { host: [h1.test, h2.test, ws.test, grpc.test, plain.test, 127.0.0.1] }
    action: allow
  - id: allowed-sockets
    description: WebSocket and gRPC need an allow of their own
    match: { host: [ws.test, grpc.test], protocol: [websocket, grpc] }
    action: allow
  - id: forbidden-paths
    description: some requests are denied on hosts that are allowed
    match: { path: ["/forbidden/**", "/forbidden", "/test.Echo/Fail"] }
    action: deny
    message: This path is closed. Use /open instead.
`;

/** One proxy, one server for each protocol, and a trap for what must not be reached. */
export async function startWorld(): Promise<World> {
  const [origin, h2, ws, grpcOrigin, trap] = await Promise.all([
    startOrigin(),
    startH2Origin(),
    startWsOrigin(),
    startGrpcOrigin('grpc.test'),
    startRawServer({ tls: false, script: () => undefined }),
  ]);
  const proxy = await startProxy({
    rules: RULES,
    hosts: {
      'h1.test': origin.port,
      'plain.test': origin.plainPort,
      'h2.test': h2.port,
      'ws.test': ws.port,
      'grpc.test': grpcOrigin.port,
      '127.0.0.1': origin.port,
      'denied.test': trap.port,
      '127.0.0.78': trap.port,
    },
  });
  return {
    proxy,
    origin,
    h2,
    ws,
    grpc: grpcOrigin,
    trap,
    close: async () => {
      await proxy.close();
      await Promise.all([origin.close(), h2.close(), ws.close(), trap.close()]);
      grpcOrigin.close();
    },
  };
}

/** A way to get a request to a server. */
export interface Transport {
  readonly name: string;
  /** Names in this world. */
  readonly allowedHost: string;
  readonly deniedHost: string;
  /** Value of `transport` in the record. */
  readonly via: 'connect' | 'absolute_form' | 'socks5';
  /** Value of `protocol` in the record of an exchange. */
  readonly layer: 'http' | 'websocket' | 'grpc';
  /** What the record of a denied host is. */
  readonly deniedRecord: 'tunnel' | 'exchange';
  readonly allowedPath: string;
  readonly deniedPath: string;
  /** Sends one request on a connection of its own and closes it. */
  ask(world: World, host: string, path: string): Promise<Answer>;
  /** How a denied host and a denied request must look. */
  readonly deniedHostCode: number;
  readonly deniedRequestCode: number;
}

export const TRANSPORTS: readonly Transport[] = [
  {
    ...http('CONNECT, TLS, HTTP/1.1', 'h1.test', 'connect'),
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      const client = rawClient(await startTls(opened.socket, host, { ca: proxy.ca }));
      const response = await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nUser-Agent: test\r\n\r\n`);
      return finish(world, response, client);
    },
  },
  {
    ...http('CONNECT, TLS, HTTP/2', 'h2.test', 'connect'),
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      opened.socket.destroy();
      const client = await h2Through(proxy.port, host, { ca: proxy.ca });
      const answer = await client.ask({ ':path': path });
      const auditAtAnswer = proxy.auditNow();
      client.close();
      return {
        isAllowed: answer.status === 200,
        code: answer.status,
        text: answer.body.toString(),
        contentType: String(answer.headers['content-type'] ?? ''),
        auditAtAnswer,
      };
    },
  },
  {
    ...http('absolute-form', 'plain.test', 'absolute_form'),
    deniedRecord: 'exchange',
    ask: async (world, host, path) => {
      const client = await proxyClient(world.proxy.port);
      return finish(world, await client.ask(`GET http://${host}${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`), client);
    },
  },
  {
    ...http('plain HTTP in CONNECT', 'plain.test', 'connect'),
    ask: async (world, host, path) => {
      const opened = await connectThrough(world.proxy.port, `${host}:80`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      const client = rawClient(opened.socket);
      return finish(world, await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`), client);
    },
  },
  socks('SOCKS5 with a name, TLS', 'h1.test', 'denied.test'),
  socks('SOCKS5 with an address, TLS', '127.0.0.1', '127.0.0.78'),
  {
    ...http('WebSocket over HTTP/1.1', 'ws.test', 'connect'),
    layer: 'websocket',
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      const secure = await startTls(opened.socket, host, { ca: proxy.ca });
      try {
        const client = await openWebSocket(`wss://${host}${path}`, [], { createConnection: () => secure });
        client.ws.send('said');
        const text = await client.next();
        client.ws.close(1000);
        await client.closed;
        return { isAllowed: true, code: 101, text, contentType: null, auditAtAnswer: '' };
      } catch (error) {
        if (!(error instanceof RefusedUpgrade)) throw error;
        const auditAtAnswer = proxy.auditNow();
        secure.destroy();
        return {
          isAllowed: false,
          code: error.status,
          text: error.body,
          contentType: String(error.headers['content-type'] ?? ''),
          auditAtAnswer,
        };
      }
    },
  },
  {
    ...http('WebSocket over HTTP/2', 'ws.test', 'connect'),
    layer: 'websocket',
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      opened.socket.destroy();
      const client = await h2Through(proxy.port, host, { ca: proxy.ca });
      const { session } = client;
      if (!session.remoteSettings.enableConnectProtocol) {
        await new Promise<void>((resolve) => session.once('remoteSettings', () => resolve()));
      }
      const stream = session.request(
        {
          ':method': 'CONNECT',
          ':protocol': 'websocket',
          ':scheme': 'https',
          ':path': path,
          ':authority': host,
          'sec-websocket-version': '13',
        },
        { endStream: false },
      );
      stream.on('error', () => undefined);
      const status = await new Promise<number>((resolve, reject) => {
        stream.once('response', (head) => resolve(Number(head[':status'])));
        stream.once('close', () => reject(new Error('closed without an answer')));
      });
      if (status !== 200) {
        const chunks: Buffer[] = [];
        stream.on('data', (chunk: Buffer) => chunks.push(chunk));
        await new Promise((resolve) => stream.once('end', resolve));
        const auditAtAnswer = proxy.auditNow();
        client.close();
        return {
          isAllowed: false,
          code: status,
          text: Buffer.concat(chunks).toString(),
          contentType: 'application/json',
          auditAtAnswer,
        };
      }
      const reader = frameReader(stream);
      stream.write(frame(1, 'said'));
      const text = (await readFrame(reader)).payload.toString();
      stream.write(frame(8, Buffer.from([0x03, 0xe8])));
      closeOf(await readFrame(reader));
      stream.end();
      await reader.toEnd();
      client.close();
      return { isAllowed: true, code: status, text, contentType: null, auditAtAnswer: '' };
    },
  },
  {
    ...http('gRPC', 'grpc.test', 'connect'),
    layer: 'grpc',
    allowedPath: '/test.Echo/Unary',
    deniedPath: '/test.Echo/Fail',
    deniedRequestCode: grpc.status.PERMISSION_DENIED,
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      opened.socket.destroy();
      const client = await h2Through(proxy.port, host, { ca: proxy.ca });
      const stream = client.session.request({
        ':method': 'POST',
        ':path': path,
        'content-type': 'application/grpc',
        te: 'trailers',
      });
      const body = Buffer.concat([Buffer.from([0, 0, 0, 0, 4]), Buffer.from('said')]);
      stream.end(body);
      const answer = await answerOf(stream);
      const auditAtAnswer = proxy.auditNow();
      client.close();
      const status = answer.trailers['grpc-status'] ?? answer.headers['grpc-status'];
      const message = answer.trailers['grpc-message'] ?? answer.headers['grpc-message'];
      const isAllowed = String(status) === '0';
      return {
        isAllowed,
        code: isAllowed ? answer.status : Number(status),
        text: isAllowed ? answer.body.subarray(5).toString() : decodeURIComponent(String(message)),
        contentType: String(answer.headers['content-type']),
        auditAtAnswer,
      };
    },
  },
  {
    ...http('server-sent events', 'h1.test', 'connect'),
    allowedPath: '/sse',
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await connectThrough(proxy.port, `${host}:443`);
      if (opened.response.status !== 200) return connectAnswer(world, opened);
      const client = rawClient(await startTls(opened.socket, host, { ca: proxy.ca }));
      const response = await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nAccept: text/event-stream\r\n\r\n`);
      return finish(world, response, client);
    },
  },
];

/** Path of the gRPC method that is used to show that calls work. */
export const GRPC_ALLOWED_PATH = ECHO_SERVICE.Unary.path;

function http(name: string, allowedHost: string, via: Transport['via']): Omit<Transport, 'ask'> {
  return {
    name,
    allowedHost,
    deniedHost: 'denied.test',
    via,
    layer: 'http',
    deniedRecord: 'tunnel',
    allowedPath: '/open',
    deniedPath: '/forbidden/thing',
    deniedHostCode: 403,
    deniedRequestCode: 403,
  };
}

function socks(name: string, allowedHost: string, deniedHost: string): Transport {
  return {
    ...http(name, allowedHost, 'socks5'),
    deniedHost,
    // RFC 1928 section 6: connection not allowed by ruleset.
    deniedHostCode: 2,
    ask: async (world, host, path) => {
      const { proxy } = world;
      const opened = await socksConnect(proxy.port, host, 443);
      const auditAtAnswer = proxy.auditNow();
      if (opened.reply !== 0) {
        opened.socket.destroy();
        return { isAllowed: false, code: opened.reply ?? -1, text: '', contentType: null, auditAtAnswer };
      }
      const client = rawClient(await startTls(opened.socket, host, { ca: proxy.ca }));
      return finish(world, await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`), client);
    },
  };
}

interface Opened {
  readonly response: Awaited<ReturnType<typeof connectThrough>>['response'];
  readonly socket: Awaited<ReturnType<typeof connectThrough>>['socket'];
}

function connectAnswer(world: World, { response, socket }: Opened): Answer {
  const auditAtAnswer = world.proxy.auditNow();
  socket.destroy();
  return {
    isAllowed: false,
    code: response.status,
    text: response.body.toString(),
    contentType: headerOf(response.rawHeaders, 'content-type'),
    auditAtAnswer,
  };
}

function finish(world: World, response: Opened['response'], client: { close(): void }): Answer {
  const auditAtAnswer = world.proxy.auditNow();
  client.close();
  return {
    isAllowed: response.status === 200,
    code: response.status,
    text: response.body.toString(),
    contentType: headerOf(response.rawHeaders, 'content-type'),
    auditAtAnswer,
  };
}

function headerOf(rawHeaders: readonly string[], name: string): string | null {
  for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() === name) return rawHeaders[i + 1] ?? '';
  }
  return null;
}

/** Lets the event loop turn until the connections that were just closed are known to be closed. */
export async function settle(): Promise<void> {
  await sleep(20);
}

export { tlsThrough };
