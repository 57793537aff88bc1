import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ClientHttp2Stream } from 'node:http2';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { answerOf, h2Through } from '../support/h2-client.ts';
import type { H2Client } from '../support/h2-client.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy, TestProxyOptions } from '../support/proxy.ts';
import { secureClient } from '../support/raw-client.ts';
import type { RawClient } from '../support/raw-client.ts';
import { startRawServer } from '../support/raw-server.ts';
import type { RawConnection, RawServer } from '../support/raw-server.ts';
import { until } from '../support/waiting.ts';
import { closeOf, frame, frameReader, readFrame } from '../support/websocket-client.ts';
import type { WireReader } from '../support/wire-reader.ts';
import { startWsOrigin } from '../support/ws-server.ts';
import type { WsOrigin } from '../support/ws-server.ts';

const ALLOW = `
version: 1
rules:
  - id: sockets
    description: WebSocket to the test servers
    match: { host: [ws.test, raw.test], protocol: [websocket, http] }
    action: allow
`;
const RULES = `${ALLOW}
  - id: no-launch
    description: one word may not be said
    match: { host: [ws.test, raw.test], path: [/judged, "/judged/**"], protocol: websocket }
    if: 'message.kind == "websocket_text" && message.text.contains("launch")'
    action: deny
  - id: closed-room
    description: nobody may open a socket here
    match: { host: ws.test, path: /closed, protocol: websocket }
    action: deny
    message: Not this room.
`;
const KEY = 'dGhlIHNhbXBsZSBub25jZQ==';
const ACCEPTED = `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n`;
const LIMIT = 64 * 1024;

const shared = closeAfterFile();
let origin: WsOrigin;
let proxy: TestProxy;

beforeAll(async () => {
  origin = shared(await startWsOrigin());
  proxy = shared(await start({ 'ws.test': origin.port }));
});

function start(hosts: Record<string, number>, limits: TestProxyOptions['limits'] = {}): Promise<TestProxy> {
  return startProxy({ rules: RULES, hosts, limits: { websocketMessageBytes: LIMIT, ...limits } });
}

function handshake(path: string, host: string, lines = ''): string {
  return `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${KEY}\r\n${lines}\r\n`;
}

async function upgraded(which: TestProxy, path: string, host = 'ws.test'): Promise<RawClient> {
  const client = closeAfterTest(await secureClient(which.port, host, { ca: which.ca }));
  expect((await client.ask(handshake(path, host))).status).toBe(101);
  return client;
}

/** A proxy in front of a server that says what its script says. */
async function scripted(
  script: (connection: RawConnection) => Promise<void> | void,
  limits: TestProxyOptions['limits'] = {},
  allowHalfOpen = false,
): Promise<{ readonly server: RawServer; readonly own: TestProxy }> {
  const server = closeAfterTest(await startRawServer({ script, allowHalfOpen }));
  return { server, own: closeAfterTest(await start({ 'raw.test': server.port }, limits)) };
}

interface H2Socket {
  readonly over2: H2Client;
  readonly stream: ClientHttp2Stream;
  readonly reader: WireReader;
}

const CONNECT = { ':method': 'CONNECT', ':protocol': 'websocket', ':scheme': 'https' };

async function overH2(which: TestProxy, path: string, host = 'ws.test', headers = {}): Promise<H2Socket> {
  const over2 = closeAfterTest(await h2Through(which.port, host, { ca: which.ca }));
  await until('the settings', () => over2.session.remoteSettings.enableConnectProtocol);
  const stream = over2.session.request(
    { ...CONNECT, ':path': path, ':authority': host, 'sec-websocket-version': '13', ...headers },
    { endStream: false },
  );
  stream.on('error', () => undefined);
  return { over2, stream, reader: frameReader(stream) };
}

async function statusOf({ stream }: H2Socket): Promise<number> {
  return new Promise((resolve, reject) => {
    stream.on('response', (headers) => resolve(Number(headers[':status'])));
    stream.on('close', () => reject(new Error(`closed with ${stream.rstCode}`)));
  });
}

async function readMessage(reader: WireReader): Promise<string> {
  let text = '';
  for (;;) {
    const part = await readFrame(reader);
    if (part.opcode > 2) continue;
    text += part.payload.toString();
    if (part.fin) return text;
  }
}

