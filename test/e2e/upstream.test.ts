import { writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { connect as connectTcp, createServer as createTcpServer } from 'node:net';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { makeTestCa, testCa } from '../support/ca.ts';
import { makeClientCertificates } from '../support/client-certificates.ts';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { temporaryFolder } from '../support/folders.ts';
import { h2Through } from '../support/h2-client.ts';
import { startH2Origin } from '../support/h2-server.ts';
import type { H2Origin } from '../support/h2-server.ts';
import { closeServers, listen, startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { connectThrough, proxyClient, rawClient, secureClient, startTls, tcp } from '../support/raw-client.ts';
import { startRawServer } from '../support/raw-server.ts';
import { within } from '../support/waiting.ts';

const shared = closeAfterFile();
let origin: Origin;
let h2: H2Origin;

beforeAll(async () => {
  origin = shared(await startOrigin());
  h2 = shared(await startH2Origin());
});

/** A port on which nobody listens. */
async function deadPort(): Promise<number> {
  const server = createTcpServer();
  const port = await listen(server);
  await closeServers([server], []);
  return port;
}

/** Status and body of one request through a proxy. */
async function ask(proxy: TestProxy, host: string, path = '/'): Promise<{ status: number; text: string }> {
  const client = await secureClient(proxy.port, host, { ca: proxy.ca });
  const response = await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
  client.close();
  return { status: response.status, text: response.body.toString() };
}

describe('the certificate of a server', () => {
  it('of a CA that nobody trusts: 502 upstream_tls_untrusted, and the request is not sent', async () => {
    const strange = closeAfterTest(await makeTestCa());
    const server = closeAfterTest(await startOrigin({ ca: strange }));
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'untrusted.test': server.port } }),
    );
    const { status, text } = await ask(proxy, 'untrusted.test', '/untrusted');
    expect(status).toBe(502);
    expect(text).toContain('upstream_tls_untrusted');
    expect(server.requests).toHaveLength(0);
    const record = await proxy.waitForRecord((r) => r.path === '/untrusted');
    expect(record).toMatchObject({ outcome: 'failed', error: 'upstream_tls_untrusted', verdict: 'allow', status: 502 });
    expect(record.cause).toMatch(/UNABLE_TO|SELF_SIGNED|UNTRUSTED/i);
  });

  it('of a CA that upstream.ca adds is good', async () => {
    const strange = closeAfterTest(await makeTestCa());
    const server = closeAfterTest(await startOrigin({ ca: strange }));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'added.test': server.port },
        upstream: { ca: [strange.file] },
      }),
    );
    expect((await ask(proxy, 'added.test')).status).toBe(200);
  });

  it('for another name: 502 upstream_tls_name', async () => {
    const server = closeAfterTest(await startOrigin({ certificateFor: 'other.test' }));
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'named.test': server.port } }),
    );
    const { status, text } = await ask(proxy, 'named.test');
    expect(status).toBe(502);
    expect(text).toContain('upstream_tls_name');
    expect(server.requests).toHaveLength(0);
  });

  it('that has expired: 502, and the cause says so', async () => {
    const old = closeAfterTest(await makeTestCa(() => Date.now() - 800 * 24 * 3_600_000));
    const server = closeAfterTest(await startOrigin({ ca: old }));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'expired.test': server.port },
        upstream: { ca: [old.file] },
      }),
    );
    const { status, text } = await ask(proxy, 'expired.test', '/expired');
    expect(status).toBe(502);
    expect(text).toMatch(/upstream_tls_(untrusted|failed)/);
    expect((await proxy.waitForRecord((r) => r.path === '/expired')).cause).toContain('EXPIRED');
  });

  it('is missing, because the server speaks no TLS: 502 upstream_tls_failed', async () => {
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'no-tls.test': origin.plainPort } }),
    );
    const { status, text } = await ask(proxy, 'no-tls.test');
    expect(status).toBe(502);
    expect(text).toContain('upstream_tls_failed');
  });

  it('carries the name of the tunnel as SNI', async () => {
    const proxy = closeAfterTest(await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'sni.test': origin.port } }));
    await ask(proxy, 'sni.test', '/with-sni');
    expect(origin.only('/with-sni').sni).toBe('sni.test');
  });
});

