import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';

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

/** What has to be killed when the benchmark ends. */
export const children = new Set<ChildProcess>();
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
