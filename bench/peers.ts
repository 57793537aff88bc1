import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { children, freePort, startScript, stopChild } from './peer-tools.ts';
import type { Peer } from './peer-tools.ts';
import { mitmdump, squid } from './peers-native.ts';
import { HOST, NAMES } from './world.ts';
import type { World } from './world.ts';

export interface Ports {
  readonly h1: number;
  readonly h2: number;
  readonly tcp: number;
}

/** Where CPU profiles of the product go, if they are wanted. */
export const settings: { profile: string | null } = { profile: null };

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
  mitmdump,
  squid,
  'proxy-chain': (world) => scripted('proxy-chain', world, 'proxy-chain', new Set(['blind'])),
};

function manyRules(count: number): string {
  const rules = Array.from(
    { length: count },
    (_all, i) => `  - { id: r${i}, match: { host: "host-${i}.example.com", path: "/v${i % 7}/**" }, action: allow }\n`,
  );
  return `${RULES}${rules.join('')}`;
}
