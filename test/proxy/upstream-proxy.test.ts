import { beforeAll, describe, expect, test, vi } from 'vitest';
import { causeOf, ProxyError } from '../../src/core/errors.ts';
import type { Settings } from '../../src/core/settings.ts';
import { testCa, type TestCa } from '../tls/support.ts';
import { connectProxy, dialer, keep, names, read, tcpServer, tlsServer } from './dial-support.ts';

let ca: TestCa;
beforeAll(async () => {
  ca = await testCa();
});

const secret = ['cor', 'po', 'rate'].join('-');
const proxyAt = (
  port: number,
  more: { tls?: boolean; host?: string; credentials?: string } = {},
): Settings['upstream']['proxy'] => ({
  host: '127.0.0.1',
  port,
  tls: false,
  credentials: null,
  ...more,
});

describe('through an upstream proxy', () => {
  test('a TCP dial asks for the name and carries the first bytes of the server', async () => {
    const target = await tcpServer((socket) => socket.write('hello'));
    const { heads, onSocket } = connectProxy({ tunnelPort: target.port });
    const { port } = await tcpServer(onSocket);
    const upstreamProxy = proxyAt(port, { credentials: `user:${secret}` });
    const dialed = await dialer({ upstreamProxy }).dialTcp({ host: 'api.example', port: 8443 });
    expect(dialed).toMatchObject({ address: '127.0.0.1', port });
    expect(await read(keep(dialed.socket), 5)).toBe('hello');
    const basic = Buffer.from(`user:${secret}`).toString('base64');
    expect(heads).toEqual([
      `CONNECT api.example:8443 HTTP/1.1\r\nHost: api.example:8443\r\nProxy-Authorization: Basic ${basic}\r\n\r\n`,
    ]);
  });

  test('bytes that come in one piece with the answer are not lost', async () => {
    const { onSocket } = connectProxy({ answer: 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello' });
    const { port } = await tcpServer(onSocket);
    const { socket } = await dialer({ upstreamProxy: proxyAt(port) }).dialTcp({ host: 'api.example', port: 80 });
    expect(await read(keep(socket), 5)).toBe('hello');
  });

  test('a TLS dial verifies the server, not the proxy', async () => {
    const target = await tlsServer(ca, 'api.example', (socket) => socket.write('hello'), { ALPNProtocols: ['h2'] });
    const { port } = await tcpServer(connectProxy({ tunnelPort: target.port }).onSocket);
    const dial = dialer({ ca, upstreamProxy: proxyAt(port) });
    const dialed = await dial.dialTls({ host: 'api.example', port: 443 }, { alpn: ['h2'] });
    expect(dialed.alpn).toBe('h2');
    expect(await read(keep(dialed.socket), 5)).toBe('hello');
    await expect(dial.dialTls({ host: 'other.example', port: 443 }, { alpn: [] })).rejects.toMatchObject({
      code: 'upstream_tls_name',
    });
  });

  test('TLS goes inside TLS when the proxy speaks it, and the proxy is verified too', async () => {
    const target = await tlsServer(ca, 'api.example', (socket) => socket.write('hello'));
    const { port } = await tlsServer(ca, 'proxy.example', connectProxy({ tunnelPort: target.port }).onSocket);
    const lookup = names({ 'proxy.example': ['127.0.0.1'], 'liar.example': ['127.0.0.1'] });
    const good = dialer({ ca, lookup, upstreamProxy: proxyAt(port, { tls: true, host: 'proxy.example' }) });
    const { socket } = await good.dialTls({ host: 'api.example', port: 443 }, { alpn: [] });
    expect(await read(keep(socket), 5)).toBe('hello');
    const bad = dialer({ ca, lookup, upstreamProxy: proxyAt(port, { tls: true, host: 'liar.example' }) });
    const error: unknown = await bad.dialTcp({ host: 'api.example', port: 443 }).catch((reason: unknown) => reason);
    expect(causeOf(error)).toBe('upstream_proxy_failed: upstream_tls_name: ERR_TLS_CERT_ALTNAME_INVALID');
  });

  test.each([
    ['HTTP/1.1 407 Proxy Authentication Required\r\n\r\n', 'PROXY_407'],
    ['HTTP/1.0 403 Forbidden\r\nContent-Length: 2\r\n\r\nno', 'PROXY_403'],
    ['HTTP/1.1 503\r\n\r\n', 'PROXY_503'],
    ['HTTP/1.1 301 Moved\r\nLocation: x\r\n\r\n', 'PROXY_301'],
    ['HTTP/2 200 OK\r\n\r\n', 'PROXY_MALFORMED'],
    ['HTTP/1.1 2000 OK\r\n\r\n', 'PROXY_MALFORMED'],
    ['SSH-2.0-x\r\n\r\n', 'PROXY_MALFORMED'],
    [`HTTP/1.1 200 OK\r\nX: ${'x'.repeat(17_000)}`, 'PROXY_MALFORMED'],
    [`HTTP/1.1 200 OK\r\nX: ${'x'.repeat(17_000)}\r\n\r\n`, 'PROXY_MALFORMED'],
  ])('the answer %j is a failure with its cause and no secret', async (answer, cause) => {
    const { port, sockets } = await tcpServer(connectProxy({ answer }).onSocket);
    const upstreamProxy = proxyAt(port, { credentials: `user:${secret}` });
    const error: unknown = await dialer({ upstreamProxy })
      .dialTcp({ host: 'api.example', port: 443 })
      .catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'upstream_proxy_failed' });
    expect(causeOf(error)).toBe(`upstream_proxy_failed: ${cause}`);
    const basic = Buffer.from(`user:${secret}`).toString('base64');
    const shown =
      JSON.stringify(error, Object.getOwnPropertyNames(error)) + String(error instanceof ProxyError ? error.stack : '');
    expect(shown).not.toContain(secret);
    expect(shown).not.toContain(basic);
    await vi.waitFor(() => expect(sockets.every((socket) => socket.readableEnded || socket.destroyed)).toBe(true));
  });

  test('a proxy that closes, refuses or says nothing is a failure', async () => {
    const closing = await tcpServer((socket) => socket.end());
    const silent = await tcpServer((socket) => socket.resume());
    const refusing = await tcpServer();
    await new Promise((resolve) => refusing.server.close(resolve));
    const limits = { connectMs: 100, handshakeMs: 100 };
    const failure = async (port: number): Promise<string> =>
      dialer({ upstreamProxy: proxyAt(port), limits })
        .dialTcp({ host: 'api.example', port: 443 })
        .then(() => 'none', causeOf);
    expect(await failure(closing.port)).toBe('upstream_proxy_failed: PROXY_CLOSED');
    expect(await failure(silent.port)).toBe('upstream_proxy_failed: PROXY_TIMEOUT');
    expect(await failure(refusing.port)).toBe('upstream_proxy_failed: connect_refused: ECONNREFUSED');
  });

  test('an abort while the proxy thinks closes the connection', async () => {
    const abort = new AbortController();
    const { port, sockets } = await tcpServer((socket) => socket.once('data', () => abort.abort()));
    const dialing = dialer({ upstreamProxy: proxyAt(port) }).dialTcp({ host: 'api.example', port: 443 }, abort.signal);
    await expect(dialing).rejects.toMatchObject({ code: 'client_aborted' });
    await vi.waitFor(() => expect(sockets[0]?.readableEnded === true || sockets[0]?.destroyed === true).toBe(true));
  });

  test.each([
    ['an IP literal inside', '10.0.0.1'],
    ['a name that resolves to the inside', 'inside.example'],
    ['a name with one address inside', 'mixed.example'],
  ])('%s is address_denied and the proxy is not asked', async (_what, host) => {
    const { port, sockets } = await tcpServer();
    const lookup = names({ 'inside.example': ['10.0.0.1'], 'mixed.example': ['127.0.0.1', '10.0.0.1'] });
    const dialing = dialer({ lookup, upstreamProxy: proxyAt(port) }).dialTcp({ host, port: 443 });
    await expect(dialing).rejects.toMatchObject({ code: 'address_denied' });
    expect(sockets).toHaveLength(0);
  });

  test('an entry of upstream.hosts is what the proxy is asked for', async () => {
    const { heads, onSocket } = connectProxy({ answer: 'HTTP/1.1 200 OK\r\n\r\n' });
    const { port } = await tcpServer(onSocket);
    const hosts = { 'api.example': { address: '::1', port: 9443 } };
    const { socket } = await dialer({ hosts, upstreamProxy: proxyAt(port) }).dialTcp({
      host: 'api.example',
      port: 443,
    });
    keep(socket);
    expect(heads[0]).toMatch(/^CONNECT \[::1\]:9443 HTTP\/1\.1\r\n/);
  });

  test('the proxy may be on any address but ours', async () => {
    const { port, sockets } = await tcpServer(connectProxy({ answer: 'HTTP/1.1 200 OK\r\n\r\n' }).onSocket);
    const outside = dialer({ allow: [], upstreamProxy: proxyAt(port) });
    keep((await outside.dialTcp({ host: 'api.example', port: 443 })).socket);
    expect(sockets).toHaveLength(1);
    const loop = dialer({ ownPorts: [port], upstreamProxy: proxyAt(port) });
    const error: unknown = await loop.dialTcp({ host: 'api.example', port: 443 }).catch((reason: unknown) => reason);
    expect(causeOf(error)).toBe('upstream_proxy_failed: loop_detected');
    expect(sockets).toHaveLength(1);
  });
});
