import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { copyFile, link, mkdir, open, readFile, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { ConfigError } from '../core/errors.ts';

/** The two files of a CA, by the folder they live in. */
export function caPaths(folder: string): { readonly pem: string; readonly key: string } {
  return { pem: join(folder, 'ca.pem'), key: join(folder, 'ca.key') };
}

/** Contents of the two files. */
export interface CaPair {
  readonly certificatePem: string;
  readonly keyPem: string;
}

/** Larger than any sane chain; a device or a log file named by mistake is refused before it is read. */
const MAX_FILE_BYTES = 1024 * 1024;
/** How often a half-written pair is looked at again, and for how long: another process may be between its two files. */
const SETTLE_STEP_MS = 50;

/**
 * Reads the pair.
 * @param settleMs how long to wait for the second file when only one is there
 * @returns null when neither file exists
 * @throws ConfigError only one of the files is there, the key file is open to others, or a file cannot be read
 */
export async function readCaPair(folder: string, settleMs = 3000): Promise<CaPair | null> {
  const paths = caPaths(folder);
  for (let waitedMs = 0; ; waitedMs += SETTLE_STEP_MS) {
    const hasKey = await exists(paths.key);
    const hasPem = await exists(paths.pem);
    if (!hasKey && !hasPem) return null;
    if (hasKey && hasPem) break;
    if (waitedMs >= settleMs) throw halfPair(paths, hasKey);
    await sleep(SETTLE_STEP_MS);
  }
  await checkKeyMode(paths.key);
  return { certificatePem: await readText(paths.pem), keyPem: await readText(paths.key) };
}

function halfPair(paths: { readonly pem: string; readonly key: string }, hasKey: boolean): ConfigError {
  const text = hasKey
    ? 'There is a CA key but no ca.pem beside it. Put its certificate there, or remove ca.key to have a new CA made.'
    : 'There is a CA certificate but no ca.key beside it. Put its key there, or remove ca.pem to have a new CA made.';
  return new ConfigError(text, { file: hasKey ? paths.key : paths.pem });
}

/**
 * Makes both files, or neither. The key is claimed first, by a hard link that fails when the name is taken, so of several processes that start
 * at once exactly one wins and nobody ever sees a half-written file; the others read what the winner wrote.
 * @returns false when another process was first
 * @throws ConfigError the folder cannot be written
 */
export async function publishCaPair(folder: string, pair: CaPair): Promise<boolean> {
  const paths = caPaths(folder);
  const mark = `${process.pid}-${randomBytes(4).toString('hex')}`;
  const keyDraft = join(folder, `.ca.key.${mark}.tmp`);
  const pemDraft = join(folder, `.ca.pem.${mark}.tmp`);
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    await writeNew(keyDraft, pair.keyPem, 0o600);
    await writeNew(pemDraft, pair.certificatePem, 0o644);
    if (!(await claim(keyDraft, paths.key))) return false;
    if (await claim(pemDraft, paths.pem)) return true;
    // Somebody put a certificate there in between. It cannot fit our new key, so that key must not stay.
    await unlink(paths.key);
    return false;
  } catch (error) {
    throw new ConfigError(
      `A CA cannot be written here (${codeOf(error)}). Make the folder writable, or put ca.pem and ca.key into it.`,
      {
        file: folder,
      },
    );
  } finally {
    await Promise.all([unlink(keyDraft), unlink(pemDraft)].map((removal) => removal.catch(() => undefined)));
  }
}

/**
 * Moves an existing pair aside, never over another file.
 * @param stamp goes into the new names, for example `20261121T061200Z`
 * @returns the new paths; empty when there was nothing to move
 */
export async function retireCaPair(folder: string, stamp: string): Promise<readonly string[]> {
  const paths = caPaths(folder);
  const moved: string[] = [];
  // The key goes first: a process that starts now finds a certificate without key and says so, and does not use the old pair.
  for (const path of [paths.key, paths.pem]) {
    if (!(await exists(path))) continue;
    const target = `${path}.${stamp}`;
    if (!(await claim(path, target))) throw new ConfigError('The name for the old file is taken.', { file: target });
    await unlink(path);
    moved.push(target);
  }
  return moved;
}

/**
 * Refuses a key that others can read: it may already have been copied, so tightening its mode in silence would hide that.
 * A key that belongs to somebody else and that we read through our group is how Kubernetes mounts secrets (fsGroup, 0440); that is accepted.
 */
async function checkKeyMode(path: string): Promise<void> {
  // Windows has no such bits; Node reports made-up ones.
  if (process.platform === 'win32') return;
  const facts = await stat(path).catch((error: unknown) => {
    throw unreadable(path, error);
  });
  const isOurs = facts.uid === process.geteuid?.();
  const forbidden = isOurs ? 0o077 : 0o037;
  if ((facts.mode & forbidden) === 0) return;
  const mode = (facts.mode & 0o777).toString(8).padStart(4, '0');
  throw new ConfigError(
    `The CA key is open to other users (mode ${mode}). Whoever reads it can impersonate every site to your agents. ` +
      'If nobody else has had access, run chmod 600 on it; otherwise make a new CA with "subfloor ca init --force".',
    { file: path },
  );
}

async function writeNew(path: string, text: string, mode: number): Promise<void> {
  const file = await open(path, 'wx', mode);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Gives `path` a second name that did not exist before, atomically. False when it did. */
async function claim(path: string, target: string): Promise<boolean> {
  try {
    await link(path, target);
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(codeOf(error))) throw error;
    // No hard links on this file system (some network and desktop container mounts). Copying keeps the mode and the exclusiveness.
    try {
      await copyFile(path, target, constants.COPYFILE_EXCL);
    } catch (failure) {
      if (codeOf(failure) === 'EEXIST') return false;
      throw failure;
    }
  }
  return true;
}

async function readText(path: string): Promise<string> {
  try {
    const { size } = await stat(path);
    if (size > MAX_FILE_BYTES) throw new ConfigError('This is too large to be a certificate or key.', { file: path });
    return await readFile(path, 'latin1');
  } catch (error) {
    throw error instanceof ConfigError ? error : unreadable(path, error);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return false;
    throw unreadable(path, error);
  }
}

function unreadable(path: string, error: unknown): ConfigError {
  return new ConfigError(`The file cannot be read (${codeOf(error)}).`, { file: path });
}

/** System error code such as `EACCES`; the message would repeat the path. */
function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'unknown error';
}
