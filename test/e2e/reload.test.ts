import { describe, expect, it } from 'vitest';
import { closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { connectThrough, proxyClient, rawClient, secureClient, tlsThrough } from '../support/raw-client.ts';
import { startRawServer } from '../support/raw-server.ts';
import { testCa } from '../support/ca.ts';
import { until } from '../support/waiting.ts';
import { openWebSocket } from '../support/websocket-client.ts';
import { startWsOrigin } from '../support/ws-server.ts';
import { TruncatedError } from '../support/wire-reader.ts';

function allow(...hosts: readonly string[]): string {
  return `version: 1\nrules:\n  - id: allowed\n    description: what may be reached now\n    match: { host: [${hosts.join(', ')}] }\n    action: allow\n`;
}

const DENY_ALL = `version: 1\nrules:\n  - id: closed\n    description: nothing may be reached now\n    action: deny\n    message: Closed for today.\n`;

async function world(rules: string): Promise<{ proxy: TestProxy; origin: Origin }> {
  const origin = closeAfterTest(await startOrigin());
  const proxy = closeAfterTest(await startProxy({ rules, hosts: { 'a.test': origin.port, 'b.test': origin.port } }));
  return { proxy, origin };
}

async function statusOf(proxy: TestProxy, host: string): Promise<number> {
  const { response, socket } = await connectThrough(proxy.port, `${host}:443`);
  socket.destroy();
  return response.status;
}

describe('new rules', () => {
  it('are in force when their file changes, without anybody asking', async () => {
    const { proxy } = await world(allow('a.test'));
    expect(await statusOf(proxy, 'b.test')).toBe(403);
    const before = proxy.app.revision;
    proxy.writeRules(allow('b.test'));
    await until('the new rules', () => proxy.app.revision !== before);
    expect(await statusOf(proxy, 'b.test')).toBe(200);
    expect(await statusOf(proxy, 'a.test')).toBe(403);
  });

  it('are in force when a file is added, on request', async () => {
    const { proxy } = await world(allow('a.test'));
    proxy.writeRules(allow('b.test').replace('id: allowed', 'id: also'), '20-more.yaml');
    expect(await proxy.app.reload()).toMatchObject({ ok: true, problems: [] });
    expect(await statusOf(proxy, 'b.test')).toBe(200);
  });

  it('are in force over the admin listener, and a browser cannot ask for it', async () => {
    const { proxy } = await world(allow('a.test'));
    proxy.writeRules(allow('b.test'));
    const ask = (headers: Record<string, string>): Promise<Response> =>
      fetch(`http://127.0.0.1:${proxy.adminPort}/reload`, { method: 'POST', headers });
    expect((await ask({ origin: 'http://evil.test' })).status).toBe(403);
    expect((await ask({})).status).toBe(200);
    expect(await statusOf(proxy, 'b.test')).toBe(200);
  });

  it('count for the next request of an open connection', async () => {
    const { proxy } = await world(allow('a.test'));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    expect((await client.ask('GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n')).status).toBe(200);
    proxy.writeRules(
      `${allow('a.test')}  - id: no-writing\n    description: reading only\n    match: { method: POST }\n    action: deny\n`,
    );
    await proxy.app.reload();
    expect((await client.ask('GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n')).status).toBe(200);
    const denied = await client.ask('POST /3 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n');
    expect(denied.status).toBe(403);
    expect(denied.body.toString()).toContain('no-writing');
  });

  it('name their revision in the records', async () => {
    const { proxy } = await world(allow('a.test'));
    const before = proxy.app.revision;
    await statusOf(proxy, 'b.test');
    proxy.writeRules(DENY_ALL);
    await proxy.app.reload();
    await statusOf(proxy, 'b.test');
    const policies = (await proxy.records()).map((record) => record.policy);
    expect(policies).toEqual([before, proxy.app.revision]);
    expect(before).not.toBe(proxy.app.revision);
  });
});

describe('a bad file', () => {
  it.each([
    ['is no YAML', 'version: 1\nrules:\n  - id: [unclosed\n'],
    ['has an unknown key', `${allow('b.test')}    acton: deny\n`],
    ['has an unknown action', allow('b.test').replace('action: allow', 'action: perhaps')],
    ['has a broken condition', `${allow('b.test')}    if: 'path ==== 1'\n`],
    [
      'has the same id twice',
      `${allow('b.test')}  - id: allowed\n    description: again\n    match: { host: b.test }\n    action: allow\n`,
    ],
    ['has no version', allow('b.test').replace('version: 1\n', 'Version: 1\n')],
    ['is empty', 'version: 1\n'.repeat(0)],
  ])('that %s changes nothing, and says where it is wrong', async (_what, yaml) => {
    const { proxy } = await world(allow('a.test'));
    const before = proxy.app.revision;
    const { writeFileSync } = await import('node:fs');
    writeFileSync(`${proxy.folder}/rules/10-test.yaml`, yaml);
    const result = await proxy.app.reload();
    expect(result.ok).toBe(false);
    expect(result.problems.join('\n')).toMatch(/10-test\.yaml:\d+:\d+/);
    expect(proxy.app.revision).toBe(before);
    expect(await statusOf(proxy, 'a.test')).toBe(200);
    expect(await statusOf(proxy, 'b.test')).toBe(403);
    expect(proxy.log.some((entry) => entry.level === 'error')).toBe(true);
  });

  it('beside a good one holds both back: the change is atomic', async () => {
    const { proxy } = await world(allow('a.test'));
    proxy.writeRules(allow('b.test').replace('id: allowed', 'id: fine'), '20-fine.yaml');
    proxy.writeRules('version: 1\nrules:\n  - nonsense\n', '30-broken.yaml');
    expect((await proxy.app.reload()).ok).toBe(false);
    expect(await statusOf(proxy, 'b.test')).toBe(403);
  });

  it('does not let a proxy start', async () => {
    await expect(startProxy({ rules: 'version: 1\nrules:\n  - id: x\n    action: sometimes\n' })).rejects.toThrow(
      /10-test\.yaml:\d+:\d+/,
    );
  });
});

describe('what is open when the rules change', () => {
  it('a tunnel that is not allowed any more is cut, with its reason', async () => {
    const { proxy } = await world(allow('a.test'));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    await client.ask('GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n');
    proxy.writeRules(DENY_ALL);
    await proxy.app.reload();
    await client.reader.toEnd();
    expect(await proxy.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({
      reason: 'policy_changed',
      verdict: 'deny',
    });
  });

  it('a tunnel that is still allowed goes on', async () => {
    const { proxy } = await world(allow('a.test'));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    await client.ask('GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\n');
    proxy.writeRules(allow('a.test', 'b.test'));
    await proxy.app.reload();
    expect((await client.ask('GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n')).status).toBe(200);
  });

  it('a stream of events is cut, never ended cleanly', async () => {
    const { proxy, origin } = await world(allow('a.test'));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    client.send('GET /sse?events=1000 HTTP/1.1\r\nHost: a.test\r\n\r\n');
    await client.reader.head();
    await client.reader.upTo('event 0');
    // The host stays allowed: it is the path that is judged again.
    proxy.writeRules(
      `${allow('a.test')}  - id: no-events\n    description: no more events\n    match: { path: /sse }\n    action: deny\n`,
    );
    await proxy.app.reload();
    const rest = (await client.reader.toEnd()).toString('latin1');
    expect(rest).not.toContain('\r\n0\r\n\r\n');
    expect(await proxy.waitForRecord((r) => r.kind === 'exchange' && r.path === '/sse')).toMatchObject({
      verdict: 'deny',
      reason: 'policy_changed',
      rules: ['no-events'],
    });
    await until('the server to see it', () => origin.only('/sse?events=1000').wasAborted);
  });

  it('one HTTP/2 stream is reset, the others go on', async () => {
    const { proxy } = await world(allow('a.test'));
    const over2 = closeAfterTest(await h2Through(proxy.port, 'a.test', { ca: proxy.ca }));
    const events = over2.ask({ ':path': '/sse?events=1000' });
    await until('the stream', () => proxy.app.counts().exchanges === 1);
    const other = over2.ask({ ':path': '/big?mb=1' });
    proxy.writeRules(
      `${allow('a.test')}  - id: no-events\n    description: no more events\n    match: { path: /sse }\n    action: deny\n`,
    );
    await proxy.app.reload();
    const outcome = await events.then(
      (answer) => answer.resetCode,
      () => 8,
    );
    expect(outcome).not.toBe(0);
    expect((await other).status).toBe(200);
    expect((await over2.ask({ ':path': '/still' })).status).toBe(200);
  });

  it('a WebSocket is closed with 1008', async () => {
    const ws = closeAfterTest(await startWsOrigin());
    const proxy = closeAfterTest(await startProxy({ rules: allow('ws.test'), hosts: { 'ws.test': ws.port } }));
    const secure = await tlsThrough(proxy.port, 'ws.test', { ca: proxy.ca });
    const client = closeAfterTest(await openWebSocket('wss://ws.test/', [], { createConnection: () => secure }));
    client.ws.send('hello');
    await client.next();
    proxy.writeRules(
      `${allow('ws.test')}  - id: no-sockets\n    description: no more sockets\n    match: { protocol: websocket }\n    action: deny\n    message: Sockets are closed.\n`,
    );
    await proxy.app.reload();
    const closed = await client.closed;
    expect(closed.code).toBe(1008);
    expect(closed.reason).toContain('policy_changed');
    expect(await proxy.waitForRecord((r) => r.protocol === 'websocket')).toMatchObject({
      verdict: 'deny',
      reason: 'policy_changed',
    });
  });

  it('a tunnel that was carried untouched is cut when it has to be inspected now', async () => {
    const origin = closeAfterTest(await startOrigin());
    const pinned = `version: 1\nrules:\n  - id: pinned\n    description: carried untouched\n    match: { host: a.test }\n    intercept: false\n    action: allow\n`;
    const proxy = closeAfterTest(await startProxy({ rules: pinned, hosts: { 'a.test': origin.port } }));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: (await testCa()).pem }));
    expect((await client.ask('GET / HTTP/1.1\r\nHost: a.test\r\n\r\n')).status).toBe(200);
    proxy.writeRules(allow('a.test'));
    await proxy.app.reload();
    await client.reader.toEnd();
    expect(await proxy.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({ reason: 'policy_changed' });
  });

  it('a raw tunnel is cut when raw is not allowed any more', async () => {
    const server = closeAfterTest(
      await startRawServer({ tls: false, script: (connection) => void connection.socket.pipe(connection.socket) }),
    );
    const raw = `version: 1\nrules:\n  - id: raw\n    description: raw bytes\n    match: { host: a.test, protocol: raw }\n    action: allow\n`;
    const proxy = closeAfterTest(await startProxy({ rules: raw, hosts: { 'a.test': server.port } }));
    const { socket } = await connectThrough(proxy.port, 'a.test:22');
    const client = closeAfterTest(rawClient(socket));
    client.send('\x00\x01');
    await client.reader.bytes(2);
    proxy.writeRules(allow('a.test'));
    await proxy.app.reload();
    await client.reader.toEnd();
    expect(await proxy.waitForRecord((r) => r.kind === 'tunnel')).toMatchObject({
      verdict: 'deny',
      reason: 'policy_changed',
    });
  });
});

