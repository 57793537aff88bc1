import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { connectThrough, rawClient, secureClient, tlsThrough } from '../support/raw-client.ts';
import type { RawClient } from '../support/raw-client.ts';
import { startRawServer } from '../support/raw-server.ts';
import { until } from '../support/waiting.ts';
import { RefusedUpgrade, closeOf, frame, frameReader, openWebSocket, readFrame } from '../support/websocket-client.ts';
import type { WsClient } from '../support/websocket-client.ts';
import { valuesOf } from '../support/wire-reader.ts';
import { startWsOrigin } from '../support/ws-server.ts';
import type { WsOrigin } from '../support/ws-server.ts';

const RULES = `
version: 1
defaults: { websocket: deny }
rules:
  - id: sockets
    description: WebSocket to the test server
    match: { host: [ws.test, plain.test, raw.test], protocol: [websocket, http] }
    action: allow
  - id: plain-only
    description: this host is allowed for HTTP alone
    match: { host: http-only.test }
    action: allow
  - id: no-launch
    description: one word may not be said
    match: { host: [ws.test, plain.test], protocol: websocket, direction: request }
    if: 'message.kind == "websocket_text" && message.text.contains("launch")'
    action: deny
    message: Do not say that.
  - id: no-secret-answer
    description: one word may not come back
    match: { host: [ws.test, plain.test], protocol: websocket, direction: response }
    if: 'message.kind == "websocket_text" && message.text.contains("classified")'
    action: deny
`;

const shared = closeAfterFile();
let origin: WsOrigin;
let proxy: TestProxy;

beforeAll(async () => {
  origin = shared(await startWsOrigin());
  proxy = shared(
    await startProxy({
      rules: RULES,
      hosts: { 'ws.test': origin.port, 'plain.test': origin.plainPort, 'http-only.test': origin.port },
      limits: { websocketMessageBytes: 256 * 1024 },
    }),
  );
});

async function open(path = '/', protocols: readonly string[] = []): Promise<WsClient> {
  const secure = await tlsThrough(proxy.port, 'ws.test', { ca: proxy.ca });
  return closeAfterTest(await openWebSocket(`wss://ws.test${path}`, protocols, { createConnection: () => secure }));
}

const KEY = 'dGhlIHNhbXBsZSBub25jZQ==';

/** An upgrade by hand, to see and send frames. */
async function upgraded(path = '/', lines = ''): Promise<RawClient> {
  const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
  const response = await client.ask(handshake(path, lines));
  expect(response.status).toBe(101);
  return client;
}

function handshake(path: string, lines: string): string {
  return `GET ${path} HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${KEY}\r\n${lines}\r\n`;
}

