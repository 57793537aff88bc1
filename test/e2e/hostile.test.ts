import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy, TestProxyOptions } from '../support/proxy.ts';
import {
  connectThrough,
  proxyClient,
  rawClient,
  secureClient,
  startTls,
  tcp,
  tlsThrough,
} from '../support/raw-client.ts';
import { frame2, headerBlock, headersFrame, rawH2, resetFrame } from '../support/raw-h2.ts';
import { startRawServer } from '../support/raw-server.ts';
import type { RawConnection } from '../support/raw-server.ts';
import { until, within } from '../support/waiting.ts';

const RULES = `${ALLOW_ALL_TEST_HOSTS}
  - id: reads-bodies
    description: makes the proxy look into bodies below one path
    match: { host: inspected.test }
    if: 'message.kind == "body" && has(message.text) && message.text.contains("forbidden")'
    action: deny
`;

const shared = closeAfterFile();
let origin: Origin;
/** Names of tunnels that carry garbage. */
let garbage = 0;
/** Short deadlines; everything else as in production. */
let proxy: TestProxy;

beforeAll(async () => {
  origin = shared(await startOrigin());
  proxy = shared(await start({ headMs: 300, handshakeMs: 300, h2ResetsPerMinute: 50, messageBytes: 64 * 1024 }));
});

function start(limits: TestProxyOptions['limits'] = {}, hosts: Record<string, number> = {}): Promise<TestProxy> {
  return startProxy({
    rules: RULES,
    limits,
    hosts: { 'h1.test': origin.port, 'plain.test': origin.plainPort, 'inspected.test': origin.port, ...hosts },
  });
}

/** The proxy is alive and well: the point of most tests here. */
async function stillWorks(which: TestProxy = proxy): Promise<void> {
  const client = await secureClient(which.port, 'h1.test', { ca: which.ca });
  expect((await client.ask('GET /alive HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(200);
  client.close();
}

afterEach(() => {
  const unexpected = proxy.log.filter((entry) => entry.level === 'error');
  expect(unexpected).toEqual([]);
});

describe('clients that are slow', () => {
  it('with a request head get a 408 and a record', async () => {
    const client = closeAfterTest(await proxyClient(proxy.port));
    client.send('GET http://plain.test/ HTTP/1.1\r\nHost: pl');
    const response = await client.reader.response();
    expect(response.status).toBe(408);
    await proxy.waitForRecord((r) => r.reason === 'head_timeout');
  });

  it('byte by byte are not rewarded: the deadline is for the whole head', async () => {
    const client = closeAfterTest(await proxyClient(proxy.port));
    const drip = (async () => {
      for (const byte of `GET http://plain.test/ HTTP/1.1\r\n${'X: y\r\n'.repeat(100)}`) {
        if (client.socket.destroyed || client.reader.isEnded) return;
        client.send(byte);
        await sleep(20);
      }
    })();
    expect((await client.reader.response()).status).toBe(408);
    await drip;
  });

  it('inside TLS get a 408 as well', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'h1.test', { ca: proxy.ca }));
    client.send('GET / HT');
    expect((await client.reader.response()).status).toBe(408);
  });

  it('that say nothing at all are closed', async () => {
    const client = closeAfterTest(await proxyClient(proxy.port));
    expect((await client.reader.toEnd()).length).toBe(0);
  });

  it('that open a tunnel and say nothing leave a record', async () => {
    const { socket } = await connectThrough(proxy.port, 'h1.test:443');
    await rawClient(socket).reader.toEnd();
    await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.error === 'handshake_timeout');
  });

  it.each([1, 5, 40])('with their ClientHello are closed (%i bytes sent)', async (count) => {
    const { socket } = await connectThrough(proxy.port, 'h1.test:443');
    const client = closeAfterTest(rawClient(socket));
    client.send(
      Buffer.concat([Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]), Buffer.alloc(100)]).subarray(0, count),
    );
    await client.reader.toEnd();
  });

  it('with their SOCKS handshake are closed', async () => {
    const client = closeAfterTest(rawClient(await tcp(proxy.port)));
    client.send(Buffer.from([5, 1, 0]));
    await client.reader.bytes(2);
    await client.reader.toEnd();
  });

  it('with an HTTP/2 preface are closed', async () => {
    const secure = await tlsThrough(proxy.port, 'h1.test', { ca: proxy.ca, alpn: ['h2'] });
    const client = closeAfterTest(rawClient(secure));
    client.send('PRI * HT');
    await client.reader.toEnd();
  });
});

