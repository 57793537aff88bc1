import { once } from 'node:events';
import { createServer as createPlainServer, type Server } from 'node:net';
import { connect, createServer, rootCertificates, type TlsOptions } from 'node:tls';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ConfigError } from '../../src/core/errors.ts';
import { systemRoots } from '../../src/tls/node-compat.ts';
import { classifyUpstreamTlsError, UpstreamContexts } from '../../src/tls/upstream-context.ts';
import { listen, temporaryFolder, testCa, type TestCa } from './support.ts';

const DAY_MS = 24 * 3_600_000;

function file(content: string, name = 'file.pem'): string {
  const path = join(temporaryFolder(), name);
  writeFileSync(path, content);
  return path;
}

/** Connects as the proxy does and tells how it went: `ok`, or the class of the failure. */
async function outcome(port: number, contexts: UpstreamContexts, host = 'a.example.com'): Promise<string> {
  const socket = connect({
    port,
    host: '127.0.0.1',
    servername: host,
    secureContext: contexts.contextFor(host),
    rejectUnauthorized: true,
  });
  try {
    await once(socket, 'secureConnect');
    return 'ok';
  } catch (error) {
    return classifyUpstreamTlsError(error);
  } finally {
    socket.destroy();
  }
}

function tlsServer(options: TlsOptions): Server {
  const server = createServer(options, (socket) => socket.on('error', () => undefined));
  server.on('tlsClientError', () => undefined);
  return server;
}

describe('a server certificate', () => {
  const cases: readonly [string, string, (ca: TestCa) => Promise<TlsOptions>][] = [
    ['ok', 'that is good', (ca) => ca.issue('a.example.com')],
    ['upstream_tls_untrusted', 'from a root that nobody listed', async () => (await testCa()).issue('a.example.com')],
    ['upstream_tls_name', 'for another name', (ca) => ca.issue('b.example.com')],
    [
      'upstream_tls_untrusted',
      'that has expired',
      (ca) => ca.issue('a.example.com', { notBeforeMs: Date.now() - 2 * DAY_MS, notAfterMs: Date.now() - DAY_MS }),
    ],
    [
      'upstream_tls_untrusted',
      'that is not valid yet',
      (ca) => ca.issue('a.example.com', { notBeforeMs: Date.now() + DAY_MS, notAfterMs: Date.now() + 2 * DAY_MS }),
    ],
    [
      'upstream_tls_untrusted',
      'that signed itself',
      async () => {
        const other = await testCa();
        return { cert: other.pem, key: other.keyPem };
      },
    ],
    [
      'upstream_tls_failed',
      'with no cipher in common',
      async (ca) => ({ ...(await ca.issue('a.example.com')), maxVersion: 'TLSv1.2', ciphers: 'AES128-SHA256' }),
    ],
    [
      'upstream_tls_failed',
      'shown over TLS 1.1 only',
      async (ca) => ({
        ...(await ca.issue('a.example.com')),
        minVersion: 'TLSv1',
        maxVersion: 'TLSv1.1',
        ciphers: 'DEFAULT@SECLEVEL=0',
      }),
    ],
    [
      'upstream_tls_failed',
      'shown to clients that have one, too',
      async (ca) => ({
        ...(await ca.issue('a.example.com')),
        ca: ca.pem,
        requestCert: true,
        rejectUnauthorized: true,
        maxVersion: 'TLSv1.2',
      }),
    ],
  ];
  it.each(cases)('gives %s when it is one %s', async (expected, _name, options) => {
    const ca = await testCa();
    const contexts = new UpstreamContexts({ ca: [file(ca.pem)], clientCertificates: [] });
    expect(await outcome(await listen(tlsServer(await options(ca))), contexts)).toBe(expected);
  });

  it('that is listed itself is trusted', async () => {
    const ca = await testCa();
    const leaf = await ca.issue('a.example.com');
    const port = await listen(tlsServer(leaf));
    expect(await outcome(port, new UpstreamContexts({ ca: [file(leaf.cert)], clientCertificates: [] }))).toBe('ok');
  });
});

describe('a peer that does not speak TLS', () => {
  it.each<[string, Server]>([
    ['answers in plain HTTP', createPlainServer((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))],
    [
      'resets within the handshake',
      createPlainServer((socket) => {
        socket.on('error', () => undefined);
        socket.once('data', () => socket.resetAndDestroy());
      }),
    ],
    ['closes at once', createPlainServer((socket) => socket.end())],
  ])('fails when it %s', async (_name, server) => {
    const contexts = new UpstreamContexts({ ca: [], clientCertificates: [] });
    expect(await outcome(await listen(server), contexts)).toBe('upstream_tls_failed');
  });
});

