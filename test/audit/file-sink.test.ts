import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openFileSink } from '../../src/audit/file-sink.ts';
import type { FileSink, FileSinkOptions } from '../../src/audit/file-sink.ts';
import { exchangeEvent } from './events.ts';

interface FlatRecord {
  readonly kind: string;
  readonly uid: string;
  readonly sequence: number;
  readonly exchange?: string | null;
  readonly dropped?: number;
  readonly cause?: string | null;
}

let folder: string;
let file: string;
let open: FileSink[];
let errors: string[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'subfloor-audit-'));
  file = join(folder, 'var', 'audit.jsonl');
  open = [];
  errors = [];
});

afterEach(async () => {
  for (const sink of open) await sink.close();
  rmSync(folder, { recursive: true, force: true });
});

async function openSink(options: Partial<FileSinkOptions> = {}): Promise<FileSink> {
  const sink = await openFileSink({
    file,
    format: 'flat',
    productVersion: '0.1.0',
    onError: (cause) => errors.push(cause),
    ...options,
  });
  open.push(sink);
  return sink;
}

function read(path = file): FlatRecord[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as FlatRecord);
}

function numbered(i: number): ReturnType<typeof exchangeEvent> {
  return exchangeEvent({ exchange: String(i) });
}

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 2000 && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(condition()).toBe(true);
}

