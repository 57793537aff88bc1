import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { addRulesCommands } from '../../src/cli/rules.ts';
import { ConfigError } from '../../src/core/errors.ts';

let folder = '';

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rules-command-'));
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
  process.exitCode = undefined;
});

interface Ran {
  readonly out: string;
  readonly talk: string;
  readonly exitCode: number;
}

/** Read anew: the commands set it behind the back of the type checker. */
function exitCode(): number {
  return Number(process.exitCode ?? 0);
}

/** Runs `rules …` in this process, as cli.ts does. */
async function rules(...words: string[]): Promise<Ran> {
  const program = new Command('subfloor').exitOverride();
  addRulesCommands(program);
  let out = '';
  let talk = '';
  const stdout = vi.spyOn(process.stdout, 'write').mockImplementation((text) => ((out += String(text)), true));
  const stderr = vi.spyOn(process.stderr, 'write').mockImplementation((text) => ((talk += String(text)), true));
  process.exitCode = undefined;
  try {
    await program.parseAsync(['rules', ...words], { from: 'user' });
    return {
      out: out.replace(/\x1b\[\d+m/g, ''),
      talk: talk.replace(/\x1b\[\d+m/g, ''),
      exitCode: exitCode(),
    };
  } finally {
    stdout.mockRestore();
    stderr.mockRestore();
    process.exitCode = undefined;
  }
}

async function file(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await mkdir(join(path, '..'), { recursive: true });
  await writeFile(path, text);
  return path;
}

const GOOD = `version: 1
rules:
  - { id: docs, action: allow, match: { host: docs.example.com, method: [GET, HEAD], protocol: http } }
  - { id: no-drafts, action: deny, match: { host: docs.example.com, path: /drafts/** }, message: Drafts are private. }
`;

describe('rules check', () => {
  it('counts what is there and ends with the revision', async () => {
    await file('a.yaml', GOOD);
    const ran = await rules('check', folder);
    expect(ran.out).toMatch(/^valid: 2 rules in 1 file \(1 deny, 1 allow\), revision [0-9a-f]{16}\n$/);
    expect(ran.exitCode).toBe(0);
  });

  it('prints every problem with its place, and exits with 2', async () => {
    const path = await file(
      'a.yaml',
      'version: 1\nrules:\n  - { id: a, action: alow }\n  - { id: a b, action: deny }\n',
    );
    const ran = await rules('check', path);
    expect(ran.talk).toContain(`${path}:3:22: action cannot be "alow" (did you mean "allow"?)`);
    expect(ran.talk).toContain(`${path}:4:11: `);
    expect(ran.out).toBe('not valid: 2 problems in 1 file\n');
    expect(ran.exitCode).toBe(2);
  });

  it('finds mistakes in packs that nobody includes', async () => {
    await file('a.yaml', GOOD);
    await file('packs/mine.yaml', 'version: 1\nrules: [{ id: x }]');
    const ran = await rules('check', folder);
    expect(ran.talk).toContain(join(folder, 'packs/mine.yaml:2:9: '));
    expect(ran.exitCode).toBe(2);
  });

  it('shows notes without failing', async () => {
    await file('a.yaml', 'version: 1\nrules: [{ id: all, action: allow }]');
    const ran = await rules('check', folder);
    expect(ran.talk).toContain('admits every agent to every host');
    expect(ran.exitCode).toBe(0);
  });

  it('says that an empty policy denies everything', async () => {
    const ran = await rules('check', folder);
    expect(ran.out).toContain('no rule allows anything, so everything is denied');
  });

  it('gives JSON to programs', async () => {
    await file('a.yaml', GOOD);
    const good: unknown = JSON.parse((await rules('check', folder, '--json')).out);
    expect(good).toMatchObject({
      ok: true,
      notes: [],
      defaults: { http: 'deny' },
      rules: [{ id: 'docs' }, { id: 'no-drafts', line: 4 }],
    });
    await file('b.yaml', 'version: 2');
    const bad = await rules('check', folder, '--json');
    expect(JSON.parse(bad.out)).toMatchObject({ ok: false, problems: [{ line: 1, column: 10 }] });
    expect(bad.exitCode).toBe(2);
  });

  it('a path that is not there is a usage error', async () => {
    await expect(rules('check', join(folder, 'none'))).rejects.toThrow(ConfigError);
  });
});

describe('rules test', () => {
  const CASES = `version: 1
cases:
  - { name: reading, url: "https://docs.example.com/", expect: { verdict: allow, rule: docs } }
  - { name: drafts, url: "https://docs.example.com/drafts/1", expect: { verdict: deny, reason: denied_by_rule, message: private } }
  - { name: elsewhere, host: other.example.com, expect: { verdict: deny, reason: host_not_allowed, rule: [] } }
`;

  it('runs the cases beside a rule file', async () => {
    await file('a.yaml', GOOD);
    await file('a.test.yaml', CASES);
    const ran = await rules('test', folder);
    expect(ran.out).toContain('✓ reading');
    expect(ran.out).toContain('passed: 3 cases in 1 file');
    expect(ran.exitCode).toBe(0);
  });

  it('says what differs, and exits with 3', async () => {
    await file('a.yaml', GOOD);
    const path = await file(
      'a.test.yaml',
      CASES.replace('verdict: allow, rule: docs', 'verdict: deny, rule: other, mode: monitor'),
    );
    const ran = await rules('test', path);
    for (const part of [
      'verdict is allow, not deny',
      'decided by docs, not by other',
      'mode is enforce, not monitor',
      `${path}:3`,
      'failed: 1 of 3 cases',
    ]) {
      expect(ran.out).toContain(part);
    }
    expect(ran.exitCode).toBe(3);
    expect(JSON.parse((await rules('test', path, '--json')).out)).toMatchObject({ ok: false, passed: 2, failed: 1 });
  });

  it('cases that are not valid exit with 2 and name the place', async () => {
    await file('a.yaml', GOOD);
    const path = await file(
      'a.test.yaml',
      'version: 1\ncases:\n  - { url: "ftp://x", expect: maybe }\n  - { host: a.b, methd: GET, expect: { reason: nope } }\n  - { url: "https://a/" }\n',
    );
    const ran = await rules('test', folder);
    for (const part of [
      ':3:12: ',
      'expect cannot be "maybe"',
      'did you mean "method"?',
      '"nope" is no reason code',
      'has no expect',
    ])
      expect(ran.talk).toContain(part);
    expect(ran.talk).toContain(path);
    expect(ran.exitCode).toBe(2);
  });

  it('against: folder judges by all files together', async () => {
    await file('a.yaml', GOOD);
    await file('b.yaml', 'version: 1\nrules: [{ id: no-docs, action: deny, match: { host: docs.example.com } }]');
    await file(
      'whole.test.yaml',
      'version: 1\nagainst: folder\ncases: [{ name: closed, host: docs.example.com, expect: { verdict: deny, rule: no-docs } }]',
    );
    await file('deep/er/c.yaml', GOOD);
    await file('deep/er/c.test.yaml', CASES);
    const ran = await rules('test', folder);
    expect(ran.out).toContain('passed: 4 cases in 2 files');
  });

  it('a case can name agent, headers, time and message', async () => {
    await file(
      'a.yaml',
      `version: 1
rules:
  - { id: ws, action: allow, match: { host: a.test }, agents: ["label:team=web"], if: 'headers["x-a"] == "1" && now.getHours() == 3' }
  - { id: words, action: deny, match: { host: a.test, direction: response }, if: 'message.text == "no"' }`,
    );
    await file(
      'a.test.yaml',
      `version: 1
cases:
  - name: all of it
    agent: { id: x, labels: { team: web } }
    url: https://a.test/
    protocol: websocket
    headers: { X-A: "1" }
    time: 2026-01-05T03:00:00Z
    message: { direction: response, kind: websocket_text, text: "no" }
    expect: { verdict: deny, reason: message_denied, rule: words }`,
    );
    expect((await rules('test', folder)).out).toContain('passed: 1 case in 1 file');
  });
});

describe('rules explain', () => {
  it('names the rule that decides, and for a denial what would be allowed', async () => {
    await file('a.yaml', GOOD);
    const ran = await rules('explain', 'https://docs.example.com/x', '-X', 'POST', '--rules', folder);
    expect(ran.out).toMatch(/^deny {2}https:\/\/docs\.example\.com\/x/);
    expect(ran.out).toContain('reason: request_not_allowed');
    expect(ran.out).toContain('does not match: it is for GET, HEAD');
    expect(ran.out).toContain('what would be allowed:\n  http GET, HEAD docs.example.com (rule docs)');
    expect(ran.exitCode).toBe(0);
    const denied = await rules('explain', 'https://docs.example.com//drafts/x', '--rules', folder);
    expect(denied.out).toContain('decided by: no-drafts');
    expect(denied.out).toContain('the agent is told: Drafts are private.');
  });

  it('names packs that would open the host', async () => {
    await file('a.yaml', GOOD);
    const ran = await rules('explain', 'https://pypi.org/simple/', '--rules', folder);
    expect(ran.out).toContain('packs that allow it: pypi');
  });

  it('explains tunnels, agents and headers, as JSON too', async () => {
    await file(
      'a.yaml',
      `version: 1\nrules: [{ id: a, action: allow, match: { host: a.test }, agents: ["label:team=web"], if: 'headers["x-a"] == "1"' }]`,
    );
    const path = ['--rules', folder, '--json'];
    const tunnel: unknown = JSON.parse((await rules('explain', 'a.test:8443', '--label', 'team=web', ...path)).out);
    expect(tunnel).toMatchObject({ verdict: { action: 'allow' }, station: 'gate' });
    const request: unknown = JSON.parse(
      (await rules('explain', 'https://a.test/', '--label', 'team=web', '-H', 'X-A: 2', ...path)).out,
    );
    expect(request).toMatchObject({
      verdict: { action: 'deny' },
      rules: [{ id: 'a', matches: false, why: 'its condition is false' }],
    });
    const agent: unknown = JSON.parse((await rules('explain', 'https://a.test/', ...path)).out);
    expect(agent).toMatchObject({
      verdict: { reason: 'host_not_allowed' },
      rules: [{ why: 'it is for the agents label:team=web' }],
    });
  });

  it('refuses what the proxy would not take, and rules that are not valid', async () => {
    await file('a.yaml', GOOD);
    await expect(rules('explain', 'https://a/../b', '--rules', folder)).rejects.toThrow(ConfigError);
    await file('b.yaml', 'version: 2');
    await expect(rules('explain', 'https://a/', '--rules', folder)).rejects.toThrow(/not valid/);
  });
});

describe('rules packs', () => {
  it('lists every pack with its hosts', async () => {
    const ran = await rules('packs', '--json');
    const packs = JSON.parse(ran.out) as { name: string; hosts: string[]; ok: boolean }[];
    expect(packs.find((pack) => pack.name === 'anthropic')).toMatchObject({ ok: true, hosts: ['api.anthropic.com'] });
    expect(packs.every((pack) => pack.ok)).toBe(true);
    expect((await rules('packs')).out).toContain('npm and Yarn registries, read only');
  });
});
