import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { connect, type ConnectionOptions } from 'node:tls';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { readClientHello, type ClientHelloResult } from '../../src/tls/client-hello.ts';
import { hasProgram, listen, run } from './support.ts';

const u8 = (value: number): Buffer => Buffer.of(value);
const u16 = (value: number): Buffer => Buffer.of(value >> 8, value & 0xff);
const vector8 = (content: Buffer): Buffer => Buffer.concat([u8(content.length), content]);
const vector16 = (content: Buffer): Buffer => Buffer.concat([u16(content.length), content]);
const extension = (type: number, content: Buffer): Buffer => Buffer.concat([u16(type), vector16(content)]);
const serverName = (name: string | Buffer): Buffer =>
  extension(0, vector16(Buffer.concat([u8(0), vector16(Buffer.from(name))])));
const alpn = (...names: readonly (string | Buffer)[]): Buffer =>
  extension(16, vector16(Buffer.concat(names.map((name) => vector8(Buffer.from(name))))));
const versions = (...list: readonly number[]): Buffer => extension(43, vector8(Buffer.concat(list.map(u16))));

interface Shape {
  readonly extensions?: readonly Buffer[] | null;
  readonly version?: number;
  readonly sessionId?: Buffer;
  readonly ciphers?: Buffer;
  readonly compressions?: Buffer;
  readonly after?: Buffer;
}

/** A handshake message of type ClientHello. */
function hello(shape: Shape = {}): Buffer {
  const { version = 0x0303, sessionId = Buffer.alloc(32, 7), ciphers = Buffer.from('130113021303c02b', 'hex') } = shape;
  const { compressions = u8(0), after = Buffer.alloc(0), extensions = [serverName('a.example.com')] } = shape;
  const body = Buffer.concat([
    u16(version),
    Buffer.alloc(32, 9),
    vector8(sessionId),
    vector16(ciphers),
    vector8(compressions),
    extensions === null ? Buffer.alloc(0) : vector16(Buffer.concat(extensions)),
    after,
  ]);
  return Buffer.concat([u8(1), u8(body.length >> 16), u16(body.length & 0xffff), body]);
}

/** Puts a message into records, cut at the given sizes; the rest goes into one more. */
function records(message: Buffer, ...sizes: readonly number[]): Buffer {
  const parts: Buffer[] = [];
  let at = 0;
  for (const size of [...sizes, Math.max(1, message.length)]) {
    const part = message.subarray(at, at + size);
    at += size;
    if (part.length > 0) parts.push(Buffer.concat([Buffer.of(0x16, 3, 1), vector16(part)]));
  }
  return Buffer.concat(parts);
}

const read = (shape: Shape = {}): ClientHelloResult => readClientHello(records(hello(shape)));