describe('a server that cannot be reached', () => {
  it('because nobody listens: 502 connect_refused', async () => {
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'dead.test': await deadPort() } }),
    );
    const { status, text } = await ask(proxy, 'dead.test', '/dead');
    expect(status).toBe(502);
    expect(text).toContain('connect_refused');
    expect(await proxy.waitForRecord((r) => r.path === '/dead')).toMatchObject({
      error: 'connect_refused',
      outcome: 'failed',
    });
  });

  it('because its name does not exist: 502 dns_failed', async () => {
    const proxy = closeAfterTest(
      await startProxy({
        rules:
          'rules:\n  - id: a\n    description: a name without an address\n    match: { host: nowhere.invalid }\n    action: allow\n',
      }),
    );
    const { status, text } = await ask(proxy, 'nowhere.invalid', '/nowhere');
    expect([502, 504]).toContain(status);
    expect(text).toMatch(/dns_(failed|timeout)/);
  });

  it('because it never finishes the TLS handshake: a 50x after the deadline', async () => {
    const server = closeAfterTest(await startRawServer({ tls: false, script: () => undefined }));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'mute.test': server.port },
        limits: { connectMs: 500, handshakeMs: 500 },
      }),
    );
    const { status, text } = await ask(proxy, 'mute.test');
    expect([502, 504]).toContain(status);
    expect(text).toMatch(/connect_timeout|upstream_tls_failed/);
  });

  it('because it never answers: 504 upstream_timeout after the deadline', async () => {
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'h1.test': origin.port, 'h2.test': h2.port },
        limits: { responseHeadMs: 300 },
      }),
    );
    const { status, text } = await ask(proxy, 'h1.test', '/never');
    expect(status).toBe(504);
    expect(text).toContain('upstream_timeout');
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    expect((await over2.ask({ ':path': '/never' })).status).toBe(504);
  });

  it('in the clear gets the same answers', async () => {
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'dead.test': await deadPort() } }),
    );
    const client = closeAfterTest(await proxyClient(proxy.port));
    const response = await client.ask('GET http://dead.test/ HTTP/1.1\r\nHost: dead.test\r\n\r\n');
    expect(response.status).toBe(502);
    expect(response.body.toString()).toContain('connect_refused');
  });
});

describe('an address that is not allowed', () => {
  const RULES =
    'rules:\n  - id: all\n    description: every name; the addresses are what is tested\n    match: { host: ["*.test", 127.0.0.1, 10.0.0.1, 169.254.169.254, localhost, "::1"] }\n    action: allow\n';

  it.each([
    ['loopback', '127.0.0.1'],
    ['private', '10.0.0.1'],
    ['private', '192.168.1.1'],
    ['link-local, where clouds keep credentials', '169.254.169.254'],
    ['shared', '100.64.0.1'],
    ['this network', '0.0.0.0'],
    ['multicast', '224.0.0.1'],
    ['IPv6 loopback', '::1'],
    ['IPv6 unique local', 'fd00::1'],
    ['IPv6 link-local', 'fe80::1'],
    ['NAT64 of a private one', '64:ff9b::a00:1'],
    ['6to4 of a private one', '2002:a00:1::'],
  ])('(%s) is refused behind a harmless name: %s', async (_what, address) => {
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'harmless.test': address }, allow: [] }));
    const { status, text } = await ask(proxy, 'harmless.test', '/address');
    expect(status).toBe(403);
    expect(text).toContain('address_denied');
    expect(await proxy.waitForRecord((r) => r.path === '/address')).toMatchObject({
      verdict: 'deny',
      reason: 'address_denied',
      outcome: 'denied',
    });
  });

  it('is refused as a literal too, even if a rule names it', async () => {
    const proxy = closeAfterTest(await startProxy({ rules: RULES, allow: [] }));
    const client = closeAfterTest(await proxyClient(proxy.port));
    for (const host of ['127.0.0.1', '169.254.169.254', '[::1]']) {
      const response = await client.ask(`GET http://${host}/ HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
      expect(response.status).toBe(403);
      expect(response.body.toString()).toContain('address_denied');
    }
  });

  it('is our own listener, even if the range is allowed', async () => {
    const proxy = closeAfterTest(await startProxy({ rules: RULES }));
    const client = closeAfterTest(await proxyClient(proxy.port));
    for (const port of [proxy.port, proxy.adminPort]) {
      const response = await client.ask(
        `GET http://127.0.0.1:${port}/healthz HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\n\r\n`,
      );
      expect(response.status).toBe(403);
      expect(response.body.toString()).toContain('address_denied');
    }
  });
});