describe('a WebSocket', () => {
  it('gets the frame that the server sends first', async () => {
    const client = await open('/greet');
    expect(await client.next()).toBe('hello from the server');
  });

  it('carries text and binary messages both ways, small and large', async () => {
    const client = await open();
    for (const size of [0, 1, 125, 126, 65_535, 65_536, 200_000]) {
      client.ws.send('x'.repeat(size));
      expect(await client.next()).toHaveLength(size);
    }
    client.ws.send(Buffer.from([0, 1, 2, 255]));
    expect(await client.next()).toBe('\x00\x01\x02\xff');
    expect(client.messages.at(-1)?.isBinary).toBe(true);
  });

  it('has the subprotocol that the server chose', async () => {
    const client = await open('/', ['first.v1', 'second.v1']);
    expect(client.ws.protocol).toBe('second.v1');
    const upgrade = origin.upgrades.at(-1);
    expect(upgrade?.headers['sec-websocket-protocol']).toBe('first.v1,second.v1');
  });

  it('passes on the close code and reason of the client', async () => {
    const client = await open();
    client.ws.close(4321, 'enough');
    expect(await client.closed).toEqual({ code: 4321, reason: 'enough' });
    await until('the server to see it', () =>
      origin.closes.some(({ code, reason }) => code === 4321 && reason === 'enough'),
    );
  });

  it('passes on the close code and reason of the server', async () => {
    const client = await open();
    client.ws.send('close 4005 the server says so');
    expect(await client.closed).toEqual({ code: 4005, reason: 'the server says so' });
    expect(
      await proxy.waitForRecord((r) => r.protocol === 'websocket' && r.messages_out === 1 && r.outcome === 'forwarded'),
    ).toMatchObject({
      verdict: 'allow',
    });
  });

  it('passes on a close without a code', async () => {
    const client = await upgraded();
    client.send(frame(8, ''));
    const answer = await readFrame(client.reader);
    expect(answer.opcode).toBe(8);
    expect(answer.payload.length).toBe(0);
  });

  it('that is cut by the server ends for the client, with an abnormal close', async () => {
    const client = await open('/cut');
    await until('the server’s socket', () => origin.sockets.length > 0);
    origin.sockets.at(-1)?.terminate();
    expect([1001, 1006, 1011, 1014]).toContain((await client.closed).code);
  });

  it('that is cut by the client is cut upstream', async () => {
    const before = origin.closes.length;
    const client = await open();
    client.ws.terminate();
    const closed = await until('the server to see it', () => origin.closes[before]);
    expect([1001, 1005, 1006, 1011]).toContain(closed.code);
  });

  it('carries ping and pong in both directions', async () => {
    const client = await open('/ping');
    const pong = new Promise<string>((resolve) => client.ws.on('pong', (data) => resolve(data.toString())));
    const ping = new Promise<string>((resolve) => client.ws.on('ping', (data) => resolve(data.toString())));
    client.ws.ping('are you here');
    expect(await ping).toBe('are you there');
    expect(await pong).toBe('are you here');
    expect(origin.pings).toContain('are you here');
  });

  it('puts the fragments of a message together for the rules, whatever comes between them', async () => {
    const client = await upgraded();
    client.send(frame(1, 'one ', { fin: false }));
    client.send(frame(9, 'ping'));
    expect(await readFrame(client.reader)).toMatchObject({ opcode: 10 });
    client.send(frame(0, 'two ', { fin: false }));
    client.send(frame(0, 'three'));
    let text = '';
    for (;;) {
      const part = await readFrame(client.reader);
      text += part.payload.toString();
      if (part.fin) break;
    }
    expect(text).toBe('one two three');
  });

  it('is not compressed: the extension is negotiated away', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
    const response = await client.ask(
      handshake('/greet', 'Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n'),
    );
    expect(response.status).toBe(101);
    expect(valuesOf(response.rawHeaders, 'sec-websocket-extensions')).toEqual([]);
    expect(valuesOf(response.rawHeaders, 'sec-websocket-accept')).toEqual(['s3pPLMBiTxaQ9kYGzzhZRbK+xOo=']);
    expect(origin.upgrades.at(-1)?.headers['sec-websocket-extensions']).toBeUndefined();
    const greeting = await readFrame(client.reader);
    expect(greeting).toMatchObject({ rsv1: false, opcode: 1 });
    expect(greeting.payload.toString()).toBe('hello from the server');
  });

  it('works in the clear inside CONNECT', async () => {
    const { socket } = await connectThrough(proxy.port, 'plain.test:80');
    socket.resume();
    const client = closeAfterTest(await openWebSocket('ws://plain.test/greet', [], { createConnection: () => socket }));
    expect(await client.next()).toBe('hello from the server');
  });

  it('leaves one record with its messages and bytes', async () => {
    const client = await open('/counted');
    for (const text of ['one', 'two', 'three']) {
      client.ws.send(text);
      await client.next();
    }
    client.ws.close(1000);
    await client.closed;
    const record = await proxy.waitForRecord((r) => r.path === '/counted');
    expect(record).toMatchObject({
      kind: 'exchange',
      protocol: 'websocket',
      verdict: 'allow',
      messages_out: 3,
      messages_in: 3,
      outcome: 'forwarded',
    });
    expect(record.bytes_out).toBeGreaterThan(11);
    await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.tunnel === record.tunnel);
    expect(proxy.recordsNow().filter((r) => r.path === '/counted')).toHaveLength(1);
  });
});

