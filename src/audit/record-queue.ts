/** Bytes of whole records on their way to the file. */
export interface Batch {
  readonly bytes: Buffer;
  /** Serial of the last record in it. */
  readonly serial: number;
}

/**
 * Records between `record()` and the disk, in order: lines that wait, batches that are to be written, and what was written but not yet synced,
 * kept so that it can be written again. Serials count records from 1. Pure bookkeeping; the bound is the caller's.
 */
export class RecordQueue {
  #lines: string[] = [];
  #lineBytes = 0;
  #batches: Batch[] = [];
  #batchBytes = 0;
  #unsynced: Batch[] = [];
  #unsyncedBytes = 0;
  #lastSerial = 0;
  #writtenSerial = 0;
  #syncedSerial = 0;

  /** Bytes that wait to be written. */
  get waitingBytes(): number {
    return this.#lineBytes + this.#batchBytes;
  }

  /** True when a batch is begun: it has to go first, whatever comes. */
  get hasBatch(): boolean {
    return this.#batches.length > 0;
  }

  /** Bytes that were written and not synced. */
  get unsyncedBytes(): number {
    return this.#unsyncedBytes;
  }

  get writtenSerial(): number {
    return this.#writtenSerial;
  }

  /** Records that are not known to be on disk. */
  get unsafeRecords(): number {
    return this.#lastSerial - this.#syncedSerial;
  }

  /**
   * Adds a record.
   * @param line ASCII with its line feed
   * @returns its serial
   */
  push(line: string): number {
    this.#lines.push(line);
    this.#lineBytes += line.length;
    return ++this.#lastSerial;
  }

  /** The batch to write next, at most `limit` bytes unless one record is larger; null when nothing waits. */
  next(limit: number): Batch | null {
    const begun = this.#batches[0];
    if (begun !== undefined) return begun;
    if (this.#lines.length === 0) return null;
    let bytes = 0;
    let count = 0;
    for (const line of this.#lines) {
      if (count > 0 && bytes + line.length > limit) break;
      bytes += line.length;
      count++;
    }
    const serial = this.#lastSerial - this.#lines.length + count;
    const taken = this.#lines;
    this.#lines = taken.splice(count);
    this.#lineBytes -= bytes;
    const batch = { bytes: Buffer.from(taken.join(''), 'latin1'), serial };
    this.#batches.push(batch);
    this.#batchBytes += bytes;
    return batch;
  }

  /** The batch that `next` gave is in the file as a whole. */
  wrote(batch: Batch): void {
    this.#batches.shift();
    this.#batchBytes -= batch.bytes.length;
    this.#writtenSerial = batch.serial;
    this.#keep(batch);
  }

  /** Writing the batch that `next` gave ended after `written` bytes. Whole records are done; a record that was cut will be written again as a whole. */
  wrotePart(batch: Batch, written: number): void {
    const boundary = written === 0 ? 0 : batch.bytes.lastIndexOf(0x0a, written - 1) + 1;
    if (boundary === 0) return;
    this.#batches[0] = { bytes: batch.bytes.subarray(boundary), serial: batch.serial };
    this.#batchBytes -= boundary;
    this.#keep({ bytes: batch.bytes.subarray(0, boundary), serial: this.#writtenSerial });
  }

  /** All that was written is on disk. */
  synced(): void {
    this.#unsynced = [];
    this.#unsyncedBytes = 0;
    this.#syncedSerial = this.#writtenSerial;
  }

  /** What was written and not synced has to be written again, before all else. */
  rewriteUnsynced(): void {
    this.#batches = [...this.#unsynced, ...this.#batches];
    this.#batchBytes += this.#unsyncedBytes;
    this.#unsynced = [];
    this.#unsyncedBytes = 0;
    this.#writtenSerial = this.#syncedSerial;
  }

  #keep(batch: Batch): void {
    this.#unsynced.push(batch);
    this.#unsyncedBytes += batch.bytes.length;
  }
}
