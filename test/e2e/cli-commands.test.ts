import { X509Certificate } from 'node:crypto';
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { closeAfterTest } from '../support/closing.ts';
import { BROKEN_RULES, allow, emptyFolder, startProgram, subfloor, writeRules } from '../support/program.ts';
import { within } from '../support/waiting.ts';

/** The built program as people call it: exit codes, what stands on which stream, and what it says when something is wrong. */

const ESCAPE = '\u001b[';

describe('a start that cannot be', () => {
  it.each(['proxy', 'admin'])(
    'says which port of the %s listener is in use and what to do, with exit code 2',
    async (name) => {
      const server = createServer();
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      closeAfterTest({ close: () => void server.close() });
      const { port } = server.address() as AddressInfo;
      const other = name === 'proxy' ? '--admin' : '--listen';
      const mine = name === 'proxy' ? '--listen' : '--admin';
      const args = ['start', mine, `127.0.0.1:${port}`, other, '127.0.0.1:0'];
      const { code, stderr } = await subfloor(emptyFolder(), args);
      expect(code).toBe(2);
      expect(stderr).toContain(
        `${name === 'proxy' ? 'listener proxy' : 'the admin listener'} cannot listen on 127.0.0.1:${port} (EADDRINUSE)`,
      );
      expect(stderr).toMatch(/choose another (port|address)/);
      expect(stderr).not.toMatch(/\n\s+at /);
    },
  );

  it.each([
    ['an unknown key', 'limits:\n  idle_m: 5s\n', /subfloor\.yaml:2:3: .*"idle_m".*did you mean "idle_ms"/],
    ['a value out of range', 'limits:\n  idle_ms: 1\n', /subfloor\.yaml:2:12: .*out of range; allowed is 10ms to 24h/],
    [
      'two mistakes',
      'rules: []\nlog: { level: loud }\n',
      /subfloor\.yaml:1:8: .*\n.*subfloor\.yaml:2:15: .*none of debug, info/,
    ],
    ['what is no YAML', 'listen: {\n', /subfloor\.yaml:\d+:\d+: /],
  ])('names file, line, key and remedy for %s, with exit code 2', async (_name, yaml, expected) => {
    const folder = emptyFolder();
    writeFileSync(join(folder, 'subfloor.yaml'), yaml);
    const { code, stdout, stderr } = await subfloor(folder, ['start']);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(expected);
    expect(readdirSync(folder)).toEqual(['subfloor.yaml']);
  });

  it.each([
    ['a rule file with a mistake', [], {}, /10-test\.yaml:4:5: .*"descripton"/],
    [
      'a variable with a typing mistake',
      [],
      { SUBFLOOR_LISTEN_PROXI: 'x' },
      /SUBFLOOR_LISTEN_PROXI: .*did you mean SUBFLOOR_LISTEN_PROXY/,
    ],
    [
      'a setting that does not exist',
      ['--set', 'limits.idl_ms=5s'],
      {},
      /limits\.idl_ms.*did you mean limits\.idle_ms/,
    ],
    ['a settings file that is not there', ['--config', 'none.yaml'], {}, /none\.yaml: .*cannot be read \(ENOENT\)/],
  ] as const)('names %s, with exit code 2', async (_name, args, env, expected) => {
    const folder = emptyFolder();
    writeRules(folder, BROKEN_RULES);
    const { code, stderr } = await subfloor(folder, ['start', ...args], env);
    expect(code).toBe(2);
    expect(stderr).toMatch(expected);
  });
});

