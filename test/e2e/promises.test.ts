import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { watchLookups } from '../support/lookups.ts';
import { connectThrough, proxyClient, rawClient, secureClient, startTls } from '../support/raw-client.ts';
import { parseRecords } from '../support/proxy.ts';
import type { AuditRecord } from '../support/proxy.ts';
import { socksConnect } from '../support/socks-client.ts';
import { TRANSPORTS, startWorld } from '../support/transports.ts';
import type { Transport, World } from '../support/transports.ts';
import { until } from '../support/waiting.ts';

let world: World;

/** A world for the tests of one block: what one block leaves open cannot disturb the next. */
function useWorld(): void {
  beforeAll(async () => {
    world = await startWorld();
  });
  afterAll(() => world.close());
}

/** The records that were written since `before`, once everything has ended. */
async function recordsSince(before: number): Promise<AuditRecord[]> {
  return (await world.proxy.records()).slice(before);
}

describe.each(TRANSPORTS)('over $name', (transport: Transport) => {
  useWorld();

  it('lets through what a rule allows, and leaves one record for the tunnel and one for the exchange', async () => {
    const before = (await world.proxy.records()).length;
    const answer = await transport.ask(world, transport.allowedHost, transport.allowedPath);
    expect(answer).toMatchObject({ isAllowed: true });
    const records = await recordsSince(before);
    const exchanges = records.filter((record) => record.kind === 'exchange');
    expect(exchanges).toHaveLength(1);
    expect(exchanges[0]).toMatchObject({
      verdict: 'allow',
      reason: 'allowed',
      outcome: 'forwarded',
      transport: transport.via,
      protocol: transport.layer,
      host: transport.allowedHost,
      path: transport.allowedPath,
      agent: 'default',
      identified_by: 'listener',
      upstream_address: '127.0.0.1',
    });
    expect(exchanges[0]?.rules.length).toBeGreaterThan(0);
    const tunnels = records.filter((record) => record.kind === 'tunnel' && record.tunnel === exchanges[0]?.tunnel);
    expect(tunnels).toHaveLength(transport.via === 'absolute_form' ? 0 : 1);
    for (const tunnel of tunnels) expect(tunnel).toMatchObject({ verdict: 'allow', transport: transport.via });
  });

  it('neither resolves nor dials a host that no rule allows', async () => {
    const lookups = closeAfterTest(watchLookups());
    const answer = await transport.ask(world, transport.deniedHost, transport.allowedPath);
    expect(answer).toMatchObject({ isAllowed: false, code: transport.deniedHostCode });
    if (transport.deniedHost.endsWith('.test')) {
      // A name that does not exist is denied for being denied: nobody asked whether it exists.
      const other = await transport.ask(world, 'does-not-exist.invalid', transport.allowedPath);
      expect(other.code).toBe(transport.deniedHostCode);
      expect(other.text).not.toContain('dns_failed');
    }
    expect(lookups.names).toEqual([]);
    expect(world.trap.connections).toHaveLength(0);
  });

  it('has the denial of a host on disk before the answer, as one record', async () => {
    const before = (await world.proxy.records()).length;
    const answer = await transport.ask(world, transport.deniedHost, transport.allowedPath);
    const atAnswer = parseRecords(answer.auditAtAnswer).slice(before);
    expect(atAnswer).toHaveLength(1);
    expect(atAnswer[0]).toMatchObject({
      kind: transport.deniedRecord,
      verdict: 'deny',
      reason: 'host_not_allowed',
      outcome: 'denied',
      transport: transport.via,
      host: transport.deniedHost,
      rules: [],
      upstream_address: null,
    });
    expect(await recordsSince(before)).toHaveLength(1);
  });

  it('denies a single request on an allowed host, on disk before the answer, and sends nothing', async () => {
    const before = (await world.proxy.records()).length;
    const requests = countRequests();
    const answer = await transport.ask(world, transport.allowedHost, transport.deniedPath);
    expect(answer).toMatchObject({ isAllowed: false, code: transport.deniedRequestCode });
    const denied = parseRecords(answer.auditAtAnswer)
      .slice(before)
      .filter((record) => record.kind === 'exchange');
    expect(denied).toHaveLength(1);
    expect(denied[0]).toMatchObject({
      verdict: 'deny',
      reason: 'denied_by_rule',
      rules: ['forbidden-paths'],
      outcome: 'denied',
      path: transport.deniedPath,
    });
    expect((await recordsSince(before)).filter((record) => record.kind === 'exchange')).toHaveLength(1);
    expect(countRequests()).toBe(requests);
  });

  it('says in the caller’s protocol which rule denied, why, and what to do', async () => {
    const answer = await transport.ask(world, transport.allowedHost, transport.deniedPath);
    expect(answer.text).toContain('This path is closed. Use /open instead.');
    expect(answer.text).toContain('denied_by_rule');
    expect(answer.text).toContain('forbidden-paths');
    if (transport.layer === 'grpc') {
      expect(answer.contentType).toMatch(/^application\/grpc/);
      return;
    }
    expect(answer.contentType).toBe('application/json');
    const { error } = JSON.parse(answer.text) as { error: Record<string, string> };
    expect(error).toMatchObject({ type: 'egress_denied', code: 'denied_by_rule', rule: 'forbidden-paths' });
    const ids = world.proxy.recordsNow().map((record) => record.exchange);
    expect(ids).toContain(error['exchange']);
  });

  it('says which host is not allowed, where there is room to say it', async () => {
    const answer = await transport.ask(world, transport.deniedHost, transport.allowedPath);
    if (transport.via === 'socks5') {
      expect(answer.code).toBe(2);
      return;
    }
    const { error } = JSON.parse(answer.text) as { error: Record<string, string> };
    expect(error).toMatchObject({ type: 'egress_denied', code: 'host_not_allowed' });
    expect(error['message']).toContain(transport.deniedHost);
  });
});

