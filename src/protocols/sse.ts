import { LimitError } from '../core/errors.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';
import { HeldBytes } from './held-bytes.ts';
import { decodeText } from './whole-body.ts';

const CR = 13;
const LF = 10;
const EMPTY: Buffer = Buffer.alloc(0);

/**
 * Cuts a byte stream into server-sent events. The same bytes give the same events however they are chunked; an event is given out as soon as its empty line
 * is there. `text` is the event's block as sent, without the empty line; `bytes` are exactly the bytes of the wire.
 * Source: WHATWG HTML, server-sent events, "interpreting an event stream": lines end with CRLF, LF or CR.
 */
export class SseCodec implements MessageCodec {
  readonly #direction: Direction;
  readonly #maxEventBytes: number;
  /** The event that is coming in, in pieces: work is linear in the bytes, whatever the chunks. */
  readonly #held = new HeldBytes();
  #isLineStart = true;
  /** The last byte was a CR: an LF that follows belongs to it. */
  #isAfterCr = false;
  #seq = 0;

  /** @param maxEventBytes largest event kept; a larger one throws */
  constructor(direction: Direction, maxEventBytes: number) {
    this.#direction = direction;
    this.#maxEventBytes = maxEventBytes;
  }

  /** @throws LimitError `message_too_large` */
  push(chunk: Buffer): Message[] {
    const messages: Message[] = [];
    if (chunk.length === 0) return messages;
    let start = 0;
    let at = 0;
    if (this.#isAfterCr) {
      this.#isAfterCr = false;
      if (chunk[0] === LF) at = 1;
      if (this.#endsEvent()) {
        messages.push(this.#event(chunk.subarray(0, at)));
        start = at;
      }
    }
    while (at < chunk.length) {
      const code = chunk[at++];
      if (code !== CR && code !== LF) {
        this.#isLineStart = false;
        continue;
      }
      if (code === CR) {
        // At the very end it may be the first half of CRLF: wait, or the LF would look like an empty line of the next event.
        if (at === chunk.length) {
          this.#isAfterCr = true;
          break;
        }
        if (chunk[at] === LF) at++;
      }
      if (this.#endsEvent()) {
        messages.push(this.#event(chunk.subarray(start, at)));
        start = at;
      }
    }
    if (start < chunk.length) this.#held.push(start === 0 ? chunk : chunk.subarray(start));
    if (this.#held.length > this.#maxEventBytes) throw new LimitError('message_too_large');
    return messages;
  }

  /** What follows the last empty line is no event, but its bytes are judged all the same. */
  end(): Message[] {
    return this.#held.length === 0 ? [] : [this.#event(EMPTY)];
  }

  /** A line has ended: an empty one ends the event. */
  #endsEvent(): boolean {
    const isEmpty = this.#isLineStart;
    this.#isLineStart = true;
    return isEmpty;
  }

  /** @param last its last bytes; what came before is held */
  #event(last: Buffer): Message {
    const size = this.#held.length + last.length;
    if (size > this.#maxEventBytes) throw new LimitError('message_too_large');
    const bytes = this.#held.length === 0 ? last : Buffer.concat([...this.#held.take(), last], size);
    return {
      direction: this.#direction,
      seq: this.#seq++,
      framing: 'sse_event',
      text: decodeText(bytes),
      size,
      bytes: [bytes],
    };
  }
}