describe('words on the command line', () => {
  it.each([
    [['--help'], 0, /Commands:[\s\S]*start[\s\S]*doctor[\s\S]*demo/, ''],
    [['start', '--help'], 0, /Signals: SIGTERM[\s\S]*Exit codes: 0 stopped/, ''],
    [['--version'], 0, /^\d+\.\d+\.\d+\n$/, ''],
    [['start', '--bogus'], 2, /^$/, "unknown option '--bogus'"],
    [['strat'], 2, /^$/, "unknown command 'strat'"],
    [['rules', 'chek'], 2, /^$/, "unknown command 'chek'"],
    [['env', '--shell', 'tcsh'], 2, /^$/, 'Allowed choices are sh, fish'],
    [['config', 'show', '--set', 'nonsense'], 2, /^$/, 'write key=value'],
    [['doctor', '--egress', 'nonsense'], 2, /^$/, 'write host:port'],
  ] as const)('%j ends with exit code %d', async (args, code, stdout, stderr) => {
    const ran = await subfloor(emptyFolder(), args);
    expect(ran.code).toBe(code);
    expect(ran.stdout).toMatch(stdout);
    expect(ran.stderr).toContain(stderr);
  });

  it('every command has --help with its exit codes', async () => {
    const commands = [
      'start',
      'env',
      'doctor',
      'demo',
      'config show',
      'config check',
      'agents hash',
      'agents list',
      'agents check',
    ];
    commands.push(
      'ca init',
      'ca show',
      'ca export',
      'ca bundle',
      'rules check',
      'rules test',
      'rules explain',
      'rules packs',
    );
    for (const command of commands) {
      const { code, stdout } = await subfloor(emptyFolder(), [...command.split(' '), '--help']);
      expect(code, command).toBe(0);
      expect(stdout, command).toContain('Exit codes: 0');
    }
  });
});