function countRequests(): number {
  const { origin, h2, ws, grpc } = world;
  return origin.requests.length + h2.requests.length + ws.upgrades.length + grpc.calls.length;
}

describe('what was judged is what is sent', () => {
  useWorld();

  /** Tunnels to h1.test that carry something that names another host. */
  async function inTunnel(request: string): Promise<{ status: number; text: string }> {
    const client = closeAfterTest(await secureClient(world.proxy.port, 'h1.test', { ca: world.proxy.ca }));
    const response = await client.ask(request);
    return { status: response.status, text: response.body.toString() };
  }

  it.each([
    ['another name', 'h2.test'],
    ['a denied name', 'denied.test'],
    ['another port', 'h1.test:8443'],
    ['an address', '127.0.0.1'],
    ['a longer name', 'h1.test.evil.test'],
  ])('refuses a Host header with %s', async (_what, host) => {
    const requests = countRequests();
    const answer = await inTunnel(`GET /open HTTP/1.1\r\nHost: ${host}\r\n\r\n`);
    expect(answer.status).toBe(421);
    expect(answer.text).toContain('host_mismatch');
    expect(countRequests()).toBe(requests);
  });

  it.each([
    ['another host', 'GET https://h2.test/open HTTP/1.1\r\nHost: h1.test\r\n\r\n', 421],
    [
      'another host, with a Host line that agrees with it',
      'GET https://h2.test/open HTTP/1.1\r\nHost: h2.test\r\n\r\n',
      421,
    ],
    ['another scheme', 'GET http://h1.test/open HTTP/1.1\r\nHost: h1.test\r\n\r\n', 421],
    ['user information before the host', 'GET https://h1.test@denied.test/ HTTP/1.1\r\nHost: h1.test\r\n\r\n', 400],
  ])('refuses an absolute URI inside the tunnel with %s', async (_what, request, status) => {
    const requests = countRequests();
    expect((await inTunnel(request)).status).toBe(status);
    expect(countRequests()).toBe(requests);
  });

  it('takes an absolute URI inside the tunnel that names the same host', async () => {
    expect((await inTunnel('GET https://h1.test/open HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(200);
  });

  it.each([
    ['two Host lines that differ', 'Host: h1.test\r\nHost: denied.test\r\n'],
    ['two Host lines that are equal', 'Host: h1.test\r\nHost: h1.test\r\n'],
    ['two Host lines in different case', 'Host: h1.test\r\nhOST: h2.test\r\n'],
    ['no Host line', ''],
    ['a Host line with two names', 'Host: h1.test, denied.test\r\n'],
    ['an empty Host line', 'Host:\r\n'],
  ])('refuses %s', async (_what, lines) => {
    const requests = countRequests();
    expect((await inTunnel(`GET /open HTTP/1.1\r\n${lines}\r\n`)).status).toBe(400);
    expect(countRequests()).toBe(requests);
  });

  it('refuses a CONNECT inside a tunnel', async () => {
    const answer = await inTunnel('CONNECT denied.test:443 HTTP/1.1\r\nHost: denied.test:443\r\n\r\n');
    expect(answer.status).toBe(405);
    expect(world.trap.connections).toHaveLength(0);
  });

  it('refuses TRACE, which would echo credentials', async () => {
    expect((await inTunnel('TRACE /open HTTP/1.1\r\nHost: h1.test\r\n\r\n')).status).toBe(405);
  });

  it.each([
    ['another allowed name', 'h2.test'],
    ['a denied name', 'denied.test'],
  ])('refuses a TLS server name that is %s, and records it', async (_what, servername) => {
    const connections = world.origin.connections;
    const { socket } = await connectThrough(world.proxy.port, 'h1.test:443');
    await expect(
      startTls(socket, 'h1.test', { ca: world.proxy.ca, servername, rejectUnauthorized: false }),
    ).rejects.toThrow();
    const record = await world.proxy.waitForRecord(
      (r) => r.kind === 'tunnel' && r.reason === 'sni_mismatch' && r.sni === servername,
    );
    expect(record).toMatchObject({ verdict: 'deny', host: 'h1.test' });
    expect(world.origin.connections).toBe(connections);
  });

  it.each([
    ['another :authority', { ':authority': 'h1.test' }],
    ['a denied :authority', { ':authority': 'denied.test' }],
    ['another port', { ':authority': 'h2.test:8443' }],
    ['a host header that differs from :authority', { ':authority': 'h2.test', host: 'h1.test' }],
  ])('refuses %s in HTTP/2', async (_what, headers) => {
    const client = closeAfterTest(await h2Through(world.proxy.port, 'h2.test', { ca: world.proxy.ca }));
    const requests = countRequests();
    const status = await client.ask({ ':path': '/open', ...headers }).then(
      (answer) => answer.status,
      // Node's own parser may reset a stream that is malformed in this way; nothing passes either way.
      () => 421,
    );
    expect(status).toBe(421);
    expect(countRequests()).toBe(requests);
  });

  it('refuses an absolute-form request whose Host line names another host', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    const requests = countRequests();
    const response = await client.ask('GET http://plain.test/open HTTP/1.1\r\nHost: denied.test\r\n\r\n');
    expect(response.status).toBe(421);
    expect(countRequests()).toBe(requests);
  });

  it('refuses to speak TLS for a client that sends it https in the clear', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    const response = await client.ask('GET https://h1.test/open HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(response.status).toBe(400);
  });

  it('answers an origin-form request on the proxy port itself as what it is', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    const response = await client.ask('GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n');
    expect(response.status).toBe(404);
    expect(response.body.toString()).toContain('self_request');
  });

  it.each(['/../secret', '/open/%2e%2e/forbidden/x', '/open/..;/forbidden', '/a\\b', '/%00', '/%c0%ae%c0%ae/x'])(
    'refuses the path %s, which servers read in two ways',
    async (path) => {
      const requests = countRequests();
      expect((await inTunnel(`GET ${path} HTTP/1.1\r\nHost: h1.test\r\n\r\n`)).status).toBe(400);
      expect(countRequests()).toBe(requests);
    },
  );

  it.each(['/%66orbidden/x', '/forbidden%2Fx', '/forbidden/%78'])(
    'denies the path %s under its other spelling',
    async (path) => {
      const requests = countRequests();
      expect((await inTunnel(`GET ${path} HTTP/1.1\r\nHost: h1.test\r\n\r\n`)).status).toBe(403);
      expect(countRequests()).toBe(requests);
    },
  );
});

describe('CONNECT', () => {
  useWorld();

  it('is answered with a whole response when it is refused: a length, and the connection closes', async () => {
    const { response, socket } = await connectThrough(world.proxy.port, 'denied.test:443');
    expect(response.framing).toBe('length');
    const names = response.rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
    expect(names).toContain('x-subfloor-exchange');
    expect(response.rawHeaders.join('\n')).toMatch(/connection\nclose/i);
    await until('the connection to close', () => socket.destroyed || socket.readableEnded);
    socket.destroy();
  });

  it.each([
    ['an IPv6 literal', '[::1]:443', 403],
    ['upper case and a trailing dot', 'DENIED.test.:443', 403],
    ['no port', 'h1.test', 400],
    ['port zero', 'h1.test:0', 400],
    ['a path', 'h1.test:443/x', 400],
    ['user information', 'user@h1.test:443', 400],
    ['a path that climbs out of a folder', '../../x:443', 400],
    ['an address in hexadecimal', '0x7f.0.0.2:443', 403],
  ])('with %s is answered, never dialed', async (_what, authority, status) => {
    const { response, socket } = await connectThrough(world.proxy.port, authority);
    expect(response.status).toBe(status);
    expect(response.framing).toBe('length');
    socket.destroy();
    expect(world.trap.connections).toHaveLength(0);
  });

  it('works in HTTP/1.0 without Host, as Python sends it', async () => {
    const client = await proxyClient(world.proxy.port);
    const response = await client.ask('CONNECT h1.test:443 HTTP/1.0\r\n\r\n', 'CONNECT');
    expect(response.status).toBe(200);
    client.close();
  });

  it('takes the bytes that were sent right behind the head', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    client.send(
      'CONNECT plain.test:80 HTTP/1.1\r\nHost: plain.test:80\r\n\r\nGET /open HTTP/1.1\r\nHost: plain.test\r\n\r\n',
    );
    expect((await client.reader.response({ method: 'CONNECT' })).status).toBe(200);
    expect((await client.reader.response()).status).toBe(200);
  });

  it('refuses a CONNECT with a body', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    const response = await client.ask(
      'CONNECT h1.test:443 HTTP/1.1\r\nHost: h1.test:443\r\nContent-Length: 3\r\n\r\nabc',
      'POST',
    );
    expect(response.status).toBe(400);
  });

  it('with a Host line for another host goes where CONNECT says, or nowhere', async () => {
    const client = closeAfterTest(await proxyClient(world.proxy.port));
    const response = await client.ask('CONNECT denied.test:443 HTTP/1.1\r\nHost: h1.test:443\r\n\r\n', 'CONNECT');
    expect([400, 403, 421]).toContain(response.status);
    expect(world.trap.connections).toHaveLength(0);
  });
});

