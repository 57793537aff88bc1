import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { Command } from 'commander';
import { onTestFinished, vi } from 'vitest';
import { ConfigError } from '../../src/core/errors.ts';

export interface CommandOutcome {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number;
}

/** An empty folder that goes away with the test. */
export function emptyFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'subfloor-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Runs one command in a folder, with an environment of its own, and treats its errors as the program does. Colors, where the tests run with them, are taken off. */
export async function runCommand(
  add: (program: Command) => void,
  args: readonly string[],
  options: { readonly cwd: string; readonly env?: Readonly<Record<string, string>> },
): Promise<CommandOutcome> {
  let stdout = '';
  let stderr = '';
  const program = new Command('subfloor').exitOverride().configureOutput({ writeErr: (text) => (stderr += text) });
  add(program);
  const environment = process.env;
  const cwd = vi.spyOn(process, 'cwd').mockReturnValue(options.cwd);
  const out = vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => (stdout += String(chunk)) !== '');
  const err = vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => (stderr += String(chunk)) !== '');
  process.env = { PATH: environment['PATH'], HOME: options.cwd, ...options.env };
  process.exitCode = 0;
  try {
    await program.parseAsync([...args], { from: 'user' });
    return {
      stdout: stripVTControlCharacters(stdout),
      stderr: stripVTControlCharacters(stderr),
      exitCode: process.exitCode,
    };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return {
      stdout: stripVTControlCharacters(stdout),
      stderr: stripVTControlCharacters(stderr) + error.message,
      exitCode: 2,
    };
  } finally {
    process.env = environment;
    process.exitCode = 0;
    for (const spy of [cwd, out, err]) spy.mockRestore();
  }
}