describe('classifyUpstreamTlsError', () => {
  it.each([undefined, null, 'CERT_HAS_EXPIRED', new Error('x'), Object.assign(new Error('x'), { code: 7 })])(
    'takes %s for a failed handshake',
    (error) => {
      expect(classifyUpstreamTlsError(error)).toBe('upstream_tls_failed');
    },
  );
});

describe('UpstreamContexts', () => {
  it('makes one context and gives it to every host', () => {
    const contexts = new UpstreamContexts({ ca: [], clientCertificates: [] });
    expect(contexts.contextFor('a.example.com')).toBe(contexts.contextFor('b.example.com'));
  });

  it('shows a client certificate to the hosts that it is for and to no others', async () => {
    const [ca, clients] = await Promise.all([testCa(), testCa('rsa')]);
    const client = await clients.issue('client.example');
    const identity = { cert: file(client.cert), key: file(client.key) };
    const contexts = new UpstreamContexts({
      ca: [file(ca.pem)],
      clientCertificates: [
        { host: 'Exact.example', ...identity },
        { host: '*.wild.example', ...identity },
        { host: '*.near.wild.example', ...identity },
      ],
    });
    const plain = contexts.contextFor('other.example');
    const isPlain = (host: string): boolean => contexts.contextFor(host) === plain;
    const hosts = [
      'exact.example',
      'a.exact.example',
      'wild.example',
      'a.wild.example',
      'a.b.wild.example',
      'notwild.example',
    ];
    expect(hosts.map(isPlain)).toEqual([false, true, true, false, false, true]);
    expect(contexts.contextFor('a.near.wild.example')).not.toBe(contexts.contextFor('a.wild.example'));

    const seen: boolean[] = [];
    const server = createServer(
      {
        ...(await ca.issue('a.wild.example')),
        requestCert: true,
        rejectUnauthorized: false,
        ca: clients.pem,
        maxVersion: 'TLSv1.2',
      },
      (socket) => {
        socket.on('error', () => undefined);
        seen.push(Object.keys(socket.getPeerCertificate()).length > 0);
        socket.end();
      },
    );
    const port = await listen(server);
    expect(await outcome(port, contexts, 'a.wild.example')).toBe('ok');
    expect(seen).toEqual([true]);
  });

  it.each<[string, () => ConstructorParameters<typeof UpstreamContexts>[0]]>([
    ['a root file that is not there', () => ({ ca: ['/nonexistent/root.pem'], clientCertificates: [] })],
    ['a root file without certificates', () => ({ ca: [file('hello')], clientCertificates: [] })],
    [
      'a broken certificate',
      () => ({ ca: [file('-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----')], clientCertificates: [] }),
    ],
    [
      'a key that is none',
      () => ({ ca: [], clientCertificates: [{ host: 'a.b', cert: file(rootCertificates[0] ?? ''), key: file('x') }] }),
    ],
  ])('refuses %s and names the file', (_name, options) => {
    const make = (): UpstreamContexts => new UpstreamContexts(options());
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(/\.pem: /);
  });

  it('refuses a key of another certificate, patterns that reach too far, and two entries for one host', async () => {
    const [one, other] = await Promise.all([testCa(), testCa()]);
    const [a, b] = await Promise.all([one.issue('a.b'), other.issue('a.b')]);
    const withClients = (...clientCertificates: { host: string; cert: string; key: string }[]): UpstreamContexts =>
      new UpstreamContexts({ ca: [], clientCertificates });
    const good = { cert: file(a.cert), key: file(a.key) };
    expect(() => withClients({ host: 'a.b', cert: good.cert, key: file(b.key) })).toThrow(/does not belong/);
    for (const host of ['*', '', '*.', 'a.*.b', '**.b', 'a*'])
      expect(() => withClients({ host, ...good })).toThrow(ConfigError);
    expect(() => withClients({ host: 'a.b', ...good }, { host: 'A.B', ...good })).toThrow(/two client certificates/);
  });

  it('does not follow variables that point at our own CA', async () => {
    const ca = await testCa();
    const port = await listen(tlsServer(await ca.issue('a.example.com')));
    const before = process.env['SSL_CERT_FILE'];
    process.env['SSL_CERT_FILE'] = file(ca.pem);
    try {
      const contexts = new UpstreamContexts({ ca: [], clientCertificates: [] });
      expect(await outcome(port, contexts)).toBe('upstream_tls_untrusted');
    } finally {
      if (before === undefined) delete process.env['SSL_CERT_FILE'];
      else process.env['SSL_CERT_FILE'] = before;
    }
  });
});

describe('systemRoots', () => {
  it('gives PEM certificates, or nothing', () => {
    for (const pem of systemRoots()) expect(pem).toMatch(/^-----BEGIN CERTIFICATE-----/);
  });
});