describe('a WebSocket over HTTP/2', () => {
  it('carries messages, pings and close codes both ways, and leaves one record', async () => {
    const socket = await overH2(proxy, '/h2');
    expect(await statusOf(socket)).toBe(200);
    socket.stream.write(Buffer.concat([frame(1, 'one', { fin: false }), frame(9, 'p'), frame(0, ' two')]));
    expect(await readFrame(socket.reader)).toMatchObject({ opcode: 10, payload: Buffer.from('p') });
    expect(await readMessage(socket.reader)).toBe('one two');
    socket.stream.write(frame(2, Buffer.alloc(LIMIT, 7)));
    expect((await readFrame(socket.reader)).payload).toHaveLength(LIMIT);
    socket.stream.write(frame(1, 'close 4007 enough'));
    expect(closeOf(await readFrame(socket.reader))).toEqual({ code: 4007, reason: 'enough' });
    socket.stream.end(frame(8, Buffer.from([0x0f, 0xa7])));
    expect(await proxy.waitForRecord((r) => r.path === '/h2')).toMatchObject({
      outcome: 'forwarded',
      messages_out: 3,
      messages_in: 2,
      status: 200,
    });
    expect(await socket.over2.ask({ ':path': '/after' })).toMatchObject({ status: 200 });
  });

  it('has the subprotocol that the server chose, and no header of the HTTP/1.1 handshake', async () => {
    const socket = await overH2(proxy, '/h2-sub', 'ws.test', {
      'sec-websocket-protocol': 'a.v1, b.v1',
      'sec-websocket-key': 'my own',
      'sec-websocket-extensions': 'permessage-deflate',
    });
    const headers = await new Promise<Record<string, unknown>>((resolve) => socket.stream.on('response', resolve));
    expect(headers[':status']).toBe(200);
    expect(headers['sec-websocket-protocol']).toBe('b.v1');
    for (const name of ['sec-websocket-accept', 'sec-websocket-extensions', 'upgrade', 'connection', 'content-length'])
      expect(headers[name]).toBeUndefined();
    const sent = origin.upgrades.at(-1)?.headers;
    expect(sent?.['sec-websocket-key']).not.toBe('my own');
    expect(sent?.['sec-websocket-extensions']).toBeUndefined();
  });

  it('is refused by rule with a 403, before anything is dialed', async () => {
    const before = origin.upgrades.length;
    const { stream } = await overH2(proxy, '/closed');
    const answer = await answerOf(stream);
    expect(answer.status).toBe(403);
    expect(answer.body.toString()).toContain('Not this room.');
    expect(origin.upgrades.length).toBe(before);
  });

  it('refused by the server is answered as the server said it', async () => {
    const answer = await answerOf((await overH2(proxy, '/refuse')).stream);
    expect(answer).toMatchObject({ status: 403, resetCode: 0 });
    expect(answer.body.toString()).toBe('not for you');
  });

  it.each([
    ['the client never ends its side', false],
    ['the client goes on sending', true],
  ])('that a rule closes is gone soon, though %s', async (_name, goesOn) => {
    const socket = await overH2(proxy, `/judged/h2-${goesOn}`);
    const closed = new Promise((resolve) => socket.stream.on('close', () => resolve(socket.stream.rstCode)));
    socket.stream.write(frame(1, 'please launch'));
    expect(closeOf(await readFrame(socket.reader)).code).toBe(1008);
    if (goesOn) socket.stream.write(frame(1, 'x'.repeat(1000)));
    expect(await closed).toBe(0);
    expect(origin.messages.some(({ text }) => text.includes('launch'))).toBe(false);
    expect(await socket.over2.ask({ ':path': '/after' })).toMatchObject({ status: 200 });
  });

  it('that the new rules deny is closed with 1008; other streams go on', async () => {
    const own = closeAfterTest(await start({ 'ws.test': origin.port }));
    const socket = await overH2(own, '/reloaded');
    expect(await statusOf(socket)).toBe(200);
    own.writeRules(`${ALLOW}
  - id: no-sockets
    description: no more sockets
    match: { protocol: websocket }
    action: deny
`);
    await own.app.reload();
    const close = closeOf(await readFrame(socket.reader));
    expect(close.code).toBe(1008);
    expect(close.reason).toContain('policy_changed');
    expect(await socket.over2.ask({ ':path': '/after' })).toMatchObject({ status: 200 });
    await own.waitForRecord((r) => r.path === '/reloaded' && r.reason === 'policy_changed');
  });

  it.each([0, 8])('that the client resets with code %i is cut at the server, with a record', async (code) => {
    const before = origin.closes.length;
    const socket = await overH2(proxy, `/reset-${code}`);
    expect(await statusOf(socket)).toBe(200);
    socket.stream.write(frame(1, 'hello', { fin: false }));
    await sleep(50);
    socket.stream.close(code);
    expect((await proxy.waitForRecord((r) => r.path === `/reset-${code}`)).outcome).toMatch(/aborted|failed/);
    await until('the server to see it', () => origin.closes[before]);
  });

  it('whose server ends its side while the client never does is ended by us, with a record', async () => {
    const { own } = await scripted(
      async (connection) => {
        const { rawHeaders } = await connection.reader.head();
        connection.send(accepted(rawHeaders));
        connection.socket.end(frame(8, '', { isMasked: false }));
      },
      { halfCloseMs: 300 },
    );
    const socket = await overH2(own, '/half', 'raw.test');
    expect(await readFrame(socket.reader)).toMatchObject({ opcode: 8 });
    await own.waitForRecord((r) => r.path === '/half');
    await until('nothing to be open', () => own.app.counts().exchanges === 0 && own.app.counts().upstreams === 0);
    await new Promise<void>((resolve) => {
      if (socket.stream.closed) resolve();
      else socket.stream.on('close', resolve);
    });
  });

  it('whose client ends its side without a close is not held for ever', async () => {
    const { own } = await scripted(
      async (connection) => {
        const { rawHeaders } = await connection.reader.head();
        connection.send(accepted(rawHeaders));
        await sleep(20_000, undefined, { ref: false });
      },
      { halfCloseMs: 300, idleMs: 600, slowWriteMs: 600 },
      true,
    );
    const socket = await overH2(own, '/half-client', 'raw.test');
    expect(await statusOf(socket)).toBe(200);
    socket.stream.end();
    await own.waitForRecord((r) => r.path === '/half-client');
    await until('nothing to be open', () => own.app.counts().exchanges === 0 && own.app.counts().upstreams === 0);
  });
});

