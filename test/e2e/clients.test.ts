import { createHash, randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ProxyAgent, fetch as undiciFetch } from 'undici';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { temporaryFolder } from '../support/folders.ts';
import { startH2Origin } from '../support/h2-server.ts';
import type { H2Origin } from '../support/h2-server.ts';
import {
  HTTP_CLIENTS,
  TunnelRefused,
  agentsFile,
  byConnect,
  bySocks,
  errorText,
  refusalIn,
  secureTunnelAgent,
  webSocketOver,
} from '../support/http-clients.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { isInstalled, run } from '../support/programs.ts';
import { startProxy } from '../support/proxy.ts';
import type { AuditRecord, TestProxy } from '../support/proxy.ts';
import { until, within } from '../support/waiting.ts';
import { RefusedUpgrade } from '../support/websocket-client.ts';
import type { WsClient } from '../support/websocket-client.ts';
import { valuesOf } from '../support/wire-reader.ts';
import { startWsOrigin } from '../support/ws-server.ts';
import type { WsOrigin } from '../support/ws-server.ts';

const RULES = `
version: 1
defaults: { websocket: deny }
rules:
  - id: test-hosts
    description: the hosts of these tests
    match: { host: [h1.test, h2.test, plain.test, no-sockets.test] }
    action: allow
  - id: sockets
    description: WebSocket to one of them
    match: { host: ws.test, protocol: [http, websocket] }
    action: allow
  - id: not-this-path
    description: one path is closed
    match: { host: "*.test", path: /forbidden/** }
    action: deny
    message: Ask the owner of this path.
`;

/** Put together at run time: no scanner should find them. */
const PASSWORD = ['battery', 'staple', String(40 + 2)].join('-');
const WRONG = ['not', 'the', 'password'].join('-');

const CURL = isInstalled('curl');

const shared = closeAfterFile();
let origin: Origin;
let h2Origin: H2Origin;
let wsOrigin: WsOrigin;
let proxy: TestProxy;
let guarded: TestProxy;
let folder: string;

beforeAll(async () => {
  origin = shared(await startOrigin());
  h2Origin = shared(
    await startH2Origin({
      answer: (stream, headers) => {
        if (headers.expect === '100-continue') stream.additionalHeaders({ ':status': 100 });
        return false;
      },
    }),
  );
  wsOrigin = shared(await startWsOrigin());
  folder = shared(temporaryFolder()).path;
  const hosts = {
    'h1.test': origin.port,
    'h2.test': h2Origin.port,
    'plain.test': origin.plainPort,
    'denied.test': origin.port,
    'ws.test': wsOrigin.port,
    'no-sockets.test': wsOrigin.port,
  };
  const agents = await agentsFile('builder', PASSWORD);
  proxy = shared(await startProxy({ rules: RULES, hosts }));
  guarded = shared(await startProxy({ rules: RULES, hosts, agents }));
});

/** The record of the exchange with that path. */
function exchange(path: string, from: TestProxy = proxy): Promise<AuditRecord> {
  return from.waitForRecord((r) => r.kind === 'exchange' && r.path === path);
}

/** The first record that was not there before. */
function nextRecord(seen: number, from: TestProxy = proxy): Promise<AuditRecord> {
  return until('a new record', () => from.recordsNow()[seen]);
}

const ALLOWED = { verdict: 'allow', reason: 'allowed', outcome: 'forwarded', error: null, agent: 'default' };
const DENIED_HOST = { verdict: 'deny', reason: 'host_not_allowed', outcome: 'denied', rules: [], host: 'denied.test' };

