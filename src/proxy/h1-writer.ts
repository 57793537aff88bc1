import type { Socket } from 'node:net';
import type { ProxyError } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { BodySink } from '../core/stream.ts';
import { encodeLastChunk } from '../protocols/http1-body.ts';

/** How the body that is being written ends. */
export type WriteFraming =
  { kind: 'none' } | { kind: 'length'; length: number } | { kind: 'chunked' } | { kind: 'close' };

export interface H1WriterOwner {
  /** The message is complete; called once. */
  written(): void;
  /** The message cannot be completed; the connection must be destroyed. Called at most once, and not after `written`. */
  broken(error: ProxyError | null): void;
  /** Bytes were handed to a socket that takes no more for now (false) or that is keeping up (true). */
  progress(isKeepingUp: boolean): void;
}

/** A body below this size is copied behind its head: one write, one TLS record, one packet. */
const COPY_BELOW = 16 * 1024;

/**
 * Writes one HTTP/1 message. The head is held until the first body bytes of the same turn, so that a small message is one write;
 * if none come it leaves on its own at the end of the turn.
 */
export class H1Writer implements BodySink {
  onDrain: (() => void) | null = null;
  readonly #socket: Socket;
  readonly #owner: H1WriterOwner;
  readonly #framing: WriteFraming;
  #head: string | null;
  #remaining: number;
  #ended = false;

  constructor(socket: Socket, owner: H1WriterOwner, head: string, framing: WriteFraming) {
    this.#socket = socket;
    this.#owner = owner;
    this.#head = head;
    this.#framing = framing;
    this.#remaining = framing.kind === 'length' ? framing.length : 0;
    process.nextTick(flushHead, this);
  }

  get isEnded(): boolean {
    return this.#ended;
  }

  /** Sends the head now if it still waits. */
  flush(): void {
    if (this.#head === null || this.#ended) return;
    const head = this.#head;
    this.#head = null;
    this.#done(this.#socket.write(head, 'latin1'));
  }

  write(chunk: Buffer): boolean {
    if (this.#ended || chunk.length === 0) return true;
    switch (this.#framing.kind) {
      case 'none':
        // A body where none may be: the pipeline never does this; dropping it keeps the framing right.
        return true;
      case 'length':
        if (chunk.length > this.#remaining) {
          this.abort(null);
          return true;
        }
        this.#remaining -= chunk.length;
        return this.#send('', chunk, '');
      case 'chunked':
        return this.#send(`${chunk.length.toString(16)}\r\n`, chunk, '\r\n');
      case 'close':
        return this.#send('', chunk, '');
    }
  }

  end(trailers: RawHeaders): void {
    if (this.#ended) return;
    if (this.#remaining > 0) {
      this.abort(null);
      return;
    }
    this.#ended = true;
    const tail = this.#framing.kind === 'chunked' ? encodeLastChunk(trailers) : '';
    const text = this.#head === null ? tail : this.#head + tail;
    this.#head = null;
    if (text !== '') this.#done(this.#socket.write(text, 'latin1'));
    this.#owner.written();
  }

  abort(error: ProxyError | null): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#head = null;
    this.#owner.broken(error);
  }

  #send(before: string, chunk: Buffer, after: string): boolean {
    const head = this.#head === null ? before : this.#head + before;
    this.#head = null;
    if (head === '' && after === '') return this.#done(this.#socket.write(chunk));
    if (chunk.length <= COPY_BELOW) {
      const bytes = Buffer.allocUnsafe(head.length + chunk.length + after.length);
      bytes.write(head, 0, 'latin1');
      chunk.copy(bytes, head.length);
      if (after !== '') bytes.write(after, head.length + chunk.length, 'latin1');
      return this.#done(this.#socket.write(bytes));
    }
    this.#socket.cork();
    if (head !== '') this.#socket.write(head, 'latin1');
    let isKeepingUp = this.#socket.write(chunk);
    if (after !== '') isKeepingUp = this.#socket.write(after, 'latin1');
    this.#socket.uncork();
    return this.#done(isKeepingUp);
  }

  #done(isKeepingUp: boolean): boolean {
    this.#owner.progress(isKeepingUp);
    return isKeepingUp;
  }
}

function flushHead(writer: H1Writer): void {
  writer.flush();
}
