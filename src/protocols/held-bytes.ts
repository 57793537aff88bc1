/** Shorter pieces are put together: a `Buffer` object costs more than the bytes of such a one. */
const SMALL_BYTES = 1024;
const MAX_BLOCK_BYTES = 16_384;

/**
 * Bytes kept until a unit is whole, in the pieces in which they came. Whoever sends one byte at a time, or one byte in each large read, must not make us
 * keep a thousand times as much: small pieces, and slices of much larger memory, are copied.
 * The caller bounds `length`; what is kept then stays below about four times that.
 */
export class HeldBytes {
  #pieces: Buffer[] = [];
  #block: Buffer | null = null;
  #blockUsed = 0;
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
    let block = this.#block;
    if (block === null || block.length - this.#blockUsed < piece.length) {
      this.#seal();
      const size = Math.min(MAX_BLOCK_BYTES, Math.max(piece.length, this.#length * 2));
      block = Buffer.allocUnsafeSlow(size);
      this.#block = block;
    }
    piece.copy(block, this.#blockUsed);
    this.#blockUsed += piece.length;
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
    if (this.#block !== null) this.#pieces.push(this.#block.subarray(0, this.#blockUsed));
    this.#block = null;
    this.#blockUsed = 0;
  }
}