describe.each(HTTP_CLIENTS)('$name', (client) => {
  const slug = client.name.replace(/[^a-z0-9]+/gi, '-').toLowerCase();

  describe.skipIf(!client.isPresent)(client.isPresent ? 'through the proxy' : '(skipped: not installed here)', () => {
    it('gets what a rule allows over https', async () => {
      const path = `/${slug}/allowed`;
      const outcome = await client.get(proxy, `https://h1.test${path}`);
      expect(outcome).toMatchObject({ kind: 'answer', status: 200 });
      expect(outcome).toHaveProperty('body', expect.stringContaining(`"url":"${path}"`));
      expect(origin.only(path).sni).toBe('h1.test');
      const record = await exchange(path);
      expect(record).toMatchObject({ ...ALLOWED, transport: client.transport, protocol: 'http', host: 'h1.test' });
      expect(record).toMatchObject({ method: 'GET', status: 200, port: 443, rules: ['test-hosts'], sni: 'h1.test' });
      expect(record).toMatchObject({ tunnel_mode: 'intercept', upstream_alpn: 'http/1.1' });
    });

    it('can read which rule denies a request', async () => {
      const path = `/forbidden/${slug}`;
      const outcome = await client.get(proxy, `https://h1.test${path}`);
      expect(outcome).toMatchObject({ kind: 'answer', status: 403 });
      const record = await exchange(path);
      expect(record).toMatchObject({ verdict: 'deny', reason: 'denied_by_rule', outcome: 'denied', status: 403 });
      expect(record.rules).toContain('not-this-path');
      expect(refusalIn(outcome.kind === 'answer' ? outcome.body : '')).toMatchObject({
        error: {
          type: 'egress_denied',
          code: 'denied_by_rule',
          rule: 'not-this-path',
          exchange: record.exchange,
          message: expect.stringContaining('Ask the owner of this path.') as unknown,
        },
      });
      expect(origin.requests.filter(({ url }) => url === path)).toEqual([]);
    });

    it('says that a host is denied, and nothing is dialed', async () => {
      const seen = (await proxy.records()).length;
      const connections = origin.connections;
      const outcome = await client.get(proxy, `https://denied.test/${slug}`);
      expect(outcome.kind === 'answer' ? outcome.body : outcome.text).toMatch(client.refusal);
      if (outcome.kind === 'answer') expect(outcome.status).toBe(403);
      if (client.refusalExitCode !== null) expect(outcome).toMatchObject({ exitCode: client.refusalExitCode });
      expect(await nextRecord(seen)).toMatchObject({ ...DENIED_HOST, kind: 'tunnel', transport: client.transport });
      // A client that tries again and again would show here.
      expect(await proxy.records()).toHaveLength(seen + 1);
      expect(origin.connections).toBe(connections);
    });

    it('gets what a rule allows over plain http, and reads the denial of a path', async () => {
      const path = `/${slug}/plain`;
      expect(await client.get(proxy, `http://plain.test${path}`)).toMatchObject({ kind: 'answer', status: 200 });
      expect(await exchange(path)).toMatchObject({ ...ALLOWED, transport: client.plainTransport, port: 80, sni: null });
      const outcome = await client.get(proxy, `http://plain.test/forbidden/plain/${slug}`);
      expect(outcome).toMatchObject({ kind: 'answer', status: 403 });
      expect(outcome).toHaveProperty('body', expect.stringContaining('"rule":"not-this-path"'));
    });
  });
});