describe('the other commands', () => {
  it('ca init, show, export, bundle and env lead from nothing to what a client needs', async () => {
    const folder = emptyFolder();
    for (const early of [['ca', 'show'], ['ca', 'export'], ['ca', 'bundle'], ['env']]) {
      const { code, stdout, stderr } = await subfloor(folder, early);
      expect({ early, code, stdout }).toEqual({ early, code: 2, stdout: '' });
      expect(stderr).toContain('subfloor ca init');
    }
    expect(await subfloor(folder, ['ca', 'init'])).toMatchObject({ code: 0 });
    expect(statSync(join(folder, 'certs/ca.key')).mode & 0o777).toBe(0o600);
    const pem = readFileSync(join(folder, 'certs/ca.pem'), 'utf8');
    const shown = await subfloor(folder, ['ca', 'show', '--json']);
    expect(JSON.parse(shown.stdout)).toMatchObject({
      fingerprintSha256: new X509Certificate(pem).fingerprint256,
      strictProblems: [],
    });
    const exported = await subfloor(folder, ['ca', 'export']);
    expect(new X509Certificate(exported.stdout).fingerprint256).toBe(new X509Certificate(pem).fingerprint256);
    expect(exported.stdout).not.toContain('PRIVATE KEY');
    const bundle = await subfloor(folder, ['ca', 'bundle']);
    expect(bundle.stdout.match(/BEGIN CERTIFICATE/g)?.length).toBeGreaterThan(50);
    const env = await subfloor(folder, ['env', '--json', '--listen', '127.0.0.1:3128']);
    const variables = JSON.parse(env.stdout) as Record<string, string>;
    expect(variables).toMatchObject({
      HTTPS_PROXY: 'http://127.0.0.1:3128',
      NODE_EXTRA_CA_CERTS: join(folder, 'certs/ca.pem'),
    });
    expect(readFileSync(variables['SSL_CERT_FILE'] ?? '', 'utf8')).toContain('BEGIN CERTIFICATE');
  });

  it('ca uses the folder of the settings, as start does', async () => {
    const folder = emptyFolder();
    writeFileSync(join(folder, 'subfloor.yaml'), 'certs: trust/\n');
    expect((await subfloor(folder, ['ca', 'init'])).code).toBe(0);
    expect(readdirSync(folder).sort()).toEqual(['subfloor.yaml', 'trust']);
    expect((await subfloor(folder, ['ca', 'show'])).code).toBe(0);
    expect((await subfloor(folder, ['ca', 'show'], { SUBFLOOR_CERTS: 'other' })).stderr).toContain(
      join(folder, 'other'),
    );
    expect((await subfloor(folder, ['ca', 'show', '--certs', 'trust'], { SUBFLOOR_CERTS: 'other' })).code).toBe(0);
  });

  it('demo needs neither network nor keys, and everything in it goes as its rules say', async () => {
    const { code, stdout } = await subfloor(emptyFolder(), ['demo']);
    expect(stdout).toContain('Everything went as the rules say.');
    expect(stdout).not.toContain('✗');
    expect(code).toBe(0);
  });

  it('config show --json tells where each value comes from', async () => {
    const folder = emptyFolder();
    writeFileSync(join(folder, 'subfloor.yaml'), 'audit:\n  format: flat\n');
    const args = ['config', 'show', '--json', '--listen', '127.0.0.1:3128'];
    const { code, stdout } = await subfloor(folder, args, { SUBFLOOR_LOG_LEVEL: 'warn' });
    expect(code).toBe(0);
    const { settings } = JSON.parse(stdout) as { settings: { key: string; value: unknown; origin: unknown }[] };
    expect(settings).toContainEqual({
      key: 'audit.format',
      value: 'flat',
      origin: { kind: 'file', file: join(folder, 'subfloor.yaml'), line: 2, column: 3 },
    });
    expect(settings).toContainEqual({
      key: 'log.level',
      value: 'warn',
      origin: { kind: 'environment', name: 'SUBFLOOR_LOG_LEVEL' },
    });
    expect(settings.find(({ key }) => key === 'listen.proxy')?.origin).toEqual({ kind: 'flag', name: '--listen' });
    expect(settings.find(({ key }) => key === 'certs')?.origin).toEqual({ kind: 'default' });
  });

  it('rules check and rules test say by exit code and place what is wrong', async () => {
    const folder = emptyFolder();
    const cases = (verdict: string): string =>
      `version: 1\ncases:\n  - name: the site\n    url: https://a.test/\n    expect: { verdict: ${verdict} }\n`;
    const ran = async (word: string): Promise<readonly [number | null, string]> => {
      const { code, stdout, stderr } = await subfloor(folder, ['rules', word]);
      return [code, stdout + stderr];
    };
    writeRules(folder, allow('a.test'));
    writeRules(folder, cases('allow'), '10-test.test.yaml');
    expect(await ran('check')).toEqual([0, expect.stringMatching(/^valid: 1 rule in 1 file/)]);
    expect(await ran('test')).toEqual([0, expect.stringContaining('passed: 1 case in 1 file')]);
    writeRules(folder, cases('deny'), '10-test.test.yaml');
    expect(await ran('test')).toEqual([
      3,
      expect.stringMatching(/verdict is allow, not deny +rules\/10-test\.test\.yaml:3/),
    ]);
    writeRules(folder, BROKEN_RULES);
    for (const word of ['check', 'test'])
      expect(await ran(word)).toEqual([2, expect.stringMatching(/rules\/10-test\.yaml:4:5: .*"descripton"/)]);
    const { code, stdout } = await subfloor(folder, ['rules', 'check'], { FORCE_COLOR: '1' });
    expect(code).toBe(2);
    expect(stdout).toContain(ESCAPE);
  });

  it('doctor finds a running proxy, and says what to do without one', async () => {
    const program = closeAfterTest(await startProgram(emptyFolder()));
    const addresses = ['--listen', `127.0.0.1:${program.port}`, '--admin', `127.0.0.1:${program.adminPort}`];
    const good = await subfloor(program.folder, ['doctor', ...addresses]);
    expect(good.stdout).toMatch(/✓ listener proxy .*\n.*✓ ready /);
    expect(good.code).toBe(0);
    const open = await subfloor(program.folder, ['doctor', ...addresses, '--egress', `127.0.0.1:${program.port}`]);
    expect(open.stdout).toMatch(/✗ direct egress .*could bypass it/);
    expect(open.code).toBe(3);
    program.signal('SIGTERM');
    await within('the program to end', program.ended());
    const bad = await subfloor(program.folder, ['doctor', ...addresses]);
    expect(bad.stdout).toMatch(/✗ listener proxy [\s\S]*→ start the proxy: subfloor start/);
    expect(bad.code).toBe(3);
  });
});
