import { X509Certificate } from 'node:crypto';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { rootCertificates } from 'node:tls';
import { Command } from 'commander';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { addCaCommands } from '../../src/cli/ca.ts';
import { hasProgram, run, temporaryFolder } from '../tls/support.ts';

interface Outcome {
  readonly stdout: Buffer;
  readonly stderr: string;
  readonly exitCode: number;
}

async function ca(...args: readonly string[]): Promise<Outcome> {
  const out: Buffer[] = [];
  let stderr = '';
  const program = new Command('subfloor').exitOverride().configureOutput({ writeErr: (text) => (stderr += text) });
  addCaCommands(program);
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => out.push(Buffer.from(chunk)) > 0);
  vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => (stderr += String(chunk)) !== '');
  process.exitCode = 0;
  try {
    await program.parseAsync(['ca', ...args], { from: 'user' });
    return { stdout: Buffer.concat(out), stderr, exitCode: process.exitCode };
  } finally {
    vi.restoreAllMocks();
    process.exitCode = 0;
  }
}

afterEach(() => vi.restoreAllMocks());

describe('subfloor ca', () => {
  it('init makes a CA once and says so, and the second time says that there is one', async () => {
    const folder = temporaryFolder();
    const first = await ca('init', '--certs', folder);
    expect(first.stderr).toContain('made a root CA');
    const pem = readFileSync(join(folder, 'ca.pem'), 'utf8');
    expect(first.stdout.toString()).toContain(new X509Certificate(pem).fingerprint256);
    const second = await ca('init', '--certs', folder, '--json');
    expect(second.stderr).toContain('there is a root CA already');
    expect(JSON.parse(second.stdout.toString())).toMatchObject({ strictProblems: [], chainLength: 1 });
    expect(readFileSync(join(folder, 'ca.pem'), 'utf8')).toBe(pem);
  });

  it('init --force makes another one and keeps the old files', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const key = readFileSync(join(folder, 'ca.key'), 'utf8');
    const again = await ca('init', '--certs', folder, '--force', '--organization', 'Example Ltd');
    expect(again.stdout.toString()).toContain('O=Example Ltd');
    const old = readdirSync(folder).find((name) => name.startsWith('ca.key.'));
    expect(readFileSync(join(folder, old ?? ''), 'utf8')).toBe(key);
    expect(statSync(join(folder, old ?? '')).mode & 0o777).toBe(0o600);
    expect(readFileSync(join(folder, 'ca.key'), 'utf8')).not.toBe(key);
  });

  it('init --force leaves the old CA in place when it cannot make the new one', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    expect((await ca('init', '--certs', folder, '--force', '--organization', '')).exitCode).toBe(2);
    expect(readdirSync(folder).sort()).toEqual(['ca.key', 'ca.pem']);
  });

  it.each(['show', 'export', 'bundle'])('%s makes no CA: it exits with 2 and names the remedy', async (command) => {
    const folder = temporaryFolder();
    const result = await ca(command, '--certs', folder);
    expect(result.exitCode).toBe(2);
    expect(result.stderr).toContain('subfloor ca init');
    expect(result.stdout).toHaveLength(0);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('show prints what people compare', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const shown = JSON.parse((await ca('show', '--certs', folder, '--json')).stdout.toString()) as Record<
      string,
      unknown
    >;
    const certificate = new X509Certificate(readFileSync(join(folder, 'ca.pem')));
    expect(shown['fingerprintSha256']).toBe(certificate.fingerprint256);
    expect(shown['spkiSha256']).toMatch(/^[A-Za-z0-9+/]{43}=$/);
    expect(shown['subject']).toMatch(/^O=Subfloor, CN=Subfloor Root CA [0-9a-f]{8}$/);
  });

  it('export never prints the key', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const pem = (await ca('export', '--certs', folder)).stdout.toString();
    expect(pem).toContain(readFileSync(join(folder, 'ca.pem'), 'utf8'));
    expect(pem).not.toContain('PRIVATE');
    const der = (await ca('export', '--certs', folder, '--format', 'der')).stdout;
    expect(new X509Certificate(der).fingerprint256).toBe(new X509Certificate(pem).fingerprint256);
  });

  it('bundle holds the public roots and ours, each once, in ASCII', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const file = join(folder, 'bundle.pem');
    expect((await ca('bundle', '--certs', folder, '-o', file)).stdout).toHaveLength(0);
    const text = readFileSync(file, 'utf8');
    expect(text).toMatch(/^[\n -~]*$/);
    const blocks = text.match(/-----BEGIN[^-]*-----[^-]*-----END[^-]*-----/g) ?? [];
    const fingerprints = blocks.map((block) => new X509Certificate(block).fingerprint256);
    expect(new Set(fingerprints).size).toBe(fingerprints.length);
    const own = new X509Certificate(readFileSync(join(folder, 'ca.pem'))).fingerprint256;
    expect(fingerprints.at(-1)).toBe(own);
    for (const root of rootCertificates) expect(fingerprints).toContain(new X509Certificate(root).fingerprint256);
  });

  it('reports a file that cannot be written', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const result = await ca('export', '--certs', folder, '-o', join(folder, 'none', 'x.pem'));
    expect([result.exitCode, result.stderr]).toEqual([2, expect.stringContaining('ENOENT')]);
  });

  it('refuses formats that it does not know', async () => {
    await expect(ca('export', '--format', 'jks')).rejects.toThrow(/Allowed choices/);
  });

  it.runIf(hasProgram('keytool', '-help'))(
    'export --format p12 is a trust store for Java (keytool needed)',
    async () => {
      const folder = temporaryFolder();
      await ca('init', '--certs', folder);
      const file = join(folder, 'trust.p12');
      await ca('export', '--certs', folder, '--format', 'p12', '-o', file);
      const listed = await run('keytool', ['-list', '-keystore', file, '-storepass', 'changeit']);
      expect(listed.output).toContain('trustedCertEntry');
      expect(listed.output).toContain(new X509Certificate(readFileSync(join(folder, 'ca.pem'))).fingerprint256);
      const wrong = await run('keytool', ['-list', '-keystore', file, '-storepass', 'not-it-at-all']);
      expect(wrong.code).not.toBe(0);
    },
  );

  it.runIf(hasProgram('openssl', 'version'))('export --format p12 can be read by openssl (needed)', async () => {
    const folder = temporaryFolder();
    await ca('init', '--certs', folder);
    const file = join(folder, 'trust.p12');
    await ca('export', '--certs', folder, '--format', 'p12', '--password', 'other-word', '-o', file);
    const read = await run('openssl', ['pkcs12', '-in', file, '-passin', 'pass:other-word', '-nokeys']);
    expect(read.output).toContain('subfloor-root-ca');
  });

  it('show exits with 3 for a CA that strict clients refuse', async () => {
    if (!hasProgram('openssl', 'version')) return;
    const folder = temporaryFolder();
    const config = join(folder, 'openssl.cnf');
    writeFileSync(config, '[req]\ndistinguished_name=dn\nx509_extensions=ext\n[dn]\n[ext]\nbasicConstraints=CA:true\n');
    const files = ['-keyout', join(folder, 'ca.key'), '-out', join(folder, 'ca.pem')];
    await run('openssl', [
      'req',
      '-x509',
      '-config',
      config,
      '-newkey',
      'rsa:2048',
      '-nodes',
      '-subj',
      '/CN=x',
      ...files,
    ]);
    const result = await ca('show', '--certs', folder);
    expect(result.exitCode).toBe(3);
    expect(result.stdout.toString()).toContain('basicConstraints is not critical');
  });
});