describe.skipIf(!CURL)(CURL ? 'curl' : 'curl (skipped: not installed here)', () => {
  const curl = (args: readonly string[], from: TestProxy = proxy) =>
    run('curl', ['-sS', '--max-time', '18', '--cacert', from.caFile, ...args]);

  it.each([
    { host: 'h1.test', option: '--http1.1', version: '1.1', alpn: 'http/1.1', upstream: 'http/1.1' },
    { host: 'h1.test', option: '--http2', version: '2', alpn: 'h2', upstream: 'http/1.1' },
    { host: 'h2.test', option: '--http2', version: '2', alpn: 'h2', upstream: 'h2' },
    { host: 'h2.test', option: '--http1.1', version: '1.1', alpn: 'http/1.1', upstream: 'h2' },
  ])('uploads 20 MB with $option to a server of $upstream', async ({ host, option, version, alpn, upstream }) => {
    const body = randomBytes(20 * 1024 * 1024);
    const file = join(folder, `upload-${version}-${host}`);
    writeFileSync(file, body);
    const path = `/upload/${version}/${host}`;
    const ran = await curl([
      '-v',
      option,
      '-x',
      proxy.url,
      '-T',
      file,
      '-w',
      '\n%{http_version}',
      `https://${host}${path}`,
    ]);
    expect(ran.code, ran.stderr).toBe(0);
    const sha256 = createHash('sha256').update(body).digest('hex');
    expect(ran.stdout).toContain(`"sha256":"${sha256}"`);
    expect(ran.stdout.split('\n').at(-1)).toBe(version);
    if (version === '1.1') expect(ran.stderr).toMatch(/^< HTTP\/1\.1 100 /m);
    if (version === '1.1' && upstream === 'http/1.1') {
      expect(valuesOf(origin.only(path).rawHeaders, 'expect')).toEqual(['100-continue']);
    }
    const record = await exchange(path);
    expect(record).toMatchObject({ ...ALLOWED, method: 'PUT', status: 200, alpn, upstream_alpn: upstream });
    expect(record.bytes_out).toBeGreaterThanOrEqual(body.length);
  });

  it('is told that an upload is denied before it sends the body', async () => {
    const file = join(folder, 'denied-upload');
    writeFileSync(file, randomBytes(2 * 1024 * 1024));
    const url = 'https://h1.test/forbidden/upload';
    const ran = await curl(['--http1.1', '-x', proxy.url, '-T', file, '-w', '\n%{http_code} %{size_upload}', url]);
    expect(ran).toMatchObject({ code: 0, stdout: expect.stringMatching(/\n403 0$/) as unknown });
    expect(await exchange('/forbidden/upload')).toMatchObject({ verdict: 'deny', method: 'PUT', status: 403 });
  });

  it('shows status, length, type and close of a refused CONNECT, and exits with 56', async () => {
    const seen = (await proxy.records()).length;
    const ran = await curl(['-i', '-x', proxy.url, '-w', '%{http_connect} %{http_code}', 'https://denied.test/']);
    expect(ran.code).toBe(56);
    expect(ran.stdout).toMatch(/^HTTP\/1\.1 403 Forbidden\r\n/);
    expect(ran.stdout).toMatch(/^content-type: application\/json\r$/im);
    expect(ran.stdout).toMatch(/^content-length: [1-9]\d*\r$/im);
    expect(ran.stdout).toMatch(/^connection: close\r$/im);
    expect(ran.stdout).toMatch(/403 000$/);
    const record = await nextRecord(seen);
    expect(record).toMatchObject({ ...DENIED_HOST, kind: 'tunnel' });
    expect(ran.stdout).toContain(`x-subfloor-exchange: ${record.exchange ?? record.tunnel}\r\n`);
  });

  it('reads the denial of a host in an absolute-form answer', async () => {
    const seen = (await proxy.records()).length;
    const ran = await curl(['-x', proxy.url, '-w', '\n%{http_code} %{content_type}', 'http://denied.test/absolute']);
    const [body = '', end] = ran.stdout.split('\n');
    expect(end).toBe('403 application/json');
    expect(refusalIn(body)).toMatchObject({ error: { type: 'egress_denied', code: 'host_not_allowed' } });
    expect(await nextRecord(seen)).toMatchObject({ ...DENIED_HOST, kind: 'exchange', transport: 'absolute_form' });
  });

  it.each([
    ['-x with credentials in the URL', ['-x', 'http://builder:$@'], 'https://h1.test', 'connect'],
    [
      '-x and credentials after a challenge',
      ['--proxy-anyauth', '-x', 'http://builder:$@'],
      'https://h1.test',
      'connect',
    ],
    ['-x to an http URL', ['-x', 'http://builder:$@'], 'http://plain.test', 'absolute_form'],
    ['--socks5-hostname with credentials', ['--socks5-hostname', 'builder:$@'], 'https://h1.test', 'socks5'],
  ])('%s: the record names the agent, and a wrong password is refused', async (_name, args, base, transport) => {
    const given = (password: string): string[] =>
      args.map((arg) => (arg.endsWith('@') ? `${arg.replace('$', password)}127.0.0.1:${guarded.port}` : arg));
    const path = `/as-builder/${transport}/${args.length}`;
    const right = await curl([...given(PASSWORD), '-w', '\n%{http_code}', `${base}${path}`], guarded);
    expect(right, right.stderr).toMatchObject({ code: 0, stdout: expect.stringMatching(/\n200$/) as unknown });
    const record = await exchange(path, guarded);
    expect(record).toMatchObject({ ...ALLOWED, agent: 'builder', identified_by: 'proxy_auth', transport });
    expect(origin.only(path).rawHeaders.join('\n')).not.toMatch(/proxy-authorization/i);

    const seen = (await guarded.records()).length;
    const wrong = await curl([...given(WRONG), '-w', '\n%{http_connect} %{http_code}', `${base}/wrong`], guarded);
    if (transport === 'connect') expect(wrong).toMatchObject({ code: 56, stdout: '\n407 000' });
    if (transport === 'absolute_form') expect(wrong.stdout).toMatch(/"code":"proxy_auth_rejected".*\n000 407$/s);
    if (transport === 'socks5') expect(wrong.code).toBe(97);
    const refusals = (await guarded.records()).slice(seen);
    expect(refusals.at(-1)).toMatchObject({ verdict: 'deny', reason: 'proxy_auth_rejected', transport });
    expect(guarded.auditNow() + JSON.stringify(guarded.log)).not.toMatch(new RegExp(`${PASSWORD}|${WRONG}`));
  });
});

