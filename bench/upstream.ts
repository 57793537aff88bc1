/**
 * The server behind all proxies, in a process of its own: prebuilt answers, no HTTP library on the hot path.
 * argv: folder of the upstream CA. Prints one JSON line with its ports.
 */
import { createSecureServer } from 'node:http2';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { createSecureContext, createServer as createTlsServer } from 'node:tls';
import type { SecureContext } from 'node:tls';
import { Authority } from '../src/tls/authority.ts';
import { HOST, NAMES } from './world.ts';

const { authority } = await Authority.open(process.argv[2] ?? '');
const contexts = new Map<string, SecureContext>();
for (const name of NAMES) {
  const leaf = await authority.mintLeaf(name);
  contexts.set(name, createSecureContext({ key: leaf.keyPem, cert: leaf.certificateChainPem }));
}
const { keyPem: key, certificateChainPem: cert } = await authority.mintLeaf(HOST);
const SNICallback = (name: string, done: (error: Error | null, context?: SecureContext) => void): void =>
  done(null, contexts.get(name));
const BODY = Buffer.alloc(1024, 'a');
const ANSWER = Buffer.concat([
  Buffer.from('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n'),
  BODY,
]);
const CHUNK = Buffer.alloc(256 * 1024, 'b');

function serve(socket: Socket): void {
  socket.setNoDelay(true);
  socket.on('error', () => undefined);
  let head: Buffer = Buffer.alloc(0);
  let left = -1;
  let target = '';
  socket.on('data', (chunk: Buffer) => {
    let bytes = chunk;
    while (bytes.length > 0) {
      if (left < 0) {
        head = head.length === 0 ? bytes : Buffer.concat([head, bytes]);
        const end = head.indexOf('\r\n\r\n');
        if (end < 0) return;
        const text = head.toString('latin1', 0, end);
        const length = /content-length: *(\d+)/i.exec(text);
        left = length === null ? 0 : Number(length[1]);
        target = text.slice(text.indexOf(' ') + 1, text.indexOf(' ', 5));
        bytes = head.subarray(end + 4);
        head = Buffer.alloc(0);
      }
      const take = Math.min(left, bytes.length);
      left -= take;
      bytes = bytes.subarray(take);
      if (left > 0) return;
      left = -1;
      answer(socket, target);
    }
  });
}

function answer(socket: Socket, target: string): void {
  if (target.startsWith('/big')) {
    const size = Number(target.split('=')[1] ?? 104_857_600);
    socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${size}\r\n\r\n`);
    let sent = 0;
    const push = (): void => {
      while (sent < size) {
        const part = size - sent >= CHUNK.length ? CHUNK : CHUNK.subarray(0, size - sent);
        sent += part.length;
        if (!socket.write(part)) return;
      }
      socket.off('drain', push);
    };
    socket.on('drain', push);
    push();
  } else if (target.startsWith('/sse')) {
    // Each event carries the time it was written, on the clock that all processes of the machine share.
    socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n');
    const timer = setInterval(() => {
      const event = `data: ${process.hrtime.bigint()}\n\n`;
      socket.write(`${event.length.toString(16)}\r\n${event}\r\n`);
    }, 50);
    socket.on('close', () => clearInterval(timer));
  } else socket.write(ANSWER);
}

const h1 = createTlsServer({ key, cert, SNICallback }, serve);
const h2 = createSecureServer({ key, cert, SNICallback, allowHTTP1: true });
h2.on('stream', (stream) => {
  stream.on('error', () => undefined);
  stream.resume();
  stream.respond({ ':status': 200, 'content-type': 'application/json', 'content-length': 1024 });
  stream.end(BODY);
});
h2.on('sessionError', () => undefined);
/** Plain TCP: sends what the first byte asks for: `d` download without end, `u` swallow, anything else echo once. */
const tcp = createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => undefined);
  socket.once('data', (chunk: Buffer) => {
    if (chunk[1] !== 0x64) {
      socket.write('k');
      socket.resume();
      return;
    }
    const push = (): void => {
      while (socket.write(CHUNK)) {
        // until the reader is slower
      }
    };
    socket.on('drain', push);
    push();
  });
});

function listen(server: Pick<Server, 'listen' | 'address'>): Promise<number> {
  return new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port)));
}

const ports = { h1: await listen(h1), h2: await listen(h2), tcp: await listen(tcp) };
process.stdout.write(`${JSON.stringify(ports)}\n`);
process.on('disconnect', () => process.exit());
