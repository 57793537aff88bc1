import { mkdirSync, renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { watchPaths } from '../../src/config/watch.ts';
import { emptyFolder } from '../cli/command.ts';

interface Watched {
  /** Waits until there were so many changes in all. */
  readonly seen: (count: number) => Promise<void>;
  readonly count: () => number;
  /** Waits until several polls have passed without a further change. */
  readonly quiet: () => Promise<void>;
}

/** Fast enough for a test; every way of noticing is on. */
async function watching(paths: readonly string[]): Promise<Watched> {
  let count = 0;
  const watcher = watchPaths(paths, () => (count += 1), { debounceMs: 5, pollMs: 20 });
  onTestFinished(() => watcher.close());
  // The first look only learns how things are.
  await new Promise((resolve) => setTimeout(resolve, 60));
  return {
    count: () => count,
    seen: (wanted) => vi.waitFor(() => expect(count).toBeGreaterThanOrEqual(wanted), { timeout: 5000, interval: 5 }),
    quiet: () => new Promise((resolve) => setTimeout(resolve, 120)),
  };
}

describe('watching files and folders', () => {
  it('a file written in place', async () => {
    const file = join(emptyFolder(), 'a.yaml');
    writeFileSync(file, '1');
    const watched = await watching([file]);
    writeFileSync(file, '2');
    await watched.seen(1);
  });

  it('a file that an editor renames over, again and again', async () => {
    const folder = emptyFolder();
    const file = join(folder, 'a.yaml');
    writeFileSync(file, '0');
    const watched = await watching([file]);
    for (let i = 1; i <= 3; i += 1) {
      writeFileSync(join(folder, '.a.yaml.swp'), String(i));
      renameSync(join(folder, '.a.yaml.swp'), file);
      await watched.seen(i);
    }
  });

  it('a file in a folder, new, changed and removed, in subfolders too', async () => {
    const folder = emptyFolder();
    const watched = await watching([folder]);
    mkdirSync(join(folder, 'sub'));
    writeFileSync(join(folder, 'sub/a.yaml'), '1');
    await watched.seen(1);
    await watched.quiet();
    const before = watched.count();
    writeFileSync(join(folder, 'sub/a.yaml'), '2');
    await watched.seen(before + 1);
    await watched.quiet();
    const then = watched.count();
    rmSync(join(folder, 'sub/a.yaml'));
    await watched.seen(then + 1);
  });

  it('the symlink swap of a Kubernetes ConfigMap', async () => {
    const folder = emptyFolder();
    const put = (version: string): void => {
      mkdirSync(join(folder, `..${version}`));
      writeFileSync(join(folder, `..${version}`, 'a.yaml'), version);
      symlinkSync(`..${version}`, join(folder, '..data_tmp'));
      renameSync(join(folder, '..data_tmp'), join(folder, '..data'));
    };
    put('v1');
    symlinkSync('..data/a.yaml', join(folder, 'a.yaml'));
    const watched = await watching([folder]);
    put('v2');
    await watched.seen(1);
    await watched.quiet();
    const before = watched.count();
    put('v3');
    await watched.seen(before + 1);
  });

  it('a folder that is removed and made anew, and changed after that', async () => {
    const folder = join(emptyFolder(), 'rules');
    mkdirSync(folder);
    writeFileSync(join(folder, 'a.yaml'), '1');
    const watched = await watching([folder]);
    rmSync(folder, { recursive: true });
    await watched.seen(1);
    mkdirSync(folder);
    writeFileSync(join(folder, 'a.yaml'), '2');
    await watched.seen(2);
    await watched.quiet();
    const before = watched.count();
    writeFileSync(join(folder, 'a.yaml'), '3');
    await watched.seen(before + 1);
  });

  it('a path that is not there yet', async () => {
    const file = join(emptyFolder(), 'later', 'a.yaml');
    const watched = await watching([file]);
    mkdirSync(join(file, '..'));
    writeFileSync(file, '1');
    await watched.seen(1);
  });

  it('a change that keeps size and time', async () => {
    const file = join(emptyFolder(), 'a.yaml');
    writeFileSync(file, '1');
    utimesSync(file, 1000, 1000);
    const watched = await watching([file]);
    writeFileSync(file, '2');
    utimesSync(file, 1000, 1000);
    await watched.seen(1);
  });

  it('touching a file, or what editors leave beside it, is no change', async () => {
    const folder = emptyFolder();
    writeFileSync(join(folder, 'a.yaml'), '1');
    const watched = await watching([folder]);
    utimesSync(join(folder, 'a.yaml'), 5000, 5000);
    writeFileSync(join(folder, '.a.yaml.swp'), 'x');
    writeFileSync(join(folder, 'a.yaml'), '1');
    await watched.quiet();
    expect(watched.count()).toBe(0);
  });

  it('a listener that throws does not end the watch', async () => {
    const file = join(emptyFolder(), 'a.yaml');
    writeFileSync(file, '0');
    let count = 0;
    const watcher = watchPaths(
      [file],
      () => {
        count += 1;
        throw new Error('the reload failed');
      },
      { debounceMs: 5, pollMs: 20 },
    );
    onTestFinished(() => watcher.close());
    for (let i = 1; i <= 2; i += 1) {
      await new Promise((resolve) => setTimeout(resolve, 60));
      writeFileSync(file, String(i));
      await vi.waitFor(() => expect(count).toBeGreaterThanOrEqual(i), { timeout: 5000 });
    }
  });

  it('after close nothing is told', async () => {
    const file = join(emptyFolder(), 'a.yaml');
    writeFileSync(file, '1');
    let count = 0;
    const watcher = watchPaths([file], () => (count += 1), { debounceMs: 5, pollMs: 20 });
    await new Promise((resolve) => setTimeout(resolve, 60));
    watcher.close();
    writeFileSync(file, '2');
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(count).toBe(0);
  });
});
