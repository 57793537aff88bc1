import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { createServer } from 'node:tls';
import { describe, expect, it } from 'vitest';
import { CertificateError, ConfigError } from '../../src/core/errors.ts';
import { Authority } from '../../src/tls/authority.ts';
import { publishCaPair, retireCaPair } from '../../src/tls/ca-files.ts';
import { addressBytes, readFacts } from '../../src/tls/certificate.ts';
import { strictProblems } from '../../src/tls/strictness.ts';
import { hasProgram, listen, run, temporaryFolder, testCa } from './support.ts';

const DAY_MS = 24 * 3_600_000;
const hasOpenssl = hasProgram('openssl', 'version');
const hasPython = hasProgram('python3', '--version');

function write(folder: string, files: { readonly pem?: string; readonly key?: string }, keyMode = 0o600): string {
  if (files.pem !== undefined) writeFileSync(join(folder, 'ca.pem'), files.pem);
  if (files.key !== undefined) {
    writeFileSync(join(folder, 'ca.key'), files.key);
    chmodSync(join(folder, 'ca.key'), keyMode);
  }
  return folder;
}

async function refusal(folder: string, options: { now?: () => number } = {}): Promise<ConfigError> {
  const error: unknown = await Authority.open(folder, { settleMs: 0, ...options }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ConfigError);
  return error as ConfigError;
}