describe('SOCKS5', () => {
  useWorld();

  it.each([
    ['BIND', 2],
    ['UDP ASSOCIATE', 3],
  ])('refuses %s with "command not supported" and a record', async (_name, command) => {
    const before = (await world.proxy.records()).length;
    const answer = await socksConnect(world.proxy.port, 'h1.test', 443, { command });
    expect(answer.reply).toBe(7);
    answer.socket.destroy();
    const records = await recordsSince(before);
    expect(records).toHaveLength(1);
    expect(records[0]).toMatchObject({ reason: 'socks_command', verdict: 'deny', transport: 'socks5' });
  });

  it('takes username and password when they are shown, even if nobody needs them', async () => {
    const answer = await socksConnect(world.proxy.port, 'h1.test', 443, {
      credentials: { username: 'some', password: 'body' },
    });
    expect([0, 1]).toContain(answer.authStatus ?? 0);
    answer.socket.destroy();
  });

  it('carries plain HTTP as well, judged as HTTP', async () => {
    const answer = await socksConnect(world.proxy.port, 'plain.test', 80);
    expect(answer.reply).toBe(0);
    const client = closeAfterTest(rawClient(answer.socket));
    expect((await client.ask('GET /open HTTP/1.1\r\nHost: plain.test\r\n\r\n')).status).toBe(200);
    expect((await client.ask('GET /forbidden HTTP/1.1\r\nHost: plain.test\r\n\r\n')).status).toBe(403);
  });
});

