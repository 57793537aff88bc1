import { once } from 'node:events';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { ProxyError } from '../../src/core/errors.ts';
import { interleave } from '../../src/proxy/connect-race.ts';
import type { Lookup } from '../../src/proxy/resolve.ts';
import { testCa, type TestCa } from '../tls/support.ts';
import { blackhole, dialer, keep, names, read, tcpServer, tlsServer } from './dial-support.ts';

let ca: TestCa;
beforeAll(async () => {
  ca = await testCa();
});

const never = { connectMs: 60_000, handshakeMs: 60_000 };

describe('a TCP dial', () => {
  test('loses no byte that the server sends first', async () => {
    const { port } = await tcpServer((socket) => socket.write('220 hello'));
    const dialed = await dialer().dialTcp({ host: '127.0.0.1', port });
    expect(dialed).toMatchObject({ address: '127.0.0.1', port });
    expect(await read(keep(dialed.socket), 9)).toBe('220 hello');
  });

  test('gives a socket with large buffers that survives a reset without listeners', async () => {
    const { port, sockets } = await tcpServer();
    const { socket } = await dialer().dialTcp({ host: '127.0.0.1', port });
    expect(socket.readableHighWaterMark).toBe(262_144);
    expect(socket.writableHighWaterMark).toBe(262_144);
    await vi.waitFor(() => expect(sockets).toHaveLength(1));
    sockets[0]?.resetAndDestroy();
    // `once` of node:events would listen for the error.
    if (!socket.closed) await new Promise((resolve) => socket.on('close', resolve));
    expect(socket.destroyed).toBe(true);
  });

  test('keeps its sending side open when the server ends its own', async () => {
    const { port, sockets } = await tcpServer((socket) => socket.end('bye'));
    const { socket } = await dialer().dialTcp({ host: '127.0.0.1', port });
    keep(socket).resume();
    await once(socket, 'end');
    socket.end('still here');
    const [peer] = sockets;
    expect(peer === undefined ? '' : await read(peer, 10)).toBe('still here');
  });

  test('asks for a name once and dials what it checked, whatever the name answers later', async () => {
    const { port } = await tcpServer();
    const answers = [['127.0.0.1'], ['10.0.0.1'], ['169.254.169.254']];
    let asked = 0;
    const lookup: Lookup = (_name, callback) => callback(null, answers[asked++] ?? []);
    const checked: string[] = [];
    const guard = {
      check: (address: string) => {
        checked.push(address);
        return address === '127.0.0.1' ? null : { range: 'x', reason: 'x' };
      },
      isOwnListener: () => false,
    };
    const { socket, address } = await dialer({ lookup, guard }).dialTcp({ host: 'rebind.example', port });
    keep(socket);
    expect(asked).toBe(1);
    expect(checked).toEqual(['127.0.0.1']);
    expect(address).toBe('127.0.0.1');
    expect(socket.remoteAddress).toBe('127.0.0.1');
  });

  test('tries only the addresses that may be dialed', async () => {
    const { port } = await tcpServer();
    const lookup = names({ 'mixed.example': ['10.0.0.1', 'fd00::1', '127.0.0.1', '169.254.169.254'] });
    const { socket, address } = await dialer({ lookup }).dialTcp({ host: 'mixed.example', port });
    keep(socket);
    expect(address).toBe('127.0.0.1');
  });

  test('to a name with forbidden addresses only is address_denied and does not tell them', async () => {
    const lookup = names({ 'inside.example': ['10.11.12.13', 'fd00::17'] });
    const error: unknown = await dialer({ lookup })
      .dialTcp({ host: 'inside.example', port: 443 })
      .catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'address_denied', detail: 'Refused as private (10.0.0.0/8).' });
    expect(error instanceof ProxyError ? error.message : '').not.toMatch(/10\.11|fd00::17/);
  });

  test('to ourselves is address_denied', async () => {
    const { port, sockets } = await tcpServer();
    const lookup = names({ 'loop.example': ['127.0.0.1', '::1'] });
    const dial = dialer({ lookup, ownPorts: [port] });
    await expect(dial.dialTcp({ host: 'loop.example', port })).rejects.toMatchObject({ code: 'address_denied' });
    await expect(dial.dialTcp({ host: '0.0.0.0', port })).rejects.toMatchObject({ code: 'address_denied' });
    expect(sockets).toHaveLength(0);
  });

  test('goes on to the next address when one refuses', async () => {
    const { port } = await tcpServer();
    const lookup = names({ 'two.example': ['127.0.0.2', '127.0.0.1'] });
    const { socket, address } = await dialer({ lookup }).dialTcp({ host: 'two.example', port });
    keep(socket);
    expect(address).toBe('127.0.0.1');
  });

  test.runIf(process.platform === 'linux')('tries eight addresses and no more', async () => {
    const { port } = await tcpServer();
    const refusing = Array.from({ length: 8 }, (_, i) => `127.0.0.${i + 2}`);
    const lookup = names({
      'few.example': [...refusing.slice(1), '127.0.0.1'],
      'many.example': [...refusing, '127.0.0.1'],
    });
    const dial = dialer({ lookup });
    keep((await dial.dialTcp({ host: 'few.example', port })).socket);
    await expect(dial.dialTcp({ host: 'many.example', port })).rejects.toMatchObject({ code: 'connect_refused' });
  });

  test.runIf(process.platform === 'linux')('goes on to the next address when one does not answer', async () => {
    const { port } = await tcpServer();
    await blackhole('127.0.0.3', port);
    const lookup = names({ 'two.example': ['127.0.0.3', '127.0.0.1'] });
    const { socket, address } = await dialer({ lookup, limits: never }).dialTcp({ host: 'two.example', port });
    keep(socket);
    expect(address).toBe('127.0.0.1');
  });

  test.runIf(process.platform === 'linux')('that nobody answers is connect_timeout', async () => {
    const port = await blackhole('127.0.0.3', 0);
    const dial = dialer({ limits: { connectMs: 50, handshakeMs: 60_000 } });
    await expect(dial.dialTcp({ host: '127.0.0.3', port })).rejects.toMatchObject({ code: 'connect_timeout' });
  });

  test.runIf(process.platform === 'linux')('ends at once when it is aborted', async () => {
    const port = await blackhole('127.0.0.3', 0);
    const dial = dialer({ limits: never });
    const abort = new AbortController();
    const dialing = dial.dialTcp({ host: '127.0.0.3', port }, abort.signal);
    setImmediate(() => abort.abort());
    await expect(dialing).rejects.toMatchObject({ code: 'client_aborted' });
  });

  test('that is aborted while its name is looked up never connects', async () => {
    const { port, sockets } = await tcpServer();
    let answer: () => void = () => undefined;
    const lookup: Lookup = (_name, callback) => {
      answer = () => callback(null, ['127.0.0.1']);
    };
    const abort = new AbortController();
    const dialing = dialer({ lookup }).dialTcp({ host: 'slow.example', port }, abort.signal);
    abort.abort();
    answer();
    await expect(dialing).rejects.toMatchObject({ code: 'client_aborted' });
    expect(sockets).toHaveLength(0);
  });

  test('with a signal that fired before does nothing', async () => {
    await expect(dialer().dialTcp({ host: '127.0.0.1', port: 1 }, AbortSignal.abort())).rejects.toMatchObject({
      code: 'client_aborted',
    });
  });

  test.each([
    [['127.0.0.1'], 'connect_refused', 'ECONNREFUSED'],
    [['127.0.0.1', '127.0.0.2'], 'connect_refused', 'ECONNREFUSED'],
    [undefined, 'dns_failed', 'ENOTFOUND'],
  ])('to %j fails as %s with the cause %s', async (addresses, code, cause) => {
    const { port, server } = await tcpServer();
    await new Promise((resolve) => server.close(resolve));
    const lookup = names(addresses === undefined ? {} : { 'a.example': addresses });
    const dialing = dialer({ lookup }).dialTcp({ host: 'a.example', port });
    await expect(dialing).rejects.toMatchObject({ code, cause: { code: cause } });
  });
});

