import { once } from 'node:events';
import { connect as connectRaw, createServer, type Socket } from 'node:net';
import { connect, TLSSocket, type ConnectionOptions, type SecureVersion } from 'node:tls';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Authority } from '../../src/tls/authority.ts';
import { readClientHello, type ClientHello } from '../../src/tls/client-hello.ts';
import { LeafCache } from '../../src/tls/leaf-cache.ts';
import { hasProgram, listen, run, temporaryFolder } from './support.ts';

/*
 * Ends TLS the way the proxy does, by a TLSSocket made over an accepted socket after its ClientHello was read, and holds every claim that the
 * docstring of LeafCache makes about it.
 */

const VERSIONS: readonly SecureVersion[] = ['TLSv1.2', 'TLSv1.3'];

interface Accepted {
  readonly raw: Socket;
  readonly tls: TLSSocket;
  readonly hello: ClientHello;
  /** Names of events in their order, with the error code where there is one. */
  readonly events: string[];
}

interface Terminator {
  readonly port: number;
  readonly ca: string;
  readonly accepted: Accepted[];
  connect(options?: ConnectionOptions): TLSSocket;
}

async function terminator(options: { release?: boolean; max?: number } = {}): Promise<Terminator> {
  const { authority } = await Authority.open(temporaryFolder());
  const leaves = new LeafCache(authority, { max: options.max ?? 10 });
  const accepted: Accepted[] = [];
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (raw) => {
    sockets.add(raw);
    raw.on('error', () => undefined);
    let bytes = Buffer.alloc(0);
    const onData = (chunk: Buffer): void => {
      bytes = Buffer.concat([bytes, chunk]);
      const hello = readClientHello(bytes);
      if (hello.kind !== 'hello') return;
      raw.off('data', onData);
      raw.pause();
      void Promise.resolve(leaves.get(hello.sni ?? '127.0.0.1')).then((secureContext) => {
        raw.unshift(bytes);
        const alpn = hello.alpn.length > 0 ? { ALPNProtocols: ['h2', 'http/1.1'] } : {};
        const tls = new TLSSocket(raw, { isServer: true, secureContext, ...alpn });
        const events: string[] = [];
        for (const name of ['error', '_tlsError', 'secure', 'secureConnect', 'end', 'close']) {
          tls.on(name, (reason: unknown) => {
            const code = reason instanceof Error && 'code' in reason ? ` ${String(reason.code)}` : '';
            events.push(name + code);
          });
        }
        tls.once('secure', () => {
          const release: unknown = Reflect.get(tls, '_releaseControl');
          if (options.release !== false && typeof release === 'function') Reflect.apply(release, tls, []);
          tls.write('hello');
        });
        tls.resume();
        accepted.push({ raw, tls, hello, events });
      });
    };
    raw.on('data', onData);
  });
  const port = await listen(server);
  onTestFinished(() => {
    for (const socket of sockets) socket.destroy();
  });
  return {
    port,
    ca: authority.certificatePem,
    accepted,
    connect(extra = {}) {
      const socket = connect({
        port,
        host: '127.0.0.1',
        servername: 'a.example.com',
        ca: authority.certificatePem,
        ...extra,
      });
      sockets.add(socket);
      socket.on('error', () => undefined);
      return socket;
    },
  };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

/** Greeting read, session ticket in hand. */
async function visit(peer: Terminator, version: SecureVersion, extra: ConnectionOptions = {}) {
  const socket = peer.connect({ minVersion: version, maxVersion: version, ...extra });
  let session: Buffer | undefined;
  socket.on('session', (ticket) => (session = ticket));
  await once(socket, 'data');
  await until(() => session !== undefined || socket.isSessionReused());
  const isReused = socket.isSessionReused();
  socket.destroy();
  return { session, isReused };
}