describe('monitor mode', () => {
  it('lets pass what it would have denied, and says so in the record', async () => {
    const { proxy } = await world(
      `${allow('a.test')}  - id: watched\n    description: would be denied\n    match: { path: /watched }\n    mode: monitor\n    action: deny\n`,
    );
    const client = await secureClient(proxy.port, 'a.test', { ca: proxy.ca });
    expect((await client.ask('GET /watched HTTP/1.1\r\nHost: a.test\r\n\r\n')).status).toBe(200);
    client.close();
    const record = await proxy.waitForRecord((r) => r.path === '/watched');
    expect(record).toMatchObject({ verdict: 'allow', judged: 'deny', mode: 'monitor', outcome: 'forwarded' });
    expect(record.rules).toContain('watched');
  });
});

describe('draining', () => {
  it('takes nothing new, lets what is open finish, and ends', async () => {
    const { proxy } = await world(allow('a.test'));
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    client.send('GET /sse HTTP/1.1\r\nHost: a.test\r\n\r\n');
    await client.reader.head();
    const idle = closeAfterTest(await proxyClient(proxy.port));
    const drained = proxy.app.drain();
    const events = (await client.reader.upTo('\r\n0\r\n\r\n', 'the end of the events')).toString();
    expect(events).toContain('event 2');
    await client.reader.toEnd();
    await idle.reader.toEnd();
    await drained;
    await expect(proxyClient(proxy.port)).rejects.toThrow();
    expect(await proxy.waitForRecord((r) => r.path === '/sse')).toMatchObject({ outcome: 'forwarded' });
  });

  it('cuts what is still open after the grace period', async () => {
    const origin = closeAfterTest(await startOrigin());
    const proxy = closeAfterTest(
      await startProxy({ rules: allow('a.test'), hosts: { 'a.test': origin.port }, limits: { drainMs: 200 } }),
    );
    const client = closeAfterTest(await secureClient(proxy.port, 'a.test', { ca: proxy.ca }));
    client.send('GET /never HTTP/1.1\r\nHost: a.test\r\n\r\n');
    await until('the request to arrive', () => origin.requests.length === 1);
    await proxy.app.drain();
    const answer = await client.reader.response().catch((error: unknown) => error);
    if (!(answer instanceof TruncatedError)) expect(answer).toMatchObject({ status: 503 });
    expect(await proxy.waitForRecord((r) => r.path === '/never')).toMatchObject({ error: 'draining' });
  });
});

