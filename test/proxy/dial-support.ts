import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { createSecureContext, createServer as createTlsServer, type TLSSocket, type TlsOptions } from 'node:tls';
import { onTestFinished } from 'vitest';
import { AddressGuard } from '../../src/proxy/address-guard.ts';
import { Dialer, type DialerOptions } from '../../src/proxy/dial.ts';
import { Resolver, type Lookup } from '../../src/proxy/resolve.ts';
import { listen, type TestCa } from '../tls/support.ts';

/** A lookup with fixed answers; other names fail. */
export function names(answers: Readonly<Record<string, readonly string[]>>): Lookup {
  return (name, callback) => {
    const found = answers[name];
    if (found === undefined) callback(Object.assign(new Error('ENOTFOUND'), { code: 'ENOTFOUND' }), []);
    else callback(null, found);
  };
}

export interface TestDialer extends Partial<DialerOptions> {
  readonly lookup?: Lookup;
  readonly hosts?: Readonly<Record<string, { readonly address: string; readonly port: number | null }>>;
  readonly allow?: readonly string[];
  readonly ca?: TestCa;
  readonly ownPorts?: readonly number[];
}

/** A dialer that may reach loopback and trusts one test root. */
export function dialer(options: TestDialer = {}): Dialer {
  const { lookup = names({}), hosts = {}, allow = ['127.0.0.0/8', '::1'], ca, ownPorts = [], ...rest } = options;
  const context = createSecureContext({ ca: ca?.pem ?? [], minVersion: 'TLSv1.2' });
  return new Dialer({
    resolver: new Resolver({ hosts, dnsMs: 2000, lookup }),
    guard: new AddressGuard({ allow, ownListeners: () => ownPorts.map((port) => ({ host: '127.0.0.1', port })) }),
    limits: { connectMs: 5000, handshakeMs: 5000 },
    upstreamProxy: null,
    upstreamContexts: { contextFor: () => context },
    ...rest,
  });
}

/** Destroys a socket with the test. */
export function keep<T extends Socket>(socket: T): T {
  socket.on('error', () => undefined);
  onTestFinished(() => {
    socket.destroy();
  });
  return socket;
}

export interface TestServer {
  readonly port: number;
  readonly server: Server;
  /** All connections so far. */
  readonly sockets: readonly Socket[];
}

/** A TCP server on 127.0.0.1 that lives as long as the test. */
export async function tcpServer(onSocket: (socket: Socket) => void = () => undefined): Promise<TestServer> {
  const sockets: Socket[] = [];
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.push(keep(socket));
    onSocket(socket);
  });
  return { port: await listen(server), server, sockets };
}

/** A TLS server on 127.0.0.1 with a certificate for `host`. */
export async function tlsServer(
  ca: TestCa,
  host: string,
  onSocket: (socket: TLSSocket) => void = () => undefined,
  options: TlsOptions = {},
): Promise<TestServer & { readonly handshakes: readonly TLSSocket[] }> {
  const sockets: Socket[] = [];
  const handshakes: TLSSocket[] = [];
  const server = createTlsServer({ ...(await ca.issue(host)), ...options }, (socket) => {
    handshakes.push(keep(socket));
    onSocket(socket);
  });
  server.on('connection', (socket: Socket) => sockets.push(keep(socket)));
  return { port: await listen(server), server, sockets, handshakes };
}

/** An HTTP proxy that answers every CONNECT with `answer`; with none it opens the tunnel to `tunnelPort` on loopback. */
export function connectProxy(options: { readonly answer?: string; readonly tunnelPort?: number }): {
  readonly heads: string[];
  readonly onSocket: (socket: Socket) => void;
} {
  const heads: string[] = [];
  const onSocket = (client: Socket): void => {
    let head = '';
    const onData = (chunk: Buffer): void => {
      head += chunk.toString('latin1');
      if (!head.includes('\r\n\r\n')) return;
      heads.push(head);
      client.off('data', onData);
      if (options.answer !== undefined) client.write(options.answer, 'latin1');
      if (options.tunnelPort === undefined) return;
      const upstream = keep(connect(options.tunnelPort, '127.0.0.1'));
      if (options.answer === undefined) client.write('HTTP/1.1 200 Fine\r\nServer: x\r\n\r\n');
      client.pipe(upstream).pipe(client);
    };
    client.on('data', onData);
  };
  return { heads, onSocket };
}

/** Reads until `length` bytes have come. */
export function read(socket: Socket, length: number): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString('latin1');
      if (text.length >= length) resolve(text);
    });
    socket.on('close', () => reject(new Error(`closed after ${text.length} bytes`)));
  });
}

/**
 * A port on `address` where connecting hangs: a process that has stopped accepting, with its queue full. Linux only, where a full queue
 * drops SYNs.
 */
export async function blackhole(address: string, port: number): Promise<number> {
  const code = `require('net').createServer().listen({ host: '${address}', port: ${port}, backlog: 1 }, function () {
    require('fs').writeSync(1, String(this.address().port) + '\\n');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
  })`;
  const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'ignore'] });
  onTestFinished(() => {
    child.kill('SIGKILL');
  });
  const line: readonly unknown[] = await once(child.stdout, 'data');
  const actual = Number(String(line[0]));
  // The queue takes backlog + 1 connections; one more than that shows that it is full by not connecting.
  for (let i = 0; i < 2; i++) await once(keep(connect(actual, address)), 'connect');
  keep(connect(actual, address));
  return actual;
}
