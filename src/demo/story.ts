import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import pc from 'picocolors';
import { startApp } from '../app.ts';
import { loadSettings } from '../config/load.ts';
import { createLog } from '../log.ts';
import { https1, https2, openTunnel, rawBytes, webSocket } from './clients.ts';
import type { DemoProxy, Reply } from './clients.ts';
import { startWorld } from './servers.ts';
import type { DemoWorld } from './servers.ts';

const RULES = `version: 1
rules:
  - id: docs-read
    description: agents may read the documentation
    match: { host: docs.demo.test, method: [GET, HEAD] }
    action: allow
  - id: model-api
    description: the model provider
    match: { host: api.demo.test, path: ["/v1/*", "/events"] }
    action: allow
  - id: chat-socket
    match: { host: chat.demo.test, protocol: websocket }
    action: allow
  - id: no-drop-table
    description: messages are judged one by one
    match: { host: chat.demo.test, protocol: websocket, direction: request }
    if: message.text.contains("drop table")
    action: deny
    message: Ask a person before you change the database.
  - id: echo-service
    match: { host: echo.demo.test, port: 7777, protocol: raw }
    action: allow
`;

/** One scene: what an agent tries, and what came of it. `ok` says whether the proxy did what the story says. */
export interface SceneResult {
  readonly scene: string;
  readonly attempt: string;
  readonly outcome: string;
  readonly why: string;
  readonly ok: boolean;
}

/** Runs the story; `tell` is called after each scene. Needs no network and no keys. */
export async function runStory(
  tell: (result: SceneResult) => void,
): Promise<{ readonly records: readonly string[]; readonly ok: boolean }> {
  const world = await startWorld();
  const rules = join(world.folder, 'rules');
  await mkdir(rules);
  await writeFile(join(rules, 'demo.yaml'), RULES);
  const auditFile = join(world.folder, 'audit.jsonl');
  const configFile = join(world.folder, 'subfloor.yaml');
  await writeFile(configFile, configText(world, rules, auditFile));
  const { settings } = await loadSettings({ cwd: world.folder, file: configFile, env: {}, flags: {} });
  const app = await startApp({ settings, log: createLog({ level: 'error', format: 'json' }) });
  const results: SceneResult[] = [];
  const scene = async (
    name: string,
    attempt: string,
    run: () => Promise<Omit<SceneResult, 'scene' | 'attempt'>>,
  ): Promise<void> => {
    let result: SceneResult;
    try {
      result = { scene: name, attempt, ...(await run()) };
    } catch (error) {
      result = {
        scene: name,
        attempt,
        outcome: 'failed',
        why: error instanceof Error ? error.message : 'unknown',
        ok: false,
      };
    }
    results.push(result);
    tell(result);
  };
  try {
    const proxy: DemoProxy = { port: app.proxyPort, ca: app.caPem };
    await floorScenes(scene, proxy, world);
  } finally {
    await app.close();
  }
  const records = await summarizeRecords(auditFile);
  await world.close();
  return { records, ok: results.every((result) => result.ok) };
}

type Scene = (
  name: string,
  attempt: string,
  run: () => Promise<Omit<SceneResult, 'scene' | 'attempt'>>,
) => Promise<void>;

/** Scenes of the floor; MCP and LLM scenes will stand beside it. */
async function floorScenes(scene: Scene, proxy: DemoProxy, world: DemoWorld): Promise<void> {
  await scene('allowed', 'SDK: GET https://docs.demo.test/guide', async () =>
    fromReply(await https1(proxy, 'GET', 'https://docs.demo.test/guide'), 200, 'rule docs-read allows GET'),
  );
  await scene('denied host', 'fetch(): POST https://paste.example.net/', async () => {
    const before = world.arrived.length;
    const reply = await https1(proxy, 'POST', 'https://paste.example.net/', 'the secret plans');
    return fromDenial(reply, 'host_not_allowed', world.arrived.length === before);
  });
  await scene('denied method', 'curl (h2): DELETE https://docs.demo.test/guide', async () => {
    const before = world.arrived.length;
    return fromDenial(
      await https2(proxy, 'DELETE', 'https://docs.demo.test/guide'),
      'request_not_allowed',
      world.arrived.length === before,
    );
  });
  await scene('another host', 'raw: Host: evil.example in a tunnel to docs.demo.test', async () => {
    const before = world.arrived.length;
    return fromDenial(
      await https1(proxy, 'GET', 'https://docs.demo.test/', '', { host: 'evil.example' }),
      'host_mismatch',
      world.arrived.length === before,
    );
  });
  await scene('streaming', 'SDK: GET https://api.demo.test/events (SSE)', async () => {
    const reply = await https1(proxy, 'GET', 'https://api.demo.test/events');
    const events = reply.text.split('\n\n').filter((event) => event !== '').length;
    return { outcome: `${reply.status}, ${events} events`, why: 'each event passed as it came', ok: events === 3 };
  });
  await scene('WebSocket', 'agent: two messages, the second with "drop table"', async () => {
    const result = await webSocket(proxy, 'chat.demo.test', '/', ['hello', 'now drop table users']);
    return {
      outcome: `"${result.echoes.join('", "')}" answered, then closed ${result.close.slice(0, 4)}`,
      why: result.close.slice(5),
      ok: result.echoes.length === 1 && result.close.startsWith('1008'),
    };
  });
  await scene('raw bytes', 'malware: SSH in a tunnel to docs.demo.test:443', async () => {
    const outcome = await rawBytes(proxy, 'docs.demo.test', 443, 'SSH-2.0-OpenSSH_9.9\r\n');
    return {
      outcome,
      why: 'neither TLS nor HTTP, and no rule allows raw bytes there',
      ok: outcome.startsWith('closed'),
    };
  });
  await scene('raw allowed', 'tool: raw bytes to echo.demo.test:7777', async () => {
    // A bare word would be held back: it may be the start of an HTTP method.
    const outcome = await rawBytes(proxy, 'echo.demo.test', 7777, '*1\r\n$4\r\nPING\r\n');
    const ok = outcome.includes('PING');
    return { outcome: outcome.replaceAll('\r\n', ' '), why: 'rule echo-service allows raw for this host and port', ok };
  });
  await scene('metadata', 'SSRF: CONNECT 169.254.169.254:80', async () => {
    const reply = await openTunnel(proxy, '0xa9fea9fe', 80);
    if (!('status' in reply)) return { outcome: 'tunnel open', why: '', ok: false };
    return fromDenial(reply, 'host_not_allowed', true);
  });
}

