import { readFileSync, readdirSync, renameSync, statSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { testCa } from '../support/ca.ts';
import { closeAfterTest } from '../support/closing.ts';
import { startOrigin } from '../support/https-server.ts';
import type { OriginOptions } from '../support/https-server.ts';
import { BROKEN_RULES, allow, emptyFolder, startProgram, subfloor, writeRules } from '../support/program.ts';
import type { RunningProgram } from '../support/program.ts';
import { connectThrough, secureClient } from '../support/raw-client.ts';
import { until } from '../support/waiting.ts';

/** What a user does with the program as it is built and shipped: `node dist/cli.js` as a process of its own, in an empty folder. */

const ESCAPE = '\u001b[';

/** A folder with rules and settings that lead a.test and b.test to a server here, and the program started in it. */
async function world(
  options: { origin?: OriginOptions; args?: readonly string[] } = {},
): Promise<{ program: RunningProgram; ask: (host: string, path: string) => Promise<number> }> {
  const folder = emptyFolder();
  const origin = closeAfterTest(await startOrigin(options.origin));
  const { file } = await testCa();
  writeRules(folder, allow('a.test'));
  writeFileSync(
    join(folder, 'subfloor.yaml'),
    `upstream:\n  hosts: { a.test: "127.0.0.1:${origin.port}", b.test: "127.0.0.1:${origin.port}" }\n  ca: [${file}]\naddresses: { allow: [127.0.0.0/8] }\n`,
  );
  const program = closeAfterTest(await startProgram(folder, options.args));
  const ca = readFileSync(join(folder, 'certs/ca.pem'), 'utf8');
  return {
    program,
    ask: async (host, path) => {
      const client = await secureClient(program.port, host, { ca });
      try {
        return (await client.ask(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\n\r\n`)).status;
      } finally {
        client.close();
      }
    },
  };
}

async function connectStatus(program: RunningProgram, host: string): Promise<number> {
  const { response, socket } = await connectThrough(program.port, `${host}:443`);
  socket.destroy();
  return response.status;
}

describe('subfloor start in an empty folder', () => {
  it('makes a CA, says what to export and which rules are in force, listens, and is ready', async () => {
    const folder = emptyFolder();
    const program = closeAfterTest(await startProgram(folder));
    const url = `http://127.0.0.1:${program.port}`;
    const ca = join(folder, 'certs/ca.pem');
    expect(statSync(join(folder, 'certs/ca.key')).mode & 0o777).toBe(0o600);
    expect(new X509Certificate(readFileSync(ca)).ca).toBe(true);
    expect(program.stderr).toContain(`export HTTPS_PROXY=${url} HTTP_PROXY=${url}\n`);
    expect(program.stderr).toContain(`export NODE_EXTRA_CA_CERTS=${ca}\n`);
    expect(program.stderr).toMatch(/rules +1 in force, revision [0-9a-f]+\n +\S+default\.yaml\n/);
    expect(program.stderr).toContain('(made just now)');
    expect(program.stdout).toBe('');

    expect((await program.admin('/healthz')).status).toBe(200);
    const ready = await program.admin('/readyz');
    expect(ready.status).toBe(200);
    expect(await ready.json()).toMatchObject({ status: 'ready' });
    expect(await connectStatus(program, 'example.org')).toBe(403);

    program.signal('SIGTERM');
    expect(await program.ended()).toBe(0);
    expect(readdirSync(folder).sort()).toEqual(['certs', 'var']);
  });

  it('tells of variables with a command that works, wherever the program and its port are', async () => {
    const program = closeAfterTest(await startProgram(emptyFolder()));
    const command = /eval "\$\((.*)\)"/.exec(program.stderr)?.[1] ?? '';
    expect(command).toMatch(/^node \S+cli\.js env --proxy /);
    const { code, stdout } = await subfloor(program.folder, command.split(' ').slice(2));
    expect(code).toBe(0);
    expect(stdout).toContain(`export HTTPS_PROXY='http://127.0.0.1:${program.port}'\n`);
  });

  it('keeps the CA that is there', async () => {
    const folder = emptyFolder();
    expect((await subfloor(folder, ['ca', 'init'])).code).toBe(0);
    const before = readFileSync(join(folder, 'certs/ca.pem'), 'utf8');
    const program = closeAfterTest(await startProgram(folder));
    expect(program.stderr).not.toContain('made just now');
    expect(readFileSync(join(folder, 'certs/ca.pem'), 'utf8')).toBe(before);
  });

  it('logs JSON without colors when piped; --quiet prints nothing else', async () => {
    const program = closeAfterTest(await startProgram(emptyFolder(), ['--quiet']));
    expect(program.stderr).not.toContain(ESCAPE);
    const lines = program.stderr.trimEnd().split('\n');
    expect(lines).toHaveLength(program.log().length);
    expect(program.log()[0]).toMatchObject({ level: 'info', msg: 'subfloor is ready', rules: 1 });
  });

  it('has colors in what people read when FORCE_COLOR asks for them, never in the JSON log, and none otherwise', async () => {
    const colored = closeAfterTest(await startProgram(emptyFolder(), [], { FORCE_COLOR: '1' }));
    expect(colored.stderr).toContain(ESCAPE);
    for (const line of colored.stderr.split('\n').filter((text) => text.startsWith('{')))
      expect(line).not.toContain(ESCAPE);
    const plain = closeAfterTest(await startProgram(emptyFolder(), [], { CI: 'true' }));
    expect(plain.stderr).not.toContain(ESCAPE);
  });
});

describe('a running proxy', () => {
  it('passes what is allowed, refuses what is not, and has both on record', async () => {
    const { program, ask } = await world();
    expect(await ask('a.test', '/yes')).toBe(200);
    expect(await connectStatus(program, 'b.test')).toBe(403);
    await until('three records', () => program.records().length === 3);
    const records = program.records();
    expect(records.find((record) => record.kind === 'exchange')).toMatchObject({
      host: 'a.test',
      path: '/yes',
      verdict: 'allow',
      rules: ['allowed'],
      status: 200,
    });
    expect(records.find((record) => record.host === 'b.test')).toMatchObject({
      kind: 'tunnel',
      verdict: 'deny',
      reason: 'host_not_allowed',
    });
    expect(statSync(join(program.folder, 'var/audit.jsonl')).mode & 0o777).toBe(0o600);
  });

  it('takes new rules when a file changes; a broken one keeps the last good ones and is named with its line, on SIGHUP and over HTTP too', async () => {
    const { program } = await world();
    writeRules(program.folder, allow('b.test'));
    await program.logged(/^new rules are in force$/);
    expect([await connectStatus(program, 'a.test'), await connectStatus(program, 'b.test')]).toEqual([403, 200]);

    writeRules(program.folder, BROKEN_RULES);
    const refused = /^the new rules were refused; the last good ones stay in force$/;
    const first = await program.logged(refused);
    expect(first['level']).toBe('error');
    expect(String(first['problems'])).toMatch(/rules\/10-test\.yaml:4:5: .*"descripton".*description/);
    expect(await connectStatus(program, 'b.test')).toBe(200);

    program.signal('SIGHUP');
    await program.logged(refused, 2);
    const answer = await program.admin('/reload', 'POST');
    expect(answer.status).toBe(422);
    expect(await answer.text()).toContain('10-test.yaml:4:5');
    expect((await program.admin('/readyz')).status).toBe(200);
    expect(await connectStatus(program, 'b.test')).toBe(200);

    writeRules(program.folder, allow('a.test'));
    program.signal('SIGHUP');
    await program.logged(/^new rules are in force$/, 2);
    expect([await connectStatus(program, 'a.test'), await connectStatus(program, 'b.test')]).toEqual([200, 403]);
  });

  it('opens the audit file anew on SIGUSR2, and loses no record', async () => {
    const { program } = await world();
    const file = join(program.folder, 'var/audit.jsonl');
    await connectStatus(program, 'one.test');
    renameSync(file, `${file}.moved`);
    program.signal('SIGUSR2');
    await until('the new file', () => readdirSync(join(program.folder, 'var')).includes('audit.jsonl'));
    await connectStatus(program, 'two.test');
    expect(readFileSync(`${file}.moved`, 'utf8')).toContain('one.test');
    expect(program.records().map((record) => record.host)).toEqual(['two.test']);
  });

  it('moves the audit file aside at audit.rotate_bytes, and loses no record', async () => {
    const { program } = await world({ args: ['--set', 'audit.rotate_bytes=64KiB'] });
    const folder = join(program.folder, 'var');
    const hosts = Array.from({ length: 120 }, (_, index) => `host-${index}.test`);
    for (const host of hosts) await connectStatus(program, host);
    const names = readdirSync(folder).filter((name) => name.startsWith('audit.jsonl'));
    expect(names.length).toBeGreaterThan(1);
    for (const name of names) expect(statSync(join(folder, name)).size).toBeLessThanOrEqual(65_536);
    const all = names.map((name) => readFileSync(join(folder, name), 'utf8')).join('');
    for (const host of hosts) expect(all).toContain(`"${host}"`);
    expect(all.trimEnd().split('\n')).toHaveLength(hosts.length);
  });
});

describe('the end of a running proxy', () => {
  /** An exchange that is open until the test answers it. */
  async function openExchange(args: readonly string[] = []): Promise<{
    readonly program: RunningProgram;
    readonly status: Promise<number | string>;
    readonly finish: () => void;
  }> {
    const waiting: ServerResponse[] = [];
    const answer: OriginOptions['answer'] = (_request, response) => waiting.push(response) > 0;
    const { program, ask } = await world({ origin: { answer }, args });
    const status = ask('a.test', '/slow').catch(() => 'cut');
    await until('the request at the server', () => waiting.length === 1);
    return { program, status, finish: () => waiting[0]?.end('done') };
  }
  const DRAINING = /^draining: /;

  it.each(['SIGTERM', 'SIGINT'] as const)(
    '%s lets an open exchange finish, takes no new tunnel, and ends with exit code 0',
    async (signal) => {
      const { program, status, finish } = await openExchange();
      program.signal(signal);
      expect(await program.logged(DRAINING)).toMatchObject({ open: 1 });
      const refused = await connectStatus(program, 'a.test').catch(() => 'refused');
      expect(['refused', 503]).toContain(refused);
      const ready = await program.admin('/readyz');
      expect(ready.status).toBe(503);
      expect(await ready.text()).toContain('draining');
      finish();
      expect(await status).toBe(200);
      expect(await program.ended()).toBe(0);
      const exchange = program.records().find((record) => record.kind === 'exchange');
      expect(exchange).toMatchObject({ path: '/slow', outcome: 'forwarded', status: 200 });
    },
  );

  it('a second SIGTERM does not wait for open exchanges, and they are on record', async () => {
    const { program, status } = await openExchange(['--set', 'limits.drain_ms=10m']);
    program.signal('SIGTERM');
    await program.logged(DRAINING);
    program.signal('SIGTERM');
    expect(await program.ended()).toBe(0);
    expect(await status).not.toBe(200);
    expect(program.records().find((record) => record.kind === 'exchange')).toMatchObject({ error: 'draining' });
  });

  it('the end of the grace period cuts what is still open, and says so', async () => {
    const { program, status } = await openExchange(['--set', 'limits.drain_ms=100ms']);
    program.signal('SIGTERM');
    expect(await program.ended()).toBe(0);
    expect(await status).not.toBe(200);
    expect(await program.logged(/^the grace period is over/)).toMatchObject({ level: 'warn', open: 1 });
    expect(program.records().find((record) => record.kind === 'exchange')).toMatchObject({ error: 'draining' });
  });
});