describe('HTTP/1.1 and HTTP/2', () => {
  it.each([
    ['1.1', 'h1.test', 'http/1.1'],
    ['1.1', 'h2.test', 'h2'],
    ['2', 'h1.test', 'http/1.1'],
    ['2', 'h2.test', 'h2'],
  ])('HTTP/%s from the agent to %s is %s upstream', async (version, host, upstream) => {
    const proxy = closeAfterTest(
      await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'h1.test': origin.port, 'h2.test': h2.port } }),
    );
    const path = `/translated-${version}-${host}`;
    if (version === '2') {
      const over2 = closeAfterTest(await h2Through(proxy.port, host, { ca: proxy.ca }));
      const answer = await over2.ask({ ':path': path, 'x-kept': 'yes' }, 'body');
      expect(answer.status).toBe(200);
      expect(JSON.parse(answer.body.toString())).toMatchObject({ method: 'POST', bodyBytes: 4 });
    } else {
      const client = closeAfterTest(await secureClient(proxy.port, host, { ca: proxy.ca }));
      const response = await client.ask(
        `POST ${path} HTTP/1.1\r\nHost: ${host}\r\nX-Kept: yes\r\nContent-Length: 4\r\n\r\nbody`,
      );
      expect(response.status).toBe(200);
      expect(JSON.parse(response.body.toString())).toMatchObject({ method: 'POST', bodyBytes: 4 });
    }
    expect(await proxy.waitForRecord((r) => r.path === path)).toMatchObject({ upstream_alpn: upstream });
  });
});

/** A proxy that takes CONNECT and remembers what it was asked. */
async function startParent(
  credentials: string | null,
): Promise<{ port: number; asked: string[]; close(): Promise<void> }> {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((_request, response) => {
    response.writeHead(405);
    response.end();
  });
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.on('connect', (request, socket: Socket, head: Buffer) => {
    socket.on('error', () => undefined);
    asked.push(`${request.url ?? ''} ${request.headers['proxy-authorization'] ?? '-'}`);
    if (
      credentials !== null &&
      request.headers['proxy-authorization'] !== `Basic ${Buffer.from(credentials).toString('base64')}`
    ) {
      socket.end('HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n');
      return;
    }
    const port = (request.url ?? '').endsWith(':80') ? origin.plainPort : origin.port;
    const server = connectTcp({ port, host: '127.0.0.1' }, () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      server.write(head);
      socket.pipe(server);
      server.pipe(socket);
    });
    sockets.add(server);
    server.on('error', () => socket.destroy());
  });
  const port = await listen(server);
  return { port, asked, close: () => closeServers([server], sockets) };
}