function accepted(rawHeaders: readonly string[]): string {
  const at = rawHeaders.findIndex((name, i) => i % 2 === 0 && name.toLowerCase() === 'sec-websocket-key');
  const key = `${rawHeaders[at + 1] ?? ''}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
  return `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${createHash('sha1').update(key).digest('base64')}\r\n\r\n`;
}

/** Bytes that break a rule of RFC 6455, as the client sends them, and the close code they earn. */
const BROKEN: readonly (readonly [string, (isMasked: boolean) => Buffer, number])[] = [
  ['a wrong mask bit', (isMasked) => frame(1, 'hello', { isMasked: !isMasked }), 1002],
  ['RSV1', (isMasked) => frame(1, 'hello', { isMasked, rsv1: true }), 1002],
  ['RSV2', (isMasked) => withFirst(frame(1, 'hello', { isMasked }), 0xa1), 1002],
  ['RSV3', (isMasked) => withFirst(frame(1, 'hello', { isMasked }), 0x91), 1002],
  ['RSV1 on a ping', (isMasked) => frame(9, 'hello', { isMasked, rsv1: true }), 1002],
  ['opcode 3', (isMasked) => frame(3, 'hello', { isMasked }), 1002],
  ['opcode 11', (isMasked) => frame(11, 'hello', { isMasked }), 1002],
  ['a continuation of nothing', (isMasked) => frame(0, 'hello', { isMasked }), 1002],
  [
    'a message inside another',
    (m) => Buffer.concat([frame(1, 'a', { isMasked: m, fin: false }), frame(2, 'b', { isMasked: m })]),
    1002,
  ],
  ['a ping in fragments', (isMasked) => frame(9, 'hello', { isMasked, fin: false }), 1002],
  ['a ping of 126 bytes', (isMasked) => frame(9, 'x'.repeat(126), { isMasked }), 1002],
  ['a close of one byte', (isMasked) => frame(8, 'x', { isMasked }), 1002],
  ['the close code 1005', (isMasked) => frame(8, Buffer.from([3, 0xed]), { isMasked }), 1002],
  ['the close code 999', (isMasked) => frame(8, Buffer.from([3, 0xe7]), { isMasked }), 1002],
  ['a close reason that is not UTF-8', (isMasked) => frame(8, Buffer.from([3, 0xe8, 0xff]), { isMasked }), 1002],
  ['text that is not UTF-8', (isMasked) => frame(1, Buffer.from([0xed, 0xa0, 0x80]), { isMasked }), 1002],
  ['text that ends inside a character', (isMasked) => frame(1, Buffer.from([0x61, 0xe2, 0x82]), { isMasked }), 1002],
  [
    'a length that is not in its shortest form',
    (m) => Buffer.from([0x81, m ? 0xfe : 0x7e, 0, 1, ...(m ? [0, 0, 0, 0] : []), 0x61]),
    1002,
  ],
  [
    'a length with its highest bit',
    (m) => Buffer.from([0x81, m ? 0xff : 0x7f, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
    1009,
  ],
  ['a message over the limit', (isMasked) => frame(2, Buffer.alloc(LIMIT + 1), { isMasked }), 1009],
  [
    'fragments over the limit together',
    (m) => Buffer.concat([frame(2, Buffer.alloc(LIMIT), { isMasked: m, fin: false }), frame(0, 'x', { isMasked: m })]),
    1009,
  ],
];

function withFirst(bytes: Buffer, first: number): Buffer {
  bytes[0] = first;
  return bytes;
}

describe.each(['/unread', '/judged'])('frames that break the protocol (%s)', (path) => {
  it.each(BROKEN)('by %s, from the client, end the socket on both sides', async (_name, bytes, code) => {
    const heard: Buffer[] = [];
    const { server, own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(`${ACCEPTED}\r\n`);
      heard.push(await connection.reader.toEnd());
    });
    const client = await upgraded(own, path, 'raw.test');
    client.send(bytes(true));
    const rest = await client.reader.toEnd();
    // Behind half a message that was passed on there is no room for a close frame.
    if (rest.length > 0) expect(rest.readUInt16BE(2)).toBe(code === 1009 ? 1009 : 1002);
    expect(await own.waitForRecord((r) => r.path === path)).toMatchObject({
      outcome: 'failed',
      error: code === 1009 ? 'message_too_large' : 'bad_websocket',
    });
    await until('the server to be left', () => server.open === 0);
    expect(heard.join('').length).toBeLessThan(LIMIT + 1000);
    expect(own.app.counts()).toMatchObject({ exchanges: 0 });
  });

  it.each(BROKEN)('by %s, from the server, end the socket on both sides', async (_name, bytes, code) => {
    const { server, own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(`${ACCEPTED}\r\n`);
      connection.send(bytes(false));
      await connection.reader.toEnd();
    });
    const client = await upgraded(own, path, 'raw.test');
    await client.reader.toEnd();
    expect(await own.waitForRecord((r) => r.path === path)).toMatchObject({
      error: code === 1009 ? 'message_too_large' : 'bad_websocket',
    });
    await until('the server to be left', () => server.open === 0);
    expect(own.app.counts()).toMatchObject({ exchanges: 0 });
  });
});

describe('what follows a close frame', () => {
  it.each(['client', 'server'] as const)(
    'of the %s ends the socket, and no second close is sent behind it',
    async (who) => {
      let heard: Buffer = Buffer.alloc(0);
      const { own } = await scripted(async (connection) => {
        await connection.reader.head();
        connection.send(`${ACCEPTED}\r\n`);
        if (who === 'server') {
          connection.send(frame(8, '', { isMasked: false }));
          // Apart, or the close is lost with the chunk that breaks the protocol.
          await sleep(30);
          connection.send(frame(1, 'late', { isMasked: false }));
        }
        heard = await connection.reader.toEnd();
      });
      const client = await upgraded(own, '/after-close', 'raw.test');
      if (who === 'client') {
        client.send(frame(8, ''));
        client.send(frame(1, 'late'));
      }
      const rest = await client.reader.toEnd();
      await own.waitForRecord((r) => r.path === '/after-close');
      await until('the server to be left', () => own.app.counts().upstreams === 0);
      // One close frame and nothing else, whoever wrote it.
      if (who === 'client') {
        await until('what the server heard', () => heard.length > 0);
        expect(heard.length).toBe(6 + ((heard[1] ?? 0) & 0x7f));
      }
      expect(rest.length).toBe(2 + ((rest[1] ?? 0) & 0x7f));
    },
  );
});

describe('an upgrade', () => {
  const odd: readonly (readonly [string, string, number])[] = [
    ['101 with a space in the accept', ACCEPTED.replace('s3pP', 's3p P'), 502],
    [
      '101 with two extensions, one of them empty',
      `${ACCEPTED}Sec-WebSocket-Extensions: \r\nSec-WebSocket-Extensions: x-webkit-deflate-frame\r\n`,
      502,
    ],
    ['101 with two subprotocols', `${ACCEPTED}Sec-WebSocket-Protocol: a.v1\r\nSec-WebSocket-Protocol: b.v1\r\n`, 502],
    ['101 with a list of subprotocols', `${ACCEPTED}Sec-WebSocket-Protocol: a.v1, b.v1\r\n`, 502],
    ['101 with an offered subprotocol in other case', `${ACCEPTED}Sec-WebSocket-Protocol: A.V1\r\n`, 502],
    ['101 with a second, wrong accept', `${ACCEPTED}Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n`, 502],
    ['200', 'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n', 200],
    ['426', 'HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nContent-Length: 0\r\n', 426],
  ];
  it.each(odd)('answered with %s opens no socket', async (_name, head, status) => {
    const { server, own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(`${head}\r\n`);
      await connection.reader.toEnd();
    });
    const client = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca }));
    client.send(handshake('/odd', 'raw.test', 'Sec-WebSocket-Protocol: a.v1, b.v1\r\n'));
    client.send(frame(1, 'sent too early'));
    expect((await client.reader.response()).status).toBe(status);
    expect(server.received.join('')).not.toContain('sent too');
    await own.waitForRecord((r) => r.path === '/odd');
  });

  it('nobody asked for is not answered with 101', async () => {
    const { own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(`${ACCEPTED}\r\n`);
      await connection.reader.toEnd();
    });
    const client = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca }));
    expect((await client.ask('GET / HTTP/1.1\r\nHost: raw.test\r\n\r\n')).status).toBe(502);
  });

  it.each([
    ['Content-Length', 'Content-Length: 11\r\n', 'hello world'],
    ['Transfer-Encoding', 'Transfer-Encoding: chunked\r\n', 'b\r\nhello world\r\n0\r\n\r\n'],
  ])('with a body (%s) does not give the body to the server as frames', async (_name, line, body) => {
    const before = origin.messages.length;
    const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
    client.send(`${handshake('/with-body', 'ws.test', line)}${body}`);
    client.send(frame(1, 'first'));
    const response = await client.reader.response();
    expect(response.status).toBe(400);
    expect(origin.messages.length).toBe(before);
  });

  it.each(['/unread', '/judged'])('has all bytes that came along with it, on both sides (%s)', async (path) => {
    const { own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(
        Buffer.concat([Buffer.from(`${ACCEPTED}\r\n`), frame(1, 'welcome', { isMasked: false }).subarray(0, 5)]),
      );
      await sleep(20);
      connection.send(frame(1, 'welcome', { isMasked: false }).subarray(5));
      const head = await connection.reader.bytes(6);
      const payload = await connection.reader.bytes((head[1] ?? 0) & 0x7f);
      const clear = payload.map((byte, i) => byte ^ (head[2 + (i % 4)] ?? 0));
      connection.send(frame(1, `you said ${Buffer.from(clear).toString()}`, { isMasked: false }));
      connection.socket.end();
    });
    const client = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca }));
    client.send(Buffer.concat([Buffer.from(handshake(path, 'raw.test')), frame(1, 'eager')]));
    expect((await client.reader.response()).status).toBe(101);
    expect(await readMessage(client.reader)).toBe('welcome');
    expect(await readMessage(client.reader)).toBe('you said eager');
  });

  it('that a rule closes with bytes behind the handshake sends none of them', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
    client.send(Buffer.concat([Buffer.from(handshake('/judged/eager', 'ws.test')), frame(1, 'launch eagerly')]));
    expect((await client.reader.response()).status).toBe(101);
    expect(closeOf(await readFrame(client.reader)).code).toBe(1008);
    expect(origin.messages.some(({ text }) => text.includes('eagerly'))).toBe(false);
  });
});

describe('half a socket', () => {
  it('whose client has ended its side still gets what the server says', async () => {
    const { own } = await scripted(
      async (connection) => {
        await connection.reader.head();
        connection.send(`${ACCEPTED}\r\n`);
        await connection.reader.toEnd();
        connection.send(frame(1, 'last words', { isMasked: false }));
        connection.socket.end(frame(8, '', { isMasked: false }));
      },
      {},
      true,
    );
    const client = await upgraded(own, '/half', 'raw.test');
    client.socket.end(frame(1, 'bye'));
    expect(await readMessage(client.reader)).toBe('last words');
    expect(await own.waitForRecord((r) => r.path === '/half')).toMatchObject({ outcome: 'forwarded' });
  });

  it.each(['client', 'server'] as const)('that the %s leaves in the middle of a frame is never whole', async (who) => {
    let heard: Buffer = Buffer.alloc(0);
    const { own } = await scripted(async (connection) => {
      await connection.reader.head();
      connection.send(`${ACCEPTED}\r\n`);
      if (who === 'server') connection.socket.end(frame(1, 'hello there', { isMasked: false }).subarray(0, 6));
      heard = await connection.reader.toEnd();
    });
    const client = await upgraded(own, '/cut', 'raw.test');
    if (who === 'client') client.socket.end(frame(1, 'hello there').subarray(0, 10));
    const rest = await client.reader.toEnd();
    expect((await own.waitForRecord((r) => r.path === '/cut')).outcome).not.toBe('forwarded');
    await until('the server to be left', () => own.app.counts().upstreams === 0);
    expect((who === 'client' ? heard : rest).length).toBeLessThan(11);
  });

  it.each([
    ['client', 'server'],
    ['server', 'client'],
  ] as const)('that the %s has ended and the %s never ends is not held for ever', async (...[ends]) => {
    const { own } = await scripted(
      async (connection) => {
        await connection.reader.head();
        connection.send(`${ACCEPTED}\r\n`);
        if (ends === 'server') connection.socket.end();
        await connection.reader.toEnd(60_000);
        await sleep(20_000, undefined, { ref: false });
      },
      { halfCloseMs: 300, idleMs: 600, slowWriteMs: 600 },
      true,
    );
    const client = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca, allowHalfOpen: true }));
    expect((await client.ask(handshake('/one-sided', 'raw.test'))).status).toBe(101);
    if (ends === 'client') client.socket.end();
    await own.waitForRecord((r) => r.path === '/one-sided');
    await until('nothing to be open', () => own.app.counts().exchanges === 0 && own.app.counts().upstreams === 0);
  });
});

describe('rules that come while a message is under way', () => {
  it('and read messages do not let the rest of it pass unread', async () => {
    const own = closeAfterTest(
      await startProxy({ rules: ALLOW, hosts: { 'ws.test': origin.port }, limits: { websocketMessageBytes: LIMIT } }),
    );
    const client = await upgraded(own, '/under-way');
    client.send(frame(1, 'please ', { fin: false }));
    client.send(frame(9, 'there?'));
    expect(await readFrame(client.reader)).toMatchObject({ opcode: 10 });
    own.writeRules(RULES.replace('path: [/judged, "/judged/**"], ', ''));
    await own.app.reload();
    client.send(frame(0, 'launch now'));
    await client.reader.toEnd();
    expect(await own.waitForRecord((r) => r.path === '/under-way')).toMatchObject({
      verdict: 'deny',
      reason: 'policy_changed',
    });
    expect(origin.messages.some(({ text }) => text.includes('launch now'))).toBe(false);
  });
});