describe('garbage', () => {
  it.each([
    ['random bytes', () => randomBytes(200)],
    ['zeros', () => Buffer.alloc(1000)],
    ['TLS to the plain port', () => Buffer.from([0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, ...randomBytes(194)])],
    ['SOCKS4', () => Buffer.from([4, 1, 0, 80, 127, 0, 0, 1, 0])],
    ['SOCKS5 without methods', () => Buffer.from([5, 0])],
    ['SOCKS5 with an unknown address type', () => Buffer.from([5, 1, 0, 5, 1, 0, 9, 1, 2, 3, 4, 0, 80])],
    ['SOCKS5 with an empty name', () => Buffer.from([5, 1, 0, 5, 1, 0, 3, 0, 0, 80])],
    [
      'SOCKS5 with a name of garbage',
      () => Buffer.concat([Buffer.from([5, 1, 0, 5, 1, 0, 3, 255]), randomBytes(255), Buffer.from([0, 80])]),
    ],
    ['an HTTP/2 preface', () => Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')],
    ['a method without end', () => Buffer.alloc(5000, 'A')],
    ['a line without end', () => Buffer.from(`GET ${'a'.repeat(200_000)}`)],
    ['line ends only', () => Buffer.from('\r\n'.repeat(1000))],
    ['an SSH greeting', () => Buffer.from('SSH-2.0-OpenSSH_9.2\r\n')],
  ])('on the proxy port (%s) ends that connection and nothing else', async (_name, bytes) => {
    const client = closeAfterTest(rawClient(await tcp(proxy.port)));
    client.send(bytes());
    const answer = (await client.reader.toEnd()).toString('latin1');
    expect(answer).not.toMatch(/HTTP\/1\.1 2/);
    await stillWorks();
  });

  it.each([
    ['a handshake record of garbage', () => Buffer.from([0x16, 3, 1, 0, 100, 1, 0, 0, 96, ...randomBytes(96)])],
    ['a ClientHello of version 9', () => Buffer.from([0x16, 3, 1, 0, 45, 1, 0, 0, 41, 9, 9, ...randomBytes(39)])],
    ['a record that is too long', () => Buffer.from([0x16, 3, 1, 0xff, 0xff, 1, ...randomBytes(300)])],
    ['an alert', () => Buffer.from([0x15, 3, 3, 0, 2, 2, 40])],
    ['application data before a handshake', () => Buffer.from([0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5])],
    ['random bytes', () => Buffer.concat([Buffer.from([0xfe]), randomBytes(500)])],
    ['SOCKS5', () => Buffer.from([5, 1, 0])],
  ])('inside a tunnel (%s) is denied, recorded, and never dialed', async (_name, bytes) => {
    const connections = origin.connections;
    const host = `garbage-${++garbage}.test`;
    const { socket } = await connectThrough(proxy.port, `${host}:443`);
    const client = closeAfterTest(rawClient(socket));
    client.send(bytes());
    await client.reader.toEnd();
    const record = await proxy.waitForRecord((r) => r.host === host);
    expect(record.kind).toBe('tunnel');
    expect(record.outcome).toMatch(/denied|failed|aborted/);
    expect(origin.connections).toBe(connections);
    await stillWorks();
  });

  it('in the middle of a TLS handshake ends it', async () => {
    // An honest ClientHello, caught from an honest client.
    const hello = closeAfterTest(await startRawServer({ tls: false, script: () => undefined }));
    const honest = connectTls({ port: hello.port, host: '127.0.0.1', servername: 'h1.test' });
    honest.on('error', () => undefined);
    const bytes = await until('a ClientHello', () => hello.received.find((received) => received.length > 100));
    honest.destroy();
    const { socket } = await connectThrough(proxy.port, 'h1.test:443');
    const client = closeAfterTest(rawClient(socket));
    client.send(bytes);
    expect((await client.reader.bytes(1))[0]).toBe(0x16);
    client.send(Buffer.concat([Buffer.from([0x17, 3, 3, 0, 50]), randomBytes(50)]));
    await client.reader.toEnd();
    await stillWorks();
  });

  it('after the TLS handshake is a 400', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'h1.test', { ca: proxy.ca }));
    client.send(Buffer.concat([Buffer.from([0]), randomBytes(100), Buffer.from('\r\n\r\n')]));
    const answer = (await client.reader.toEnd()).toString('latin1');
    if (answer !== '') expect(answer).toMatch(/^HTTP\/1\.1 4/);
    await stillWorks();
  });

  it('cut off anywhere in an honest dialog harms nobody', async () => {
    const dialog = Buffer.from(
      'CONNECT plain.test:80 HTTP/1.1\r\nHost: plain.test:80\r\n\r\nPOST /cut HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 5\r\n\r\nhello',
    );
    for (let end = 1; end < dialog.length; end += 7) {
      const socket = await tcp(proxy.port);
      if (end % 2 === 0) socket.end(dialog.subarray(0, end));
      else socket.write(dialog.subarray(0, end), () => socket.resetAndDestroy());
      if (end % 2 === 0) setTimeout(() => socket.destroy(), 50);
    }
    await until('all to be gone', () => proxy.app.counts().connections === 0 && proxy.app.counts().exchanges === 0);
    await stillWorks();
  });
});

