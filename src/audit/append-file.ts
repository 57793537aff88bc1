import { mkdir, open, rename, stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Names tried for a rotated file within one millisecond. */
const MAX_NAMES = 1000;

/**
 * A file that only grows, written by us alone. Creates the folder (0700) and the file (0600); what exists keeps its mode.
 * Devices and pipes work too: they are neither synced nor rotated.
 * Every method rejects with the error of the operating system.
 */
export class AppendFile {
  readonly path: string;
  readonly #handle: FileHandle;
  readonly #isRegular: boolean;
  readonly #identity: string;
  #size: number;

  private constructor(path: string, handle: FileHandle, facts: { isRegular: boolean; identity: string; size: number }) {
    this.path = path;
    this.#handle = handle;
    this.#isRegular = facts.isRegular;
    this.#identity = facts.identity;
    this.#size = facts.size;
  }

  /** Opens for appending. A last line without a line feed, as a crash leaves it, is ended first, so that the next record stands on its own line. */
  static async open(path: string): Promise<AppendFile> {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    // Readable too, to look at the last byte; where that is forbidden, appending alone will do.
    const handle = await open(path, 'a+', 0o600).catch(() => open(path, 'a', 0o600));
    try {
      const facts = await handle.stat();
      const file = new AppendFile(path, handle, {
        isRegular: facts.isFile(),
        identity: `${facts.dev}:${facts.ino}`,
        size: facts.isFile() ? facts.size : 0,
      });
      await file.#endTornLine();
      if (file.#isRegular) await syncFolder(path);
      return file;
    } catch (error) {
      await handle.close().catch(() => undefined);
      throw error;
    }
  }

  /** Bytes in the file. */
  get size(): number {
    return this.#size;
  }

  /**
   * Appends bytes in as few system calls as the operating system lets us.
   * @param onProgress told the bytes written so far after each call, also before a rejection
   */
  async append(bytes: Buffer, onProgress: (written: number) => void): Promise<void> {
    let written = 0;
    while (written < bytes.length) {
      const { bytesWritten } = await this.#handle.write(bytes, written, bytes.length - written);
      written += bytesWritten;
      this.#size += bytesWritten;
      onProgress(written);
    }
  }

  /** Brings what was appended to the disk (fdatasync). */
  async sync(): Promise<void> {
    if (this.#isRegular) await this.#handle.datasync();
  }

  /** False when the path names another file by now, or none: somebody moved or removed ours. */
  async isInPlace(): Promise<boolean> {
    if (!this.#isRegular) return true;
    try {
      const facts = await stat(this.path);
      return `${facts.dev}:${facts.ino}` === this.#identity;
    } catch (error) {
      if (isMissing(error)) return false;
      throw error;
    }
  }

  /** Moves the file aside under a name with the time in it. The handle stays open on the moved file; nothing is overwritten. */
  async moveAside(nowMs: number): Promise<string> {
    const time = new Date(nowMs).toISOString().replace(/[-:]/g, '');
    for (let i = 0; i < MAX_NAMES; i++) {
      const target = i === 0 ? `${this.path}.${time}` : `${this.path}.${time}-${i}`;
      if (await exists(target)) continue;
      await rename(this.path, target);
      await syncFolder(this.path);
      return target;
    }
    throw Object.assign(new Error('no free name for the rotated file'), { code: 'EEXIST' });
  }

  get canRotate(): boolean {
    return this.#isRegular;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }

  async #endTornLine(): Promise<void> {
    if (this.#size === 0) return;
    const last = Buffer.alloc(1);
    try {
      await this.#handle.read(last, 0, 1, this.#size - 1);
    } catch {
      // Opened for appending alone: an empty line in the middle does less harm than two records on one line.
    }
    if (last[0] === 0x0a) return;
    await this.append(Buffer.from('\n'), () => undefined);
  }
}

/** A new or renamed entry is on disk only when its folder is (fsync(2), "Calling fsync() does not necessarily ensure…"). Not every system can do that. */
async function syncFolder(path: string): Promise<void> {
  try {
    const folder = await open(dirname(path), 'r');
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  } catch {
    // Windows and some network file systems refuse it; the records themselves are synced all the same.
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT';
}