describe('a TLS dial', () => {
  test('verifies the name, sends it as SNI and agrees on a protocol', async () => {
    const lookup = names({ 'api.example': ['127.0.0.1'] });
    const { port, handshakes } = await tlsServer(ca, 'api.example', (socket) => socket.write('hello'), {
      ALPNProtocols: ['http/1.1', 'h2'],
    });
    const dialed = await dialer({ lookup, ca }).dialTls({ host: 'api.example', port }, { alpn: ['h2', 'http/1.1'] });
    expect(dialed).toMatchObject({ address: '127.0.0.1', port, alpn: 'http/1.1', tlsVersion: 'TLSv1.3' });
    expect(await read(keep(dialed.socket), 5)).toBe('hello');
    expect(dialed.socket.authorized).toBe(true);
    expect(handshakes[0]?.servername).toBe('api.example');
  });

  test('has no protocol when the server knows no ALPN, or none was offered', async () => {
    const lookup = names({ 'api.example': ['127.0.0.1'] });
    const { port } = await tlsServer(ca, 'api.example');
    for (const alpn of [['h2', 'http/1.1'], []]) {
      const dialed = await dialer({ lookup, ca }).dialTls({ host: 'api.example', port }, { alpn });
      keep(dialed.socket);
      expect(dialed.alpn).toBeNull();
    }
  });

  test('to an IP literal verifies the address and sends no SNI', async () => {
    const { port, handshakes } = await tlsServer(ca, '127.0.0.1');
    const { socket } = await dialer({ ca }).dialTls({ host: '127.0.0.1', port }, { alpn: [] });
    keep(socket).write('x');
    await vi.waitFor(() => expect(handshakes).toHaveLength(1));
    expect(handshakes[0]?.servername).toBeFalsy();
  });

  test.each([
    ['another name', 'other.example', 'api.example', 'upstream_tls_name'],
    ['a name where an address was dialed', 'api.example', '127.0.0.1', 'upstream_tls_name'],
    ['an address where a name was dialed', '127.0.0.1', 'api.example', 'upstream_tls_name'],
  ])('refuses a certificate for %s', async (_what, certified, host, code) => {
    const lookup = names({ 'api.example': ['127.0.0.1'] });
    const { port, sockets } = await tlsServer(ca, certified);
    await expect(dialer({ lookup, ca }).dialTls({ host, port }, { alpn: [] })).rejects.toMatchObject({ code });
    await vi.waitFor(() => expect(sockets.every((socket) => socket.destroyed)).toBe(true));
  });

  test('refuses a certificate of an unknown root, also when the environment says otherwise', async () => {
    const stranger = await testCa();
    const { port } = await tlsServer(stranger, '127.0.0.1');
    vi.stubEnv('NODE_TLS_REJECT_UNAUTHORIZED', '0');
    try {
      const dialing = dialer({ ca }).dialTls({ host: '127.0.0.1', port }, { alpn: [] });
      await expect(dialing).rejects.toMatchObject({ code: 'upstream_tls_untrusted' });
    } finally {
      vi.unstubAllEnvs();
    }
  });

  test.each([
    ['speaks HTTP', 'HTTP/1.1 400 Bad Request\r\n\r\n', false],
    ['hangs up', '', true],
  ])('to a server that %s fails', async (_what, text, isEnded) => {
    const { port } = await tcpServer((socket) => {
      socket.write(text);
      if (isEnded) socket.end();
    });
    const dialing = dialer({ ca, limits: never }).dialTls({ host: '127.0.0.1', port }, { alpn: [] });
    await expect(dialing).rejects.toMatchObject({ code: 'upstream_tls_failed' });
  });

  test('to a server that resets is upstream_tls_failed', async () => {
    const { port } = await tcpServer((socket) => socket.once('data', () => socket.resetAndDestroy()));
    const dialing = dialer({ ca, limits: never }).dialTls({ host: '127.0.0.1', port }, { alpn: [] });
    await expect(dialing).rejects.toMatchObject({ code: 'upstream_tls_failed' });
  });

  test('to a server that says nothing is connect_timeout, and the connection is closed', async () => {
    const { port, sockets } = await tcpServer((socket) => socket.resume());
    const dialing = dialer({ ca, limits: { connectMs: 60_000, handshakeMs: 50 } }).dialTls(
      { host: '127.0.0.1', port },
      { alpn: [] },
    );
    await expect(dialing).rejects.toMatchObject({ code: 'connect_timeout' });
    await vi.waitFor(() => expect(sockets[0]?.readableEnded === true || sockets[0]?.destroyed === true).toBe(true));
  });

  test('that is aborted during the handshake closes the connection', async () => {
    const abort = new AbortController();
    const { port, sockets } = await tcpServer((socket) => socket.once('data', () => abort.abort()));
    const options = { alpn: [], signal: abort.signal };
    const dialing = dialer({ ca, limits: never }).dialTls({ host: '127.0.0.1', port }, options);
    await expect(dialing).rejects.toMatchObject({ code: 'client_aborted' });
    await vi.waitFor(() => expect(sockets[0]?.readableEnded === true || sockets[0]?.destroyed === true).toBe(true));
  });

  test.each(['TLSv1.2', 'TLSv1.3'] as const)('resumes a %s session of the same agent only', async (version) => {
    const { port } = await tlsServer(ca, '127.0.0.1', (socket) => socket.write('x'), { maxVersion: version });
    const dial = dialer({ ca });
    const isResumed = async (sessionKey?: string): Promise<boolean> => {
      const options = sessionKey === undefined ? { alpn: [] } : { alpn: [], sessionKey };
      const { socket } = await dial.dialTls({ host: '127.0.0.1', port }, options);
      await read(keep(socket), 1);
      return socket.isSessionReused();
    };
    expect(await isResumed('agent-a')).toBe(false);
    expect(await isResumed('agent-a')).toBe(true);
    expect(await isResumed('agent-b')).toBe(false);
    expect(await isResumed()).toBe(false);
    expect(await isResumed('agent-b')).toBe(true);
  });

  test('never resumes a session whose server was not trusted', async () => {
    const { port, handshakes } = await tlsServer(ca, 'other.example', undefined, { maxVersion: 'TLSv1.2' });
    const dial = dialer({ ca });
    for (let i = 0; i < 3; i++) {
      const dialing = dial.dialTls({ host: '127.0.0.1', port }, { alpn: [], sessionKey: 'a' });
      await expect(dialing).rejects.toMatchObject({ code: 'upstream_tls_name' });
    }
    expect(handshakes.some((socket) => socket.isSessionReused())).toBe(false);
  });
});

test('families alternate, the preferred one first', () => {
  const order = (addresses: readonly string[]): readonly string[] =>
    interleave(addresses.map((address) => ({ address, port: 1 }))).map(({ address }) => address);
  expect(order(['::1', '::2', '::3', '1.1.1.1'])).toEqual(['::1', '1.1.1.1', '::2', '::3']);
  expect(order(['1.1.1.1', '::1', '1.1.1.2'])).toEqual(['1.1.1.1', '::1', '1.1.1.2']);
  expect(order(['1.1.1.1'])).toEqual(['1.1.1.1']);
  expect(order([])).toEqual([]);
});
