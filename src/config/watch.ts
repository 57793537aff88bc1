import { createHash } from 'node:crypto';
import { watch } from 'node:fs';
import type { FSWatcher } from 'node:fs';
import { readFile, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

export interface WatchOptions {
  /** Quiet time after the last sign of a change; editors write in several steps. 150 by default. */
  readonly debounceMs?: number;
  /** How often contents are compared, because events get lost (network mounts, ConfigMap swaps, recreated folders). 2000 by default. */
  readonly pollMs?: number;
}

/** A folder with more entries than this, or deeper, is not one of rules. */
const MAX_ENTRIES = 5000;
const MAX_DEPTH = 8;
const MAX_FILE_BYTES = 4 * 1024 * 1024;

/**
 * Calls `onChange` after the contents of the files and folders changed, however it came about: written in place, renamed over, swapped by a symlink
 * (Kubernetes ConfigMaps), removed, created anew. A hash over names and contents decides, so touching a file changes nothing. Events only make it quick.
 * Never throws, and keeps no process alive.
 * @param paths files or folders (with their subfolders); they need not exist
 */
export function watchPaths(
  paths: readonly string[],
  onChange: () => void,
  options: WatchOptions = {},
): { close(): void } {
  const watching = new PathWatch(paths, onChange, options);
  watching.start();
  return { close: () => watching.close() };
}

class PathWatch {
  readonly #paths: readonly string[];
  readonly #onChange: () => void;
  readonly #debounceMs: number;
  readonly #pollMs: number;
  readonly #watchers = new Map<string, FSWatcher>();
  #timer: NodeJS.Timeout | null = null;
  #state: string | null = null;
  #stats = '';
  #isLooking = false;
  #lookAgain = false;
  #isClosed = false;

  constructor(paths: readonly string[], onChange: () => void, options: WatchOptions) {
    this.#paths = [...new Set(paths)];
    this.#onChange = onChange;
    this.#debounceMs = options.debounceMs ?? 150;
    this.#pollMs = options.pollMs ?? 2000;
  }

  start(): void {
    this.#look(true);
  }

  close(): void {
    this.#isClosed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    for (const watcher of this.#watchers.values()) watcher.close();
    this.#watchers.clear();
  }

  #schedule(waitMs: number, isCertain: boolean): void {
    if (this.#isClosed) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(isCertain), waitMs);
    this.#timer.unref();
  }

  /** @param isCertain an event came, so contents are read even if no modification time moved */
  #look(isCertain: boolean): void {
    if (this.#isLooking) {
      this.#lookAgain = true;
      return;
    }
    this.#isLooking = true;
    this.#compare(isCertain).then(
      () => this.#looked(),
      () => this.#looked(),
    );
  }

  #looked(): void {
    this.#isLooking = false;
    const isSoon = this.#lookAgain;
    this.#lookAgain = false;
    this.#schedule(isSoon ? this.#debounceMs : this.#pollMs, isSoon);
  }

  async #compare(isCertain: boolean): Promise<void> {
    const entries: Entry[] = [];
    for (const path of this.#paths) await collect(path, 0, entries);
    if (this.#isClosed) return;
    this.#follow(entries);
    const stats = entries.map((entry) => `${entry.path}\0${entry.stamp}`).join('\n');
    // Reading is saved where neither a name nor a time, size or inode moved. Times can repeat, so an event reads in any case.
    if (!isCertain && stats === this.#stats) return;
    this.#stats = stats;
    const hash = createHash('sha256');
    for (const entry of entries) {
      hash.update(`${entry.path}\0`);
      if (entry.kind === 'file') hash.update(await contents(entry));
      hash.update('\0');
    }
    const state = hash.digest('base64');
    const before = this.#state;
    this.#state = state;
    // `close` may have been called while files were read.
    const isClosed = (): boolean => this.#isClosed;
    if (before === null || before === state || isClosed()) return;
    try {
      this.#onChange();
    } catch {
      // The caller's failure is the caller's to report; watching goes on.
    }
  }

  /** Watches every folder, and the parents of single files: a file that is renamed over takes its own watcher with it. */
  #follow(entries: readonly Entry[]): void {
    const wanted = new Set<string>();
    for (const path of this.#paths) wanted.add(join(path, '..'));
    for (const entry of entries) if (entry.kind === 'folder') wanted.add(entry.path);
    for (const [path, watcher] of this.#watchers) {
      if (wanted.has(path)) continue;
      watcher.close();
      this.#watchers.delete(path);
    }
    for (const path of wanted) {
      if (this.#watchers.has(path)) continue;
      try {
        const watcher = watch(path, { persistent: false });
        watcher.on('error', () => this.#forget(path, watcher));
        // A folder that was removed and made anew has another inode; its old watcher stays silent for ever.
        watcher.on('change', (kind) => {
          if (kind === 'rename') this.#forget(path, watcher);
          this.#event();
        });
        this.#watchers.set(path, watcher);
      } catch {
        // Not there, or no more watches to be had: the poll sees to it.
      }
    }
  }

  #forget(path: string, watcher: FSWatcher): void {
    watcher.close();
    if (this.#watchers.get(path) === watcher) this.#watchers.delete(path);
  }

  #event(): void {
    if (this.#isLooking) this.#lookAgain = true;
    else this.#schedule(this.#debounceMs, true);
  }
}

interface Entry {
  readonly path: string;
  readonly kind: 'file' | 'folder' | 'absent';
  /** Changes when the entry is written or replaced. */
  readonly stamp: string;
  readonly size: number;
}

async function collect(path: string, depth: number, into: Entry[]): Promise<void> {
  if (into.length >= MAX_ENTRIES || depth > MAX_DEPTH) return;
  try {
    // Links are followed: the files of a ConfigMap are links into a folder that is swapped.
    const facts = await stat(path, { bigint: true });
    const stamp = `${facts.dev}:${facts.ino}:${facts.size}:${facts.mtimeNs}:${facts.ctimeNs}`;
    if (!facts.isDirectory()) {
      into.push({ path, kind: facts.isFile() ? 'file' : 'absent', stamp, size: Number(facts.size) });
      return;
    }
    // Times of a folder move with every temporary file in it; only its identity counts.
    into.push({ path, kind: 'folder', stamp: `${facts.dev}:${facts.ino}`, size: 0 });
    for (const name of (await readdir(path)).sort()) {
      // `..data` and its dated twin belong to ConfigMaps, other dot names to editors; the links beside them are what counts.
      if (!name.startsWith('.')) await collect(join(path, name), depth + 1, into);
    }
  } catch {
    into.push({ path, kind: 'absent', stamp: '', size: 0 });
  }
}

async function contents(entry: Entry): Promise<Buffer | string> {
  if (entry.size > MAX_FILE_BYTES) return entry.stamp;
  try {
    return await readFile(entry.path);
  } catch {
    return 'unreadable';
  }
}
