import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { addDoctorCommands } from '../../src/cli/doctor.ts';
import { outputOf } from '../../src/cli/doctor-check.ts';
import type { Finding } from '../../src/cli/doctor-check.ts';
import { judge } from '../../src/cli/doctor-clients.ts';
import { judgeEgress, parseEgress } from '../../src/cli/doctor-egress.ts';
import {
  checkCaVariables,
  checkClientFiles,
  checkDangerousVariables,
  checkProxyVariables,
} from '../../src/cli/doctor-environment.ts';
import { Authority } from '../../src/tls/authority.ts';
import { emptyFolder, runCommand } from './command.ts';

function statuses(findings: readonly Finding[]): Record<string, Finding['status']> {
  return Object.fromEntries(findings.map((finding) => [finding.name, finding.status]));
}

async function serving(answer: { status: number; body: object }): Promise<number> {
  const server: Server = createServer((_request, response) => {
    response.writeHead(answer.status, { 'content-type': 'application/json' });
    response.end(JSON.stringify(answer.body));
  });
  server.on('error', () => undefined);
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  return typeof address === 'object' && address !== null ? address.port : 0;
}

const BOTH = (url: string): Record<string, string> => ({
  HTTP_PROXY: url,
  HTTPS_PROXY: url,
  http_proxy: url,
  https_proxy: url,
});
const PROXY = 'http://127.0.0.1:8080';

describe('what doctor says about the environment', () => {
  it('proxy variables in both cases are fine', () => {
    const env = { ...BOTH(PROXY), NO_PROXY: 'localhost,127.0.0.1,::1', no_proxy: 'localhost,127.0.0.1,::1' };
    expect(statuses(checkProxyVariables(env))).toEqual({ HTTP_PROXY: 'ok', HTTPS_PROXY: 'ok', NO_PROXY: 'ok' });
  });

  it.each([
    ['one case missing', { HTTPS_PROXY: PROXY }, { HTTPS_PROXY: 'fail', HTTP_PROXY: 'fail' }],
    ['two values', { ...BOTH(PROXY), https_proxy: 'http://other:1' }, { HTTPS_PROXY: 'fail' }],
    ['none at all', {}, { 'proxy variables': 'warn' }],
    ['everything past the proxy', { ...BOTH(PROXY), NO_PROXY: '*', no_proxy: '*' }, { NO_PROXY: 'warn' }],
    ['brackets', { ...BOTH(PROXY), NO_PROXY: '[::1]', no_proxy: '[::1]' }, { NO_PROXY: 'warn' }],
    ['private ranges', { ...BOTH(PROXY), NO_PROXY: '10.0.0.0/8', no_proxy: '10.0.0.0/8' }, { NO_PROXY: 'warn' }],
    ['NO_PROXY in one case', { ...BOTH(PROXY), NO_PROXY: 'localhost' }, { NO_PROXY: 'fail' }],
  ])('%s', (_name, env, expected) => {
    expect(statuses(checkProxyVariables(env))).toMatchObject(expected);
  });

  it('CA variables are opened: our CA must be in, and the public roots where they are replaced', async () => {
    const cwd = emptyFolder();
    const { authority } = await Authority.open(join(cwd, 'certs'));
    const other = await Authority.open(join(cwd, 'other'));
    const ca = join(cwd, 'certs/ca.pem');
    const env = {
      NODE_EXTRA_CA_CERTS: ca,
      SSL_CERT_FILE: ca,
      CURL_CA_BUNDLE: join(cwd, 'other/ca.pem'),
      GIT_SSL_CAINFO: join(cwd, 'absent.pem'),
    };
    expect(other.created).toBe(true);
    const found = await checkCaVariables(env, authority.certificatePem);
    expect(statuses(found)).toMatchObject({ SSL_CERT_FILE: 'warn', CURL_CA_BUNDLE: 'fail', GIT_SSL_CAINFO: 'fail' });
    expect(found.some((finding) => finding.status === 'ok' && finding.text === 'NODE_EXTRA_CA_CERTS')).toBe(true);
    expect(statuses(await checkCaVariables({}, authority.certificatePem))).toEqual({ 'CA variables': 'warn' });
    expect(statuses(await checkCaVariables(env, null))).toEqual({ 'CA variables': 'skip' });
  });

  it('variables that turn checks off, or stop Node 20, are named', () => {
    const env = { NODE_TLS_REJECT_UNAUTHORIZED: '0', NODE_OPTIONS: '--use-env-proxy', GIT_SSL_NO_VERIFY: '1' };
    expect(Object.keys(statuses(checkDangerousVariables(env)))).toEqual([
      'NODE_TLS_REJECT_UNAUTHORIZED',
      'NODE_OPTIONS',
      'GIT_SSL_NO_VERIFY',
    ]);
    expect(checkDangerousVariables({})).toEqual([]);
  });

  it('files of npm and pip that win over the variables are named', async () => {
    const home = emptyFolder();
    mkdirSync(join(home, '.config/pip'), { recursive: true });
    writeFileSync(join(home, '.npmrc'), 'cafile=/x.pem\nstrict-ssl = false\n');
    writeFileSync(join(home, '.config/pip/pip.conf'), '[global]\ncert = /x.pem\n');
    const env = { PATH: process.env['PATH'], HOME: home };
    const found = await checkClientFiles(env, emptyFolder(), home);
    expect(found.map((finding) => finding.text).join()).toMatch(/cafile.*certificate checks off.*sets cert/);
  });

  it.each([
    ['v20.20.2', 'warn'],
    ['v22.20.0', 'warn'],
    ['v22.21.0', 'ok'],
    ['v24.4.1', 'warn'],
    ['v24.5.0', 'ok'],
    ['v26.0.0', 'ok'],
  ])('Node %s', (version, status) => {
    expect(judge('node', version).status).toBe(status);
  });

  it('a program that hangs, fails or is absent holds nothing up', async () => {
    const env = { PATH: process.env['PATH'] };
    expect(await outputOf('sleep', ['30'], env, 100)).toBeNull();
    expect(await outputOf('false', [], env)).toBeNull();
    expect(await outputOf('there-is-no-such-program', [], env)).toBeNull();
    expect(await outputOf('cat', [], env)).toBe('');
  });
});

