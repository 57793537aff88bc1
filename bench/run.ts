/**
 * Measures the product beside other proxies in one run on one machine and prints ratios.
 * npm run bench -- [--quick] [--rounds N] [--phases a,b] [--peers x,y] [--json] [--no-write] [--profile DIR]
 */
import { execFileSync } from 'node:child_process';
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import pc from 'picocolors';
import { decideBench } from './decide.ts';
import type { Job } from './generator.ts';
import { cpuMs, residentBytes, stopChild } from './peer-tools.ts';
import type { Peer } from './peer-tools.ts';
import { missingPrograms } from './peers-native.ts';
import { PEERS, nodeScript, settings } from './peers.ts';
import type { Ports } from './peers.ts';
import { HOST, makeWorld } from './world.ts';

const { values: flags } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    rounds: { type: 'string' },
    phases: { type: 'string' },
    peers: { type: 'string' },
    json: { type: 'boolean', default: false },
    'no-write': { type: 'boolean', default: false },
    profile: { type: 'string' },
  },
});
settings.profile = flags.profile ?? null;
const rounds = flags.rounds === undefined ? (flags.quick ? 1 : 3) : Number(flags.rounds);
const seconds = flags.quick ? 1.5 : 4;

type Need = 'intercept' | 'h2' | 'blind';
interface Phase {
  readonly name: string;
  readonly unit: string;
  readonly need: Need;
  readonly job: Pick<Job, 'phase' | 'connections' | 'seconds'> & { bytes?: number };
  /** Which number of the generator's result counts; `memory` and `cpu` come from /proc. */
  readonly value: 'rate' | 'p50' | 'p99' | 'added' | 'delayed' | 'memory' | 'per-tunnel';
  readonly lowerIsBetter?: boolean;
  readonly withCpu?: boolean;
  readonly rounds?: number;
  readonly peers?: readonly string[];
}

