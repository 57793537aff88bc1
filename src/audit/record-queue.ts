/** Bytes of whole records on their way to the file. */
export interface Batch {
  readonly bytes: Buffer;
  /** Serial of the last record in it. */
  readonly serial: number;
}

/** Size of a piece of memory that records are gathered in. */
const CHUNK_BYTES = 131_072;

/**
 * Records between `record()` and the disk, in order: what is gathered, batches that are to be written, and what was written but not yet synced, kept
 * so that it can be written again. Serials count records from 1. Pure bookkeeping; the bound on its size is the caller's.
 *
 * Records are copied into memory chunks at once: a record is a rope of a hundred strings, and keeping ropes costs the collector more than the copy.
 */
export class RecordQueue {
  readonly #batchBytes: number;
  #chunk: Buffer = Buffer.alloc(0);
  /** The gathered bytes in the chunk. */
  #start = 0;
  #end = 0;
  #batches: Batch[] = [];
  #waitingBytes = 0;
  #unsynced: Batch[] = [];
  #unsyncedBytes = 0;
  #lastSerial = 0;
  #writtenSerial = 0;
  #syncedSerial = 0;

  /** @param batchBytes largest batch, unless one record is larger */
  constructor(batchBytes: number) {
    this.#batchBytes = batchBytes;
  }

  /** Bytes that wait to be written. */
  get waitingBytes(): number {
    return this.#waitingBytes;
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
    const bytes = line.length;
    const gathered = this.#end - this.#start;
    if (gathered > 0 && gathered + bytes > this.#batchBytes) this.#seal();
    if (this.#end + bytes > this.#chunk.length) {
      this.#seal();
      this.#chunk = Buffer.allocUnsafeSlow(Math.max(CHUNK_BYTES, bytes));
      this.#start = 0;
      this.#end = 0;
    }
    this.#end += this.#chunk.write(line, this.#end, 'latin1');
    this.#waitingBytes += bytes;
    return ++this.#lastSerial;
  }

  /** The batch to write next; null when nothing waits. */
  next(): Batch | null {
    if (this.#batches.length === 0) this.#seal();
    return this.#batches[0] ?? null;
  }

  /** The batch that `next` gave is in the file as a whole. */
  wrote(batch: Batch): void {
    this.#batches.shift();
    this.#waitingBytes -= batch.bytes.length;
    this.#writtenSerial = batch.serial;
    this.#keep(batch);
  }

  /** Writing the batch that `next` gave ended after `written` bytes. Whole records are done; a record that was cut will be written again as a whole. */
  wrotePart(batch: Batch, written: number): void {
    const boundary = written === 0 ? 0 : batch.bytes.lastIndexOf(0x0a, written - 1) + 1;
    if (boundary === 0) return;
    this.#batches[0] = { bytes: batch.bytes.subarray(boundary), serial: batch.serial };
    this.#waitingBytes -= boundary;
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
    this.#waitingBytes += this.#unsyncedBytes;
    this.#unsynced = [];
    this.#unsyncedBytes = 0;
    this.#writtenSerial = this.#syncedSerial;
  }

  /** Makes a batch of what is gathered; the chunk goes on behind it. */
  #seal(): void {
    if (this.#end === this.#start) return;
    this.#batches.push({ bytes: this.#chunk.subarray(this.#start, this.#end), serial: this.#lastSerial });
    this.#start = this.#end;
  }

  #keep(batch: Batch): void {
    this.#unsynced.push(batch);
    this.#unsyncedBytes += batch.bytes.length;
  }
}
