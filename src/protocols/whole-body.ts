import { LimitError } from '../core/errors.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Text of bytes that are well-formed UTF-8, else null. */
export function decodeText(bytes: Buffer): string | null {
  try {
    return UTF8.decode(bytes);
  } catch {
    return null;
  }
}

/** Holds a body until its end and gives it out as one message. */
export class WholeBodyCodec implements MessageCodec {
  readonly #direction: Direction;
  readonly #maxBytes: number;
  #chunks: Buffer[] = [];
  #size = 0;

  /** @param maxBytes largest body held; a larger one throws */
  constructor(direction: Direction, maxBytes: number) {
    this.#direction = direction;
    this.#maxBytes = maxBytes;
  }

  /** @throws LimitError `message_too_large` */
  push(chunk: Buffer): Message[] {
    this.#size += chunk.length;
    if (this.#size > this.#maxBytes) throw new LimitError('message_too_large', 'A rule needs to see this body whole.');
    this.#chunks.push(chunk);
    return [];
  }

  end(): Message[] {
    if (this.#size === 0) return [];
    const bytes =
      this.#chunks.length === 1 && this.#chunks[0] !== undefined ? this.#chunks[0] : Buffer.concat(this.#chunks);
    this.#chunks = [];
    return [
      {
        direction: this.#direction,
        seq: 0,
        framing: 'body',
        text: decodeText(bytes),
        size: bytes.length,
        bytes: [bytes],
      },
    ];
  }
}