describe('the record', () => {
  useWorld();

  it('never holds query strings, header values, bodies or credentials', async () => {
    const secret = ['s3cr', 'et-', String(process.pid), 'x'].join('');
    const client = await secureClient(world.proxy.port, 'h1.test', { ca: world.proxy.ca });
    await client.ask(
      `POST /open?token=${secret} HTTP/1.1\r\nHost: h1.test\r\nAuthorization: Bearer ${secret}\r\nCookie: a=${secret}\r\nContent-Length: ${secret.length}\r\n\r\n${secret}`,
    );
    await client.ask(`GET /forbidden?token=${secret} HTTP/1.1\r\nHost: h1.test\r\nX-Key: ${secret}\r\n\r\n`);
    await client.ask(`GET / HTTP/1.1\r\nHost: h1.test\r\nbad ${secret}: x\r\n\r\n`);
    client.close();
    await world.proxy.records();
    expect(world.proxy.auditNow()).not.toContain(secret);
    expect(JSON.stringify(world.proxy.log)).not.toContain(secret);
  });

  it('is there for a request that is not well-formed, and for a tunnel that carried nothing', async () => {
    const before = (await world.proxy.records()).length;
    const { socket } = await connectThrough(world.proxy.port, 'h1.test:443');
    socket.destroy();
    const client = await proxyClient(world.proxy.port);
    await client.ask('GET http://plain.test/ HTTP/1.1\r\nbad header\r\n\r\n');
    client.close();
    const records = await recordsSince(before);
    expect(records.map((record) => record.kind).sort()).toEqual(['exchange', 'tunnel']);
  });

  it('counts bodies in both directions and says how the tunnel was agreed', async () => {
    const client = await secureClient(world.proxy.port, 'h1.test', { ca: world.proxy.ca });
    const response = await client.ask(
      'POST /counted HTTP/1.1\r\nHost: h1.test\r\nContent-Length: 11\r\n\r\nhello world',
    );
    client.close();
    const record = await world.proxy.waitForRecord((r) => r.path === '/counted');
    expect(record).toMatchObject({
      bytes_out: 11,
      bytes_in: response.body.length,
      alpn: 'http/1.1',
      sni: 'h1.test',
      tunnel_mode: 'intercept',
      upstream_alpn: 'http/1.1',
      method: 'POST',
      status: 200,
    });
  });

  it('exists for every request of a connection that is kept', async () => {
    const before = (await world.proxy.records()).length;
    const client = await secureClient(world.proxy.port, 'h1.test', { ca: world.proxy.ca });
    for (let i = 0; i < 5; i++) await client.ask(`GET /many?i=${i} HTTP/1.1\r\nHost: h1.test\r\n\r\n`);
    client.close();
    const records = await recordsSince(before);
    expect(records.filter((record) => record.kind === 'exchange')).toHaveLength(5);
    expect(new Set(records.filter((r) => r.kind === 'exchange').map((r) => r.exchange)).size).toBe(5);
    expect(new Set(records.map((record) => record.tunnel)).size).toBe(1);
    expect(records.filter((record) => record.kind === 'tunnel')).toHaveLength(1);
  });
});
