import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { gzipSync } from 'node:zlib';
import { beforeAll, describe, expect, it } from 'vitest';
import { hashPassword } from '../../src/agents/password-hash.ts';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy, TestProxyOptions } from '../support/proxy.ts';
import { basicLine, connectThrough, proxyClient, rawClient, tcp } from '../support/raw-client.ts';
import type { RawClient } from '../support/raw-client.ts';
import { frame2, headersFrame, rawH2 } from '../support/raw-h2.ts';
import { answering, startRawServer } from '../support/raw-server.ts';
import type { RawConnection, RawServer } from '../support/raw-server.ts';
import { until } from '../support/waiting.ts';

const RULES = `
rules:
  - id: web
    description: requests to every name of the tests
    match: { host: ["*.test"], protocol: http }
    action: allow
  - id: reads-bodies
    description: makes the proxy look into bodies
    match: { host: [inspected.test, late.test] }
    if: 'has(message.text) && message.text.contains("forbidden")'
    action: deny
  - id: no-post
    description: one path may only be read
    match: { path: /read-only, method: POST }
    action: deny
`;
const KILOBYTE = 1024;
const MEGABYTE = 1024 * KILOBYTE;

const shared = closeAfterFile();
let origin: Origin;
let proxy: TestProxy;

beforeAll(async () => {
  origin = shared(await startOrigin());
  proxy = shared(await start({ messageBytes: 64 * KILOBYTE }));
});

function start(limits: TestProxyOptions['limits'] = {}, more: Partial<TestProxyOptions> = {}): Promise<TestProxy> {
  const { plainPort, port } = origin;
  return startProxy({
    rules: RULES,
    limits,
    ...more,
    hosts: { 'plain.test': plainPort, 'inspected.test': plainPort, 'h1.test': port, ...more.hosts },
  });
}

/** A server in the clear that follows a script. */
async function scripted(script: (connection: RawConnection) => Promise<void> | void): Promise<RawServer> {
  return closeAfterTest(await startRawServer({ tls: false, script }));
}

async function client(which: TestProxy = proxy): Promise<RawClient> {
  return closeAfterTest(await proxyClient(which.port, { allowHalfOpen: true }));
}

const get = (host: string, path: string): string => `GET http://${host}${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`;
const post = (host: string, path: string, headers: string, body: string | Buffer): Buffer =>
  Buffer.concat([
    Buffer.from(`POST http://${host}${path} HTTP/1.1\r\nHost: ${host}\r\n${headers}\r\n`, 'latin1'),
    Buffer.from(body),
  ]);
const SHORT = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

