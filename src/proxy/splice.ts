import type { Socket } from 'node:net';
import { LimitError, ProxyError, UpstreamError } from '../core/errors.ts';
import type { Limits } from '../core/settings.ts';
import type { Deadlines, Expiring } from './limits.ts';

/**
 * Joins two sockets and moves bytes unseen, both ways, with back-pressure and half-close. For passthrough and raw tunnels only: the caller has judged the tunnel.
 */
export class Splice implements Expiring {
  slot = -1;
  deadlineMs: number;
  readonly #agent: Socket;
  readonly #server: Socket;
  readonly #limits: Limits;
  readonly #deadlines: Deadlines;
  readonly #onClose: (error: ProxyError | null) => void;
  #seen = -1;
  #isOver = false;
  #open = 2;

  constructor(
    agent: Socket,
    server: Socket,
    limits: Limits,
    deadlines: Deadlines,
    onClose: (error: ProxyError | null) => void,
  ) {
    this.#agent = agent;
    this.#server = server;
    this.#limits = limits;
    this.#deadlines = deadlines;
    this.#onClose = onClose;
    this.deadlineMs = deadlines.now + limits.idleMs;
    deadlines.add(this);
    agent.on('error', () => undefined);
    server.on('error', () => undefined);
    agent.on('close', () => this.#closed('client_aborted', agent));
    server.on('close', () => this.#closed('upstream_reset', server));
    agent.pipe(server);
    server.pipe(agent);
  }

  destroy(error: ProxyError): void {
    this.#finish(error);
  }

  expire(nowMs: number): void {
    const moved = this.#agent.bytesRead + this.#server.bytesRead + this.#agent.bytesWritten + this.#server.bytesWritten;
    if (moved === this.#seen) this.#finish(new LimitError('idle_timeout'));
    else {
      this.#seen = moved;
      this.deadlineMs = nowMs + this.#limits.idleMs;
    }
  }

  #closed(code: 'client_aborted' | 'upstream_reset', socket: Socket): void {
    this.#open--;
    const isClean = socket.readableEnded && socket.writableFinished;
    // An error is only made where there is one: its stack costs more than the rest of the tunnel's bookkeeping.
    if (!isClean && !this.#isOver)
      this.#finish(code === 'client_aborted' ? new ProxyError(code) : new UpstreamError(code));
    else if (this.#open <= 0) this.#finish(null);
  }

  #finish(error: ProxyError | null): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#deadlines.delete(this);
    this.#agent.destroy();
    this.#server.destroy();
    this.#onClose(error);
  }
}