describe('readClientHello', () => {
  it('reads name, protocols and versions', () => {
    const extensions = [serverName('A.Example.com'), alpn('h2', 'http/1.1'), versions(0x0304, 0x0303)];
    expect(read({ extensions })).toEqual({
      kind: 'hello',
      sni: 'a.example.com',
      alpn: ['h2', 'http/1.1'],
      versions: [0x0304, 0x0303],
      hasEncryptedClientHello: false,
    });
  });

  it('reads a hello without any extensions as TLS 1.2 has them', () => {
    expect(read({ extensions: null })).toMatchObject({ kind: 'hello', sni: null, alpn: [], versions: [0x0303] });
    expect(read({ extensions: [] })).toMatchObject({ kind: 'hello', sni: null });
  });

  it('leaves GREASE out, and takes encrypted hellos for what they are: present, not an error', () => {
    const extensions = [
      extension(0x1a1a, Buffer.alloc(0)),
      serverName('outer.example'),
      alpn(Buffer.of(0xaa, 0xaa), 'h2'),
      versions(0x7a7a, 0x0304),
      extension(0xfe0d, Buffer.alloc(200, 1)),
      extension(0xfafa, u8(0)),
    ];
    expect(read({ extensions })).toEqual({
      kind: 'hello',
      sni: 'outer.example',
      alpn: ['h2'],
      versions: [0x0304],
      hasEncryptedClientHello: true,
    });
  });

  it('leaves alone what follows the last record of the hello', () => {
    const bytes = Buffer.concat([records(hello()), Buffer.from('140303000101170303', 'hex')]);
    expect(readClientHello(bytes)).toMatchObject({ kind: 'hello', sni: 'a.example.com' });
  });

  it('reads a hello larger than one record', () => {
    const extensions = [serverName('a.example.com'), extension(21, Buffer.alloc(40_000))];
    expect(readClientHello(records(hello({ extensions }), 16_384, 16_384))).toMatchObject({ sni: 'a.example.com' });
  });

  it('says how many bytes it needs', () => {
    const bytes = records(hello());
    expect(readClientHello(Buffer.alloc(0))).toEqual({ kind: 'incomplete', need: 5 });
    expect(readClientHello(bytes.subarray(0, 4))).toEqual({ kind: 'incomplete', need: 5 });
    expect(readClientHello(bytes.subarray(0, 5))).toEqual({ kind: 'incomplete', need: bytes.length });
    expect(readClientHello(bytes.subarray(0, -1))).toEqual({ kind: 'incomplete', need: bytes.length });
  });

  const twoNames = extension(
    0,
    vector16(Buffer.concat([u8(0), vector16(Buffer.from('a.b')), u8(0), vector16(Buffer.from('c.d'))])),
  );
  const psk = extension(41, Buffer.alloc(4));
  it.each<[string, string, Buffer]>([
    ['not_tls', 'HTTP', Buffer.from('GET / HTTP/1.1\r\n')],
    ['not_tls', 'SSH', Buffer.from('SSH-2.0-x\r\n')],
    ['not_tls', 'an alert', Buffer.from('1503010002', 'hex')],
    ['not_tls', 'a record of version 2', Buffer.from('1602000005', 'hex')],
    ['not_tls', 'binary with a high first byte', Buffer.from('ff00ff00ff', 'hex')],
    ['ssl2', 'an SSLv2 hello', Buffer.from('802e0100020015', 'hex')],
    ['bad_record', 'an empty record', Buffer.from('1603010000', 'hex')],
    ['bad_record', 'a record over its limit', Buffer.from('1603014001', 'hex')],
    ['not_client_hello', 'a ServerHello', records(Buffer.concat([u8(2), hello().subarray(1)]))],
    ['too_large', 'a hello over its limit', Buffer.from('160301000401010000', 'hex')],
    ['too_many_records', 'one byte per record', records(hello(), ...Array.from({ length: 60 }, () => 1))],
    ['trailing_bytes', 'another message in the same record', records(Buffer.concat([hello(), u8(0)]))],
    ['bad_structure', 'bytes after the extensions', records(hello({ after: u8(0) }))],
    ['bad_structure', 'a session id over its limit', records(hello({ sessionId: Buffer.alloc(33) }))],
    ['bad_structure', 'half a cipher suite', records(hello({ ciphers: Buffer.alloc(3) }))],
    ['bad_structure', 'no cipher suites', records(hello({ ciphers: Buffer.alloc(0) }))],
    ['bad_structure', 'no compression methods', records(hello({ compressions: Buffer.alloc(0) }))],
    ['bad_structure', 'an extension that overruns', records(hello({ extensions: [Buffer.of(0, 23, 0, 9, 1)] }))],
    ['bad_structure', 'a pre-shared key that is not last', records(hello({ extensions: [psk, serverName('a.b')] }))],
    ['bad_structure', 'an empty message', records(Buffer.of(1, 0, 0, 0))],
    [
      'duplicate_extension',
      'two SNI extensions',
      records(hello({ extensions: [serverName('a.b'), serverName('a.b')] })),
    ],
    ['duplicate_extension', 'two ALPN extensions', records(hello({ extensions: [alpn('h2'), alpn('h2')] }))],
    ['bad_server_name', 'two names', records(hello({ extensions: [twoNames] }))],
    ['bad_server_name', 'no name', records(hello({ extensions: [extension(0, u16(0))] }))],
    ['bad_server_name', 'an empty extension', records(hello({ extensions: [extension(0, Buffer.alloc(0))] }))],
    [
      'bad_server_name',
      'another name type',
      records(hello({ extensions: [extension(0, vector16(Buffer.of(1, 0, 1, 97)))] })),
    ],
    [
      'bad_server_name',
      'a byte too many',
      records(hello({ extensions: [extension(0, Buffer.of(0, 4, 0, 0, 1, 97, 0))] })),
    ],
    ...['', 'a\0.b', 'bücher.example', 'a b', 'a.b.', '.a', 'a..b', 'a/b', '*.b', '[::1]', 'a:443', 'a'.repeat(64)].map(
      (name): [string, string, Buffer] => [
        'bad_server_name',
        `the name ${JSON.stringify(name)}`,
        records(hello({ extensions: [serverName(name)] })),
      ],
    ),
    ['server_name_is_address', 'an IPv4 name', records(hello({ extensions: [serverName('192.0.2.1')] }))],
    ['server_name_is_address', 'an IPv6 name', records(hello({ extensions: [serverName('2001:db8::1')] }))],
    ['bad_alpn', 'an empty list', records(hello({ extensions: [extension(16, u16(0))] }))],
    ['bad_alpn', 'an empty protocol', records(hello({ extensions: [alpn('')] }))],
    ['bad_alpn', 'a byte too many', records(hello({ extensions: [extension(16, Buffer.of(0, 2, 1, 97, 0))] }))],
    ['bad_versions', 'an empty list', records(hello({ extensions: [versions()] }))],
    ['bad_versions', 'half a version', records(hello({ extensions: [extension(43, Buffer.of(3, 3, 4, 3))] }))],
    ['bad_versions', 'version 2 without a list', records(hello({ version: 0x0200 }))],
  ])('calls it %s: %s', (reason, _name, bytes) => {
    expect(readClientHello(bytes)).toEqual({ kind: 'invalid', reason });
  });

  it('refuses another record type inside the hello', () => {
    const cut = records(hello(), 20);
    const tampered = Buffer.from(cut);
    tampered[25] = 0x17;
    expect(readClientHello(tampered)).toEqual({ kind: 'invalid', reason: 'bad_record' });
  });
});