describe('TLS names', () => {
  it('a ClientHello without a name gets the certificate of the tunnel', async () => {
    const secure = await tlsThrough(proxy.port, 'h1.test', {
      ca: proxy.ca,
      servername: null,
      rejectUnauthorized: false,
    });
    const client = closeAfterTest(rawClient(secure));
    expect(secure.getPeerCertificate().subjectaltname).toContain('h1.test');
    expect((await client.ask('GET / HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(200);
  });

  it('a client that distrusts our certificate leaves a record, and an explanation in the log', async () => {
    const { socket } = await connectThrough(proxy.port, 'distrust.test:443');
    await expect(startTls(socket, 'distrust.test', { ca: '' })).rejects.toThrow();
    await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.host === 'distrust.test' && r.outcome !== 'forwarded');
    await until('an explanation', () =>
      proxy.log.find((entry) => entry.level === 'warn' && entry.facts['host'] === 'distrust.test'),
    );
  });

  it('nothing but the CA is ever written to the folder of certificates', async () => {
    for (const name of ['../../x', '..%2fx', 'h1.test/../../x', '%00', 'a'.repeat(300)]) {
      const { socket } = await connectThrough(proxy.port, `${name}:443`);
      socket.destroy();
    }
    await stillWorks();
    expect(readdirSync(proxy.settings.certs).sort()).toEqual(['ca.key', 'ca.pem']);
  });
});

describe('HTTP/2 abuse', () => {
  const REQUEST: readonly (readonly [string, string])[] = [
    [':method', 'GET'],
    [':scheme', 'https'],
    [':authority', 'h1.test'],
    [':path', '/never'],
  ];

  it('rapid resets end the connection with ENHANCE_YOUR_CALM and a record', async () => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    for (let i = 0; i < 200; i++) {
      const stream = 1 + 2 * i;
      over2.send(Buffer.concat([headersFrame(stream, REQUEST, { endStream: true }), resetFrame(stream, 8)]));
    }
    const codes: number[] = [];
    for (;;) {
      const frame = await over2.frame();
      if (frame === null) break;
      if (frame.type === 7) codes.push(frame.payload.readUInt32BE(4));
    }
    expect(codes).toContain(11);
    await proxy.waitForRecord((r) => r.error === 'h2_flood');
    await until('the exchanges to end', () => proxy.app.counts().exchanges === 0);
    await stillWorks();
  });

  it('CONTINUATION frames without end are not collected', async () => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    over2.send(frame2(1, 1, 1, headerBlock(REQUEST)));
    const more = frame2(9, 0, 1, headerBlock([['x', 'y'.repeat(8000)]]));
    const state = { isOver: false };
    const flood = (async () => {
      for (let i = 0; i < 400 && !state.isOver; i++) {
        over2.send(more);
        await new Promise((resolve) => setImmediate(resolve));
      }
    })();
    const outcome = await over2.outcomeOf(1);
    state.isOver = true;
    await flood;
    expect(['goaway', 'closed', 'reset', 'answer']).toContain(outcome.kind);
    if (outcome.kind === 'answer') expect(outcome.status).toBe(431);
    await stillWorks();
  });

  it.each([
    ['SETTINGS', frame2(4, 0, 0, Buffer.from([0, 3, 0, 0, 0, 100]))],
    ['PING', frame2(6, 0, 0, Buffer.alloc(8))],
    ['empty DATA', frame2(0, 0, 1, Buffer.alloc(0))],
    ['PRIORITY', frame2(2, 0, 1, Buffer.from([0, 0, 0, 0, 16]))],
    ['unknown frames', frame2(0x42, 0, 0, Buffer.alloc(100))],
  ])('a flood of %s leaves the proxy working', async (_name, frame) => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    over2.send(
      headersFrame(1, [...REQUEST.filter(([name]) => name !== ':path'), [':path', '/flood']], { endStream: false }),
    );
    const flood = Buffer.concat(Array<Buffer>(100).fill(frame));
    for (let i = 0; i < 100; i++) {
      over2.send(flood);
      if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await stillWorks();
  });

  it.each([
    ['a frame on stream 0 that needs one', frame2(1, 5, 0, headerBlock(REQUEST))],
    ['a header block that is no HPACK', frame2(1, 5, 1, Buffer.alloc(50, 0xff))],
    ['DATA on a stream that was never opened', frame2(0, 1, 5, Buffer.from('x'))],
    ['a stream with an even number', frame2(1, 5, 2, headerBlock(REQUEST))],
    ['a frame beyond the agreed size', frame2(0, 0, 1, Buffer.alloc(20_000))],
    ['WINDOW_UPDATE by zero', frame2(8, 0, 0, Buffer.alloc(4))],
    ['WINDOW_UPDATE beyond 2^31', frame2(8, 0, 0, Buffer.from([0x7f, 0xff, 0xff, 0xff]))],
    ['PUSH_PROMISE from a client', frame2(5, 4, 1, Buffer.concat([Buffer.from([0, 0, 0, 2]), headerBlock(REQUEST)]))],
  ])('%s ends that connection and nothing else', async (_name, frame) => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    over2.send(frame);
    for (;;) {
      const answer = await over2.frame();
      if (answer === null || answer.type === 7) break;
    }
    await stillWorks();
  });

  it('a header list over the limit is refused', async () => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    const block = headerBlock([
      ...REQUEST.slice(0, 3),
      [':path', '/large-list'],
      ...Array.from({ length: 20 }, (_, i) => [`x-${i}`, 'v'.repeat(5000)] as const),
    ]);
    const pieces: Buffer[] = [];
    for (let at = 0; at < block.length; at += 16_000) {
      const isFirst = at === 0;
      const isLast = at + 16_000 >= block.length;
      pieces.push(frame2(isFirst ? 1 : 9, (isFirst ? 1 : 0) | (isLast ? 4 : 0), 1, block.subarray(at, at + 16_000)));
    }
    over2.send(Buffer.concat(pieces));
    const outcome = await over2.outcomeOf(1);
    if (outcome.kind === 'answer') expect(outcome.status).toBe(431);
    expect(origin.requests.some((r) => r.rawHeaders.includes('x-19'))).toBe(false);
    await stillWorks();
  });

  it('more streams than agreed are refused, the others answered', async () => {
    const own = closeAfterTest(await start({ h2StreamsPerConnection: 4 }));
    const over2 = closeAfterTest(await rawH2(own.port, 'h1.test', own.ca));
    for (let i = 0; i < 8; i++) over2.send(headersFrame(1 + 2 * i, REQUEST, { endStream: true }));
    const outcome = await over2.outcomeOf(15);
    expect(outcome.kind).not.toBe('answer');
    await until('no more than were agreed', () => own.app.counts().exchanges <= 4);
  });
});