describe('a refused WebSocket', () => {
  it('by the server reaches the client as the server said it', async () => {
    const refused = open('/refuse');
    await expect(refused).rejects.toBeInstanceOf(RefusedUpgrade);
    await expect(refused).rejects.toMatchObject({ status: 403, body: 'not for you', headers: { 'x-why': 'members' } });
  });

  it('by its layer: an allow for the host alone does not admit it', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'http-only.test', { ca: proxy.ca }));
    const response = await client.ask(handshake('/', '').replace('ws.test', 'http-only.test'));
    expect(response.status).toBe(403);
    expect(response.body.toString()).toContain('websocket_not_allowed');
  });

  it.each([
    ['without a key', `Sec-WebSocket-Version: 13\r\n`],
    ['with a key that is too short', `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n`],
    ['with two keys', `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${KEY}\r\nSec-WebSocket-Key: ${KEY}\r\n`],
    ['of another version', `Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: ${KEY}\r\n`],
    ['without a version', `Sec-WebSocket-Key: ${KEY}\r\n`],
  ])('%s gets a 400, and the server hears nothing', async (_name, lines) => {
    const before = origin.upgrades.length;
    const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
    const response = await client.ask(
      `GET / HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${lines}\r\n`,
    );
    expect(response.status).toBe(400);
    expect(origin.upgrades.length).toBe(before);
  });

  it.each(['h2c', 'TLS/1.0', 'unknown'])(
    'to %s instead is a plain request: the offer goes no further',
    async (token) => {
      // RFC 9110 section 7.8: an upgrade may be ignored. Java's client offers h2c with its first request.
      const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
      const response = await client.ask(
        `GET /offer HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: ${token}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n`,
      );
      expect(response.status).toBe(200);
      const request = origin.requests.at(-1);
      expect(request?.headers['upgrade']).toBeUndefined();
      expect(request?.headers['http2-settings']).toBeUndefined();
    },
  );

  it.each([
    ['a wrong accept', 'Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n'],
    ['no accept', ''],
    ['an extension nobody offered', 'Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n'],
    ['a subprotocol nobody offered', 'Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: other\r\n'],
  ])('by us, because the server answered with %s: 502', async (_name, lines) => {
    const server = closeAfterTest(
      await startRawServer({
        script: async (connection) => {
          await connection.reader.head();
          connection.send(
            `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${lines.replace('{}', 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=')}\r\n`,
          );
        },
      }),
    );
    const own = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'raw.test': server.port } }));
    const client = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca }));
    const response = await client.ask(handshake('/', '').replace('ws.test', 'raw.test'));
    expect(response.status).toBe(502);
    expect(response.body.toString()).toContain('upstream_upgrade_failed');
  });
});

describe('a message that a rule denies', () => {
  it('closes the socket with 1008 on the way out, before the server sees it', async () => {
    const client = await open('/denied-out');
    client.ws.send('good morning');
    await client.next();
    client.ws.send('please launch');
    expect(await client.closed).toMatchObject({ code: 1008 });
    expect((await client.closed).reason).toContain('Do not say that.');
    expect(origin.messages.map((message) => message.text)).not.toContain('please launch');
    const record = await proxy.waitForRecord((r) => r.path === '/denied-out');
    expect(record).toMatchObject({ verdict: 'deny', rules: ['no-launch'], outcome: 'denied' });
    expect(['denied_by_rule', 'message_denied']).toContain(record.reason);
  });

  it('closes the socket with 1008 on the way in', async () => {
    const client = await open('/denied-in');
    client.ws.send('say: class' + 'ified');
    expect(await client.closed).toMatchObject({ code: 1008 });
    expect(client.messages).toEqual([]);
    expect(await proxy.waitForRecord((r) => r.path === '/denied-in')).toMatchObject({ rules: ['no-secret-answer'] });
  });

  it('is found in fragments, too', async () => {
    const client = await upgraded('/denied-fragments');
    client.send(frame(1, 'please lau', { fin: false }));
    client.send(frame(0, 'nch'));
    const close = await readFrame(client.reader);
    expect(close.opcode).toBe(8);
    expect(closeOf(close).code).toBe(1008);
    expect(origin.messages.some((message) => message.text.includes('lau'))).toBe(false);
  });

  it('is found over HTTP/2, too', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'ws.test', { ca: proxy.ca }));
    await until('the settings', () => over2.session.remoteSettings.enableConnectProtocol);
    const stream = over2.session.request(
      {
        ':method': 'CONNECT',
        ':protocol': 'websocket',
        ':scheme': 'https',
        ':path': '/denied-h2',
        ':authority': 'ws.test',
        'sec-websocket-version': '13',
      },
      { endStream: false },
    );
    stream.on('error', () => undefined);
    const reader = frameReader(stream);
    stream.write(frame(1, 'please launch'));
    const close = await readFrame(reader);
    expect(closeOf(close).code).toBe(1008);
  });
});

