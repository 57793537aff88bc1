import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ConfigError } from '../core/errors.ts';

/** A rule file or pack as read from disk. */
export interface RuleFileText {
  /** Path as the operator would type it: the folder as given, then the file name. */
  readonly name: string;
  readonly text: string;
  readonly kind: 'rules' | 'pack';
}

/** Largest rule file, in bytes. */
export const MAX_RULE_FILE_BYTES = 4 * 1024 * 1024;
/** Most rule files of one folder. */
const MAX_FILES = 10_000;

/** Packs that come with the program; two folders up from here in `src/` as in `dist/`. */
const SHIPPED_PACKS = fileURLToPath(new URL('../../rules/packs/', import.meta.url));

/**
 * Reads the rule files of some folders (`*.yaml` and `*.yml`, not `*.test.yaml`, not in subfolders), sorted, and all packs: those in `packs/` of each
 * folder, and the shipped ones whose name is not taken there.
 * @throws ConfigError a folder or file that cannot be read, or is too large
 */
export async function readRuleFiles(folders: readonly string[]): Promise<RuleFileText[]> {
  const files: RuleFileText[] = [];
  const packs = new Map<string, RuleFileText>();
  for (const folder of folders) {
    for (const path of await listRuleFiles(folder, true)) files.push(await readOne(path, 'rules'));
    await addPacks(packs, join(folder, 'packs'));
  }
  await addPacks(packs, SHIPPED_PACKS);
  return [...files, ...packs.values()];
}

/** Reads single rule files, with the packs beside them and the shipped ones. @throws ConfigError as `readRuleFiles` */
export async function readSingleRuleFiles(paths: readonly string[]): Promise<RuleFileText[]> {
  const files: RuleFileText[] = [];
  const packs = new Map<string, RuleFileText>();
  for (const path of paths) {
    files.push(await readOne(path, 'rules'));
    await addPacks(packs, join(path, '..', 'packs'));
  }
  await addPacks(packs, SHIPPED_PACKS);
  return [...files, ...packs.values()];
}

/** Packs of a folder's `packs/` and the shipped ones. @throws ConfigError as `readRuleFiles` */
export async function readPacks(folders: readonly string[]): Promise<RuleFileText[]> {
  const packs = new Map<string, RuleFileText>();
  for (const folder of folders) await addPacks(packs, join(folder, 'packs'));
  await addPacks(packs, SHIPPED_PACKS);
  return [...packs.values()];
}

/** Test files (`*.test.yaml`) of a folder, sorted. @throws ConfigError when the folder cannot be read */
export async function listTestFiles(folder: string): Promise<string[]> {
  const names = await list(folder);
  return names.filter((name) => /\.test\.ya?ml$/.test(name)).map((name) => join(folder, name));
}

/** Text of one file. @throws ConfigError when it cannot be read or is too large */
export async function readText(path: string): Promise<string> {
  return (await readOne(path, 'rules')).text;
}

async function addPacks(packs: Map<string, RuleFileText>, folder: string): Promise<void> {
  for (const path of await listRuleFiles(folder, false)) {
    const name = basename(path).replace(/\.ya?ml$/, '');
    if (!packs.has(name)) packs.set(name, await readOne(path, 'pack'));
  }
}

async function listRuleFiles(folder: string, mustExist: boolean): Promise<string[]> {
  const names = await list(folder, mustExist);
  const files = names.filter((name) => /\.ya?ml$/.test(name) && !/\.test\.ya?ml$/.test(name) && !name.startsWith('.'));
  if (files.length > MAX_FILES)
    throw new ConfigError(`more than ${MAX_FILES} rule files in one folder; split the folder`, { file: folder });
  return files.map((name) => join(folder, name));
}

async function list(folder: string, mustExist = true): Promise<string[]> {
  try {
    const entries = await readdir(folder, { withFileTypes: true });
    // A link counts as what it leads to: Kubernetes mounts every file of a ConfigMap as a link.
    return entries
      .filter((entry) => entry.isFile() || entry.isSymbolicLink())
      .map((entry) => entry.name)
      .sort();
  } catch (error) {
    const code = codeOf(error);
    if (!mustExist && code === 'ENOENT') return [];
    if (code === 'ENOENT')
      throw new ConfigError('the rules folder does not exist; create it, or set `rules:` to the one you have', {
        file: folder,
      });
    if (code === 'ENOTDIR')
      throw new ConfigError('is a file, and a folder is wanted here; name the folder that it lies in', {
        file: folder,
      });
    throw new ConfigError(`the folder cannot be read (${code}); check its owner and mode`, { file: folder });
  }
}

async function readOne(path: string, kind: 'rules' | 'pack'): Promise<RuleFileText> {
  try {
    const { size } = await stat(path);
    if (size > MAX_RULE_FILE_BYTES)
      throw new ConfigError(`the file is larger than ${MAX_RULE_FILE_BYTES / 1024 / 1024} MiB; split it`, {
        file: path,
      });
    const bytes = await readFile(path);
    // A wrong byte read as a replacement character would change what a rule matches.
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return { name: path, text, kind };
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    const code = codeOf(error);
    if (code === 'ERR_ENCODING_INVALID_ENCODED_DATA')
      throw new ConfigError('the file is not UTF-8; save it as UTF-8', { file: path });
    if (code === 'ENOENT') throw new ConfigError('the file does not exist', { file: path });
    throw new ConfigError(`the file cannot be read (${code}); check its owner and mode`, { file: path });
  }
}

function codeOf(error: unknown): string {
  const code: unknown = error instanceof Error && 'code' in error ? error.code : undefined;
  return typeof code === 'string' ? code : 'unknown error';
}
