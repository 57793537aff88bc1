import { AuditError, causeOf } from '../core/errors.ts';
import type { AuditEvent } from '../core/exchange.ts';
import type { AuditSink } from '../core/ports.ts';
import { AppendFile } from './append-file.ts';
import { createFormatter } from './formatter.ts';
import type { AuditFormat, Formatter } from './formatter.ts';
import { RecordQueue } from './record-queue.ts';
import type { Batch } from './record-queue.ts';

export interface FileSinkOptions {
  readonly file: string;
  readonly format: AuditFormat;
  readonly productVersion: string;
  /** Told once per outage, with an operating-system error code; and at the end `records_lost: n` should records be lost for good. */
  readonly onError: (cause: string) => void;
  /** Moves the file aside before it grows beyond this; never when absent. */
  readonly maxBytes?: number;
  /** Bytes of records that may wait in memory, 64 MiB by default; beyond, `record` rejects. */
  readonly maxQueueBytes?: number;
  /** Longest wait for the disk in milliseconds, 10 s by default; then durable records reject and the sink is unhealthy. */
  readonly commitMs?: number;
  /** Epoch milliseconds. */
  readonly now?: () => number;
}

interface Waiter {
  /** Serial of the record that has to be on disk. */
  readonly serial: number;
  readonly resolve: () => void;
  readonly reject: (error: AuditError) => void;
}

/** A time in which records could not be kept as promised. */
interface Outage {
  readonly fromMs: number;
  readonly cause: string;
}

/** Waiting this long gathers many records into one write. */
const FLUSH_MS = 20;
/** …unless this much is there already. */
const FLUSH_BYTES = 262_144;
/** Largest write at once. */
const BATCH_BYTES = 131_072;
/** Records that nobody waits for are on disk at most this long after they were written. */
const SYNC_MS = 500;
/** Written bytes that are kept until they are synced; at this many they are synced at once. */
const UNSYNCED_BYTES = 16_777_216;
/** How often we look whether the file is still where it was. */
const PLACE_CHECK_MS = 250;
const FIRST_RETRY_MS = 100;
const LAST_RETRY_MS = 5000;
const DONE: Promise<void> = Promise.resolve();

/**
 * Opens the audit trail in a file: one writer, append-only, one JSON object a line, in the order of the `record` calls. The folder is made with mode
 * 0700, the file with 0600.
 * @throws (rejects) AuditError `audit_unavailable` when the file cannot be opened
 */
export async function openFileSink(options: FileSinkOptions): Promise<FileSink> {
  try {
    return new FileSink(options, await AppendFile.open(options.file));
  } catch (error) {
    throw new AuditError('audit_unavailable', null, { cause: error });
  }
}

/**
 * Records are gathered for a few milliseconds and written together; fdatasync follows within 50 ms, or at once for a durable record, and one
 * fdatasync serves everybody who waits by then. When writing fails the sink is unhealthy: durable records reject, all records wait in memory up
 * to `maxQueueBytes`, writing is tried again with growing pauses, and a gap record tells of the outage afterwards. A record may then stand in the
 * file twice, with the same uid; none is lost silently.
 */
export class FileSink implements AuditSink {
  readonly #options: FileSinkOptions;
  readonly #now: () => number;
  readonly #maxQueueBytes: number;
  readonly #commitMs: number;
  readonly #formatter: Formatter;
  readonly #queue: RecordQueue;
  /** Null after a failure, until the file is opened again. */
  #file: AppendFile | null;
  #waiters: Waiter[] = [];
  /** Called when the writer has nothing to do or gives up for now. */
  #resting: (() => void)[] = [];

  #isWorking = false;
  #isClosed = false;
  #isFlushSoon = false;
  #wantsFlush = false;
  #wantsSync = false;
  #wantsReopen = false;
  #checkedPlaceAtMs = 0;
  #flushTimer: NodeJS.Timeout | null = null;
  #syncTimer: NodeJS.Timeout | null = null;
  #commitTimer: NodeJS.Timeout | null = null;
  #retryTimer: NodeJS.Timeout | null = null;
  #retryMs = FIRST_RETRY_MS;
  #outage: Outage | null = null;
  #dropped = 0;
  #droppedInOutage = 0;

  constructor(options: FileSinkOptions, file: AppendFile) {
    this.#options = options;
    // Rotation moves whole batches: one must not be larger than a file may be.
    this.#queue = new RecordQueue(Math.min(BATCH_BYTES, options.maxBytes ?? BATCH_BYTES));
    this.#file = file;
    this.#now = options.now ?? Date.now;
    this.#maxQueueBytes = options.maxQueueBytes ?? 67_108_864;
    this.#commitMs = options.commitMs ?? 10_000;
    this.#formatter = createFormatter({ format: options.format, productVersion: options.productVersion });
  }

