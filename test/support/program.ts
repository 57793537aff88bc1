import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, realpathSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { closeAfterTest } from './closing.ts';
import { temporaryFolder } from './folders.ts';
import { parseRecords } from './proxy.ts';
import type { AuditRecord } from './proxy.ts';
import { plainEnvironment, run } from './programs.ts';
import type { Ran } from './programs.ts';
import { until, within } from './waiting.ts';

/** The built program, as it is shipped. */
export const CLI = join(import.meta.dirname, '..', '..', 'dist', 'cli.js');

const NOT_BUILT = 'dist/cli.js is not there: npm run build';

export type LogLine = Readonly<Record<string, unknown>>;

/** `subfloor start` in a process of its own. */
export interface RunningProgram {
  readonly port: number;
  readonly adminPort: number;
  readonly folder: string;
  readonly stdout: string;
  readonly stderr: string;
  /** Lines of the operational log so far. */
  log(): readonly LogLine[];
  /** Waits for a line whose text matches, and for the nth one of them. */
  logged(text: RegExp, nth?: number): Promise<LogLine>;
  admin(path: string, method?: string): Promise<Response>;
  records(): readonly AuditRecord[];
  signal(name: NodeJS.Signals): void;
  /** Its exit code, or the signal that ended it. */
  ended(): Promise<number | string>;
  close(): Promise<void>;
}

/** Runs the program to its end. */
export function subfloor(
  folder: string,
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Ran> {
  if (!existsSync(CLI)) throw new Error(NOT_BUILT);
  return run(process.execPath, [CLI, ...args], { cwd: folder, env: { HOME: folder, ...env } });
}

/** Starts it on free ports and waits until it says that it is ready. */
export async function startProgram(
  folder: string,
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<RunningProgram> {
  if (!existsSync(CLI)) throw new Error(NOT_BUILT);
  const child = spawn(process.execPath, [CLI, 'start', ...args], {
    cwd: folder,
    env: {
      ...plainEnvironment(),
      HOME: folder,
      SUBFLOOR_LISTEN_PROXY: '127.0.0.1:0',
      SUBFLOOR_LISTEN_ADMIN: '127.0.0.1:0',
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
  const end = new Promise<number | string>((resolve) => {
    child.on('error', () => resolve('cannot be started'));
    child.on('close', (code, signal) => resolve(code ?? signal ?? 'unknown'));
  });
  let isOver = false;
  void end.then(() => {
    isOver = true;
  });
  const log = (): LogLine[] =>
    stderr
      .split('\n')
      .slice(0, -1)
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as LogLine);
  const logged = (text: RegExp, nth = 1): Promise<LogLine> =>
    until(`${String(text)} in the log`, () => {
      const found = log().filter((line) => text.test(String(line['msg'])))[nth - 1];
      if (found === undefined && isOver) throw new Error(`the program ended early:\n${stderr}`);
      return found;
    });
  const close = async (): Promise<void> => {
    if (!isOver) child.kill('SIGKILL');
    await end;
  };
  try {
    const ready = await logged(/^subfloor is ready$/);
    const [listener] = ready['listeners'] as readonly string[];
    const port = Number(/:(\d+)$/.exec(listener ?? '')?.[1]);
    const adminPort = Number(ready['admin']);
    return {
      port,
      adminPort,
      folder,
      get stdout() {
        return stdout;
      },
      get stderr() {
        return stderr;
      },
      log,
      logged,
      admin: (path, method = 'GET') =>
        fetch(`http://127.0.0.1:${adminPort}${path}`, { method, signal: AbortSignal.timeout(5000) }),
      records: () => parseRecords(readFileSync(join(folder, 'var', 'audit.jsonl'), 'utf8')),
      signal: (name) => {
        child.kill(name);
      },
      ended: () => within('the program to end', end),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

export function emptyFolder(): string {
  // The program knows its folder by its real name.
  return realpathSync(closeAfterTest(temporaryFolder()).path);
}

export function allow(...hosts: readonly string[]): string {
  return `version: 1\nrules:\n  - id: allowed\n    description: what may be reached now\n    match: { host: [${hosts.join(', ')}] }\n    action: allow\n`;
}

/** Line 4 has a key that nobody knows. */
export const BROKEN_RULES = 'version: 1\nrules:\n  - id: allowed\n    descripton: typing mistake\n    action: allow\n';

/** Puts a rule file in place in one step: a watcher that looks between two writes would see half of it. */
export function writeRules(folder: string, yaml: string, name = '10-test.yaml'): void {
  mkdirSync(join(folder, 'rules'), { recursive: true });
  writeFileSync(join(folder, 'next.yaml'), yaml);
  renameSync(join(folder, 'next.yaml'), join(folder, 'rules', name));
}
