import type { Socket } from 'node:net';
import type { Agent, Identification, ProxyCredentials } from '../core/agent.ts';
import { LimitError, ProtocolError, ProxyError } from '../core/errors.ts';
import type { Limits } from '../core/settings.ts';
import type { Destination } from '../core/tunnel.ts';
import type { Refusal } from '../pipeline/respond.ts';
import type { Deadlines, Expiring } from './limits.ts';
import { Socks5Parser, socksReply } from './socks5.ts';
import type { Socks5Event } from './socks5.ts';

export interface SocksHandlers {
  readonly limits: Limits;
  readonly deadlines: Deadlines;
  identify(credentials: ProxyCredentials | null): Promise<Identification>;
  /** Leaves the record of a handshake that came to nothing; resolves when it is on disk. */
  refused(error: ProxyError, agent: Agent | null, destination: Destination | null): Promise<unknown>;
  /** The socket is handed over, paused. */
  open(
    agent: Agent,
    destination: Destination,
    rest: Buffer,
    established: () => void,
    refuse: (refusal: Refusal) => void,
  ): void;
}

/** Carries a `Socks5Parser` over a socket until it has become a tunnel. */
export class SocksConnection implements Expiring {
  slot = -1;
  deadlineMs: number;
  readonly #socket: Socket;
  readonly #handlers: SocksHandlers;
  readonly #parser = new Socks5Parser({ requireAuth: false });
  #agent: Agent | null = null;
  #isOver = false;

  constructor(socket: Socket, firstBytes: Buffer, handlers: SocksHandlers) {
    this.#socket = socket;
    this.#handlers = handlers;
    this.deadlineMs = handlers.deadlines.now + handlers.limits.handshakeMs;
    handlers.deadlines.add(this);
    socket.on('data', this.#onData);
    socket.on('end', this.#onGone);
    socket.on('close', this.#onGone);
    this.#take(this.#parser.push(firstBytes));
  }

  expire(): void {
    this.#fail(new LimitError('handshake_timeout'), null);
  }

  readonly #onData = (chunk: Buffer): void => this.#take(this.#parser.push(chunk));
  readonly #onGone = (): void => {
    this.#release();
    this.#socket.destroy();
  };

  #release(): void {
    this.#isOver = true;
    this.#handlers.deadlines.delete(this);
    this.#socket.off('data', this.#onData);
    this.#socket.off('end', this.#onGone);
    this.#socket.off('close', this.#onGone);
  }

  #take(events: readonly Socks5Event[]): void {
    for (const event of events) {
      if (this.#isOver) return;
      switch (event.kind) {
        case 'send':
          this.#socket.write(event.bytes);
          break;
        case 'credentials':
          this.#identify(event.credentials);
          break;
        case 'request':
          this.#open(event.destination, event.rest);
          break;
        case 'failed':
          this.#fail(event.error, event.reply);
          break;
      }
    }
  }

  #identify(credentials: ProxyCredentials | null): void {
    this.#handlers.identify(credentials).then(
      (identified) => {
        if (this.#isOver) return;
        if (identified.kind === 'agent') {
          this.#agent = identified.agent;
          this.#take(this.#parser.accept());
        } else {
          const code = identified.kind === 'challenge' ? 'proxy_auth_required' : 'proxy_auth_rejected';
          this.#fail(new ProtocolError(code), this.#parser.reject());
        }
      },
      () => this.#fail(new ProxyError('internal_error'), this.#parser.reject()),
    );
  }

  #open(destination: Destination, rest: Buffer): void {
    const agent = this.#agent;
    this.#release();
    const socket = this.#socket;
    socket.pause();
    if (agent === null) {
      socket.destroy();
      return;
    }
    this.#handlers.open(
      agent,
      destination,
      rest,
      () => socket.write(socksReply('allowed')),
      (refusal) => endWith(socket, socksReply(refusal.code)),
    );
  }

  #fail(error: ProxyError, reply: Buffer | null): void {
    if (this.#isOver) return;
    this.#release();
    const socket = this.#socket;
    const answer = (): void => {
      if (reply === null) socket.destroy();
      else endWith(socket, reply);
    };
    this.#handlers.refused(error, this.#agent, null).then(answer, answer);
  }
}

function endWith(socket: Socket, bytes: Buffer): void {
  socket.end(bytes);
  socket.resume();
  setTimeout(() => socket.destroy(), 2000).unref();
}
