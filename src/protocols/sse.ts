import { LimitError } from '../core/errors.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';
import { decodeText } from './whole-body.ts';

const CR = 13;
const LF = 10;

/**
 * Cuts a byte stream into server-sent events. The same bytes give the same events however they are chunked; an event is given out as soon as its empty line
 * is there. `text` is the event's block as sent, without the empty line; `bytes` are exactly the bytes of the wire.
 * Source: WHATWG HTML, server-sent events, "interpreting an event stream": lines end with CRLF, LF or CR.
 */
export class SseCodec implements MessageCodec {
  readonly #direction: Direction;
  readonly #maxEventBytes: number;
  #held: Buffer = Buffer.alloc(0);
  /** How far `#held` has been scanned, and whether the scan stands at the start of a line. */
  #scanned = 0;
  #lineStart = true;
  #seq = 0;

  /** @param maxEventBytes largest event kept; a larger one throws */
  constructor(direction: Direction, maxEventBytes: number) {
    this.#direction = direction;
    this.#maxEventBytes = maxEventBytes;
  }

  /** @throws LimitError `message_too_large` */
  push(chunk: Buffer): Message[] {
    const messages: Message[] = [];
    let bytes = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    let at = this.#scanned;
    while (at < bytes.length) {
      const code = bytes[at];
      if (code !== CR && code !== LF) {
        this.#lineStart = false;
        at++;
        continue;
      }
      // A CR at the very end may be the first half of CRLF: wait, or the LF would look like an empty line of the next event.
      if (code === CR && at + 1 >= bytes.length) break;
      const width = code === CR && bytes[at + 1] === LF ? 2 : 1;
      at += width;
      if (this.#lineStart) {
        messages.push(this.#event(bytes.subarray(0, at)));
        bytes = bytes.subarray(at);
        at = 0;
      }
      this.#lineStart = true;
    }
    this.#held = bytes;
    this.#scanned = at;
    if (bytes.length > this.#maxEventBytes) throw new LimitError('message_too_large');
    return messages;
  }

  /** What follows the last empty line is no event, but its bytes are judged all the same. */
  end(): Message[] {
    if (this.#held.length === 0) return [];
    const rest = this.#held;
    this.#held = Buffer.alloc(0);
    return [this.#event(rest)];
  }

  #event(bytes: Buffer): Message {
    if (bytes.length > this.#maxEventBytes) throw new LimitError('message_too_large');
    return {
      direction: this.#direction,
      seq: this.#seq++,
      framing: 'sse_event',
      text: decodeText(bytes),
      size: bytes.length,
      bytes: [bytes],
    };
  }
}