describe('readClientHello on any bytes', () => {
  /** Every prefix is either incomplete or says what the whole says; `need` never asks for more than a valid hello has. */
  function expectSteady(bytes: Buffer): void {
    const whole = readClientHello(bytes);
    let settled: ClientHelloResult | null = null;
    for (let length = 0; length <= bytes.length; length += 1) {
      const result = readClientHello(bytes.subarray(0, length));
      if (settled !== null) expect(result).toEqual(settled);
      else if (result.kind === 'incomplete') expect(result.need).toBeGreaterThan(length);
      else settled = result;
    }
    expect(settled ?? whole).toEqual(whole);
  }

  it('never throws and never changes its mind on noise', () =>
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 80 }), (noise) => {
        expectSteady(Buffer.from(noise));
      }),
    ));

  it('never throws and never changes its mind on hellos with flipped bytes', () =>
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
        fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 6 }),
        (flips, sizes) => {
          const extensions = [serverName('a.example.com'), alpn('h2'), versions(0x0304)];
          const bytes = records(hello({ extensions }), ...sizes);
          for (const [at, value] of flips) bytes[at % bytes.length] = value;
          expectSteady(bytes);
        },
      ),
    ));

  it('finds the same name however the hello is cut into records', () =>
    fc.assert(
      fc.property(
        fc.domain().filter((name) => name.length <= 253),
        fc.array(fc.integer({ min: 1, max: 100 }), { maxLength: 20 }),
        (name, sizes) => {
          const bytes = records(hello({ extensions: [serverName(name), versions(0x0304)] }), ...sizes);
          expect(readClientHello(bytes)).toMatchObject({ kind: 'hello', sni: name.toLowerCase() });
        },
      ),
    ));
});

describe('readClientHello on what real clients send', () => {
  /** First flight of a client, taken by a server that never answers. */
  async function record(start: (port: number) => unknown): Promise<Buffer> {
    const server = createServer();
    const port = await listen(server);
    start(port);
    const [socket] = (await once(server, 'connection')) as [Socket];
    socket.on('error', () => undefined);
    onTestFinished(() => {
      socket.destroy();
    });
    let bytes = Buffer.alloc(0);
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      bytes = Buffer.concat([bytes, chunk]);
      if (readClientHello(bytes).kind !== 'incomplete') break;
    }
    return bytes;
  }

  function node(options: ConnectionOptions): Promise<Buffer> {
    return record((port) => connect({ port, host: '127.0.0.1', ...options }).on('error', () => undefined));
  }

  it.each<[ConnectionOptions, object]>([
    [
      { servername: 'a.example.com', ALPNProtocols: ['h2', 'http/1.1'] },
      { sni: 'a.example.com', alpn: ['h2', 'http/1.1'] },
    ],
    [
      { servername: 'a.example.com', maxVersion: 'TLSv1.2' },
      { sni: 'a.example.com', alpn: [], versions: [0x0303] },
    ],
    [{ servername: '' }, { sni: null, alpn: [] }],
  ])('reads Node with %j', async (options, expected) => {
    expect(readClientHello(await node(options))).toMatchObject({ kind: 'hello', ...expected });
  });

  it.runIf(hasProgram('curl', '--version'))('reads curl (needed)', async () => {
    const bytes = await record((port) => {
      const target = ['--connect-to', `a.example.com:443:127.0.0.1:${port}`, 'https://a.example.com/'];
      return run('curl', ['-s', '-m', '1', ...target]);
    });
    expect(readClientHello(bytes)).toMatchObject({ kind: 'hello', sni: 'a.example.com', alpn: ['h2', 'http/1.1'] });
  });

  it.runIf(hasProgram('openssl', 'version'))('reads openssl with many key shares (needed)', async () => {
    const bytes = await record((port) => {
      const options = ['-connect', `127.0.0.1:${port}`, '-servername', 'a.example.com', '-alpn', 'h2,foo'];
      return run('timeout', ['1', 'openssl', 's_client', ...options]);
    });
    expect(readClientHello(bytes)).toMatchObject({ kind: 'hello', sni: 'a.example.com', alpn: ['h2', 'foo'] });
  });

  it.runIf(hasProgram('python3', '--version'))('reads Python (needed)', async () => {
    const script = (port: number): string =>
      `import socket, ssl\nssl.create_default_context().wrap_socket(socket.create_connection(("127.0.0.1", ${port}), 1), server_hostname="a.example.com")`;
    const bytes = await record((port) => run('python3', ['-'], script(port)));
    expect(readClientHello(bytes)).toMatchObject({ kind: 'hello', sni: 'a.example.com', alpn: [] });
  });
});
