import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { addConfigCommands } from '../../src/cli/config.ts';
import { KEYS } from '../../src/config/schema.ts';
import { emptyFolder, runCommand } from './command.ts';

const SECRET = ['hun', 'ter2'].join('');

describe('subfloor config', () => {
  it('show prints every key with its value and origin', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'subfloor.yaml'), 'limits:\n  dns_ms: 1500\n');
    const { stdout, exitCode } = await runCommand(
      addConfigCommands,
      ['config', 'show', '--listen', '[::1]:9', '--set', 'limits.idle_ms=90s'],
      { cwd, env: { SUBFLOOR_LIMITS_HEAD_MS: '4s' } },
    );
    const rows = stdout
      .trimEnd()
      .split('\n')
      .map((line) => line.trim().split(/ {2,}/));
    expect(rows.map((row) => row[0])).toEqual(KEYS.map((key) => key.path));
    expect(rows).toContainEqual(['listen.proxy', '[::1]:9', '--listen']);
    expect(rows).toContainEqual(['limits.idle_ms', '90s', '--set limits.idle_ms']);
    expect(rows).toContainEqual(['limits.head_ms', '4s', 'SUBFLOOR_LIMITS_HEAD_MS']);
    expect(rows).toContainEqual(['limits.dns_ms', '1500ms', 'subfloor.yaml:2:3']);
    expect(rows).toContainEqual(['limits.tunnels', '10000', 'default']);
    expect(exitCode).toBe(0);
  });

  it('show --json prints one document', async () => {
    const { stdout } = await runCommand(addConfigCommands, ['config', 'show', '--json'], { cwd: emptyFolder() });
    const document: unknown = JSON.parse(stdout);
    expect(document).toMatchObject({ version: 1, file: null, warnings: [] });
    expect(document).toHaveProperty('settings.0', {
      key: 'listen.proxy',
      value: [{ name: 'proxy', address: '127.0.0.1:8080', tls: null }],
      origin: { kind: 'default' },
    });
  });

  it('never shows credentials', async () => {
    const env = { SUBFLOOR_UPSTREAM_PROXY: `http://user:${SECRET}@proxy.example.com:3128` };
    for (const json of [[], ['--json']]) {
      const { stdout, stderr } = await runCommand(addConfigCommands, ['config', 'show', ...json], {
        cwd: emptyFolder(),
        env,
      });
      expect(stdout).toContain('http://proxy.example.com:3128');
      expect(stdout + stderr).not.toContain(SECRET);
      expect(stdout).toContain('not shown');
    }
  });

  it('invalid settings are exit code 2, with the place', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'subfloor.yaml'), 'lmits: {}\n');
    const { stdout, stderr, exitCode } = await runCommand(addConfigCommands, ['config', 'show'], { cwd });
    expect(exitCode).toBe(2);
    expect(stdout).toBe('');
    expect(stderr).toContain('subfloor.yaml:1:1: unknown key "lmits"; did you mean "limits"?');
  });

  it('--set without a key or value is refused', async () => {
    for (const pair of ['limits.idle_ms', '=5', 'limits.idle_ms=']) {
      const { exitCode } = await runCommand(addConfigCommands, ['config', 'show', '--set', pair], {
        cwd: emptyFolder(),
      });
      expect(exitCode).toBe(2);
    }
  });

  it('check finds files that cannot be read, and then exits with 3', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'subfloor.yaml'), 'upstream: { ca: [absent.pem] }\n');
    const { stderr, exitCode } = await runCommand(addConfigCommands, ['config', 'check'], { cwd });
    expect(exitCode).toBe(3);
    expect(stderr).toContain('upstream.ca');
    expect(stderr).toContain('ENOENT');
  });

  it('check reads the agents file too', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'agents.yaml'), 'version: 1\nagents: [{ id: a }]\n');
    const { stderr, exitCode } = await runCommand(addConfigCommands, ['config', 'check'], { cwd });
    expect(exitCode).toBe(2);
    expect(stderr).toContain('nothing identifies this agent');
  });
});