function fromReply(reply: Reply, status: number, why: string): Omit<SceneResult, 'scene' | 'attempt'> {
  return { outcome: `${reply.status}`, why, ok: reply.status === status };
}

function fromDenial(reply: Reply, code: string, nothingArrived: boolean): Omit<SceneResult, 'scene' | 'attempt'> {
  let found = '';
  let text = reply.text;
  try {
    const parsed: unknown = JSON.parse(reply.text);
    if (typeof parsed === 'object' && parsed !== null && 'error' in parsed) {
      const { error } = parsed;
      if (typeof error === 'object' && error !== null && 'code' in error && 'message' in error) {
        found = String(error.code);
        text = String(error.message);
      }
    }
  } catch {
    // Not our denial; shown as it is.
  }
  return {
    outcome: `${reply.status} ${found}${nothingArrived ? '' : ' BUT IT ARRIVED'}`,
    why: text,
    ok: found === code && nothingArrived,
  };
}

function configText(world: DemoWorld, rules: string, auditFile: string): string {
  const names = ['docs.demo.test', 'api.demo.test', 'chat.demo.test'].map(
    (name) => `    "${name}": "127.0.0.1:${world.httpsPort}"`,
  );
  return `listen: { proxy: 127.0.0.1:0, admin: 127.0.0.1:0 }
rules: ${JSON.stringify(rules)}
certs: ${JSON.stringify(join(world.folder, 'certs'))}
audit: { file: ${JSON.stringify(auditFile)}, format: flat }
upstream:
  hosts:
${names.join('\n')}
    "echo.demo.test": "127.0.0.1:${world.echoPort}"
  ca: [${JSON.stringify(world.caFile)}]
addresses: { allow: [ "127.0.0.0/8" ] }
`;
}

/** Prints the story as a table that can be read from top to bottom. */
export async function tellStory(write: (text: string) => void): Promise<boolean> {
  write(`\n  ${pc.bold('subfloor demo')}  local servers, a proxy with five rules, and some agents\n\n`);
  const { records, ok } = await runStory((result) => {
    const mark = result.ok ? pc.green('✓') : pc.red('✗');
    write(`  ${mark} ${pc.bold(result.scene.padEnd(14))}${result.attempt}\n`);
    write(`    ${' '.repeat(14)}${pc.cyan(result.outcome)}\n`);
    if (result.why !== '') write(`    ${' '.repeat(14)}${pc.dim(result.why)}\n`);
  });
  write(
    `\n  ${pc.bold('the record')}  one line for every tunnel and exchange; verdict, reason and rules of the ${records.length} lines:\n\n`,
  );
  for (const line of records) write(`    ${line}\n`);
  write(
    `\n  ${ok ? pc.green('Everything went as the rules say.') : pc.red('Something did not go as the rules say.')}\n\n`,
  );
  return ok;
}

/** Reads the audit file into short lines. */
async function summarizeRecords(file: string): Promise<string[]> {
  const lines = (await readFile(file, 'utf8')).trim().split('\n');
  return lines.map((line) => {
    const record: unknown = JSON.parse(line);
    if (typeof record !== 'object' || record === null) return line;
    const field = (name: string): string => {
      const value: unknown = Reflect.get(record, name);
      return Array.isArray(value)
        ? value.join(',')
        : value === null || value === undefined
          ? '-'
          : typeof value === 'string'
            ? value
            : JSON.stringify(value);
    };
    return `${field('protocol').padEnd(10)}${field('verdict').padEnd(7)}${field('reason').padEnd(22)}${field('rules').padEnd(16)}${field('operation')}`;
  });
}
