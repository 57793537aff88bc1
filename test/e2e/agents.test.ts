import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import type { TLSSocket } from 'node:tls';
import { X509Certificate } from 'node:crypto';
import { beforeAll, describe, expect, it } from 'vitest';
import { hashPassword } from '../../src/agents/password-hash.ts';
import { testCa } from '../support/ca.ts';
import { makeClientCertificates } from '../support/client-certificates.ts';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { startProxy } from '../support/proxy.ts';
import type { AuditRecord, TestProxy } from '../support/proxy.ts';
import { basicLine, connectThrough, proxyClient, rawClient, secureClient, startTls } from '../support/raw-client.ts';
import { socksConnect } from '../support/socks-client.ts';
import { temporaryFolder } from '../support/folders.ts';
import { within } from '../support/waiting.ts';
import { valuesOf } from '../support/wire-reader.ts';

const RULES = `
version: 1
rules:
  - id: everybody
    description: all agents may read
    match: { host: [h1.test, plain.test] }
    action: allow
  - id: only-builders
    description: this host is for one agent
    agents: [builder]
    match: { host: builders.test }
    action: allow
  - id: only-team
    description: this host is for a team
    agents: ["label:team=red"]
    match: { host: team.test }
    action: allow
`;

/** Put together at run time: no scanner should find it. */
const PASSWORD = ['correct', 'horse', String(40 + 2)].join('-');

const shared = closeAfterFile();
let origin: Origin;
let proxy: TestProxy;
let tlsPort: number;
let sharedPort: number;
let ownPort: number;
let clientCertificate: { key: string; cert: string };
let pinnedCertificate: { key: string; cert: string };
let strangeCertificate: { key: string; cert: string };

beforeAll(async () => {
  const ca = await testCa();
  origin = shared(await startOrigin());
  const folder = shared(temporaryFolder());
  const server = await ca.leaf('proxy.test');
  const file = (name: string, text: string): string => {
    const path = join(folder.path, name);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  };
  const certificates = makeClientCertificates();
  clientCertificate = certificates.issue('robot.agents.test');
  strangeCertificate = certificates.issue('stranger.agents.test');
  pinnedCertificate = certificates.issue('somebody.agents.test');
  const sha256 = new X509Certificate(pinnedCertificate.cert).fingerprint256;
  const tls = {
    cert: file('proxy.pem', server.cert),
    key: file('proxy.key', server.key),
    clientCa: file('agents-ca.pem', certificates.ca),
    requireClientCertificate: false,
  };
  const hash = await hashPassword(PASSWORD, { N: 1024, r: 8, p: 1 });
  proxy = shared(
    await startProxy({
      rules: RULES,
      hosts: {
        'h1.test': origin.port,
        'plain.test': origin.plainPort,
        'builders.test': origin.port,
        'team.test': origin.port,
      },
      listeners: [
        { name: 'proxy', host: '127.0.0.1', port: 0, tls: null },
        { name: 'secure', host: '127.0.0.1', port: 0, tls },
        { name: 'sandbox', host: '127.0.0.1', port: 0, tls: null },
        { name: 'by-source', host: '::1', port: 0, tls: null },
      ],
      agents: `version: 1
agents:
  - id: builder
    name: Build robot
    credentials: [{ username: builder, hash: "${hash}" }]
  - id: reader
    labels: { team: red }
    credentials: [{ username: reader, hash: "${hash}" }]
  - id: certified
    certificates: [{ name: robot.agents.test }, { sha256: "${sha256}" }]
  - id: boxed
    listeners: [sandbox]
  - id: local
    sources: ["::1/128"]
`,
    }),
  );
  const port = (name: string): number => proxy.app.listeners.find((listener) => listener.name === name)?.port ?? 0;
  tlsPort = port('secure');
  sharedPort = port('sandbox');
  ownPort = port('by-source');
});

