/** Shorter pieces are put together: a `Buffer` object costs more than the bytes of such a one. */
const SMALL_BYTES = 1024;
const MIN_BLOCK_BYTES = 256;
const MAX_BLOCK_BYTES = 16_384;

/**
 * Bytes kept until a unit is whole, in the pieces in which they came. Whoever sends one byte at a time, or one byte in each large read, must not make us
 * keep a thousand times as much: small pieces, and slices of much larger memory, are copied. The caller bounds `length`; the memory behind it stays
 * below a small multiple.
 */
export class HeldBytes {
  #pieces: Buffer[] = [];
  /** Where small pieces are put together; from `#from` to `#used` are those that are not in `#pieces` yet. */
  #block = EMPTY;
  #from = 0;
  #used = 0;
  #length = 0;

  /** Bytes kept. */
  get length(): number {
    return this.#length;
  }

  push(piece: Buffer): void {
    if (piece.length === 0) return;
    this.#length += piece.length;
    if (piece.length >= SMALL_BYTES) {
      this.#seal();
      this.#pieces.push(piece.length * 4 < piece.buffer.byteLength ? Buffer.from(piece) : piece);
      return;
    }
    if (this.#block.length - this.#used < piece.length) {
      this.#seal();
      const size = Math.max(piece.length, Math.min(MAX_BLOCK_BYTES, Math.max(MIN_BLOCK_BYTES, this.#length * 2)));
      this.#block = Buffer.allocUnsafeSlow(size);
      this.#from = 0;
      this.#used = 0;
    }
    this.#used += piece.copy(this.#block, this.#used);
  }

  /** Gives everything out and is empty again. */
  take(): Buffer[] {
    this.#seal();
    const pieces = this.#pieces;
    this.#pieces = [];
    this.#length = 0;
    return pieces;
  }

  #seal(): void {
    if (this.#used > this.#from) this.#pieces.push(this.#block.subarray(this.#from, this.#used));
    this.#from = this.#used;
  }
}

const EMPTY: Buffer = Buffer.alloc(0);
