import { spawn, spawnSync } from 'node:child_process';

export interface Ran {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Whether a program answers here at all. */
export function isInstalled(program: string, args: readonly string[] = ['--version']): boolean {
  const { error, status } = spawnSync(program, [...args], { stdio: 'ignore', timeout: 10_000 });
  return error === undefined && status === 0;
}

export interface RunOptions {
  /** Added to a small environment without proxy variables. */
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string | Buffer;
  readonly cwd?: string;
  readonly timeoutMs?: number;
}

/** Runs a program to its end without stopping the event loop: the servers it talks to live in this process. */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ran> {
  return new Promise((resolve) => {
    const child = spawn(program, [...args], {
      cwd: options.cwd,
      timeout: options.timeoutMs ?? 20_000,
      env: { ...plainEnvironment(), ...options.env },
    });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    child.on('error', () => resolve({ code: null, stdout: '', stderr: 'cannot be started' }));
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input ?? '');
    child.on('close', (code) =>
      resolve({ code, stdout: Buffer.concat(stdout).toString(), stderr: Buffer.concat(stderr).toString() }),
    );
  });
}

/** What a program needs to run, and none of the variables that would send its traffic elsewhere, color its output or set up our own. */
export function plainEnvironment(): Record<string, string> {
  const kept: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) {
    if (
      value === undefined ||
      /proxy|_ca_|_cert|ssl_|cainfo|cafile|^node_options|^vitest|^subfloor_|^(?:force|no)_color$|^ci$/i.test(name)
    )
      continue;
    kept[name] = value;
  }
  return kept;
}