describe('TLS ended by hand with a context from the cache', () => {
  it.each(VERSIONS)('resumes %s sessions over connections', async (version) => {
    const peer = await terminator();
    const first = await visit(peer, version);
    const second = await visit(peer, version, { session: first.session });
    expect([first.isReused, second.isReused]).toEqual([false, true]);
    expect(peer.accepted.map(({ tls }) => tls.isSessionReused())).toEqual([false, true]);
    // The reason for taking the name from the hello: resumption may leave the socket without one.
    expect(peer.accepted[1]?.hello.sni).toBe('a.example.com');
  });

  it.each(VERSIONS)('resumes %s sessions after the context was dropped and made anew', async (version) => {
    const peer = await terminator({ max: 1 });
    const first = await visit(peer, version);
    await visit(peer, version, { servername: 'b.example.com' });
    const again = await visit(peer, version, { session: first.session });
    expect(again.isReused).toBe(true);
  });

  it.each([
    [['h2', 'http/1.1'], 'h2'],
    [['http/1.1'], 'http/1.1'],
    [['http/1.1', 'h2'], 'h2'],
    [[], false],
  ] as const)('agrees ALPN for %j on %s', async (offered, agreed) => {
    const peer = await terminator();
    const socket = peer.connect(offered.length > 0 ? { ALPNProtocols: [...offered] } : {});
    await once(socket, 'data');
    expect(socket.alpnProtocol).toBe(agreed);
    expect(peer.accepted[0]?.tls.alpnProtocol).toBe(agreed);
    expect(peer.accepted[0]?.hello.alpn).toEqual(offered);
  });

  it('refuses ALPN lists without a common entry', async () => {
    const peer = await terminator();
    const [error] = (await once(peer.connect({ ALPNProtocols: ['spdy/1'] }), 'error')) as [{ code: string }];
    expect(error.code).toBe('ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL');
    await until(() => peer.accepted[0]?.events.includes('close') === true);
    expect(peer.accepted[0]?.events).toEqual([
      '_tlsError ERR_SSL_NO_APPLICATION_PROTOCOL',
      'error ERR_SSL_NO_APPLICATION_PROTOCOL',
      'close',
    ]);
  });

  it('speaks no TLS before 1.2', async () => {
    const peer = await terminator();
    const old = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' } as const;
    const [error] = (await once(peer.connect(old), 'error')) as [{ code: string }];
    expect(error.code).toBe('ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
  });

  it.each(VERSIONS)('uses %s with forward secrecy over X25519 and AES-128-GCM', async (version) => {
    const peer = await terminator();
    const socket = peer.connect({ minVersion: version, maxVersion: version });
    await once(socket, 'data');
    expect(socket.getEphemeralKeyInfo()).toMatchObject({ name: 'X25519' });
    expect(socket.getCipher().standardName).toMatch(/^TLS_(ECDHE_ECDSA_WITH_)?AES_128_GCM_SHA256$/);
  });

  it('refuses renegotiation, which Node would allow a few times', async () => {
    const peer = await terminator();
    const socket = peer.connect({ maxVersion: 'TLSv1.2' });
    await once(socket, 'data');
    const failed = once(socket, 'error');
    socket.renegotiate({}, () => undefined);
    expect((await failed)[0]).toMatchObject({ code: 'ERR_SSL_NO_RENEGOTIATION' });
  });

  it('serves a chain that a client with our root accepts, for a name and for an address', async () => {
    const peer = await terminator();
    const byName = peer.connect();
    await once(byName, 'data');
    expect(byName.authorized).toBe(true);
    const chain = byName.getPeerCertificate(true);
    expect(chain.issuerCertificate.fingerprint256).toBe(chain.issuerCertificate.issuerCertificate.fingerprint256);
    const byAddress = connect({ port: peer.port, host: '127.0.0.1', ca: peer.ca });
    await once(byAddress, 'data');
    expect(byAddress.authorized).toBe(true);
    byAddress.destroy();
  });

  it('reports errors after the handshake only when control was released', async () => {
    for (const release of [true, false]) {
      const peer = await terminator({ release });
      const raw = connectRaw(peer.port, '127.0.0.1');
      raw.on('error', () => undefined);
      const socket = connect({ socket: raw, servername: 'a.example.com', ca: peer.ca });
      socket.on('error', () => undefined);
      await once(socket, 'data');
      raw.write('this is no TLS record');
      await until(() => peer.accepted[0]?.events.some((name) => name.startsWith('_tlsError')) === true);
      await new Promise((resolve) => setImmediate(resolve));
      const isReported = peer.accepted[0]?.events.some((name) => name.startsWith('error ')) === true;
      expect(isReported).toBe(release);
      raw.destroy();
    }
  });

  it('sees a Node client that distrusts us only as an end without a handshake', async () => {
    const peer = await terminator();
    const socket = connect({ port: peer.port, host: '127.0.0.1', servername: 'a.example.com', minVersion: 'TLSv1.3' });
    const [error] = (await once(socket, 'error')) as [{ code: string }];
    expect(error.code).toBe('SELF_SIGNED_CERT_IN_CHAIN');
    await until(() => peer.accepted[0]?.events.includes('end') === true);
    expect(peer.accepted[0]?.events[0]).toBe('end');
    expect(peer.accepted[0]?.events).not.toContain('secure');
  });

  it.runIf(hasProgram('curl', '--version'))(
    'sees curl distrust us as an alert, and trust us with our root (curl needed)',
    async () => {
      const peer = await terminator();
      const target = [
        '-sS',
        '-m',
        '5',
        '--connect-to',
        `a.example.com:443:127.0.0.1:${peer.port}`,
        'https://a.example.com/',
      ];
      expect((await run('curl', target)).code).toBe(60);
      await until(() => peer.accepted[0]?.events.includes('close') === true);
      expect(peer.accepted[0]?.events[0]).toMatch(/^_tlsError ERR_SSL_TLSV1_ALERT_UNKNOWN_CA/);
    },
  );
});
