import type { SecureContext } from 'node:tls';

/** Sessions kept per TLS context; the one renewed longest ago goes first. One takes about 2 KB. */
const MAX_SESSIONS = 1000;

/**
 * TLS sessions with servers, for resumption. A session was verified under one context, with its roots and client certificate, and is
 * offered under no other: a reload that makes a new context starts empty.
 */
export class SessionCache {
  readonly #byContext = new WeakMap<SecureContext, Map<string, Buffer>>();

  get(context: SecureContext, key: string): Buffer | undefined {
    return this.#byContext.get(context)?.get(key);
  }

  set(context: SecureContext, key: string, session: Buffer): void {
    let sessions = this.#byContext.get(context);
    if (sessions === undefined) {
      sessions = new Map();
      this.#byContext.set(context, sessions);
    }
    sessions.delete(key);
    sessions.set(key, session);
    if (sessions.size <= MAX_SESSIONS) return;
    for (const oldest of sessions.keys()) {
      sessions.delete(oldest);
      break;
    }
  }

  delete(context: SecureContext, key: string): void {
    this.#byContext.get(context)?.delete(key);
  }
}