const PHASES: readonly Phase[] = [
  {
    name: '1 connection',
    unit: 'req/s',
    need: 'intercept',
    job: { phase: 'requests', connections: 1, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: '1 connection p50',
    unit: 'ms',
    need: 'intercept',
    job: { phase: 'requests', connections: 1, seconds },
    value: 'p50',
    lowerIsBetter: true,
  },
  {
    name: '32 connections',
    unit: 'req/s',
    need: 'intercept',
    job: { phase: 'requests', connections: 32, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: '256 connections',
    unit: 'req/s',
    need: 'intercept',
    job: { phase: 'requests', connections: 256, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: 'new tunnels with TLS',
    unit: '/s',
    need: 'intercept',
    job: { phase: 'tunnels', connections: 8, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: 'first hit of a host, added',
    unit: 'ms',
    need: 'intercept',
    job: { phase: 'new-hosts', connections: 1, seconds },
    value: 'added',
    lowerIsBetter: true,
    rounds: 1,
    peers: ['subfloor'],
  },
  {
    name: '50 new hosts at once, p99 of others',
    unit: 'ms',
    need: 'intercept',
    job: { phase: 'new-hosts', connections: 1, seconds },
    value: 'delayed',
    lowerIsBetter: true,
    rounds: 1,
    peers: ['direct', 'subfloor'],
  },
  {
    name: 'download 100 MB',
    unit: 'MB/s',
    need: 'intercept',
    job: { phase: 'download', connections: 1, seconds },
    value: 'rate',
  },
  {
    name: 'upload 100 MB',
    unit: 'MB/s',
    need: 'intercept',
    job: { phase: 'upload', connections: 1, seconds },
    value: 'rate',
  },
  {
    name: 'memory held by a stalled reader',
    unit: 'MB',
    need: 'intercept',
    job: { phase: 'stall', connections: 1, seconds },
    value: 'memory',
    lowerIsBetter: true,
    rounds: 1,
  },
  {
    name: 'SSE 200 streams p99',
    unit: 'ms',
    need: 'intercept',
    job: { phase: 'sse', connections: 200, seconds },
    value: 'p99',
    lowerIsBetter: true,
    rounds: 1,
  },
  {
    name: 'idle tunnel',
    unit: 'KB',
    need: 'intercept',
    job: { phase: 'idle', connections: flags.quick ? 300 : 2000, seconds },
    value: 'per-tunnel',
    lowerIsBetter: true,
    rounds: 1,
  },
  {
    name: 'h2, 32 streams',
    unit: 'req/s',
    need: 'h2',
    job: { phase: 'h2', connections: 32, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: 'blind tunnel',
    unit: 'MB/s',
    need: 'blind',
    job: { phase: 'blind-bytes', connections: 1, seconds },
    value: 'rate',
  },
  {
    name: 'new blind tunnels',
    unit: '/s',
    need: 'blind',
    job: { phase: 'blind-tunnels', connections: 8, seconds },
    value: 'rate',
    withCpu: true,
  },
  {
    name: 'memory after 10,000 tunnels',
    unit: 'MB',
    need: 'intercept',
    job: { phase: 'drop', connections: flags.quick ? 1000 : 10_000, seconds },
    value: 'memory',
    lowerIsBetter: true,
    rounds: 1,
    peers: ['subfloor'],
  },
];

interface Sample {
  readonly value: number;
  readonly cpu: number | null;
}

const missing = missingPrograms();
const wantedPeers = flags.peers?.split(',') ?? [
  'direct',
  'subfloor',
  'subfloor-no-audit',
  'subfloor-10k-rules',
  'http-mitm-proxy',
  'http-mitm-proxy-ka',
  'mockttp',
  ...['mitmdump', 'squid'].filter((program) => !missing.includes(program)),
  'proxy-chain',
];
const wantedPhases = PHASES.filter(
  (phase) =>
    flags.phases === undefined ||
    flags.phases.split(',').some((part) => phase.name.includes(part) || phase.job.phase === part),
);

/** Runs the generator; tells the peer's CPU and memory where it starts to count and where it ends. */
function generate(peer: Peer, ports: Ports, phase: Phase): Promise<Sample> {
  const isBlind = phase.need === 'blind';
  const byName = peer.target === 'name';
  const upstreamPort = isBlind ? ports.tcp : phase.need === 'h2' ? ports.h2 : ports.h1;
  // Blind tunnels of the product are raw ones; a name is what its rules know.
  const host = byName ? (isBlind ? `raw.${HOST}` : phase.need === 'h2' ? `h2.${HOST}` : HOST) : 'localhost';
  const job: Job = {
    ...phase.job,
    proxy: peer.port,
    ca: isBlind ? '' : peer.ca,
    host,
    port: byName && peer.port !== null ? 443 : upstreamPort,
    authority: byName ? host : `localhost:${upstreamPort}`,
    servername: byName ? (isBlind ? HOST : host) : peer.port === null ? HOST : 'localhost',
  };
  return new Promise((resolve, reject) => {
    const child = spawn(
      process.execPath,
      [
        '--import',
        join(import.meta.dirname, '../node_modules/tsx/dist/loader.mjs'),
        join(import.meta.dirname, 'generator.ts'),
        JSON.stringify(job),
      ],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(new Error('timed out'));
    }, 120_000);
    let cpuFrom: number | null = null;
    let memoryFrom = residentBytes(peer.pid);
    let memoryTo: number | null = null;
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const line = JSON.parse(text.slice(0, end)) as {
          event?: string;
          error?: string;
          result?: Record<string, number>;
        };
        text = text.slice(end + 1);
        if (line.event === 'before') memoryFrom = residentBytes(peer.pid);
        if (line.event === 'counting') {
          cpuFrom = cpuMs(peer.pid);
          memoryTo = residentBytes(peer.pid);
        }
        if (line.error !== undefined) finish(null, line.error);
        if (line.result !== undefined) finish(line.result, null);
      }
    });
    child.stderr.resume();
    child.on('exit', () => finish(null, 'the generator ended'));
    const finish = (result: Record<string, number> | null, error: string | null): void => {
      clearTimeout(timer);
      if (result === null) {
        reject(new Error(error ?? 'failed'));
        return;
      }
      if (phase.value === 'memory') memoryTo = residentBytes(peer.pid) ?? memoryTo;
      const cpuTo = cpuMs(peer.pid);
      const count = result['count'] ?? 0;
      const cpu = cpuFrom !== null && cpuTo !== null && count > 0 ? (cpuTo - cpuFrom) / count : null;
      const memory = memoryFrom === null || memoryTo === null ? NaN : memoryTo - memoryFrom;
      const value =
        phase.value === 'memory'
          ? Math.max(0, memory / 1e6)
          : phase.value === 'per-tunnel'
            ? memory / 1024 / phase.job.connections
            : phase.value === 'delayed'
              ? (result['busyP99'] ?? NaN) - (result['calmP99'] ?? NaN)
              : (result[phase.value] ?? NaN);
      resolve({ value, cpu });
    };
  });
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

function shown(value: number): string {
  if (!Number.isFinite(value)) return '-';
  return value >= 1000
    ? `${(value / 1000).toFixed(1)}k`
    : value >= 100
      ? value.toFixed(0)
      : value >= 10
        ? value.toFixed(1)
        : value.toFixed(2);
}

const world = await makeWorld();
const upstream = await nodeScript('upstream.ts', join(world.folder, 'upstream-ca'));
const ports = JSON.parse(upstream.line) as Ports;
const results = new Map<string, Map<string, Sample[]>>();
const failures = new Map<string, string>();
const startedAt = Date.now();

for (const phase of wantedPhases) {
  const names = wantedPeers.filter((name) => phase.peers === undefined || phase.peers.includes(name));
  for (let round = 0; round < Math.min(rounds, phase.rounds ?? rounds); round++) {
    for (const name of names) {
      const start = PEERS[name];
      if (start === undefined || failures.has(`${phase.name}/${name}`)) continue;
      // The variants of the product exist to compare throughput only.
      if (name.startsWith('subfloor-') && phase.name !== '32 connections') continue;
      let peer: Peer | null = null;
      try {
        peer = await start(world, ports);
        if (!peer.can.has(phase.need)) continue;
        const sample = await generate(peer, ports, phase);
        const byPeer = results.get(phase.name) ?? new Map<string, Sample[]>();
        results.set(phase.name, byPeer);
        byPeer.set(name, [...(byPeer.get(name) ?? []), sample]);
        process.stderr.write(
          `${pc.dim(`${((Date.now() - startedAt) / 1000).toFixed(0).padStart(4)} s`)}  ${phase.name.padEnd(36)} ${name.padEnd(20)} ${shown(sample.value).padStart(8)} ${phase.unit}\n`,
        );
      } catch (error) {
        failures.set(`${phase.name}/${name}`, error instanceof Error ? error.message.slice(0, 200) : 'failed');
        process.stderr.write(
          `${pc.red('failed')}  ${phase.name} ${name}: ${error instanceof Error ? error.message.slice(0, 300) : ''}\n`,
        );
      } finally {
        peer?.stop();
      }
    }
  }
}
stopChild(upstream.child);

const columns = wantedPeers.filter((name) => [...results.values()].some((byPeer) => byPeer.has(name)));
const table: string[][] = [['phase', 'unit', ...columns, 'subfloor against the best peer']];
for (const phase of wantedPhases) {
  const byPeer = results.get(phase.name);
  const cell = (name: string): string => {
    const samples = byPeer?.get(name);
    if (samples === undefined) return failures.has(`${phase.name}/${name}`) ? 'failed' : '';
    const cpu = median(samples.flatMap((sample) => (sample.cpu === null ? [] : [sample.cpu])));
    const value = shown(median(samples.map((sample) => sample.value)));
    return phase.withCpu === true && Number.isFinite(cpu) ? `${value} (${cpu.toFixed(3)})` : value;
  };
  const value = (name: string): number => median((byPeer?.get(name) ?? []).map((sample) => sample.value));
  const others = columns.filter(
    (name) => name !== 'direct' && !name.startsWith('subfloor') && byPeer?.has(name) === true,
  );
  const best = others.map(value).sort((a, b) => (phase.lowerIsBetter === true ? a - b : b - a))[0];
  const ours = value('subfloor');
  const ratio = best === undefined || !Number.isFinite(ours) || best === 0 ? '' : `${(ours / best).toFixed(2)}x`;
  table.push([phase.name, phase.unit, ...columns.map(cell), ratio]);
}
const decisions = flags.phases === undefined || flags.phases.includes('decide') ? await decideBench() : [];

const widths = (table[0] ?? []).map((_cell, i) => Math.max(...table.map((row) => (row[i] ?? '').length)));
const line = (row: readonly string[]): string =>
  row.map((cell, i) => (i < 2 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join('  ');
process.stdout.write(
  `\n${table.map((row, i) => (i === 0 ? pc.bold(line(row)) : line(row))).join('\n')}\n\nCPU milliseconds of the proxy per request or tunnel in brackets.\n`,
);
for (const { name, value } of decisions) process.stdout.write(`${name.padEnd(52)} ${value}\n`);
for (const program of missing) process.stdout.write(`${program} is not installed: skipped\n`);

if (flags.json) process.stdout.write(`${JSON.stringify(table)}\n`);
if (!flags['no-write'] && !flags.quick && flags.phases === undefined) {
  let revision = 'unknown';
  try {
    revision = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { encoding: 'utf8' }).trim();
  } catch {
    // not a checkout
  }
  const header = table[0] ?? [];
  const markdown = [
    '# Benchmark',
    '',
    `${new Date().toISOString().slice(0, 10)}, revision ${revision}, Node ${process.version}, ${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} cores shared with generator and upstream, loopback. Medians of ${rounds} rounds.`,
    'Ratios within this run are what counts; `npm run bench` makes it again. CPU milliseconds of the proxy per request or tunnel in brackets. 1 KB JSON POST, 1 KB answer, TLS on both legs.',
    'http-mitm-proxy, mockttp and direct are asked for `localhost`, subfloor for a mapped name; proxy-chain carries blind tunnels only. subfloor runs with rules and audit on unless its column says otherwise.',
    '',
    `| ${header.join(' | ')} |`,
    `|${header.map(() => '---').join('|')}|`,
    ...table.slice(1).map((row) => `| ${row.join(' | ')} |`),
    '',
    '## Decisions alone',
    '',
    '| what | cost |',
    '|---|---|',
    ...decisions.map(({ name, value }) => `| ${name} | ${value} |`),
    '',
    ...[...failures].map(([where, why]) => `- failed: ${where}: ${why}`),
    ...missing.map((program) => `- ${program} is not installed here: skipped`),
    '',
  ];
  writeFileSync(join(import.meta.dirname, 'results.md'), markdown.join('\n'));
}
world.remove();
process.exit(0);