/** One request through CONNECT; the record of its exchange. */
async function visit(
  host: string,
  options: { readonly headers?: string; readonly port?: number; readonly path: string },
): Promise<{ status: number; record: AuditRecord }> {
  const client = await secureClient(options.port ?? proxy.port, host, {
    ca: proxy.ca,
    ...(options.headers === undefined ? {} : { headers: options.headers }),
  });
  const response = await client.ask(`GET ${options.path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
  client.close();
  const record = await proxy.waitForRecord((r) => r.path === options.path && r.kind === 'exchange');
  return { status: response.status, record };
}

describe('with Basic credentials', () => {
  it('an agent is known by its name, and the record says how', async () => {
    const { status, record } = await visit('h1.test', { headers: basicLine(`builder:${PASSWORD}`), path: '/basic' });
    expect(status).toBe(200);
    expect(record).toMatchObject({ agent: 'builder', identified_by: 'proxy_auth' });
  });

  it('rules that name an agent admit it and nobody else', async () => {
    const builder = await connectThrough(proxy.port, 'builders.test:443', {
      headers: basicLine(`builder:${PASSWORD}`),
    });
    expect(builder.response.status).toBe(200);
    builder.socket.destroy();
    const reader = await connectThrough(proxy.port, 'builders.test:443', { headers: basicLine(`reader:${PASSWORD}`) });
    expect(reader.response.status).toBe(403);
    reader.socket.destroy();
    const team = await connectThrough(proxy.port, 'team.test:443', { headers: basicLine(`reader:${PASSWORD}`) });
    expect(team.response.status).toBe(200);
    team.socket.destroy();
  });

  it('nothing of them goes upstream', async () => {
    await visit('h1.test', { headers: basicLine(`builder:${PASSWORD}`), path: '/nothing-upstream' });
    const plain = await proxyClient(proxy.port);
    await plain.ask(
      `GET http://plain.test/nothing-upstream-plain HTTP/1.1\r\nHost: plain.test\r\n${basicLine(`builder:${PASSWORD}`)}\r\n`,
    );
    plain.close();
    for (const path of ['/nothing-upstream', '/nothing-upstream-plain']) {
      expect(origin.only(path).rawHeaders.join('\n')).not.toMatch(/authorization/i);
    }
  });

  it('nothing of them is in a log or a record, right or wrong', async () => {
    const wrong = ['wrong', 'secret', String(7)].join('-');
    const { socket } = await connectThrough(proxy.port, 'h1.test:443', { headers: basicLine(`builder:${wrong}`) });
    socket.destroy();
    await visit('h1.test', { headers: basicLine(`builder:${PASSWORD}`), path: '/not-logged' });
    const written = proxy.auditNow() + JSON.stringify(proxy.log);
    for (const secret of [PASSWORD, wrong, Buffer.from(`builder:${PASSWORD}`).toString('base64')])
      expect(written).not.toContain(secret);
  });

  it.each([
    ['none', ''],
    ['a wrong password', basicLine('builder:wrong')],
    ['an unknown name', basicLine(`nobody:${PASSWORD}`)],
    ['an empty password', basicLine('builder:')],
    ['another scheme', 'Proxy-Authorization: Bearer abc\r\n'],
    ['broken base64', 'Proxy-Authorization: Basic !!!\r\n'],
    ['two of them', basicLine(`builder:${PASSWORD}`) + basicLine('builder:wrong')],
  ])('%s: a 407 with a challenge and a length, a record, and nothing dialed', async (_name, headers) => {
    const connections = origin.connections;
    const { response, socket } = await connectThrough(proxy.port, 'h1.test:443', { headers });
    socket.destroy();
    expect(response.status).toBe(407);
    expect(valuesOf(response.rawHeaders, 'proxy-authenticate').join()).toMatch(/^Basic realm="/);
    expect(response.framing).toBe('length');
    expect(origin.connections).toBe(connections);
    const code = headers === '' ? 'proxy_auth_required' : 'proxy_auth_rejected';
    expect(response.body.toString()).toContain(code);
    await proxy.waitForRecord((r) => r.reason === code && r.host === 'h1.test' && r.verdict === 'deny');
  });

  it('absolute-form requests are challenged as well, and the connection can be used again', async () => {
    const client = closeAfterTest(await proxyClient(proxy.port));
    const request = 'GET http://plain.test/asked-twice HTTP/1.1\r\nHost: plain.test\r\n';
    expect((await client.ask(`${request}\r\n`)).status).toBe(407);
    expect((await client.ask(`${request}${basicLine(`builder:${PASSWORD}`)}\r\n`)).status).toBe(200);
  });

  it('each request of an absolute-form connection counts on its own', async () => {
    const client = closeAfterTest(await proxyClient(proxy.port));
    await client.ask(
      `GET http://plain.test/first-agent HTTP/1.1\r\nHost: plain.test\r\n${basicLine(`builder:${PASSWORD}`)}\r\n`,
    );
    await client.ask(
      `GET http://plain.test/second-agent HTTP/1.1\r\nHost: plain.test\r\n${basicLine(`reader:${PASSWORD}`)}\r\n`,
    );
    expect((await client.ask('GET http://plain.test/third-agent HTTP/1.1\r\nHost: plain.test\r\n\r\n')).status).toBe(
      407,
    );
    expect(await proxy.waitForRecord((r) => r.path === '/first-agent')).toMatchObject({ agent: 'builder' });
    expect(await proxy.waitForRecord((r) => r.path === '/second-agent')).toMatchObject({ agent: 'reader' });
  });
});