describe('libraries of Node', () => {
  it('undici streams a POST: the server has the first part before the last one is made', async () => {
    const path = '/undici-stream';
    const dispatcher = new ProxyAgent({ uri: proxy.url, requestTls: { ca: proxy.ca } });
    closeAfterTest({ close: () => dispatcher.destroy() });
    const parts = Array.from({ length: 20 }, () => randomBytes(50_000));
    async function* body(): AsyncGenerator<Buffer> {
      for (const [index, part] of parts.entries()) {
        yield part;
        if (index === 0) {
          await until('the first part upstream', () => origin.requests.some((r) => r.url === path && r.bodyBytes > 0));
        }
      }
    }
    const answer = await undiciFetch(`https://h1.test${path}`, {
      method: 'POST',
      body: body(),
      duplex: 'half',
      dispatcher,
    });
    expect(answer.status).toBe(200);
    const sha256 = createHash('sha256').update(Buffer.concat(parts)).digest('hex');
    expect(await answer.json()).toMatchObject({ method: 'POST', bodyBytes: 1_000_000, sha256 });
    const record = await exchange(path);
    expect(record).toMatchObject({ ...ALLOWED, method: 'POST' });
    expect(record.bytes_out).toBeGreaterThanOrEqual(1_000_000);
  });

  it('a CONNECT agent can read the whole denial of a host', async () => {
    const seen = (await proxy.records()).length;
    const denial: unknown = await byConnect(proxy.port)('denied.test', 443).catch((error: unknown) => error);
    if (!(denial instanceof TunnelRefused)) throw new Error('not refused');
    expect(denial.status).toBe(403);
    expect(valuesOf(denial.rawHeaders, 'content-length')).toEqual([String(Buffer.byteLength(denial.body))]);
    expect(valuesOf(denial.rawHeaders, 'connection')).toEqual(['close']);
    const record = await nextRecord(seen);
    expect(refusalIn(denial.body)).toMatchObject({
      error: {
        type: 'egress_denied',
        code: 'host_not_allowed',
        exchange: record.exchange ?? record.tunnel,
        message: expect.stringContaining('denied.test') as unknown,
      },
    });
  });

  it.each([
    ['right', PASSWORD, 200],
    ['wrong', WRONG, 407],
  ])('undici with a %s password in the URL of the proxy', async (kind, password, status) => {
    const uri = `http://builder:${password}@127.0.0.1:${guarded.port}`;
    const dispatcher = new ProxyAgent({ uri, requestTls: { ca: guarded.ca } });
    closeAfterTest({ close: () => dispatcher.destroy() });
    const path = `/undici-${kind}`;
    const seen = (await guarded.records()).length;
    const asked = undiciFetch(`https://h1.test${path}`, { dispatcher });
    if (status === 200) {
      expect((await asked).status).toBe(200);
      expect(await exchange(path, guarded)).toMatchObject({ ...ALLOWED, agent: 'builder' });
      return;
    }
    expect(errorText(await asked.catch((error: unknown) => error))).toContain('Proxy response (407)');
    expect(await nextRecord(seen, guarded)).toMatchObject({ verdict: 'deny', reason: 'proxy_auth_rejected' });
  });

  it.each([
    ['without credentials, where none are asked for', false, false, 'default'],
    ['with credentials, where none are asked for', false, true, 'default'],
    ['with credentials', true, true, 'builder'],
  ])('SOCKS5 %s', async (_name, isGuarded, isNamed, agent) => {
    const from = isGuarded ? guarded : proxy;
    const credentials = isNamed ? { username: 'builder', password: PASSWORD } : undefined;
    const path = `/socks/${isGuarded}/${isNamed}`;
    const tunnels = secureTunnelAgent(bySocks(from.port, credentials), from.ca);
    const client = await webSocketOver(tunnels, `wss://ws.test${path}`);
    client.ws.send('over SOCKS');
    expect(await client.next()).toBe('over SOCKS');
    client.ws.close(1000);
    await client.closed;
    expect(await exchange(path, from)).toMatchObject({ ...ALLOWED, agent, transport: 'socks5', protocol: 'websocket' });
  });

  it.each([
    ['wrong credentials', { username: 'builder', password: WRONG }, 'proxy_auth_rejected'],
    ['none', undefined, 'proxy_auth_required'],
  ])('SOCKS5 with %s is refused where an agent must have a name', async (_name, credentials, reason) => {
    const seen = (await guarded.records()).length;
    await expect(bySocks(guarded.port, credentials)('h1.test', 443)).rejects.toBeInstanceOf(TunnelRefused);
    expect(await nextRecord(seen, guarded)).toMatchObject({ verdict: 'deny', reason, transport: 'socks5' });
  });
});