describe('malformed frames', () => {
  it.each([
    ['without a mask', frame(1, 'hello', { isMasked: false })],
    ['with a reserved bit', frame(1, 'hello', { rsv1: true })],
    ['with a reserved opcode', frame(3, 'hello')],
    ['that continue nothing', frame(0, 'hello')],
    ['that are a control frame in fragments', frame(9, 'hello', { fin: false })],
    ['that are a control frame of 126 bytes', frame(9, 'x'.repeat(126))],
    ['that begin a message inside another', Buffer.concat([frame(1, 'a', { fin: false }), frame(1, 'b')])],
    ['with a close of one byte', frame(8, 'x')],
    ['with a close code that nobody may send', frame(8, Buffer.from([0x03, 0xed]))],
    ['with text that is not UTF-8', frame(1, Buffer.from([0xff, 0xfe, 0xfd]))],
  ])('%s close the socket and never reach the server', async (_name, bytes) => {
    const before = origin.messages.length;
    const client = await upgraded('/malformed');
    client.send(bytes);
    const close = await readFrame(client.reader);
    expect(close.opcode).toBe(8);
    expect([1002, 1007]).toContain(closeOf(close).code);
    expect(origin.messages.length).toBe(before);
  });

  it('of a message over the limit close it with 1009', async () => {
    const client = await open('/too-large');
    client.ws.send('x'.repeat(300 * 1024));
    expect((await client.closed).code).toBe(1009);
    expect(await proxy.waitForRecord((r) => r.path === '/too-large')).toMatchObject({ error: 'message_too_large' });
  });

  it('that announce petabytes are refused at their head', async () => {
    const client = await upgraded('/petabytes');
    client.send(Buffer.from([0x82, 0xff, 0x00, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6]));
    expect(closeOf(await readFrame(client.reader)).code).toBe(1009);
  });
});

describe('bytes behind the handshake', () => {
  it('that the client sends along with its request are its first frame', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'ws.test', { ca: proxy.ca }));
    client.send(Buffer.concat([Buffer.from(handshake('/eager', '')), frame(1, 'eager')]));
    expect((await client.reader.response()).status).toBe(101);
    expect((await readFrame(client.reader)).payload.toString()).toBe('eager');
  });

  it('are never taken for another request when the upgrade is refused', async () => {
    const { socket } = await connectThrough(proxy.port, 'plain.test:80');
    const client = closeAfterTest(rawClient(socket));
    client.send(
      `${handshake('/refuse', '').replace('ws.test', 'plain.test')}GET /smuggled HTTP/1.1\r\nHost: denied.test\r\n\r\n`,
    );
    expect((await client.reader.response()).status).toBe(403);
    const rest = await Promise.race([client.reader.toEnd(), client.reader.response().then((r) => r.status)]);
    // Either the connection is closed, or what follows is judged as the request it is: for another host, refused.
    if (typeof rest === 'number') expect(rest).toBe(421);
    expect(origin.upgrades.some((request) => request.url === '/smuggled')).toBe(false);
  });
});