describe('with SOCKS5 username and password', () => {
  it('an agent is known by its name', async () => {
    const answer = await socksConnect(proxy.port, 'h1.test', 443, {
      credentials: { username: 'builder', password: PASSWORD },
    });
    expect(answer).toMatchObject({ method: 2, authStatus: 0, reply: 0 });
    const client = rawClient(await startTls(answer.socket, 'h1.test', { ca: proxy.ca }));
    expect((await client.ask('GET /socks-agent HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(200);
    client.close();
    expect(await proxy.waitForRecord((r) => r.path === '/socks-agent')).toMatchObject({
      agent: 'builder',
      identified_by: 'proxy_auth',
      transport: 'socks5',
    });
  });

  it('wrong ones are refused, with a record', async () => {
    const answer = await socksConnect(proxy.port, 'h1.test', 443, {
      credentials: { username: 'builder', password: 'wrong' },
    });
    expect(answer.authStatus).not.toBe(0);
    answer.socket.destroy();
    await proxy.waitForRecord((r) => r.transport === 'socks5' && r.reason === 'proxy_auth_rejected');
  });

  it('a client that offers none is refused where they are needed', async () => {
    const answer = await socksConnect(proxy.port, 'h1.test', 443);
    expect(answer.reply === null ? answer.method : answer.reply).not.toBe(0);
    answer.socket.destroy();
    await proxy.waitForRecord((r) => r.transport === 'socks5' && r.reason === 'proxy_auth_required');
  });
});

describe('without credentials', () => {
  it('an agent is known by its listener', async () => {
    const { status, record } = await visit('h1.test', { port: sharedPort, path: '/by-listener' });
    expect(status).toBe(200);
    expect(record).toMatchObject({ agent: 'boxed', identified_by: 'listener', listener: 'sandbox' });
  });

  it('wrong credentials never fall through to the listener', async () => {
    const { response, socket } = await connectThrough(sharedPort, 'h1.test:443', {
      headers: basicLine('builder:wrong'),
    });
    socket.destroy();
    expect(response.status).toBe(407);
  });

  it('right credentials count before the listener', async () => {
    const { record } = await visit('h1.test', {
      port: sharedPort,
      headers: basicLine(`reader:${PASSWORD}`),
      path: '/credentials-first',
    });
    expect(record).toMatchObject({ agent: 'reader', identified_by: 'proxy_auth' });
  });

  it('an agent is known by its source address', async () => {
    const { connect } = await import('node:net');
    const socket = connect({ host: '::1', port: ownPort });
    socket.on('error', () => undefined);
    await within('a connection over IPv6', new Promise((resolve) => socket.once('connect', resolve)));
    const { response } = await connectThrough(ownPort, 'h1.test:443', { socket });
    expect(response.status).toBe(200);
    const client = rawClient(await startTls(socket, 'h1.test', { ca: proxy.ca }));
    await client.ask('GET /by-source HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    client.close();
    expect(await proxy.waitForRecord((r) => r.path === '/by-source')).toMatchObject({
      agent: 'local',
      identified_by: 'source_address',
    });
  });
});

describe('on a TLS listener', () => {
  async function toProxy(certificate?: { key: string; cert: string }): Promise<TLSSocket> {
    const ca = await testCa();
    const socket = connectTls({
      host: '127.0.0.1',
      port: tlsPort,
      ca: ca.pem,
      servername: 'proxy.test',
      ...certificate,
    });
    socket.on('error', () => undefined);
    await within(
      'TLS to the proxy',
      new Promise<void>((resolve, reject) => {
        socket.once('secureConnect', resolve);
        socket.once('error', reject);
      }),
    );
    closeAfterTest({ close: () => void socket.destroy() });
    return socket;
  }

  it('an agent is known by the name in its certificate', async () => {
    const socket = await toProxy(clientCertificate);
    const { response } = await connectThrough(tlsPort, 'h1.test:443', { socket });
    expect(response.status).toBe(200);
    const client = rawClient(await startTls(socket, 'h1.test', { ca: proxy.ca }));
    expect((await client.ask('GET /by-certificate HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(200);
    client.close();
    expect(await proxy.waitForRecord((r) => r.path === '/by-certificate')).toMatchObject({
      agent: 'certified',
      identified_by: 'client_certificate',
      listener: 'secure',
    });
  });

  it('an agent is known by the fingerprint of its certificate', async () => {
    const { response, socket } = await connectThrough(tlsPort, 'h1.test:443', {
      socket: await toProxy(pinnedCertificate),
    });
    expect(response.status).toBe(200);
    socket.destroy();
    await proxy.waitForRecord((r) => r.agent === 'certified' && r.kind === 'tunnel');
  });

  it('a certificate that names nobody, or none at all, has to show credentials', async () => {
    for (const certificate of [strangeCertificate, undefined]) {
      const { response } = await connectThrough(tlsPort, 'h1.test:443', { socket: await toProxy(certificate) });
      expect(response.status).toBe(407);
    }
    const { response } = await connectThrough(tlsPort, 'h1.test:443', {
      socket: await toProxy(),
      headers: basicLine(`builder:${PASSWORD}`),
    });
    expect(response.status).toBe(200);
  });

  it('a certificate of another CA is not accepted', async () => {
    const certificate = makeClientCertificates().issue('robot.agents.test');
    // TLS 1.3: the client learns of the refusal only after its own handshake is done.
    const socket = await toProxy(certificate);
    socket.write('CONNECT h1.test:443 HTTP/1.1\r\nHost: h1.test:443\r\n\r\n');
    const client = rawClient(socket);
    expect((await client.reader.toEnd()).toString()).not.toContain('200');
  });
});
