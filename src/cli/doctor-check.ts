import { execFile } from 'node:child_process';

/** What one look found out. */
export interface Finding {
  readonly group: 'settings' | 'proxy' | 'certificates' | 'environment' | 'clients' | 'machine';
  readonly name: string;
  /** `fail` makes the exit code 3; `warn` is worth a look; `skip` could not be looked at. */
  readonly status: 'ok' | 'warn' | 'fail' | 'skip';
  readonly text: string;
  readonly remedy: string | null;
}

/** Makes findings of one group. */
export function findingsOf(group: Finding['group']): {
  readonly ok: (name: string, text: string) => Finding;
  readonly warn: (name: string, text: string, remedy: string) => Finding;
  readonly fail: (name: string, text: string, remedy: string) => Finding;
  readonly skip: (name: string, text: string) => Finding;
} {
  return {
    ok: (name, text) => ({ group, name, status: 'ok', text, remedy: null }),
    warn: (name, text, remedy) => ({ group, name, status: 'warn', text, remedy }),
    fail: (name, text, remedy) => ({ group, name, status: 'fail', text, remedy }),
    skip: (name, text) => ({ group, name, status: 'skip', text, remedy: null }),
  };
}

const OUTPUT_BYTES = 64 * 1024;

/**
 * Runs a program that was named by us, never by input, and gives its output (standard output, else standard error).
 * @returns null when it is absent, fails, or takes longer than `timeoutMs`
 */
export function outputOf(
  program: string,
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  timeoutMs = 4000,
): Promise<string | null> {
  return new Promise((resolve) => {
    try {
      const child = execFile(
        program,
        [...args],
        { timeout: timeoutMs, killSignal: 'SIGKILL', maxBuffer: OUTPUT_BYTES, env: { ...env }, windowsHide: true },
        (error, stdout, stderr) => resolve(error === null ? (stdout === '' ? stderr : stdout).trim() : null),
      );
      // A program that waits for input must not wait for the deadline.
      child.stdin?.on('error', () => undefined);
      child.stdin?.end();
    } catch {
      resolve(null);
    }
  });
}