describe('the CA on disk', () => {
  it('is made once, with a key that only its owner reads, and is the same at the next start', async () => {
    const folder = join(temporaryFolder(), 'certs');
    const first = await Authority.open(folder);
    const second = await Authority.open(folder);
    expect([first.created, second.created]).toEqual([true, false]);
    expect(second.authority.fingerprintSha256).toBe(first.authority.fingerprintSha256);
    expect(readFileSync(join(folder, 'ca.pem'), 'utf8')).toBe(first.authority.certificatePem);
    expect(statSync(join(folder, 'ca.key')).mode & 0o777).toBe(0o600);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    expect(readdirSync(folder).sort()).toEqual(['ca.key', 'ca.pem']);
  });

  it('is one and the same for processes that start at once', async () => {
    const folder = join(temporaryFolder(), 'certs');
    const opened = await Promise.all(Array.from({ length: 12 }, () => Authority.open(folder)));
    expect(opened.filter(({ created }) => created)).toHaveLength(1);
    expect(new Set(opened.map(({ authority }) => authority.fingerprintSha256)).size).toBe(1);
    expect(readdirSync(folder).sort()).toEqual(['ca.key', 'ca.pem']);
  });

  it('is waited for while another process has written only half of it', async () => {
    const folder = temporaryFolder();
    const ca = await testCa();
    write(folder, { key: ca.keyPem });
    const opening = Authority.open(folder);
    setTimeout(() => write(folder, { pem: ca.pem }), 120);
    expect((await opening).authority.certificatePem).toBe(ca.pem);
  });

  it('never overwrites a key that appeared in between', async () => {
    const folder = write(temporaryFolder(), { key: 'theirs' });
    expect(await publishCaPair(folder, { certificatePem: 'ours', keyPem: 'ours' })).toBe(false);
    expect(readFileSync(join(folder, 'ca.key'), 'utf8')).toBe('theirs');
    expect(existsSync(join(folder, 'ca.pem'))).toBe(false);
  });

  it('leaves no key behind when a certificate appeared in between', async () => {
    const folder = write(temporaryFolder(), { pem: 'theirs' });
    expect(await publishCaPair(folder, { certificatePem: 'ours', keyPem: 'ours' })).toBe(false);
    expect(readdirSync(folder)).toEqual(['ca.pem']);
  });

  it('is not made when the caller only wants to look', async () => {
    const folder = temporaryFolder();
    await expect(Authority.open(folder, { create: false })).rejects.toThrow(/ca init/);
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each(['', 'x'.repeat(65), 'two\nlines'])('is not made for the organization %j', async (organization) => {
    const folder = temporaryFolder();
    await expect(Authority.open(folder, { organization })).rejects.toThrow(ConfigError);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('keeps old files when it is replaced, and never over others', async () => {
    const folder = write(temporaryFolder(), { pem: 'p', key: 'k' });
    await retireCaPair(folder, 'then');
    expect(readdirSync(folder).sort()).toEqual(['ca.key.then', 'ca.pem.then']);
    write(folder, { pem: 'p2', key: 'k2' });
    await expect(retireCaPair(folder, 'then')).rejects.toThrow(ConfigError);
    expect(readFileSync(join(folder, 'ca.key.then'), 'utf8')).toBe('k');
  });
});

describe('a CA that cannot be used', () => {
  it.each([0o644, 0o640, 0o604, 0o660, 0o666])('is refused when its key has mode %o', async (mode) => {
    const ca = await testCa();
    const error = await refusal(write(temporaryFolder(), { pem: ca.pem, key: ca.keyPem }, mode));
    expect(error.file).toMatch(/ca\.key$/);
    expect(error.message).toContain('chmod 600');
  });

  it.runIf(process.geteuid?.() === 0)(
    'is accepted as a secret of another user that our group reads (root needed)',
    async () => {
      const ca = await testCa();
      const folder = write(temporaryFolder(), { pem: ca.pem, key: ca.keyPem }, 0o440);
      chownSync(join(folder, 'ca.key'), 65_534, 0);
      expect((await Authority.open(folder)).created).toBe(false);
      chmodSync(join(folder, 'ca.key'), 0o444);
      expect((await refusal(folder)).message).toContain('mode 0444');
    },
  );

  it('is refused without its key, and without its certificate', async () => {
    const ca = await testCa();
    expect((await refusal(write(temporaryFolder(), { pem: ca.pem }))).message).toContain('no ca.key');
    expect((await refusal(write(temporaryFolder(), { key: ca.keyPem }))).message).toContain('no ca.pem');
  });

  it('is refused when key and certificate do not belong together', async () => {
    const [one, other] = await Promise.all([testCa(), testCa()]);
    const error = await refusal(write(temporaryFolder(), { pem: one.pem, key: other.keyPem }));
    expect(error.message).toContain('does not belong');
  });

  it('is refused when it has expired, and when it is not valid yet', async () => {
    const ca = await testCa();
    const folder = write(temporaryFolder(), { pem: ca.pem, key: ca.keyPem });
    expect((await refusal(folder, { now: () => Date.now() + 2 * DAY_MS })).message).toContain('expired');
    expect((await refusal(folder, { now: () => Date.now() - DAY_MS })).message).toContain('not valid before');
  });

  it('is refused when it is a leaf', async () => {
    const leaf = await (await testCa()).issue('a.example.com');
    const error = await refusal(write(temporaryFolder(), { pem: leaf.cert, key: leaf.key }));
    expect(error.message).toContain('not a CA certificate');
  });

  it('is refused when the second certificate did not sign the first', async () => {
    const [one, other] = await Promise.all([testCa(), testCa()]);
    const error = await refusal(write(temporaryFolder(), { pem: one.pem + other.pem, key: one.keyPem }));
    expect(error.message).toContain('did not sign');
  });

  it.each([
    ['an Ed25519 key', generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' })],
    [
      'an RSA key of 1024 bits',
      generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey.export({ type: 'pkcs8', format: 'pem' }),
    ],
    [
      'an encrypted key',
      generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({
        type: 'pkcs8',
        format: 'pem',
        cipher: 'aes-256-cbc',
        passphrase: 'x',
      }),
    ],
    ['no key at all', 'hello'],
  ])('is refused with %s', async (_name, keyPem) => {
    const ca = await testCa();
    const error = await refusal(write(temporaryFolder(), { pem: ca.pem, key: keyPem.toString() }));
    expect(error.file).toMatch(/ca\.key$/);
  });

  it('is refused when ca.pem holds no certificate', async () => {
    const ca = await testCa();
    expect((await refusal(write(temporaryFolder(), { pem: 'hello', key: ca.keyPem }))).file).toMatch(/ca\.pem$/);
    const broken = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n';
    expect((await refusal(write(temporaryFolder(), { pem: broken, key: ca.keyPem }))).message).toContain('malformed');
  });
});

describe("an operator's own CA", () => {
  it.each(['p256', 'p384', 'rsa'] as const)('with a key of kind %s signs leaves that verify', async (kind) => {
    const ca = await testCa(kind);
    const { authority, created } = await Authority.open(write(temporaryFolder(), { pem: ca.pem, key: ca.keyPem }));
    expect(created).toBe(false);
    const leaf = new X509Certificate((await authority.mintLeaf('a.example.com')).certificateChainPem);
    const root = new X509Certificate(ca.pem);
    expect(leaf.checkIssued(root) && leaf.verify(root.publicKey)).toBe(true);
    // A leaf must not outlive the CA that signed it, which here lives a day.
    expect(Date.parse(leaf.validTo)).toBe(Date.parse(root.validTo));
  });

  it.runIf(hasOpenssl)('below a root serves its chain, and strict clients accept it by the root alone', async () => {
    const folder = temporaryFolder();
    const at = (name: string): string => join(folder, name);
    mkdirSync(at('certs'));
    const extensions = (pathLength: number): string =>
      `basicConstraints=critical,CA:true,pathlen:${pathLength}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n`;
    writeFileSync(at('root.ext'), extensions(1));
    writeFileSync(at('sub.ext'), extensions(0));
    for (const [name, signer] of [
      ['root', ['-signkey', at('root.key')]],
      ['sub', ['-CA', at('root.pem'), '-CAkey', at('root.key'), '-CAcreateserial']],
    ] as const) {
      const request = ['req', '-new', '-newkey', 'rsa:2048', '-nodes', '-subj', `/CN=Test ${name}`];
      expect((await run('openssl', [...request, '-keyout', at(`${name}.key`), '-out', at(`${name}.csr`)])).code).toBe(
        0,
      );
      const sign = ['x509', '-req', '-in', at(`${name}.csr`), '-days', '30', '-extfile', at(`${name}.ext`)];
      expect((await run('openssl', [...sign, ...signer, '-out', at(`${name}.pem`)])).output).toContain('ok');
    }
    write(at('certs'), { pem: readFileSync(at('sub.pem'), 'utf8'), key: readFileSync(at('sub.key'), 'utf8') });
    const { authority } = await Authority.open(at('certs'));
    writeFileSync(at('chain.pem'), (await authority.mintLeaf('a.example.com')).certificateChainPem);
    const verify = [
      'verify',
      '-x509_strict',
      '-CAfile',
      at('root.pem'),
      '-untrusted',
      at('chain.pem'),
      at('chain.pem'),
    ];
    expect((await run('openssl', verify)).output).toContain('OK');
  });
});

describe('a leaf', () => {
  it('has a new serial number each time and lives for a week, dated back for slow clocks', async () => {
    const { authority } = await Authority.open(temporaryFolder());
    const before = Date.now();
    const [one, other] = await Promise.all([authority.mintLeaf('a.example.com'), authority.mintLeaf('a.example.com')]);
    const leaf = new X509Certificate(one.certificateChainPem);
    expect(leaf.serialNumber).not.toBe(new X509Certificate(other.certificateChainPem).serialNumber);
    expect(Date.parse(leaf.validFrom)).toBeLessThanOrEqual(before - DAY_MS + 60_000);
    expect(one.notAfterMs - before).toBeGreaterThan(6 * DAY_MS);
    expect(one.notAfterMs - before).toBeLessThan(8 * DAY_MS);
    expect(leaf.ca).toBe(false);
    // serverAuth
    expect(leaf.keyUsage).toEqual(['1.3.6.1.5.5.7.3.1']);
    expect(leaf.checkPrivateKey(createPrivateKey(one.keyPem))).toBe(true);
  });

  it.each([
    ['a.example.com', 'DNS:a.example.com'],
    ['localhost', 'DNS:localhost'],
    ['under_score.example.com', 'DNS:under_score.example.com'],
    ['xn--bcher-kva.example', 'DNS:xn--bcher-kva.example'],
    ['192.0.2.7', 'IP Address:192.0.2.7'],
    ['2001:db8::1', 'IP Address:2001:DB8:0:0:0:0:0:1'],
    ['::ffff:192.0.2.7', 'IP Address:0:0:0:0:0:FFFF:C000:207'],
  ])('for %s names it in the SAN', async (host, altName) => {
    const { authority } = await Authority.open(temporaryFolder());
    const leaf = new X509Certificate((await authority.mintLeaf(host)).certificateChainPem);
    expect(leaf.subjectAltName).toBe(altName);
    expect(leaf.subject).toBe(`CN=${host}`);
  });

  it('for a host of more than 64 characters has an empty subject', async () => {
    const { authority } = await Authority.open(temporaryFolder());
    const host = `${'a'.repeat(63)}.${'b'.repeat(63)}.example.com`;
    const leaf = new X509Certificate((await authority.mintLeaf(host)).certificateChainPem);
    expect(leaf.subject).toBeFalsy();
    expect(leaf.checkHost(host)).toBe(host);
  });

  it.each([
    '',
    '.',
    'a..example.com',
    'a.example.com.',
    '*.example.com',
    '../../x',
    'a/b',
    'a b',
    'A.example.com',
    'a\0.example.com',
    'bücher.example',
    '-a.example.com',
    'fe80::1%eth0',
    '[::1]',
    `${'a'.repeat(64)}.example.com`,
    Array.from({ length: 64 }, () => 'abc').join('.'),
  ])('is not made for %j', async (host) => {
    const folder = temporaryFolder();
    const { authority } = await Authority.open(folder);
    await expect(authority.mintLeaf(host)).rejects.toThrow(CertificateError);
    expect(readdirSync(folder).sort()).toEqual(['ca.key', 'ca.pem']);
  });

  it('is not made by a CA that has expired in the meantime', async () => {
    let nowMs = Date.now();
    const { authority } = await Authority.open(temporaryFolder(), { now: () => nowMs });
    nowMs = authority.notAfter.getTime();
    await expect(authority.mintLeaf('a.example.com')).rejects.toThrow(CertificateError);
  });

  it
    .runIf(hasOpenssl)
    .each(['a.example.com', '192.0.2.7', '2001:db8::1', `${'a'.repeat(63)}.${'b'.repeat(63)}.example`])(
    'for %s passes openssl in strict mode (openssl needed)',
    async (host) => {
      const folder = temporaryFolder();
      const { authority } = await Authority.open(folder);
      writeFileSync(join(folder, 'leaf.pem'), (await authority.mintLeaf(host)).certificateChainPem);
      const purpose = [
        '-x509_strict',
        '-purpose',
        'sslserver',
        host.includes('.example') ? '-verify_hostname' : '-verify_ip',
        host,
      ];
      const checked = await run('openssl', [
        'verify',
        ...purpose,
        '-CAfile',
        join(folder, 'ca.pem'),
        join(folder, 'leaf.pem'),
      ]);
      expect(checked.output).toContain('OK');
    },
  );

  it.runIf(hasPython).each(['localhost', '127.0.0.1'])(
    'for %s is accepted by Python with VERIFY_X509_STRICT (python3 needed)',
    async (host) => {
      const folder = temporaryFolder();
      const { authority } = await Authority.open(folder);
      const leaf = await authority.mintLeaf(host);
      const server = createServer({ key: leaf.keyPem, cert: leaf.certificateChainPem }, (socket) => socket.end());
      const port = await listen(server);
      const script = `
import socket, ssl
context = ssl.create_default_context(cafile=${JSON.stringify(join(folder, 'ca.pem'))})
context.verify_flags |= ssl.VERIFY_X509_STRICT
with context.wrap_socket(socket.create_connection(("127.0.0.1", ${port})), server_hostname="${host}") as s:
    print("accepted", s.version())
`;
      expect((await run('python3', ['-'], script)).output).toContain('accepted TLSv1.3');
    },
  );
});

describe('the strictness check', () => {
  it('finds nothing wrong with a root that we make', async () => {
    const { authority } = await Authority.open(temporaryFolder());
    expect(strictProblems(authority.certificates[0])).toEqual([]);
    expect(readFacts(authority.certificates[0].raw).subjectKeyId).toHaveLength(20);
  });

  it.runIf(hasOpenssl)('names what a sloppy root lacks (openssl needed)', async () => {
    const folder = temporaryFolder();
    const config = join(folder, 'openssl.cnf');
    writeFileSync(
      config,
      '[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nbasicConstraints=CA:true\nsubjectKeyIdentifier=none\n',
    );
    const files = ['-keyout', join(folder, 'ca.key'), '-out', join(folder, 'ca.pem')];
    const made = [
      'req',
      '-x509',
      '-config',
      config,
      '-newkey',
      'rsa:2048',
      '-nodes',
      '-sha1',
      '-subj',
      '/CN=sloppy',
      ...files,
    ];
    expect((await run('openssl', made)).code).toBe(0);
    chmodSync(join(folder, 'ca.key'), 0o600);
    const { authority } = await Authority.open(folder);
    expect(strictProblems(authority.certificates[0])).toEqual([
      'basicConstraints is not critical',
      'keyUsage is missing',
      'subjectKeyIdentifier is missing',
      'it is signed with SHA-1 or MD5',
    ]);
  });
});

describe('addressBytes', () => {
  it.each([
    ['192.0.2.7', 'c0000207'],
    ['::', '00000000000000000000000000000000'],
    ['::1', '00000000000000000000000000000001'],
    ['2001:db8::', '20010db8000000000000000000000000'],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
    ['64:ff9b::192.0.2.7', '0064ff9b0000000000000000c0000207'],
  ])('writes %s in network order', (address, hex) => {
    expect(addressBytes(address).toString('hex')).toBe(hex);
  });
});
