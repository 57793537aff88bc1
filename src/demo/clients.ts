import { randomBytes } from 'node:crypto';
import { connect as connectHttp2 } from 'node:http2';
import { request as httpsRequest } from 'node:https';
import { connect as connectTcp } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import type { TLSSocket } from 'node:tls';

/** What a client got. */
export interface Reply {
  readonly status: number;
  readonly text: string;
}

export interface DemoProxy {
  readonly port: number;
  readonly ca: string;
}

const DEADLINE_MS = 10_000;

/** A tunnel through the proxy, or the proxy's answer when there is none. */
export function openTunnel(proxy: DemoProxy, host: string, port: number): Promise<Socket | Reply> {
  return new Promise((resolve, reject) => {
    const socket = connectTcp(proxy.port, '127.0.0.1');
    socket.setTimeout(DEADLINE_MS, () => socket.destroy(new Error('timeout')));
    socket.on('error', reject);
    let held = '';
    const onData = (chunk: Buffer): void => {
      held += chunk.toString('latin1');
      const end = held.indexOf('\r\n\r\n');
      if (end < 0) return;
      const status = Number(held.slice(9, 12));
      if (status === 200) {
        socket.off('data', onData);
        socket.pause();
        resolve(socket);
        return;
      }
      const length = Number(/content-length: (\d+)/i.exec(held)?.[1] ?? 0);
      if (held.length < end + 4 + length) return;
      resolve({ status, text: held.slice(end + 4) });
      socket.destroy();
    };
    socket.on('data', onData);
    socket.write(`CONNECT ${host}:${port} HTTP/1.1\r\nHost: ${host}:${port}\r\n\r\n`);
  });
}

function secure(socket: Socket, proxy: DemoProxy, host: string, alpn: string): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const tls = connectTls({ socket, servername: host, ca: proxy.ca, ALPNProtocols: [alpn] }, () => resolve(tls));
    tls.on('error', reject);
  });
}

/** As an SDK does it: https over a CONNECT tunnel, HTTP/1.1. */
export async function https1(
  proxy: DemoProxy,
  method: string,
  url: string,
  body = '',
  headers: Record<string, string> = {},
): Promise<Reply> {
  const { hostname, pathname } = new URL(url);
  const tunnel = await openTunnel(proxy, hostname, 443);
  if ('status' in tunnel) return tunnel;
  const socket = await secure(tunnel, proxy, hostname, 'http/1.1');
  return new Promise((resolve, reject) => {
    const request = httpsRequest(
      { host: hostname, path: pathname, method, headers, defaultPort: 443, createConnection: () => socket },
      (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (chunk: string) => (text += chunk));
        response.on('end', () => {
          socket.destroy();
          resolve({ status: response.statusCode ?? 0, text });
        });
      },
    );
    request.on('error', reject);
    request.end(body);
  });
}

/** As curl does it: HTTP/2 over a CONNECT tunnel. */
export async function https2(proxy: DemoProxy, method: string, url: string): Promise<Reply> {
  const { hostname, pathname } = new URL(url);
  const tunnel = await openTunnel(proxy, hostname, 443);
  if ('status' in tunnel) return tunnel;
  const socket = await secure(tunnel, proxy, hostname, 'h2');
  const session = connectHttp2(`https://${hostname}`, { createConnection: () => socket });
  return new Promise((resolve, reject) => {
    session.on('error', reject);
    const stream = session.request({ ':method': method, ':path': pathname });
    let status = 0;
    let text = '';
    stream.setEncoding('utf8');
    stream.on('response', (headers) => {
      status = headers[':status'] ?? 0;
    });
    stream.on('data', (chunk: string) => (text += chunk));
    stream.on('error', reject);
    stream.on('end', () => {
      session.close();
      socket.destroy();
      resolve({ status, text });
    });
    stream.end();
  });
}

/** A WebSocket that sends some texts and collects the answers until it is closed. */
export async function webSocket(
  proxy: DemoProxy,
  host: string,
  path: string,
  texts: readonly string[],
): Promise<{ readonly echoes: readonly string[]; readonly close: string }> {
  const tunnel = await openTunnel(proxy, host, 443);
  if ('status' in tunnel) return { echoes: [], close: `${tunnel.status}` };
  const socket = await secure(tunnel, proxy, host, 'http/1.1');
  socket.write(
    `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\n\r\n`,
  );
  return new Promise((resolve, reject) => {
    const echoes: string[] = [];
    const queue = [...texts];
    let isOpen = false;
    let held = Buffer.alloc(0);
    const next = (): void => {
      const text = queue.shift();
      if (text === undefined) socket.end(frame(8, Buffer.from([3, 232])));
      else socket.write(frame(1, Buffer.from(text)));
    };
    const done = (close: string): void => {
      socket.destroy();
      resolve({ echoes, close });
    };
    socket.on('error', reject);
    socket.on('close', () => done('closed'));
    socket.on('data', (chunk: Buffer) => {
      held = Buffer.concat([held, chunk]);
      if (!isOpen) {
        const end = held.indexOf('\r\n\r\n');
        if (end < 0) return;
        const status = held.toString('latin1', 9, 12);
        if (status !== '101') {
          done(status);
          return;
        }
        isOpen = true;
        held = held.subarray(end + 4);
        next();
      }
      while (held.length >= 2 && held.length >= 2 + ((held[1] ?? 0) & 127)) {
        const opcode = (held[0] ?? 0) & 15;
        const payload = held.subarray(2, 2 + ((held[1] ?? 0) & 127));
        held = held.subarray(2 + payload.length);
        if (opcode === 8) {
          done(`${payload.readUInt16BE(0)} ${payload.toString('utf8', 2)}`);
          return;
        }
        echoes.push(payload.toString('utf8'));
        next();
      }
    });
  });
}

function frame(opcode: number, payload: Buffer): Buffer {
  const mask = randomBytes(4);
  return Buffer.concat([
    Buffer.from([0x80 | opcode, 0x80 | payload.length]),
    mask,
    Buffer.from(payload.map((byte, i) => byte ^ (mask[i % 4] ?? 0))),
  ]);
}

/** Raw bytes in a tunnel, as ssh, a database driver or malware sends them. */
export async function rawBytes(proxy: DemoProxy, host: string, port: number, text: string): Promise<string> {
  const tunnel = await openTunnel(proxy, host, port);
  if ('status' in tunnel) return `refused with ${tunnel.status}`;
  return new Promise((resolve) => {
    let got = '';
    tunnel.on('data', (chunk: Buffer) => {
      got += chunk.toString('utf8');
      tunnel.end();
    });
    tunnel.on('close', () => resolve(got === '' ? 'closed without an answer' : `answered "${got}"`));
    tunnel.resume();
    tunnel.write(text);
  });
}
