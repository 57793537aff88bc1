import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { TLSSocket } from 'node:tls';

/**
 * What the client of `node:http2` may be given. It reads TCP sockets below JavaScript, and there a server that sends too many CONTINUATION frames in one large
 * read ends the whole process with a failed assertion in ~Http2Session (Node 20 to 26; its server side is not affected). Through a stream of ours the same
 * frames are an error of the session. TLS hands over 16 KiB at a time and is not affected either; HTTP/2 without TLS is rare enough for the detour.
 */
export function http2Transport(socket: Socket): Duplex {
  return socket instanceof TLSSocket ? socket : new ClearTransport(socket);
}

class ClearTransport extends Duplex {
  readonly #socket: Socket;
  #onDrain: (() => void) | null = null;

  constructor(socket: Socket) {
    super({ allowHalfOpen: false });
    this.#socket = socket;
    this.on('error', () => undefined);
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      if (!this.push(chunk)) socket.pause();
    });
    socket.on('drain', () => {
      const go = this.#onDrain;
      this.#onDrain = null;
      go?.();
    });
    socket.on('end', () => this.push(null));
    socket.on('close', () => this.destroy());
    if (socket.destroyed) this.destroy();
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    if (this.#socket.destroyed || this.#socket.write(chunk)) done();
    else this.#onDrain = done;
  }

  override _final(done: () => void): void {
    this.#socket.end();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#socket.destroy();
    done(error);
  }
}