describe('what doctor --egress says', () => {
  const TARGET = { host: '2001:db8::1', port: 443 };

  it.each([
    ['an answer', [null], 'fail', '[2001:db8::1]:443 answers without the proxy; agents here could bypass it'],
    ['an answer of one of several addresses', ['ETIMEDOUT', null], 'fail', 'could bypass it'],
    ['no route', ['ENETUNREACH', 'no answer'], 'ok', 'cannot be reached without the proxy (ENETUNREACH, no answer)'],
    ['a refusal, which the host itself may have sent', ['ECONNREFUSED'], 'warn', 'refused the connection'],
    ['a refusal beside silence', ['no answer', 'ECONNRESET'], 'warn', '(ECONNRESET)'],
  ])('%s', (_name, causes, status, text) => {
    const finding = judgeEgress(TARGET, causes);
    expect(finding.status).toBe(status);
    expect(finding.text).toContain(text);
  });

  it.each([
    '',
    'example.com',
    'example.com:0',
    'example.com:65536',
    '2001:db8::1:443',
    'https://example.com:443',
    ':1',
  ])('is no destination: "%s"', (text) => {
    expect(() => parseEgress(text)).toThrow(/--egress .*write host:port/);
  });

  it('is said only when somebody asks, and makes the exit code 3 when something answers', async () => {
    const cwd = emptyFolder();
    await Authority.open(join(cwd, 'certs'));
    const port = await serving({ status: 200, body: { status: 'ready', checks: [] } });
    const args = ['doctor', '--listen', `127.0.0.1:${port}`, '--admin', `localhost:${port}`];
    const silent = await runCommand(addDoctorCommands, args, { cwd });
    expect(silent.stdout).not.toContain('direct egress');
    expect(silent.exitCode).toBe(0);
    const asked = await runCommand(addDoctorCommands, [...args, '--egress', `localhost:${port}`], { cwd });
    expect(asked.stdout).toMatch(/✗ direct egress .*could bypass it/);
    expect(asked.exitCode).toBe(3);
    const named = await runCommand(addDoctorCommands, [...args, '--egress', 'no-such-host.invalid:443'], { cwd });
    expect(named.stdout).toMatch(/! direct egress .*does not resolve here/);
    const wrong = await runCommand(addDoctorCommands, [...args, '--egress', 'example.com'], { cwd });
    expect(wrong.exitCode).toBe(2);
  });
});

describe('subfloor doctor', () => {
  it('finds a running proxy ready, and everything else too', async () => {
    const cwd = emptyFolder();
    await Authority.open(join(cwd, 'certs'));
    const port = await serving({ status: 200, body: { status: 'ready', checks: [] } });
    const args = ['doctor', '--json', '--listen', `127.0.0.1:${port}`, '--admin', `localhost:${port}`];
    const { stdout, exitCode } = await runCommand(addDoctorCommands, args, { cwd });
    const document: unknown = JSON.parse(stdout);
    expect(document).toMatchObject({ version: 1, ok: true });
    expect(exitCode).toBe(0);
  });

  it('an absent proxy, an open key and no rights fail with a remedy and exit code 3', async () => {
    const cwd = emptyFolder();
    await Authority.open(join(cwd, 'certs'));
    chmodSync(join(cwd, 'certs/ca.key'), 0o644);
    writeFileSync(join(cwd, 'agents.yaml'), 'version: 2\n');
    const args = ['doctor', '--listen', '127.0.0.1:1', '--admin', '127.0.0.1:2'];
    const { stdout, exitCode } = await runCommand(addDoctorCommands, args, { cwd });
    expect(exitCode).toBe(3);
    expect(stdout).toMatch(/✗ listener proxy .*ECONNREFUSED/);
    expect(stdout).toContain('→ start the proxy: subfloor start');
    expect(stdout).toMatch(/✗ CA key .*0644/);
    expect(stdout).toMatch(/✗ agents /);
  });

  it('a proxy that is not ready says why', async () => {
    const cwd = emptyFolder();
    const checks = [
      { name: 'rules', ok: true, text: 'fine' },
      { name: 'audit', ok: false, text: 'cannot be written' },
    ];
    const admin = await serving({ status: 503, body: { status: 'not ready', checks } });
    const proxy = await serving({ status: 404, body: {} });
    const args = ['doctor', '--listen', `127.0.0.1:${proxy}`, '--admin', `127.0.0.1:${admin}`];
    const { stdout } = await runCommand(addDoctorCommands, args, { cwd });
    expect(stdout).toMatch(/✓ listener proxy /);
    expect(stdout).toMatch(/✗ ready .*not ready: audit \(cannot be written\)/);
  });

  it('invalid settings are a finding and not the end of the examination', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'subfloor.yaml'), 'lmits: {}\n');
    const { stdout, exitCode } = await runCommand(addDoctorCommands, ['doctor'], { cwd });
    expect(exitCode).toBe(3);
    expect(stdout).toMatch(/✗ settings .*did you mean "limits"/);
    expect(stdout).toContain('clients');
    expect(readFileSync(join(cwd, 'subfloor.yaml'), 'utf8')).toBe('lmits: {}\n');
  });
});