describe('an upstream proxy', () => {
  it.each([
    ['without credentials', null],
    ['with credentials', ['user', 'pass'].join(':')],
  ])('%s carries https and http', async (_name, credentials) => {
    const parent = closeAfterTest(await startParent(credentials));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        upstream: { proxy: { host: '127.0.0.1', port: parent.port, tls: false, credentials } },
      }),
    );
    expect((await ask(proxy, 'far.test')).status).toBe(200);
    const plain = closeAfterTest(await proxyClient(proxy.port));
    expect((await plain.ask('GET http://far.test/ HTTP/1.1\r\nHost: far.test\r\n\r\n')).status).toBe(200);
    const basic = credentials === null ? '-' : `Basic ${Buffer.from(credentials).toString('base64')}`;
    expect(parent.asked).toEqual([`far.test:443 ${basic}`, `far.test:80 ${basic}`]);
  });

  it('that refuses is a 502 upstream_proxy_failed with its status as the cause', async () => {
    const parent = closeAfterTest(await startParent('needs:this'));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        upstream: { proxy: { host: '127.0.0.1', port: parent.port, tls: false, credentials: null } },
      }),
    );
    const { status, text } = await ask(proxy, 'far.test', '/parent-refuses');
    expect(status).toBe(502);
    expect(text).toContain('upstream_proxy_failed');
    expect((await proxy.waitForRecord((r) => r.path === '/parent-refuses')).cause).toContain('407');
  });
});

describe('a client certificate', () => {
  it('is shown to the hosts it is for, and to no other', async () => {
    const certificates = makeClientCertificates();
    const folder = closeAfterTest(temporaryFolder());
    const leaf = certificates.issue('client.test');
    const cert = join(folder.path, 'client.pem');
    const key = join(folder.path, 'client.key');
    writeFileSync(cert, leaf.cert);
    writeFileSync(key, leaf.key, { mode: 0o600 });
    const server = closeAfterTest(await startOrigin({ clientCa: certificates.ca }));
    const proxy = closeAfterTest(
      await startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'api.mutual.test': server.port, 'other.test': server.port },
        upstream: { clientCertificates: [{ host: '*.mutual.test', cert, key }] },
      }),
    );
    expect((await ask(proxy, 'api.mutual.test')).status).toBe(200);
    expect((await ask(proxy, 'other.test')).status).toBe(502);
  });
});

describe('a host that pins its certificate (intercept: false)', () => {
  const RULES = `
rules:
  - id: pinned
    description: judged by CONNECT and SNI alone
    match: { host: pinned.test }
    intercept: false
    action: allow
  - id: rest
    description: all others
    match: { host: h1.test }
    action: allow
`;

  it('is carried untouched: the client sees the certificate of the server', async () => {
    const ca = await testCa();
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'pinned.test': origin.port } }));
    const client = await secureClient(proxy.port, 'pinned.test', { ca: ca.pem });
    expect((await client.ask('GET /pinned HTTP/1.1\r\nHost: pinned.test\r\n\r\n')).status).toBe(200);
    client.close();
    const record = await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.host === 'pinned.test');
    expect(record).toMatchObject({
      tunnel_mode: 'passthrough',
      sni: 'pinned.test',
      verdict: 'allow',
      rules: ['pinned'],
      upstream_address: '127.0.0.1',
    });
    expect(record.bytes_in).toBeGreaterThan(0);
    expect(proxy.recordsNow().filter((r) => r.kind === 'exchange')).toEqual([]);
  });

  it.each([
    ['another server name', 'h1.test'],
    ['no server name', null],
  ])('is refused with %s in the handshake', async (_name, servername) => {
    const ca = await testCa();
    const before = origin.requests.length;
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'pinned.test': origin.port } }));
    const { socket } = await connectThrough(proxy.port, 'pinned.test:443');
    await expect(
      startTls(socket, 'pinned.test', { ca: ca.pem, servername, rejectUnauthorized: false }),
    ).rejects.toThrow();
    await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.verdict === 'deny' && /^sni_/.test(r.reason));
    expect(origin.requests.length).toBe(before);
  });

  it('is refused with an encrypted ClientHello, which may name another server', async () => {
    const before = origin.requests.length;
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'pinned.test': origin.port } }));
    const { socket } = await connectThrough(proxy.port, 'pinned.test:443');
    socket.write(helloWith('pinned.test', 0xfe0d));
    await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.verdict === 'deny' && r.reason === 'ech_not_supported');
    socket.destroy();
    expect(origin.requests.length).toBe(before);
  });

  it('carries nothing that is not TLS', async () => {
    const server = closeAfterTest(await startRawServer({ tls: false, script: () => undefined }));
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'pinned.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'pinned.test:443');
    const client = closeAfterTest(rawClient(socket));
    client.send('GET / HTTP/1.1\r\nHost: pinned.test\r\n\r\n');
    await client.reader.toEnd();
    expect(Buffer.concat(server.received).length).toBe(0);
  });

  it('that cannot be reached is a 502 to CONNECT', async () => {
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'pinned.test': await deadPort() } }));
    const { response, socket } = await connectThrough(proxy.port, 'pinned.test:443');
    socket.destroy();
    expect(response.status).toBe(502);
    expect(response.body.toString()).toContain('connect_refused');
  });
});