describe('limits', () => {
  it('on tunnels answer 503 too_many_tunnels, and places become free again', async () => {
    const own = closeAfterTest(await start({ tunnels: 2 }));
    const open = [await connectThrough(own.port, 'h1.test:443'), await connectThrough(own.port, 'h1.test:443')];
    const refused = await connectThrough(own.port, 'h1.test:443');
    expect(refused.response.status).toBe(503);
    expect(refused.response.body.toString()).toContain('too_many_tunnels');
    await own.waitForRecord((r) => r.reason === 'too_many_tunnels');
    for (const { socket } of [...open, refused]) socket.destroy();
    await until('the places', () => own.app.counts().tunnels === 0);
    await stillWorks(own);
  });

  it('on exchanges answer 503 too_many_streams', async () => {
    const own = closeAfterTest(await start({ streams: 2 }));
    const over2 = closeAfterTest(await h2Through(own.port, 'h1.test', { ca: own.ca }));
    for (let i = 0; i < 2; i++) over2.session.request({ ':path': '/never' }).on('error', () => undefined);
    await until('two exchanges', () => own.app.counts().exchanges === 2);
    const answer = await over2.ask({ ':path': '/third' });
    expect(answer.status).toBe(503);
    expect(answer.body.toString()).toContain('too_many_streams');
  });

  it('on connections close what is too many', async () => {
    const own = closeAfterTest(await start({ connections: 2 }));
    const first = closeAfterTest(rawClient(await tcp(own.port)));
    const second = closeAfterTest(rawClient(await tcp(own.port)));
    const third = closeAfterTest(rawClient(await tcp(own.port)));
    await third.reader.toEnd();
    expect(first.reader.isEnded || second.reader.isEnded).toBe(false);
  });

  it('on a body that a rule must see whole answer 413 message_too_large', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'inspected.test', { ca: proxy.ca }));
    const response = await client.ask(
      `POST /large-body HTTP/1.1\r\nHost: inspected.test\r\nContent-Length: 100000\r\n\r\n${'x'.repeat(100_000)}`,
    );
    expect(response.status).toBe(413);
    expect(response.body.toString()).toContain('message_too_large');
    expect(origin.requests.some((r) => r.url === '/large-body')).toBe(false);
  });

  it('on an answer that a rule must see whole replace it', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'inspected.test', { ca: proxy.ca }));
    const response = await client.ask('GET /big?mb=1 HTTP/1.1\r\nHost: inspected.test\r\n\r\n');
    expect(response.status).toBeGreaterThanOrEqual(400);
    expect(response.body.toString()).toContain('message_too_large');
  });

  it('a client that sends requests and reads no answers is not read any more', async () => {
    const socket = await tcp(proxy.port);
    closeAfterTest({ close: () => void socket.destroy() });
    const request = Buffer.from('GET http://plain.test/flood HTTP/1.1\r\nHost: plain.test\r\n\r\n'.repeat(1000));
    let taken = 0;
    let isBlocked = false;
    while (taken < 40 * 1024 * 1024 && !isBlocked && !socket.destroyed) {
      taken += request.length;
      if (socket.write(request)) continue;
      isBlocked = await Promise.race([
        new Promise<boolean>((resolve) => socket.once('drain', () => resolve(false))),
        sleep(1500).then(() => true),
      ]);
    }
    expect(taken).toBeLessThan(30 * 1024 * 1024);
    socket.destroy();
    await until('the exchanges to end', () => proxy.app.counts().exchanges === 0);
    await stillWorks();
  });
});

