import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { HOST, NAMES } from './world.ts';
import type { World } from './world.ts';

export interface Ports {
  readonly h1: number;
  readonly h2: number;
  readonly tcp: number;
}

/** A running proxy, or none (`direct`). */
export interface Peer {
  readonly name: string;
  readonly port: number | null;
  /** What the generator trusts. */
  readonly ca: string;
  /** Where CONNECT has to point so that the upstream is reached: our names where a peer can map them, else loopback. */
  readonly target: 'name' | 'address';
  readonly pid: number | null;
  readonly can: ReadonlySet<'intercept' | 'h2' | 'blind'>;
  stop(): void;
}

/** Where CPU profiles of the product go, if they are wanted. */
export const settings: { profile: string | null } = { profile: null };

const children = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

/** Starts a script and resolves with its first line on stdout. */
export function startScript(
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<{ child: ChildProcess; line: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } });
    children.add(child);
    let text = '';
    let errors = '';
    const timer = setTimeout(
      () => reject(new Error(`no word from ${args.join(' ').slice(0, 80)}: ${errors.slice(-500)}`)),
      60_000,
    );
    child.stderr.on('data', (chunk: Buffer) => {
      errors = (errors + chunk.toString()).slice(-4000);
    });
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      const end = text.indexOf('\n');
      if (end < 0) return;
      clearTimeout(timer);
      resolve({ child, line: text.slice(0, end) });
      text = '';
    });
    child.on('exit', (code) => {
      children.delete(child);
      clearTimeout(timer);
      reject(new Error(`${args[0] ?? command} ended with ${code}: ${errors.slice(-800)}`));
    });
  });
}

export function stopChild(child: ChildProcess): void {
  child.kill('SIGKILL');
  children.delete(child);
}

export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

const TSX = join(import.meta.dirname, '../node_modules/tsx/dist/loader.mjs');

export function nodeScript(file: string, ...args: readonly string[]): Promise<{ child: ChildProcess; line: string }> {
  return startScript(process.execPath, ['--import', TSX, join(import.meta.dirname, file), ...args]);
}

export interface SubfloorOptions {
  readonly rules?: string;
  readonly audit?: boolean;
  readonly name?: string;
}

/** As `npm start` runs it. */
const NODE_FLAGS = (process.env['BENCH_NODE_FLAGS'] ?? '--min-semi-space-size=16').split(' ').filter(Boolean);

const RULES = `version: 1
rules:
  - { id: bench, match: { host: ["${HOST}", "*.${HOST}"] }, action: allow }
  - { id: bench-raw, match: { host: raw.${HOST}, protocol: raw }, action: allow }
`;