describe('bytes that are neither TLS nor HTTP', () => {
  const RULES = `
rules:
  - id: ssh
    description: one host and port may be raw
    match: { host: raw.test, port: 22, protocol: raw }
    action: allow
  - id: web
    description: the same host for the web
    match: { host: raw.test }
    action: allow
`;
  const echo = (): ReturnType<typeof startRawServer> =>
    startRawServer({ tls: false, script: (connection) => void connection.socket.pipe(connection.socket) });

  it('pass where a rule allows host and port as raw, in both directions', async () => {
    const server = closeAfterTest(await echo());
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'raw.test:22');
    const client = rawClient(socket);
    client.send('\x00\x01SSH-2.0-test\r\n');
    expect((await client.reader.bytes(16)).toString('latin1')).toBe('\x00\x01SSH-2.0-test\r\n');
    client.close();
    expect(await proxy.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({
      tunnel_mode: 'raw',
      verdict: 'allow',
      rules: ['ssh'],
    });
  });

  it('are denied on another port, dialed nowhere, and recorded', async () => {
    const server = closeAfterTest(await echo());
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'raw.test:443');
    const client = closeAfterTest(rawClient(socket));
    client.send('\x00\x01SSH-2.0-test\r\n');
    expect((await client.reader.toEnd()).length).toBe(0);
    expect(await proxy.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({
      verdict: 'deny',
      reason: 'raw_not_allowed',
    });
    expect(server.connections).toHaveLength(0);
  });

  it('get through when the server speaks first', async () => {
    const server = closeAfterTest(
      await startRawServer({ tls: false, script: (connection) => connection.send('SSH-2.0-server\r\n') }),
    );
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'raw.test:22');
    const client = closeAfterTest(rawClient(socket));
    expect((await client.reader.bytes(16)).toString()).toBe('SSH-2.0-server\r\n');
  });

  it('keep their half-close', async () => {
    const server = closeAfterTest(
      await startRawServer({
        tls: false,
        script: async (connection) => {
          const all = await connection.reader.toEnd();
          connection.socket.end(`got ${all.length}`);
        },
      }),
    );
    const proxy = closeAfterTest(await startProxy({ rules: RULES, hosts: { 'raw.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'raw.test:22', {
      socket: await tcp(proxy.port, { allowHalfOpen: true }),
    });
    const client = closeAfterTest(rawClient(socket));
    client.socket.end('\x00\x00\x00');
    expect((await within('the answer', client.reader.toEnd())).toString()).toBe('got 3');
  });
});

/** A ClientHello with this server name and one more extension of 32 bytes. */
function helloWith(name: string, extension: number): Buffer {
  const u16 = (value: number): Buffer => Buffer.of(value >> 8, value & 255);
  const sized = (body: Buffer): Buffer => Buffer.concat([u16(body.length), body]);
  const serverName = sized(Buffer.concat([Buffer.of(0), sized(Buffer.from(name))]));
  const extensions = Buffer.concat([u16(0), sized(serverName), u16(extension), sized(Buffer.alloc(32, 1))]);
  const body = Buffer.concat([
    u16(0x0303),
    Buffer.alloc(32, 7),
    Buffer.of(0),
    sized(u16(0x1301)),
    Buffer.of(1, 0),
    sized(extensions),
  ]);
  const message = Buffer.concat([Buffer.of(1, 0), sized(body)]);
  return Buffer.concat([Buffer.of(22, 3, 1), sized(message)]);
}
