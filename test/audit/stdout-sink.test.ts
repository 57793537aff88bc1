import { Writable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { openStdoutSink } from '../../src/audit/stdout-sink.ts';
import { exchangeEvent } from './events.ts';

/** A stream that takes what it is given when `release` is called. */
class SlowStream extends Writable {
  readonly taken: string[] = [];
  #pending: (() => void)[] = [];
  #isOpen: boolean;

  constructor(isOpen: boolean) {
    super({ decodeStrings: true });
    this.#isOpen = isOpen;
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error | null) => void): void {
    const take = (): void => {
      this.taken.push(chunk.toString('latin1'));
      done();
    };
    if (this.#isOpen) take();
    else this.#pending.push(take);
  }

  release(): void {
    this.#isOpen = true;
    for (const take of this.#pending.splice(0)) take();
  }
}

const facts = { format: 'flat', productVersion: '0.1.0' } as const;

describe('a stdout sink', () => {
  it('writes one line a record, in order', async () => {
    const stream = new SlowStream(true);
    const sink = openStdoutSink({ ...facts, stream });
    await sink.record(exchangeEvent({ exchange: '1' }), false);
    await sink.record(exchangeEvent({ exchange: '2' }), true);
    const records = stream.taken.map((line) => JSON.parse(line) as { exchange: string; sequence: number });
    expect(records.map(({ exchange, sequence }) => [exchange, sequence])).toEqual([
      ['1', 1],
      ['2', 2],
    ]);
    expect(stream.taken.every((line) => line.endsWith('\n'))).toBe(true);
  });

  it('resolves a durable record only when the stream has taken it', async () => {
    const stream = new SlowStream(false);
    const sink = openStdoutSink({ ...facts, stream });
    let isDone = false;
    const written = sink.record(exchangeEvent(), true).then(() => {
      isDone = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(isDone).toBe(false);
    stream.release();
    await written;
    expect(isDone).toBe(true);
  });

  it('rejects beyond its bound and is healthy again when the reader catches up', async () => {
    const stream = new SlowStream(false);
    const sink = openStdoutSink({ ...facts, stream, maxQueueBytes: 3000 });
    for (let i = 0; i < 3; i++) await sink.record(exchangeEvent(), false);
    expect(sink.isHealthy).toBe(false);
    await expect(sink.record(exchangeEvent(), false)).rejects.toMatchObject({ code: 'audit_unavailable' });
    stream.release();
    await sink.close();
    expect(stream.taken.filter((line) => line !== '')).toHaveLength(3);
  });

  it('rejects a durable record that nobody takes in time', async () => {
    const sink = openStdoutSink({ ...facts, stream: new SlowStream(false), commitMs: 20 });
    await expect(sink.record(exchangeEvent(), true)).rejects.toMatchObject({ code: 'audit_unavailable' });
  });

  it('stays unhealthy when the reader is gone, says so once, and the process lives', async () => {
    const errors: string[] = [];
    const stream = new SlowStream(true);
    const sink = openStdoutSink({ ...facts, stream, onError: (cause) => errors.push(cause) });
    stream.destroy(Object.assign(new Error('gone'), { code: 'EPIPE' }));
    await new Promise((resolve) => setImmediate(resolve));
    expect(sink.isHealthy).toBe(false);
    await expect(sink.record(exchangeEvent(), true)).rejects.toMatchObject({ code: 'audit_unavailable' });
    await expect(sink.record(exchangeEvent(), false)).rejects.toMatchObject({ code: 'audit_unavailable' });
    expect(errors).toEqual(['EPIPE']);
    await sink.close();
  });
});