describe('servers that misbehave', () => {
  const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello';

  it.each<readonly [string, boolean, (connection: RawConnection) => Promise<void> | void]>([
    ['when it is dialed', false, (c) => c.reset()],
    [
      'at the ClientHello',
      false,
      async (c) => {
        await c.reader.bytes(10);
        c.reset();
      },
    ],
    [
      'with garbage for a ServerHello',
      false,
      async (c) => {
        await c.reader.bytes(10);
        c.send(randomBytes(500));
      },
    ],
    ['after the handshake', true, (c) => c.reset()],
    [
      'in the middle of the request',
      true,
      async (c) => {
        await c.reader.bytes(4);
        c.reset();
      },
    ],
    [
      'after the request',
      true,
      async (c) => {
        await c.reader.request();
        c.reset();
      },
    ],
    [
      'in the middle of the head',
      true,
      async (c) => {
        await c.reader.request();
        c.send(OK.slice(0, 20));
        await sleep(20);
        c.reset();
      },
    ],
    [
      'right behind the head',
      true,
      async (c) => {
        await c.reader.request();
        c.send(OK.slice(0, -5));
        await sleep(20);
        c.reset();
      },
    ],
    [
      'in the middle of the body',
      true,
      async (c) => {
        await c.reader.request();
        c.send(OK.slice(0, -2));
        await sleep(20);
        c.reset();
      },
    ],
    [
      'right behind the answer',
      true,
      async (c) => {
        await c.reader.request();
        c.send(OK);
        await sleep(20);
        c.reset();
      },
    ],
  ])(
    'and reset the connection %s are a 502, a cut answer, or none of the client’s business',
    async (name, tls, script) => {
      const server = closeAfterTest(await startRawServer({ tls, script }));
      const own = closeAfterTest(await start({}, { 'bad.test': server.port }));
      const client = closeAfterTest(await secureClient(own.port, 'bad.test', { ca: own.ca }));
      client.send('POST /stage HTTP/1.1\r\nHost: bad.test\r\nContent-Length: 4\r\n\r\nbody');
      const response = await client.reader.response().catch(() => null);
      if (response !== null && name !== 'right behind the answer') expect(response.status).toBe(502);
      if (name === 'right behind the answer') expect(response?.body.toString()).toBe('hello');
      if (name.startsWith('right behind the head') || name.endsWith('of the body')) expect(response).toBeNull();
      const record = await own.waitForRecord((r) => r.path === '/stage');
      expect(record.outcome).toBe(name === 'right behind the answer' ? 'forwarded' : 'failed');
      await stillWorks(own);
    },
  );

  it('and drip their head are given up at the deadline for it', async () => {
    const server = closeAfterTest(
      await startRawServer({
        script: async (connection) => {
          await connection.reader.request();
          connection.send('HTTP/1.1 200 OK\r\n');
          while (!connection.socket.destroyed) {
            connection.send('X: y\r\n');
            await sleep(50);
          }
        },
      }),
    );
    const own = closeAfterTest(await start({ responseHeadMs: 400 }, { 'bad.test': server.port }));
    const client = closeAfterTest(await secureClient(own.port, 'bad.test', { ca: own.ca }));
    const response = await client.ask('GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n');
    expect(response.status).toBe(504);
    await until('the server’s connection to close', () => server.open === 0);
  });

  it('and send a head without end are cut off at the limit', async () => {
    const server = closeAfterTest(
      await startRawServer({
        script: async (connection) => {
          await connection.reader.request();
          connection.send(`HTTP/1.1 200 OK\r\nX: ${'y'.repeat(200_000)}`);
        },
      }),
    );
    const own = closeAfterTest(await start({}, { 'bad.test': server.port }));
    const client = closeAfterTest(await secureClient(own.port, 'bad.test', { ca: own.ca }));
    const response = await client.ask('GET / HTTP/1.1\r\nHost: bad.test\r\n\r\n');
    expect(response.status).toBe(502);
    expect(response.body.toString()).toContain('upstream_header_too_large');
  });

  it('and answer with a compressed bomb are passed on as they are when nobody looks inside', async () => {
    const secure = await tlsThrough(proxy.port, 'h1.test', { ca: proxy.ca });
    const client = closeAfterTest(rawClient(secure));
    const response = await client.ask('GET /gzip-bomb HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(response.status).toBe(200);
    expect(response.body.length).toBeLessThan(200_000);
  });

  it('and answer with a compressed bomb are denied when a rule has to look inside', async () => {
    const client = closeAfterTest(await secureClient(proxy.port, 'inspected.test', { ca: proxy.ca }));
    const response = await client.ask('GET /gzip-bomb HTTP/1.1\r\nHost: inspected.test\r\n\r\n');
    expect(response.status).toBeGreaterThanOrEqual(400);
    expect(response.body.toString()).toMatch(/inspection_incomplete|message_too_large|bad_encoding/);
    expect(await proxy.waitForRecord((r) => r.path === '/gzip-bomb' && r.host === 'inspected.test')).toMatchObject({
      verdict: 'deny',
    });
  });

  it('and send HTTP/2 garbage after agreeing on it are a 502', async () => {
    const server = closeAfterTest(
      await startRawServer({
        alpn: ['h2'],
        script: (connection) => connection.send('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello'),
      }),
    );
    const own = closeAfterTest(await start({}, { 'bad.test': server.port }));
    const over2 = closeAfterTest(await h2Through(own.port, 'bad.test', { ca: own.ca }));
    expect((await over2.ask({ ':path': '/' })).status).toBe(502);
    await stillWorks(own);
  });
});

describe('many', () => {
  function collectGarbage(): void {
    setFlagsFromString('--expose_gc');
    const collect: unknown = runInNewContext('gc');
    if (typeof collect === 'function') Reflect.apply(collect, undefined, []);
  }

  it('tunnels, 10,000 of them opened and dropped, leave nothing behind but their records', async () => {
    const own = closeAfterTest(await start());
    const open = async (count: number): Promise<void> => {
      for (let done = 0; done < count; done += 100) {
        const batch = await Promise.all(Array.from({ length: 100 }, () => connectThrough(own.port, 'h1.test:443')));
        for (const { response, socket } of batch) {
          expect(response.status).toBe(200);
          socket.destroy();
        }
      }
      await until('all to be gone', () => own.app.counts().tunnels === 0 && own.app.counts().connections === 0, 15_000);
    };
    await open(1000);
    collectGarbage();
    const before = process.memoryUsage().heapUsed;
    await within('10,000 tunnels', open(9000), 60_000);
    await until('all records', () => own.auditNow().split('\n').length - 1 === 10_000, 15_000);
    collectGarbage();
    expect(process.memoryUsage().heapUsed - before).toBeLessThan(24 * 1024 * 1024);
  }, 90_000);

  it('tunnels that are reset in the middle of their handshake leave nothing behind', async () => {
    const own = closeAfterTest(await start());
    for (let i = 0; i < 10; i++) {
      const sockets = await Promise.all(Array.from({ length: 20 }, () => connectThrough(own.port, `n${i}.test:443`)));
      for (const { socket } of sockets) {
        startTls(socket, `n${i}.test`, { ca: own.ca }).catch(() => undefined);
        setTimeout(() => socket.destroy(), Math.floor(i / 2));
      }
    }
    await until('all to be gone', () => own.app.counts().tunnels === 0 && own.app.counts().connections === 0);
    await stillWorks(own);
  });

  it('random beginnings of connections never stop the proxy', async () => {
    const beginnings = [
      'CONNECT h1.test:443 HTTP/1.1\r\n\r\n',
      'GET http://plain.test/ HTTP/1.1\r\n',
      '\x05\x01\x00',
      '\x16\x03\x01',
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    ];
    const seed = randomBytes(4000);
    for (let i = 0; i < 300; i++) {
      const socket = await tcp(proxy.port);
      const noise = seed.subarray(i * 10, i * 10 + ((seed[i] ?? 0) % 60));
      const beginning = Buffer.from(beginnings[i % beginnings.length] ?? '', 'latin1');
      socket.write(Buffer.concat([beginning.subarray(0, (seed[i + 1] ?? 0) % (beginning.length + 1)), noise]));
      socket.resume();
      setTimeout(() => socket.destroy(), (seed[i] ?? 0) % 30);
    }
    await until('all to be gone', () => proxy.app.counts().connections === 0).catch(() => {
      throw new Error(JSON.stringify(proxy.app.counts()) + seed.toString('base64'));
    });
    await stillWorks();
  });
});