describe('a body that a rule reads', () => {
  const packed = gzipSync('this is forbidden');
  const events = Array.from({ length: 200 }, (_, i) => `data: ${String(i).padEnd(1000, '.')}\n\n`).join('');
  const chunked = 'Transfer-Encoding: chunked\r\n';

  it.each<readonly [string, string, Buffer, RegExp]>([
    [
      'compressed behind a second Content-Encoding',
      '/second-encoding',
      post(
        'inspected.test',
        '/second-encoding',
        `Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: ${packed.length}\r\n`,
        packed,
      ),
      /inspection_incomplete/,
    ],
    [
      'with its secret in a trailer',
      '/trailer',
      post('inspected.test', '/trailer', chunked, '2\r\nok\r\n0\r\nX-Note: forbidden\r\n\r\n'),
      /inspection_incomplete/,
    ],
    [
      'called an event stream, and larger than may be held',
      '/events',
      post(
        'inspected.test',
        '/events',
        `Content-Type: text/event-stream\r\nContent-Length: ${events.length}\r\n`,
        events,
      ),
      /message_too_large/,
    ],
    [
      'with two media types',
      '/two-types',
      post(
        'inspected.test',
        '/two-types',
        'Content-Type: text/plain\r\nContent-Type: text/html\r\nContent-Length: 2\r\n',
        'ok',
      ),
      /bad_header/,
    ],
  ])('does not pass %s', async (_name, path, request, reason) => {
    const agent = await client();
    const answer = await agent.ask(request);
    expect(answer.body.toString()).toMatch(reason);
    expect(await proxy.waitForRecord((r) => r.path === path)).toMatchObject({ verdict: 'deny', outcome: 'denied' });
    expect(origin.requests.filter(({ url }) => url === path)).toEqual([]);
  });

  it('costs little more memory than its size when it comes one byte at a time', async () => {
    const own = closeAfterTest(await start({ messageBytes: 4 * MEGABYTE }));
    const agent = await client(own);
    const before = heapInUse();
    agent.send(post('inspected.test', '/drops', chunked, ''));
    const some = Buffer.from('1\r\nx\r\n'.repeat(10_000));
    for (let i = 0; i < 40; i++) {
      if (!agent.socket.write(some)) await new Promise((resolve) => agent.socket.once('drain', resolve));
    }
    await until('all of it to be read', () => agent.socket.writableLength === 0);
    await sleep(200);
    expect(heapInUse() - before).toBeLessThan(16 * MEGABYTE);
    agent.send('0\r\n\r\n');
    expect((await agent.reader.response()).status).toBe(200);
    expect(origin.only('/drops').bodyBytes).toBe(400_000);
  });

  it('is refused when too many others are held already, and they pass', async () => {
    const own = closeAfterTest(await start({ messageBytes: MEGABYTE }));
    const body = Buffer.alloc(MEGABYTE - 1, 'x');
    const agents = await Promise.all(Array.from({ length: 40 }, () => client(own)));
    const head = `Content-Length: ${body.length + 1}\r\n`;
    for (const agent of agents) agent.send(post('inspected.test', '/held', head, body));
    const isRefused = (agent: RawClient): boolean => agent.reader.held.length > 0;
    await until('one of them to be refused', () => agents.some(isRefused));
    for (const agent of agents) agent.send('x');
    const answers = await Promise.all(agents.map((agent) => agent.reader.response()));
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200, 503]));
    for (const agent of agents) agent.close();
    await until('all to end', () => own.app.counts().exchanges === 0);
    expect(
      (await (await client(own)).ask(post('inspected.test', '/after', 'Content-Length: 2\r\n', 'ok'))).status,
    ).toBe(200);
  });

  it('is judged by a rule that came while it was under way', async () => {
    const server = await scripted(async (connection) => {
      await connection.reader.request();
      connection.send('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: one\n\n');
    });
    const before = RULES.replace(', late.test', '');
    const own = closeAfterTest(await start({}, { rules: before, hosts: { 'late.test': server.port } }));
    const agent = await client(own);
    agent.send(get('late.test', '/stream'));
    await agent.reader.upTo('one\n\n', 'the first event');
    own.writeRules(RULES);
    await own.app.reload();
    server.connections[0]?.send('data: forbidden\n\n');
    server.connections[0]?.socket.end();
    expect((await agent.reader.toEnd()).toString()).not.toContain('forbidden');
    expect(await own.waitForRecord((r) => r.path === '/stream')).toMatchObject({ verdict: 'deny' });
  });
});

describe('a request', () => {
  it('cannot be gRPC for the server and something else for the rules', async () => {
    const over2 = closeAfterTest(await rawH2(proxy.port, 'h1.test', proxy.ca));
    over2.send(
      headersFrame(
        1,
        [
          [':method', 'POST'],
          [':scheme', 'https'],
          [':authority', 'h1.test'],
          [':path', '/package.Service/TwoTypes'],
          ['content-type', 'text/plain'],
          ['content-type', 'application/grpc'],
        ],
        { endStream: false },
      ),
    );
    over2.send(frame2(0, 1, 1, Buffer.alloc(5)));
    const outcome = await over2.outcomeOf(1);
    expect(outcome.kind === 'answer' ? outcome.status : 'reset').not.toBe(200);
    expect(origin.requests.some(({ url }) => url.includes('TwoTypes'))).toBe(false);
  });

  it.each(['POST', 'post', 'Post'])('cannot get around a rule about POST as %s', async (method) => {
    const agent = await client();
    const answer = await agent.ask(`${method} http://plain.test/read-only HTTP/1.1\r\nHost: plain.test\r\n\r\n`);
    expect(answer.body.toString()).toContain('denied_by_rule');
  });
});

