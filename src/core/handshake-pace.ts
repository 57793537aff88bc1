/**
 * At most one TLS handshake is begun in a turn of the event loop, whoever asks. Each takes a millisecond of it; fifty connections that arrive together
 * would otherwise hold up everybody else's bytes for as long as all of them take, since sockets are served in the order in which they became
 * readable. Those that begin one by one also end one by one.
 */
export class HandshakePace {
  readonly #waiting: (() => void)[] = [];
  #isBusy = false;

  /** Connections that wait for their turn. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** Null when the handshake may begin at once, as it nearly always may. The order is that of the calls. */
  turn(): Promise<void> | null {
    if (!this.#isBusy) {
      this.#isBusy = true;
      setImmediate(this.#next);
      return null;
    }
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  readonly #next = (): void => {
    const begin = this.#waiting.shift();
    if (begin === undefined) {
      this.#isBusy = false;
      return;
    }
    setImmediate(this.#next);
    begin();
  };
}

/** One for the process: there is only one event loop. */
export const handshakePace = new HandshakePace();
