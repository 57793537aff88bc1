import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { hashPassword, parsePasswordHash, verifyPassword } from '../../src/agents/password-hash.ts';
import { addAgentsCommands } from '../../src/cli/agents.ts';
import { readSecret } from '../../src/cli/secret-input.ts';
import { emptyFolder, runCommand } from './command.ts';

const WORD = ['open', 'sesame'].join(' ');

describe('subfloor agents', () => {
  it('list shows what identifies each agent, and no hash', async () => {
    const cwd = emptyFolder();
    const hash = await hashPassword(WORD, { N: 1024, r: 1, p: 1 });
    writeFileSync(
      join(cwd, 'agents.yaml'),
      `version: 1\nagents:\n  - { id: a, credentials: [{ username: u, hash: "${hash}" }], sources: [10.0.0.0/8] }\n`,
    );
    const text = await runCommand(addAgentsCommands, ['agents', 'list'], { cwd });
    expect(text.stdout).toContain('a         usernames u; sources 10.0.0.0/8\n');
    expect(text.stdout).toContain('(others)  are asked for credentials\n');
    const json = await runCommand(addAgentsCommands, ['agents', 'list', '--json'], { cwd });
    expect(JSON.parse(json.stdout)).toMatchObject({
      version: 1,
      anonymous: 'deny',
      agents: [{ id: 'a', usernames: ['u'], sources: ['10.0.0.0/8'], certificates: [], listeners: [] }],
    });
    expect(text.stdout + json.stdout).not.toContain('scrypt');
  });

  it('check says where the file is wrong, with exit code 2', async () => {
    const cwd = emptyFolder();
    expect((await runCommand(addAgentsCommands, ['agents', 'check'], { cwd })).exitCode).toBe(0);
    writeFileSync(join(cwd, 'agents.yaml'), 'version: 1\nagents: [{ id: a, listeners: [porxy] }]\n');
    const bad = await runCommand(addAgentsCommands, ['agents', 'check'], { cwd });
    expect(bad.exitCode).toBe(2);
    expect(bad.stderr).toMatch(/agents\.yaml:2:\d+: .*did you mean "proxy"\?/);
  });

  it('hash takes no password from the command line', async () => {
    await expect(
      runCommand(addAgentsCommands, ['agents', 'hash', '--password', 'x'], { cwd: emptyFolder() }),
    ).rejects.toThrow('unknown option');
  });
});

describe('reading a secret', () => {
  it.each([
    [`${WORD}\n`, WORD],
    [`${WORD}\r\n`, WORD],
    [WORD, WORD],
    [' ü \n', ' ü '],
  ])('%j from a pipe', async (input, secret) => {
    expect(await readSecret('', Readable.from([Buffer.from(input)]))).toBe(secret);
  });

  it.each([
    ['nothing', ''],
    ['an empty line', '\n'],
    ['two lines', 'a\nb\n'],
    ['a NUL', 'a\0b'],
    ['too much', 'x'.repeat(2000)],
  ])('%s is refused', async (_name, input) => {
    await expect(readSecret('', Readable.from([Buffer.from(input)]))).rejects.toThrow('the password');
  });

  it('from a terminal, without echo', async () => {
    const input = Object.assign(new PassThrough(), { isTTY: true });
    const answer = readSecret('', input);
    input.write(`${WORD}\r`);
    expect(await answer).toBe(WORD);
  });

  it('makes a hash that verifies', async () => {
    const parsed = parsePasswordHash(await hashPassword(WORD));
    expect(parsed !== null && (await verifyPassword(WORD, parsed))).toBe(true);
  });
});
