/* eslint-disable @typescript-eslint/unbound-method -- the spies call the real method with their own `this` */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { AppendFile } from '../../src/audit/append-file.ts';
import { openFileSink } from '../../src/audit/file-sink.ts';
import type { FileSink, FileSinkOptions } from '../../src/audit/file-sink.ts';
import { exchangeEvent } from './events.ts';

interface FlatRecord {
  readonly kind: string;
  readonly uid: string;
  readonly exchange?: string | null;
  readonly cause?: string | null;
}

let folder: string;
let file: string;
let sink: FileSink | null;
let errors: string[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'subfloor-audit-'));
  file = join(folder, 'audit.jsonl');
  sink = null;
  errors = [];
});

afterEach(async () => {
  vi.restoreAllMocks();
  await sink?.close();
  rmSync(folder, { recursive: true, force: true });
});

async function openSink(options: Partial<FileSinkOptions> = {}): Promise<FileSink> {
  sink = await openFileSink({
    file,
    format: 'flat',
    productVersion: '0.1.0',
    onError: (cause) => errors.push(cause),
    ...options,
  });
  return sink;
}

function numbered(i: number): ReturnType<typeof exchangeEvent> {
  return exchangeEvent({ exchange: String(i) });
}

function lines(): string[] {
  return readFileSync(file, 'utf8')
    .split('\n')
    .filter((line) => line !== '');
}

/** What a reader makes of the file: lines that parse, each uid once. */
function records(): FlatRecord[] {
  const seen = new Map<string, FlatRecord>();
  for (const line of lines()) {
    try {
      const record = JSON.parse(line) as FlatRecord;
      if (!seen.has(record.uid)) seen.set(record.uid, record);
    } catch {
      // The beginning of a record that follows as a whole.
    }
  }
  return [...seen.values()];
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 2000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(condition()).toBe(true);
}

function failure(code: string): Error {
  return Object.assign(new Error(code), { code });
}

describe('group commit', () => {
  it('serves everybody who waits with few syncs', async () => {
    const target = await openSink();
    const sync = vi.spyOn(AppendFile.prototype, 'sync');
    await Promise.all(Array.from({ length: 200 }, (_, i) => target.record(numbered(i), true)));
    expect(sync.mock.calls.length).toBeLessThanOrEqual(2);
    expect(records()).toHaveLength(200);
  });

  it('never resolves before a sync that began after the write', async () => {
    const target = await openSink();
    const order: string[] = [];
    const append = AppendFile.prototype.append;
    const sync = AppendFile.prototype.sync;
    vi.spyOn(AppendFile.prototype, 'append').mockImplementation(async function (this: AppendFile, ...args) {
      await append.apply(this, args);
      order.push('written');
    });
    vi.spyOn(AppendFile.prototype, 'sync').mockImplementation(async function (this: AppendFile) {
      order.push('sync begins');
      await sync.apply(this);
      order.push('synced');
    });
    await target.record(numbered(1), true);
    order.push('resolved');
    expect(order).toEqual(['written', 'sync begins', 'synced', 'resolved']);
  });

  it('brings records that nobody waits for to the disk as well', async () => {
    const target = await openSink();
    const sync = vi.spyOn(AppendFile.prototype, 'sync');
    await target.record(numbered(1), false);
    await until(() => sync.mock.calls.length === 1);
  });
});

describe('a disk that reports an error late', () => {
  it('gets what was not yet synced again, and the waiter is told no', async () => {
    const target = await openSink();
    await target.record(numbered(1), true);
    vi.spyOn(AppendFile.prototype, 'sync').mockRejectedValueOnce(failure('EIO'));
    const answers = await Promise.allSettled([target.record(numbered(2), false), target.record(numbered(3), true)]);
    expect(answers.map(({ status }) => status)).toEqual(['fulfilled', 'rejected']);
    await until(() => target.isHealthy);
    await target.record(numbered(4), true);
    expect(records().map((record) => record.exchange ?? record.kind)).toEqual(['1', '2', '3', 'gap', '4']);
    expect(lines().length).toBe(7);
    expect(errors).toEqual(['EIO']);
  });
});

describe('a write that ends in the middle', () => {
  it('leaves every record whole once, after the piece', async () => {
    const target = await openSink();
    await target.record(numbered(1), true);
    const size = lines()[0]?.length ?? 0;
    const append = AppendFile.prototype.append;
    vi.spyOn(AppendFile.prototype, 'append').mockImplementationOnce(async function (
      this: AppendFile,
      bytes,
      onProgress,
    ) {
      await append.call(this, bytes.subarray(0, Math.floor(size * 1.5)), onProgress);
      throw failure('ENOSPC');
    });
    const answers = await Promise.allSettled([2, 3, 4].map((i) => target.record(numbered(i), true)));
    expect(answers.every(({ status }) => status === 'rejected')).toBe(true);
    await until(() => target.isHealthy);
    await target.record(numbered(5), true);
    expect(records().map((record) => record.exchange ?? record.kind)).toEqual(['1', '2', '3', '4', 'gap', '5']);
    // One torn piece, and record 2 is not there twice.
    expect(lines()).toHaveLength(7);
  });
});

describe('a disk that hangs', () => {
  it('makes durable records reject after the deadline, and counts as an outage until it answers', async () => {
    const target = await openSink({ commitMs: 30 });
    let release = (): void => undefined;
    vi.spyOn(AppendFile.prototype, 'sync').mockImplementationOnce(
      () =>
        new Promise((resolve) => {
          release = resolve;
        }),
    );
    await expect(target.record(numbered(1), true)).rejects.toMatchObject({
      code: 'audit_unavailable',
      cause: { code: 'commit_timeout' },
    });
    expect(target.isHealthy).toBe(false);
    release();
    await until(() => target.isHealthy);
    await target.record(numbered(2), true);
    expect(records().map((record) => record.exchange ?? record.kind)).toEqual(['1', 'gap', '2']);
  });

  it('does not hold up the end', async () => {
    const target = await openSink({ commitMs: 30 });
    vi.spyOn(AppendFile.prototype, 'sync').mockImplementationOnce(() => new Promise(() => undefined));
    await target.record(numbered(1), false);
    await target.close();
    expect(errors).toEqual(['records_lost: 1']);
  });
});
