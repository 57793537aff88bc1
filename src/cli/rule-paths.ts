import { stat } from 'node:fs/promises';
import { isAbsolute, relative } from 'node:path';
import { loadSettings } from '../config/load.ts';
import { readRuleFiles, readSingleRuleFiles } from '../config/rule-files.ts';
import type { RuleFileText } from '../config/rule-files.ts';
import { ConfigError } from '../core/errors.ts';
import { packNameOf } from '../policy/compile.ts';
import { formatProblem } from '../policy/problem.ts';
import type { Problem } from '../policy/problem.ts';

/** Flag that names the settings file, which names the rules folders. */
export interface ConfigOption {
  readonly config?: string;
}

/** The given paths, or the rules folders of the settings. @throws ConfigError */
export async function pathsOrFolders(paths: readonly string[], options: ConfigOption): Promise<readonly string[]> {
  if (paths.length > 0) return paths;
  const { settings } = await loadSettings({
    cwd: process.cwd(),
    env: process.env,
    flags: {},
    ...(options.config === undefined ? {} : { file: options.config }),
  });
  // Relative names are what the operator types and what an editor in this folder can open.
  return settings.rules.map((folder) => {
    const name = relative(process.cwd(), folder);
    return name === '' || name.startsWith('..') || isAbsolute(name) ? folder : name;
  });
}

/** Rule files of folders and single files, with their packs. @throws ConfigError */
export async function readPaths(paths: readonly string[]): Promise<RuleFileText[]> {
  const folders: string[] = [];
  const files: string[] = [];
  for (const path of paths) ((await isFolder(path)) ? folders : files).push(path);
  const read = [
    ...(folders.length > 0 ? await readRuleFiles(folders) : []),
    ...(files.length > 0 ? await readSingleRuleFiles(files) : []),
  ];
  // The shipped packs come with both; the first of a name is the nearer one.
  const seen = new Set<string>();
  return read.filter((file) => {
    const key = file.kind === 'pack' ? `pack ${packNameOf(file.name)}` : file.name;
    return !seen.has(key) && seen.add(key).size > 0;
  });
}

/** @throws ConfigError when there is nothing at the path */
export async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    throw new ConfigError('there is no such file or folder', { file: path });
  }
}

/** Prints problems one a line, as compilers do. */
export function sayProblems(problems: readonly Problem[], paint: (text: string) => string): void {
  for (const problem of problems) process.stderr.write(`${paint('•')} ${formatProblem(problem)}\n`);
}