async function subfloor(world: World, ports: Ports, options: SubfloorOptions = {}): Promise<Peer> {
  const name = options.name ?? 'subfloor';
  const folder = join(world.folder, name.replaceAll(/[^a-z0-9]/g, '-'));
  mkdirSync(join(folder, 'rules'), { recursive: true });
  writeFileSync(join(folder, 'rules', 'bench.yaml'), options.rules ?? RULES);
  const [port, admin] = [await freePort(), await freePort()];
  const hosts = NAMES.map((host) => {
    const to = host.startsWith('raw.') ? ports.tcp : host.startsWith('h2.') ? ports.h2 : ports.h1;
    return `    "${host}": "127.0.0.1:${to}"`;
  });
  writeFileSync(
    join(folder, 'subfloor.yaml'),
    `listen: { proxy: "127.0.0.1:${port}", admin: "127.0.0.1:${admin}" }\nrules: rules\ncerts: certs\naudit: { file: ${options.audit === false ? '/dev/null' : 'audit.jsonl'} }\nlog: { level: error, format: json }\n` +
      `upstream:\n  ca: ["${world.upstreamCaFile}"]\n  hosts:\n${hosts.join('\n')}\naddresses: { allow: ["127.0.0.0/8"] }\n`,
  );
  const { profile } = settings;
  const child = spawn(
    process.execPath,
    [
      ...NODE_FLAGS,
      ...(profile === null ? [] : ['--cpu-prof', `--cpu-prof-dir=${profile}`]),
      join(import.meta.dirname, '../dist/cli.js'),
      'start',
      '--quiet',
      '--config',
      join(folder, 'subfloor.yaml'),
    ],
    {
      stdio: ['ignore', 'ignore', 'pipe'],
      cwd: folder,
    },
  );
  children.add(child);
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => {
    errors = (errors + chunk.toString()).slice(-2000);
  });
  for (let tries = 0; ; tries++) {
    try {
      const response = await fetch(`http://127.0.0.1:${admin}/readyz`);
      if (response.ok) break;
    } catch {
      // not yet
    }
    if (tries > 100 || child.exitCode !== null) throw new Error(`subfloor did not start: ${errors}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return {
    name,
    port,
    ca: readFileSync(join(folder, 'certs', 'ca.pem'), 'utf8'),
    target: 'name',
    pid: child.pid ?? null,
    can: new Set(['intercept', 'h2', 'blind']),
    // A killed process writes no profile.
    stop: () => {
      if (profile === null) stopChild(child);
      else {
        children.delete(child);
        child.kill('SIGTERM');
      }
    },
  };
}

async function scripted(name: string, world: World, kind: string, can: Peer['can']): Promise<Peer> {
  const folder = join(world.folder, name.replaceAll(/[^a-z0-9]/g, '-'));
  mkdirSync(folder, { recursive: true });
  const { child, line } = await nodeScript(
    'peer-process.ts',
    JSON.stringify({ kind, folder, upstreamCa: world.upstreamCa }),
  );
  const { port, ca } = JSON.parse(line) as { port: number; ca: string };
  return { name, port, ca, target: 'address', pid: child.pid ?? null, can, stop: () => stopChild(child) };
}

export function isInstalled(program: string): boolean {
  return spawnSync('which', [program]).status === 0;
}

/** Peers by name; each is started for its phases and stopped afterwards. */
export const PEERS: Readonly<Record<string, (world: World, ports: Ports) => Promise<Peer>>> = {
  direct: (world) =>
    Promise.resolve({
      name: 'direct',
      port: null,
      ca: world.upstreamCa,
      target: 'address',
      pid: null,
      can: new Set(['intercept', 'h2', 'blind']),
      stop: () => undefined,
    }),
  subfloor: (world, ports) => subfloor(world, ports),
  'subfloor-no-audit': (world, ports) => subfloor(world, ports, { audit: false, name: 'subfloor-no-audit' }),
  'subfloor-10k-rules': (world, ports) =>
    subfloor(world, ports, { rules: manyRules(10_000), name: 'subfloor-10k-rules' }),
  'http-mitm-proxy': (world) => scripted('http-mitm-proxy', world, 'hmp', new Set(['intercept'])),
  'http-mitm-proxy-ka': (world) => scripted('http-mitm-proxy-ka', world, 'hmp-ka', new Set(['intercept'])),
  mockttp: (world) => scripted('mockttp', world, 'mockttp', new Set(['intercept', 'h2'])),
  'proxy-chain': (world) => scripted('proxy-chain', world, 'proxy-chain', new Set(['blind'])),
};

function manyRules(count: number): string {
  const rules = Array.from(
    { length: count },
    (_all, i) => `  - { id: r${i}, match: { host: "host-${i}.example.com", path: "/v${i % 7}/**" }, action: allow }\n`,
  );
  return `${RULES}${rules.join('')}`;
}

/** CPU milliseconds of a process so far, from /proc; null where there is none. */
export function cpuMs(pid: number | null): number | null {
  if (pid === null) return null;
  try {
    let ticks = 0;
    for (const task of [pid, ...childrenOf(pid)]) {
      const stat = readFileSync(`/proc/${task}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      ticks += Number(fields[11]) + Number(fields[12]);
    }
    return ticks * 10;
  } catch {
    return null;
  }
}

function childrenOf(pid: number): number[] {
  const found: number[] = [];
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const text = readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').trim();
    if (text !== '') found.push(...text.split(' ').map(Number));
  }
  return found;
}

/** Resident bytes of a process; null where /proc is missing. */
export function residentBytes(pid: number | null): number | null {
  if (pid === null) return null;
  try {
    const match = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'));
    return match === null ? null : Number(match[1]) * 1024;
  } catch {
    return null;
  }
}
