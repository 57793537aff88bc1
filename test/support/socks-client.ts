import type { Socket } from 'node:net';
import { tcp } from './raw-client.ts';
import { WireReader } from './wire-reader.ts';

export interface SocksAnswer {
  /** Method the server chose; 255: none. */
  readonly method: number;
  /** Reply code of the request (RFC 1928 section 6), or null when it did not come so far. */
  readonly reply: number | null;
  /** Status of username/password (RFC 1929), or null. */
  readonly authStatus: number | null;
  readonly socket: Socket;
}

export interface SocksOptions {
  readonly credentials?: { readonly username: string; readonly password: string };
  /** 1 CONNECT, 2 BIND, 3 UDP ASSOCIATE. */
  readonly command?: number;
}

/** SOCKS5 by hand: greets, shows credentials if it has some, and asks for one destination. */
export async function socksConnect(
  proxyPort: number,
  host: string,
  port: number,
  options: SocksOptions = {},
): Promise<SocksAnswer> {
  const socket = await tcp(proxyPort);
  const reader = new WireReader(socket);
  const { credentials } = options;
  socket.write(Buffer.from(credentials === undefined ? [5, 1, 0] : [5, 2, 0, 2]));
  const chosen = await reader.bytes(2, 'a SOCKS method');
  const method = chosen[1] ?? 255;
  if (method === 255) return { method, reply: null, authStatus: null, socket };
  let authStatus: number | null = null;
  if (method === 2 && credentials !== undefined) {
    const user = Buffer.from(credentials.username);
    const password = Buffer.from(credentials.password);
    socket.write(Buffer.concat([Buffer.from([1, user.length]), user, Buffer.from([password.length]), password]));
    authStatus = (await reader.bytes(2, 'a SOCKS login answer'))[1] ?? 255;
    if (authStatus !== 0) return { method, reply: null, authStatus, socket };
  }
  socket.write(Buffer.concat([Buffer.from([5, options.command ?? 1, 0]), addressBytes(host), portBytes(port)]));
  const head = await reader.bytes(4, 'a SOCKS reply');
  const reply = head[1] ?? 255;
  const rest = head[3] === 4 ? 18 : head[3] === 3 ? ((await reader.bytes(1))[0] ?? 0) + 2 : 6;
  await reader.bytes(rest, 'the address of a SOCKS reply');
  socket.removeAllListeners('data');
  if (reply === 0) {
    socket.pause();
    if (reader.held.length > 0) socket.unshift(reader.held);
  }
  return { method, reply, authStatus, socket };
}

function addressBytes(host: string): Buffer {
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) return Buffer.from([1, ...host.split('.').map(Number)]);
  if (host === '::1') return Buffer.from([4, ...Array<number>(15).fill(0), 1]);
  const name = Buffer.from(host, 'latin1');
  return Buffer.concat([Buffer.from([3, name.length]), name]);
}

function portBytes(port: number): Buffer {
  return Buffer.from([port >> 8, port & 255]);
}
