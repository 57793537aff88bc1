import { connect, createServer as createTcpServer } from 'node:net';
import type { Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { testCa } from './ca.ts';
import { closeServers, listen } from './https-server.ts';
import { WireReader } from './wire-reader.ts';

/** One accepted connection of a scripted server. */
export interface RawConnection {
  readonly socket: Socket;
  readonly reader: WireReader;
  readonly index: number;
  send(bytes: string | Buffer): void;
  /** RST instead of FIN. */
  reset(): void;
}

/** A server that says exactly the bytes of its script. */
export interface RawServer {
  readonly port: number;
  readonly connections: readonly RawConnection[];
  /** Everything that came, per connection. */
  readonly received: readonly Buffer[];
  readonly open: number;
  close(): Promise<void>;
}

export interface RawServerOptions {
  readonly tls?: boolean;
  readonly alpn?: readonly string[];
  /** Keep our side of TLS open when the client ends its own; without TLS it always stays open. */
  readonly allowHalfOpen?: boolean;
  /** Script of a connection. What it throws ends the connection, not the test. */
  readonly script: (connection: RawConnection) => Promise<void> | void;
}

export async function startRawServer(options: RawServerOptions): Promise<RawServer> {
  const { tls = true, alpn = ['http/1.1'], allowHalfOpen = false, script } = options;
  const connections: RawConnection[] = [];
  const received: Buffer[][] = [];
  const sockets = new Set<Socket>();
  /** Of TLS connections: the socket that the client is connected to, by the port it comes from here. */
  const relays = new Map<number, Socket>();
  const accept = (socket: Socket): void => {
    const index = connections.length;
    const bytes: Buffer[] = [];
    received.push(bytes);
    sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => undefined);
    socket.on('close', () => {
      sockets.delete(socket);
      relays.delete(socket.remotePort ?? 0);
    });
    socket.on('data', (chunk: Buffer) => bytes.push(chunk));
    const connection: RawConnection = {
      socket,
      reader: new WireReader(socket),
      index,
      send: (text) => {
        socket.write(typeof text === 'string' ? Buffer.from(text, 'latin1') : text);
      },
      reset: () => {
        const front = relays.get(socket.remotePort ?? 0) ?? socket;
        front.resetAndDestroy();
        socket.destroy();
      },
    };
    connections.push(connection);
    Promise.resolve(script(connection)).catch(() => socket.destroy());
  };
  const ca = await testCa();
  const server = tls
    ? createTlsServer(
        {
          ...(await ca.leaf('127.0.0.1')),
          allowHalfOpen,
          ALPNProtocols: [...alpn],
          SNICallback: (name, done) => {
            ca.context(name).then(
              (context) => done(null, context),
              (error: unknown) => done(error instanceof Error ? error : new Error('no certificate')),
            );
          },
        },
        accept,
      )
    : createTcpServer({ allowHalfOpen: true }, accept);
  server.on('tlsClientError', () => undefined);
  const inner = await listen(server);
  // Node 20 crashes when the TCP socket below a TLS socket is reset (resetAndDestroy on its parent), so a relay in front does it.
  const relay = createTcpServer({ allowHalfOpen: true }, (front) => {
    const back = connect({ port: inner, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
    front.setNoDelay(true);
    back.on('connect', () => relays.set(back.localPort ?? 0, front));
    for (const [one, other] of [
      [front, back],
      [back, front],
    ] as const) {
      sockets.add(one);
      one.on('error', () => undefined);
      one.on('close', () => {
        sockets.delete(one);
        other.destroy();
      });
      one.pipe(other);
    }
  });
  const port = tls ? await listen(relay) : inner;
  return {
    port,
    connections,
    get received() {
      return received.map((parts) => Buffer.concat(parts));
    },
    get open() {
      return connections.filter(({ socket }) => !socket.destroyed).length;
    },
    close: () => closeServers(tls ? [relay, server] : [server], sockets),
  };
}

/** Reads one request and answers with these bytes, again and again. */
export function answering(bytes: string | Buffer): (connection: RawConnection) => Promise<void> {
  return async (connection) => {
    for (;;) {
      await connection.reader.request(60_000);
      connection.send(bytes);
    }
  };
}
