import { createServer as createTcpServer } from 'node:net';
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
  /** Script of a connection. What it throws ends the connection, not the test. */
  readonly script: (connection: RawConnection) => Promise<void> | void;
}

export async function startRawServer(options: RawServerOptions): Promise<RawServer> {
  const { tls = true, alpn = ['http/1.1'], script } = options;
  const connections: RawConnection[] = [];
  const received: Buffer[][] = [];
  const sockets = new Set<Socket>();
  const accept = (socket: Socket): void => {
    const index = connections.length;
    const bytes: Buffer[] = [];
    received.push(bytes);
    sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    socket.on('data', (chunk: Buffer) => bytes.push(chunk));
    const connection: RawConnection = {
      socket,
      reader: new WireReader(socket),
      index,
      send: (text) => {
        socket.write(typeof text === 'string' ? Buffer.from(text, 'latin1') : text);
      },
      reset: () => {
        underlying(socket).resetAndDestroy();
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
  const raws = new WeakMap<Socket, Socket>();
  const underlying = (socket: Socket): Socket => raws.get(socket) ?? parentOf(socket);
  const port = await listen(server);
  return {
    port,
    connections,
    get received() {
      return received.map((parts) => Buffer.concat(parts));
    },
    get open() {
      return sockets.size;
    },
    close: () => closeServers([server], sockets),
  };
}

/** The TCP socket below a TLS socket of Node's server. */
function parentOf(socket: Socket): Socket {
  const parent: unknown = '_parent' in socket ? socket._parent : null;
  return parent !== null && typeof parent === 'object' && 'resetAndDestroy' in parent ? (parent as Socket) : socket;
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