describe('ws through a CONNECT tunnel', () => {
  const open = (path: string, host = 'ws.test'): Promise<WsClient> =>
    webSocketOver(secureTunnelAgent(byConnect(proxy.port), proxy.ca), `wss://${host}${path}`);

  it('carries text, binary and a megabyte, uncompressed although it asked for compression', async () => {
    const client = await open('/ws-messages');
    expect(client.ws.extensions).toBe('');
    expect(wsOrigin.upgrades.at(-1)?.headers['sec-websocket-extensions']).toBeUndefined();
    const megabyte = randomBytes(1024 * 1024);
    client.ws.send('grüße');
    expect(Buffer.from(await client.next(), 'latin1').toString()).toBe('grüße');
    client.ws.send(Buffer.from([0, 1, 254, 255]));
    expect(await client.next()).toBe('\x00\x01\xfe\xff');
    client.ws.send(megabyte);
    expect(Buffer.from(await client.next(), 'latin1').equals(megabyte)).toBe(true);
    expect(client.messages.map(({ isBinary }) => isBinary)).toEqual([false, true, true]);
    client.ws.close(1000, 'done');
    expect(await client.closed).toEqual({ code: 1000, reason: 'done' });
    const record = await exchange('/ws-messages');
    expect(record).toMatchObject({ ...ALLOWED, protocol: 'websocket', status: 101, messages_out: 3, messages_in: 3 });
    expect(record.rules).toEqual(['sockets']);
    expect(Math.min(record.bytes_out, record.bytes_in)).toBeGreaterThanOrEqual(megabyte.length);
  });

  it('carries ping and pong both ways, and the close code of the server', async () => {
    const client = await open('/ping');
    const pong = new Promise<string>((resolve) => client.ws.once('pong', (data) => resolve(data.toString())));
    client.ws.ping('still there');
    expect(await within('a pong', pong)).toBe('still there');
    expect(wsOrigin.pings).toContain('still there');
    client.ws.send('close 4007 because');
    expect(await client.closed).toEqual({ code: 4007, reason: 'because' });
    expect(await exchange('/ping')).toMatchObject({ ...ALLOWED, protocol: 'websocket' });
  });

  it.each([
    ['no-sockets.test', '/', 'websocket_not_allowed'],
    ['ws.test', '/forbidden/socket', 'denied_by_rule'],
  ])('learns from a 403 why %s%s is refused', async (host, path, code) => {
    const upgrades = wsOrigin.upgrades.length;
    const refusal: unknown = await open(path, host).catch((error: unknown) => error);
    if (!(refusal instanceof RefusedUpgrade)) throw new Error('not refused');
    expect(refusal.status).toBe(403);
    expect(refusalIn(refusal.body)).toMatchObject({ error: { type: 'egress_denied', code } });
    const record = await proxy.waitForRecord((r) => r.kind === 'exchange' && r.host === host && r.verdict === 'deny');
    expect(record).toMatchObject({ reason: code, status: 403, outcome: 'denied', protocol: 'websocket' });
    expect(wsOrigin.upgrades).toHaveLength(upgrades);
  });
});