describe('a file sink', () => {
  it('has a durable record in the file before its promise resolves', async () => {
    const sink = await openSink();
    await sink.record(numbered(1), true);
    expect(read().map((record) => record.exchange)).toEqual(['1']);
  });

  it('writes records that nobody waits for soon', async () => {
    const sink = await openSink();
    await sink.record(numbered(1), false);
    await until(() => read().length === 1);
  });

  it('keeps the order of the calls, durable or not', async () => {
    const sink = await openSink();
    const written: Promise<void>[] = [];
    for (let i = 0; i < 500; i++) written.push(sink.record(numbered(i), i % 7 === 0));
    await Promise.all(written);
    await sink.close();
    expect(read().map((record) => record.exchange)).toEqual(Array.from({ length: 500 }, (_, i) => String(i)));
    expect(read().map((record) => record.sequence)).toEqual(Array.from({ length: 500 }, (_, i) => i + 1));
  });

  it('keeps the order over many turns of the event loop', async () => {
    const sink = await openSink();
    for (let i = 0; i < 300; i++) {
      await sink.record(numbered(i), i % 11 === 0);
      if (i % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    await sink.close();
    expect(read().map((record) => record.exchange)).toEqual(Array.from({ length: 300 }, (_, i) => String(i)));
  });

  it('writes what is left when it is closed, and takes nothing after', async () => {
    const sink = await openSink();
    for (let i = 0; i < 50; i++) await sink.record(numbered(i), false);
    await sink.close();
    expect(read()).toHaveLength(50);
    expect(sink.isHealthy).toBe(false);
    await expect(sink.record(numbered(51), true)).rejects.toMatchObject({ code: 'audit_unavailable' });
    expect(errors).toEqual([]);
  });

  it('makes the folder for its owner alone, and the file too', async () => {
    await openSink();
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(statSync(join(folder, 'var')).mode & 0o777).toBe(0o700);
  });

  it('appends to what is there', async () => {
    const first = await openSink();
    await first.record(numbered(1), true);
    await first.close();
    const second = await openSink();
    await second.record(numbered(2), true);
    expect(read().map((record) => record.exchange)).toEqual(['1', '2']);
  });

  it('ends a line that a crash left torn, so that the next record can be read', async () => {
    const first = await openSink();
    await first.record(numbered(1), true);
    await first.close();
    appendFileSync(file, '{"time":17');
    const second = await openSink();
    await second.record(numbered(2), true);
    const lines = readFileSync(file, 'utf8').split('\n');
    expect(lines).toHaveLength(4);
    expect(lines[1]).toBe('{"time":17');
    expect((JSON.parse(lines[2] ?? '') as FlatRecord).exchange).toBe('2');
  });

  it('rejects when the file cannot be opened', async () => {
    await expect(openSink({ file: folder })).rejects.toMatchObject({
      code: 'audit_unavailable',
      cause: { code: 'EISDIR' },
    });
  });

  it('opens a new file on request and leaves the moved one whole', async () => {
    const sink = await openSink();
    await sink.record(numbered(1), false);
    await sink.record(numbered(2), true);
    renameSync(file, `${file}.old`);
    await sink.record(numbered(3), false);
    await sink.reopen();
    await sink.record(numbered(4), true);
    const old = read(`${file}.old`).map((record) => record.exchange);
    const all = [...old, ...read().map((record) => record.exchange)];
    expect(old.slice(0, 2)).toEqual(['1', '2']);
    expect(all).toEqual(['1', '2', '3', '4']);
  });

  it('notices that its file was removed and makes a new one', async () => {
    let nowMs = 1_000_000;
    const sink = await openSink({ now: () => nowMs });
    await sink.record(numbered(1), true);
    unlinkSync(file);
    nowMs += 1000;
    await sink.record(numbered(2), true);
    expect(read().map((record) => record.exchange)).toEqual(['2']);
    expect(sink.isHealthy).toBe(true);
  });

  it('rotates by size without losing or splitting a record', async () => {
    const sink = await openSink({ maxBytes: 10_000 });
    for (let i = 0; i < 100; i++) await sink.record(numbered(i), i % 10 === 0);
    await sink.close();
    const names = readdirSync(join(folder, 'var')).sort();
    expect(names.length).toBeGreaterThan(5);
    const rotated = names.filter((name) => name !== 'audit.jsonl');
    for (const name of names) {
      expect(statSync(join(folder, 'var', name)).size).toBeLessThanOrEqual(10_000);
      expect(statSync(join(folder, 'var', name)).mode & 0o777).toBe(0o600);
    }
    const all = names
      .flatMap((name) => read(join(folder, 'var', name)))
      .sort((a, b) => a.sequence - b.sequence)
      .map((record) => record.exchange);
    expect(all).toEqual(Array.from({ length: 100 }, (_, i) => String(i)));
    expect(rotated.every((name) => /^audit\.jsonl\.\d{8}T\d{6}\.\d{3}Z(-\d+)?$/.test(name))).toBe(true);
  });

  it('rotates also when a single record is larger than a file may be', async () => {
    const sink = await openSink({ maxBytes: 10 });
    for (let i = 0; i < 3; i++) await sink.record(numbered(i), true);
    await sink.close();
    expect(readdirSync(join(folder, 'var'))).toHaveLength(3);
  });
});

describe('a file sink on a disk that fails', () => {
  const hasFullDevice = existsSync('/dev/full');

  it.skipIf(!hasFullDevice)('rejects durable records when the disk is full and says so once', async () => {
    const sink = await openSink({ file: '/dev/full' });
    await expect(sink.record(numbered(1), true)).rejects.toMatchObject({
      code: 'audit_unavailable',
      cause: { code: 'ENOSPC' },
    });
    expect(sink.isHealthy).toBe(false);
    await expect(sink.record(numbered(2), true)).rejects.toMatchObject({ code: 'audit_unavailable' });
    await expect(sink.record(numbered(3), false)).resolves.toBeUndefined();
    await sink.close();
    expect(errors).toEqual(['ENOSPC', 'records_lost: 3']);
  });

  it('heals when the folder comes back', async () => {
    const sink = await openSink();
    await sink.record(numbered(1), true);
    renameSync(join(folder, 'var'), join(folder, 'gone'));
    writeFileSync(join(folder, 'var'), 'a file where the folder should be');
    await sink.reopen();
    expect(sink.isHealthy).toBe(false);
    await expect(sink.record(numbered(2), true)).rejects.toMatchObject({ code: 'audit_unavailable' });
    await sink.record(numbered(3), false);
    unlinkSync(join(folder, 'var'));
    renameSync(join(folder, 'gone'), join(folder, 'var'));
    await until(() => sink.isHealthy);
    await sink.record(numbered(4), true);
    expect(read().map((record) => record.exchange ?? record.kind)).toEqual(['1', '2', '3', 'gap', '4']);
    expect(errors).toHaveLength(1);
  });

  it('refuses records beyond the bound of its queue, counts them and leaves a hole in the sequence', async () => {
    const sink = await openSink({ maxQueueBytes: 20_000 });
    await sink.record(numbered(1), true);
    renameSync(join(folder, 'var'), join(folder, 'gone'));
    writeFileSync(join(folder, 'var'), '');
    await sink.reopen();
    const kept: string[] = ['1'];
    let refused = 0;
    for (let i = 2; i < 60; i++) {
      await sink.record(numbered(i), false).then(
        () => kept.push(String(i)),
        () => refused++,
      );
    }
    expect(refused).toBeGreaterThan(10);
    expect(sink.droppedRecords).toBe(refused);
    unlinkSync(join(folder, 'var'));
    renameSync(join(folder, 'gone'), join(folder, 'var'));
    await until(() => sink.isHealthy);
    await sink.record(numbered(99), true);
    const records = read();
    expect(records.filter((record) => record.kind === 'exchange').map((record) => record.exchange)).toEqual([
      ...kept,
      '99',
    ]);
    expect(records.find((record) => record.kind === 'gap')).toMatchObject({ dropped: refused });
    expect(records.at(-1)?.sequence).toBe(60 + 1);
  });

  it('closes within its deadline and tells how many records are lost', async () => {
    const sink = await openSink();
    renameSync(join(folder, 'var'), join(folder, 'gone'));
    writeFileSync(join(folder, 'var'), '');
    await sink.reopen();
    await sink.record(numbered(1), false);
    await sink.close();
    expect(errors).toHaveLength(2);
    expect(errors[1]).toBe('records_lost: 1');
  });
});