  get isHealthy(): boolean {
    return this.#outage === null && !this.#isClosed;
  }

  /** Bytes of records that wait in memory to be written. */
  get queuedBytes(): number {
    return this.#queue.waitingBytes;
  }

  /** Records lost for good since the start. */
  get droppedRecords(): number {
    return this.#dropped;
  }

  record(event: AuditEvent, durable: boolean): Promise<void> {
    if (this.#isClosed) return Promise.reject(new AuditError('audit_unavailable'));
    if (this.#queue.waitingBytes >= this.#maxQueueBytes) return this.#drop();
    const serial = this.#queue.push(this.#formatter.line(event));
    if (this.#outage !== null) {
      // It will be written when writing works again, but nobody may rely on that now.
      return durable ? Promise.reject(new AuditError('audit_unavailable')) : DONE;
    }
    if (durable) {
      this.#flushSoon();
      return this.#whenSynced(serial);
    }
    if (this.#queue.waitingBytes >= FLUSH_BYTES) this.#flushSoon();
    else this.#flushLater();
    return DONE;
  }

  /** Opens the file by its name again, after somebody else moved it (SIGUSR2). What was recorded before is synced in the old file. Never rejects: failures are outages. */
  reopen(): Promise<void> {
    this.#wantsReopen = true;
    return this.#workAndRest();
  }

  /** Writes and syncs what is there: one try, at most `commitMs`. Should it fail, `onError` is told how many records are lost. Never rejects. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#workAndRest();
    for (const timer of [this.#flushTimer, this.#syncTimer, this.#commitTimer, this.#retryTimer]) {
      if (timer !== null) clearTimeout(timer);
    }
    this.#rejectWaiters('closed');
    if (this.#queue.unsafeRecords > 0) this.#options.onError(`records_lost: ${this.#queue.unsafeRecords}`);
    const file = this.#file;
    this.#file = null;
    await file?.close().catch(() => undefined);
  }

  #drop(): Promise<void> {
    this.#dropped++;
    this.#droppedInOutage++;
    this.#formatter.skip();
    this.#beginOutage('queue_full');
    return Promise.reject(new AuditError('audit_unavailable'));
  }

  #whenSynced(serial: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiters.push({ serial, resolve, reject });
      this.#commitTimer ??= setTimeout(() => {
        this.#commitTimer = null;
        this.#beginOutage('commit_timeout');
        this.#rejectWaiters('commit_timeout');
      }, this.#commitMs);
    });
  }

  #flushLater(): void {
    this.#flushTimer ??= setTimeout(() => {
      this.#flushTimer = null;
      this.#wantsFlush = true;
      this.#work();
    }, FLUSH_MS);
  }

  /** At the end of this turn of the event loop, so that everything recorded in it shares one write. */
  #flushSoon(): void {
    if (this.#isFlushSoon) return;
    this.#isFlushSoon = true;
    setImmediate(() => {
      this.#isFlushSoon = false;
      this.#work();
    });
  }

  /** Resolves when the writer rests, at the latest after `commitMs`: a disk that hangs must not hold up the end of the process. */
  #workAndRest(): Promise<void> {
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, this.#commitMs);
      this.#resting.push(() => {
        clearTimeout(timer);
        resolve();
      });
      this.#work();
    });
  }

  /** Starts the writer unless it runs already or waits for its next try. */
  #work(): void {
    if (this.#isWorking || this.#retryTimer !== null) return;
    this.#isWorking = true;
    this.#writeAll().then(
      () => {
        this.#endOutage();
        this.#rest();
      },
      (error: unknown) => {
        this.#fail(error);
        this.#rest();
      },
    );
  }

  /** The writer is done or gives up for now. What came while it was about to stop starts it again. */
  #rest(): void {
    this.#isWorking = false;
    if (this.#retryTimer === null && this.#file !== null) {
      if (this.#wantsReopen || this.#wantsBatch()) {
        this.#work();
        return;
      }
      if (this.#queue.waitingBytes > 0) this.#flushLater();
    }
    const resting = this.#resting;
    this.#resting = [];
    for (const done of resting) done();
  }

  async #writeAll(): Promise<void> {
    for (;;) {
      const file = await this.#fileInPlace();
      const batch = this.#wantsBatch() ? this.#queue.next() : null;
      if (batch !== null) {
        const current = await this.#rotated(file, batch.bytes.length);
        await this.#writeBatch(current, batch);
        if (this.#needsSync()) await this.#sync(current);
      } else if (this.#needsSync()) {
        await this.#sync(file);
      } else {
        return;
      }
    }
  }

  /** Is there something to write, and reason to write it now? Without one, records gather. */
  #wantsBatch(): boolean {
    const bytes = this.#queue.waitingBytes;
    if (bytes === 0) {
      this.#wantsFlush = false;
      return false;
    }
    if (this.#wantsFlush || this.#queue.hasBatch || bytes >= FLUSH_BYTES) return true;
    return this.#waiters.length > 0 || this.#outage !== null || this.#isClosed;
  }

  #needsSync(): boolean {
    if (this.#queue.unsyncedBytes === 0) {
      this.#wantsSync = false;
      return false;
    }
    const first = this.#waiters[0];
    if (first !== undefined && first.serial <= this.#queue.writtenSerial) return true;
    if (this.#queue.unsyncedBytes >= UNSYNCED_BYTES) return true;
    return (this.#wantsSync || this.#outage !== null || this.#isClosed) && !this.#wantsBatch();
  }

  async #writeBatch(file: AppendFile, batch: Batch): Promise<void> {
    let written = 0;
    try {
      await file.append(batch.bytes, (bytes) => {
        written = bytes;
      });
    } catch (error) {
      this.#queue.wrotePart(batch, written);
      throw error;
    }
    this.#queue.wrote(batch);
    this.#syncTimer ??= setTimeout(() => {
      this.#syncTimer = null;
      this.#wantsSync = true;
      this.#work();
    }, SYNC_MS);
  }

  async #sync(file: AppendFile): Promise<void> {
    try {
      await file.sync();
    } catch (error) {
      // After a failed fsync the kernel may have thrown the pages away, and says so only once.
      this.#queue.rewriteUnsynced();
      throw error;
    }
    this.#queue.synced();
    if (this.#syncTimer !== null) clearTimeout(this.#syncTimer);
    this.#syncTimer = null;
    const isDone = (waiter: Waiter): boolean => waiter.serial <= this.#queue.writtenSerial;
    const rest = this.#waiters.findIndex((waiter) => !isDone(waiter));
    const done = rest === -1 ? this.#waiters : this.#waiters.slice(0, rest);
    this.#waiters = rest === -1 ? [] : this.#waiters.slice(rest);
    for (const waiter of done) waiter.resolve();
    // Those who came later have waited for this one commit at most.
    if (this.#waiters.length > 0) this.#commitTimer?.refresh();
    else this.#stopCommitTimer();
  }

  #stopCommitTimer(): void {
    if (this.#commitTimer !== null) clearTimeout(this.#commitTimer);
    this.#commitTimer = null;
  }

  /** The open file; opened again when that was asked for, after a failure, or when somebody moved it away. */
  async #fileInPlace(): Promise<AppendFile> {
    const file = this.#file;
    if (file !== null && !this.#wantsReopen) {
      const nowMs = this.#now();
      if (Math.abs(nowMs - this.#checkedPlaceAtMs) < PLACE_CHECK_MS) return file;
      this.#checkedPlaceAtMs = nowMs;
      if (await file.isInPlace()) return file;
    }
    return this.#replace(file);
  }

  async #rotated(file: AppendFile, bytes: number): Promise<AppendFile> {
    const { maxBytes } = this.#options;
    if (maxBytes === undefined || !file.canRotate || file.size === 0 || file.size + bytes <= maxBytes) return file;
    await this.#sync(file);
    await file.moveAside(this.#now());
    return this.#replace(file);
  }

  async #replace(old: AppendFile | null): Promise<AppendFile> {
    this.#wantsReopen = false;
    if (old !== null) {
      if (this.#queue.unsyncedBytes > 0) await this.#sync(old);
      this.#file = null;
      await old.close();
    }
    const file = await AppendFile.open(this.#options.file);
    this.#file = file;
    this.#checkedPlaceAtMs = this.#now();
    return file;
  }

  #fail(error: unknown): void {
    const cause = causeOf(error);
    this.#file?.close().catch(() => undefined);
    this.#file = null;
    this.#beginOutage(cause);
    this.#rejectWaiters(cause);
    if (this.#isClosed) return; // one try is all there is at the end
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = null;
      this.#work();
    }, this.#retryMs);
    this.#retryTimer.unref();
    this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS);
  }

  #beginOutage(cause: string): void {
    if (this.#outage !== null) return;
    this.#outage = { fromMs: this.#now(), cause };
    this.#options.onError(cause);
  }

  /** Everything is written and synced: an outage, if there was one, is over and goes on record. */
  #endOutage(): void {
    this.#retryMs = FIRST_RETRY_MS;
    const outage = this.#outage;
    if (outage === null) return;
    this.#outage = null;
    this.#queue.push(this.#formatter.gap({ ...outage, toMs: this.#now(), dropped: this.#droppedInOutage }));
    this.#droppedInOutage = 0;
  }

  #rejectWaiters(cause: string): void {
    this.#stopCommitTimer();
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters)
      waiter.reject(new AuditError('audit_unavailable', null, { cause: codedError(cause) }));
  }
}

/** For `causeOf`, which takes the code of an error and never its message. */
function codedError(code: string): Error {
  return Object.assign(new Error(code), { code });
}