describe('a tunnel to a host that may be raw', () => {
  const RAW = `${RULES}
  - id: raw
    description: any port, as a careless operator writes it
    match: { host: raw.test, protocol: raw }
    action: allow
  - id: secret
    description: and yet there is something to protect
    match: { host: raw.test, path: /secret }
    action: deny
`;
  const SECRET = 'GET /secret HTTP/1.1\r\nHost: raw.test:8000\r\n\r\n';
  const hello = Buffer.from('16030100050100000100', 'hex');
  const oddHello = Buffer.from('16030500050100000100', 'hex');

  it.each<readonly [string, readonly (string | Buffer)[]]>([
    ['after a silence', [SECRET]],
    ['in two halves with a silence between', ['GE', SECRET.slice(2)]],
    ['one byte after the other', ['G', 'E', 'T', ' ', SECRET.slice(4)]],
    ['after an empty line and a silence', ['\r\n', SECRET]],
    ['after a bare LF', [`\n${SECRET}`]],
    ['after two bare CR', [`\r\r\n${SECRET}`]],
    ['as HTTP/0.9', ['', 'GET /secret\r\n']],
    ['as TLS after a silence', ['', hello]],
    ['as TLS of an unknown version', [oddHello]],
    ['as TLS behind a warning', [Buffer.concat([Buffer.from('15030100020100', 'hex'), hello])]],
  ])('carries no HTTP or TLS unseen %s', async (name, pieces) => {
    const server = await scripted(() => undefined);
    const own = closeAfterTest(
      await start({ handshakeMs: 2000, headMs: 1000 }, { rules: RAW, hosts: { 'raw.test': server.port } }),
    );
    const { socket } = await connectThrough(own.port, 'raw.test:8000');
    const agent = closeAfterTest(rawClient(socket));
    for (const [i, piece] of pieces.entries()) {
      // Longer than a tunnel waits for the first word of the agent.
      if (i > 0 || name.endsWith('after a silence')) await sleep(700);
      agent.send(piece);
    }
    await own.waitForRecord((r) => r.host === 'raw.test' && (r.outcome === 'denied' || r.outcome === 'failed'));
    expect(Buffer.concat(server.received).length).toBe(0);
  });

  it('is still judged as HTTP when the agent only took its time', async () => {
    const server = await scripted(answering(SHORT));
    const own = closeAfterTest(await start({}, { rules: RAW, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(own.port, 'raw.test:8000');
    const agent = closeAfterTest(rawClient(socket));
    await until('the server to be dialed', () => server.connections.length > 0);
    const answer = await agent.ask('GET /late HTTP/1.1\r\nHost: raw.test:8000\r\n\r\n');
    expect(answer.status).toBe(200);
    expect(await own.waitForRecord((r) => r.path === '/late')).toMatchObject({ verdict: 'allow' });
  });

  it.each<readonly [string, string]>([
    ['commands that look a little like HTTP', 'EHLO agent.test\r\n'],
    ['anything', 'GET /x HTTP/1.1\r\n'],
  ])('takes %s after the server has spoken', async (_name, words) => {
    const server = await scripted((connection) => connection.send('220 ready\r\n'));
    const own = closeAfterTest(await start({}, { rules: RAW, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(own.port, 'raw.test:8000');
    const agent = closeAfterTest(rawClient(socket));
    expect((await agent.reader.bytes(11)).toString()).toBe('220 ready\r\n');
    agent.send(words);
    await until('the command', () => server.received[0]?.toString() === words);
  });
});

describe('an agent that leaves', () => {
  const PINNED = `${RULES}
  - id: pinned
    description: carried as it is
    match: { host: pinned.test }
    intercept: false
    action: allow
  - id: raw
    description: neither TLS nor HTTP
    match: { host: raw.test, protocol: raw }
    action: allow
`;

  it.each<readonly [string, string]>([
    ['a passthrough tunnel', 'CONNECT pinned.test:443 HTTP/1.1\r\n\r\n'],
    ['a raw tunnel', 'CONNECT raw.test:7 HTTP/1.1\r\n\r\n\x00\x01'],
    ['a request', get('plain.test', '/left')],
  ])('takes the dial for %s with it', async (name, request) => {
    // A proxy that never answers: the dial lasts as long as it may.
    const silent = await scripted(({ socket }) => void socket.on('end', () => socket.destroy()));
    const upstream = { proxy: { host: '127.0.0.1', port: silent.port, tls: false, credentials: null } };
    const own = closeAfterTest(await start({ connectMs: 60_000 }, { rules: PINNED, upstream }));
    const agent = await client(own);
    agent.send(request);
    await until('the dial', () => silent.open === 1);
    // Of a raw tunnel the end of sending may only be half of it.
    if (name === 'a raw tunnel') agent.socket.resetAndDestroy();
    else agent.close();
    await until('the dial to be given up', () => silent.open === 0);
    expect((await own.records()).at(-1)).toMatchObject({ outcome: 'aborted' });
  });

  it('leaves the queue for a connection, which then is not made for nobody', async () => {
    const server = await scripted(async (connection) => {
      await connection.reader.request();
    });
    const own = closeAfterTest(
      await start({ upstreamConnectionsPerOrigin: 1 }, { hosts: { 'busy.test': server.port } }),
    );
    const [first, second] = [await client(own), await client(own)];
    first.send(get('busy.test', '/first'));
    await until('the only connection to be busy', () => server.connections.length === 1);
    second.send(get('busy.test', '/second'));
    await until('the second to wait', () => own.app.counts().exchanges === 2);
    second.close();
    await own.waitForRecord((r) => r.path === '/second');
    server.connections[0]?.reset();
    expect((await first.reader.response()).status).toBe(502);
    expect((await (await client(own)).ask(get('plain.test', '/settled'))).status).toBe(200);
    expect(server.connections).toHaveLength(1);
  });

  it('while its password is looked at leaves a record, and nothing of it is sent', async () => {
    const password = ['pass', 'word', String(6 * 7)].join('-');
    // Dear enough that the agent is gone before it is known.
    const hash = await hashPassword(password, { N: 131_072, r: 8, p: 4 });
    const agents = `version: 1\nagents:\n  - id: builder\n    credentials: [{ username: builder, hash: '${hash}' }]\n`;
    const own = closeAfterTest(await start({}, { agents }));
    const line = basicLine(`builder:${password}`);
    const one = await client(own);
    one.send(`GET http://plain.test/gone-1 HTTP/1.1\r\nHost: plain.test\r\n${line}\r\n`);
    const other = await client(own);
    other.send(`CONNECT plain.test:80 HTTP/1.1\r\n${line}\r\nGET /gone-2 HTTP/1.1\r\nHost: plain.test\r\n\r\n`);
    await sleep(50);
    one.socket.resetAndDestroy();
    other.socket.resetAndDestroy();
    await until('both to be gone', () => own.app.counts().connections === 0);
    expect(await own.waitForRecord((r) => r.kind === 'exchange')).toMatchObject({ error: 'client_aborted' });
    expect(await own.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({ outcome: 'aborted' });
    expect(own.app.counts().tunnels).toBe(0);
    expect(origin.requests.filter(({ url }) => url.startsWith('/gone'))).toEqual([]);
  });

  it('never, and asks for a tunnel in a tunnel, is disconnected all the same', async () => {
    const { response, socket } = await connectThrough(proxy.port, 'plain.test:80', {
      socket: await tcp(proxy.port, { allowHalfOpen: true }),
    });
    expect(response.status).toBe(200);
    const agent = closeAfterTest(rawClient(socket));
    expect((await agent.ask('CONNECT other.test:443 HTTP/1.1\r\n\r\n')).status).toBe(405);
    const { localPort } = socket;
    agent.socket.pause();
    await until('the socket to be closed', () => socket.destroyed || proxy.app.counts().connections === 0);
    expect(localPort).toBeGreaterThan(0);
  });
});

describe('a server', () => {
  it.each<readonly [string, string]>([
    ['a second answer', `${SHORT}${SHORT}`],
    ['a body for 204', 'HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil'],
    ['one byte too many', `${SHORT}x`],
  ])('that sends %s harms nobody who waits for its connection', async (_name, bytes) => {
    const server = await scripted(answering(bytes));
    const own = closeAfterTest(
      await start({ upstreamConnectionsPerOrigin: 1 }, { hosts: { 'bad.test': server.port } }),
    );
    const agents = await Promise.all(Array.from({ length: 4 }, () => client(own)));
    const answers = await Promise.all(agents.map((agent, i) => agent.ask(get('bad.test', `/waits-${i}`))));
    for (const answer of answers) {
      expect([200, 204]).toContain(answer.status);
      expect(answer.body.toString()).not.toContain('evil');
    }
    await until('all to end', () => own.app.counts().exchanges === 0);
  });

  it('of many names does not make us keep a connection for each of them', async () => {
    const hosts = Object.fromEntries(Array.from({ length: 12 }, (_, i) => [`n${i}.test`, origin.plainPort]));
    const own = closeAfterTest(await start({ connections: 4 }, { rules: ALLOW_ALL_TEST_HOSTS, hosts }));
    const agent = await client(own);
    for (const host of Object.keys(hosts)) expect((await agent.ask(get(host, '/many'))).status).toBe(200);
    await until('no more than there may be agents', () => own.app.counts().upstreams <= 4);
    expect((await agent.ask(get('n11.test', '/many'))).status).toBe(200);
  });
});

function heapInUse(): number {
  setFlagsFromString('--expose_gc');
  const collect: unknown = runInNewContext('gc');
  if (typeof collect === 'function') Reflect.apply(collect, undefined, []);
  return process.memoryUsage().heapUsed;
}