describe('new agents', () => {
  const agents = (label: string, source: string): string => `version: 1
anonymous: deny
agents:
  - id: worker
    name: worker
    labels: { team: ${label} }
    sources: ["${source}"]
`;

  it.each([
    ['its source range', agents('red', '10.0.0.0/8')],
    ['its labels, which rules may name', agents('blue', '127.0.0.0/8')],
  ])('end the tunnels of an agent that lost %s', async (_what, changed) => {
    const origin = closeAfterTest(await startOrigin());
    const first = agents('red', '127.0.0.0/8');
    const proxy = closeAfterTest(
      await startProxy({ rules: allow('a.test'), hosts: { 'a.test': origin.port }, agents: first }),
    );
    const client = await secureClient(proxy.port, 'a.test', { ca: proxy.ca });
    const ask = 'GET / HTTP/1.1\r\nHost: a.test\r\n\r\n';
    expect((await client.ask(ask)).status).toBe(200);
    // The same file again changes nothing.
    proxy.writeAgents(`${first}# a comment\n`);
    expect(await proxy.app.reload()).toMatchObject({ ok: true });
    expect((await client.ask(ask)).status).toBe(200);
    proxy.writeAgents(changed);
    expect(await proxy.app.reload()).toMatchObject({ ok: true });
    await until('the tunnel to end', () => client.socket.destroyed);
    const record = await proxy.waitForRecord((r) => r.kind === 'tunnel' && r.error === 'policy_changed');
    expect(record).toMatchObject({ agent: 'worker', host: 'a.test' });
  });
});
