import { timingSafeEqual } from 'node:crypto';
import type { ProxyCredentials } from '../core/agent.ts';
import { BoundedMap } from './bounded-map.ts';
import { DEFAULT_COST, createCredentialKeys, verifyPassword } from './password-hash.ts';
import type { PasswordHash } from './password-hash.ts';

export interface CredentialCheckOptions {
  /** Milliseconds that never go back; `performance.now` by default. */
  readonly now?: () => number;
  /** For tests that count the work. */
  readonly verify?: (password: string, hash: PasswordHash) => Promise<boolean>;
}

/** Verified pairs that are remembered, and for how long. */
const CACHE_ENTRIES = 10_000;
const CACHE_MS = 3_600_000;
/** Wrong pairs: a misconfigured agent asks again and again with the same one. */
const WRONG_ENTRIES = 1000;
const WRONG_MS = 30_000;
/** scrypt shares the thread pool (4 threads by default) with DNS and the disk; half of it stays free. */
const AT_ONCE = 2;
const MAX_WAITING = 64;
const MAX_WAITING_PER_SOURCE = 8;
/** Failed attempts in a minute, after which no further password is looked at: for one user from one address, and for one address. */
const WINDOW_MS = 60_000;
const FAILURES_PER_USER = 10;
const FAILURES_PER_SOURCE = 100;
const FAILURE_ENTRIES = 10_000;

/**
 * Checks user and password against scrypt hashes.
 *
 * scrypt takes tens of milliseconds, on purpose; a tunnel may not. A pair that was verified once is therefore remembered as an HMAC under a random key
 * of this process, which is compared in constant time. An unknown user costs the same scrypt as a known one, so times do not tell users apart.
 * Work is bounded: few checks at once, few waiting in all and for one address, equal ones joined, and after some failures an address is refused
 * unheard for the rest of a minute. A pair that was verified before passes even then.
 */
export class CredentialCheck {
  readonly #hashes: ReadonlyMap<string, PasswordHash>;
  readonly #dummy: PasswordHash;
  readonly #keyOf = createCredentialKeys();
  readonly #verify: (password: string, hash: PasswordHash) => Promise<boolean>;
  readonly #verified: BoundedMap<Buffer>;
  readonly #wrong: BoundedMap<true>;
  readonly #failures: BoundedMap<{ count: number }>;
  readonly #running = new Map<string, Promise<boolean>>();
  readonly #waitingBySource = new Map<string, number>();
  readonly #queue: (() => void)[] = [];
  #active = 0;

  constructor(hashes: ReadonlyMap<string, PasswordHash>, options: CredentialCheckOptions = {}) {
    const now = options.now ?? (() => performance.now());
    this.#hashes = hashes;
    this.#verify = options.verify ?? verifyPassword;
    this.#verified = new BoundedMap(CACHE_ENTRIES, CACHE_MS, now);
    this.#wrong = new BoundedMap(WRONG_ENTRIES, WRONG_MS, now);
    this.#failures = new BoundedMap(FAILURE_ENTRIES, WINDOW_MS, now);
    const [first] = hashes.values();
    this.#dummy = { ...(first ?? DEFAULT_COST), salt: Buffer.alloc(16), hash: Buffer.alloc(first?.hash.length ?? 32) };
  }

  /** @returns true only for the right password of a known user */
  async check(credentials: ProxyCredentials, source: string): Promise<boolean> {
    const { username, password } = credentials;
    const key = this.#keyOf(username, password);
    const known = this.#verified.get(username);
    const mac = Buffer.from(key);
    if (known !== undefined && known.length === mac.length && timingSafeEqual(known, mac)) return true;
    if (this.#wrong.get(key) === true) return false;
    const counters: readonly (readonly [string, number])[] = [
      [`${source} ${username}`, FAILURES_PER_USER],
      [source, FAILURES_PER_SOURCE],
    ];
    if (counters.some(([name, max]) => (this.#failures.get(name)?.count ?? 0) >= max)) return false;

    const running = this.#running.get(key);
    if (running !== undefined) return running;
    const waiting = this.#waitingBySource.get(source) ?? 0;
    if (this.#running.size >= MAX_WAITING || waiting >= MAX_WAITING_PER_SOURCE) return false;
    this.#waitingBySource.set(source, waiting + 1);
    const result = this.#inTurn(() => this.#judge(username, password));
    this.#running.set(key, result);
    try {
      const isRight = await result;
      if (isRight) {
        this.#verified.set(username, mac);
      } else {
        this.#wrong.set(key, true);
        for (const [name] of counters) this.#countFailure(name);
      }
      return isRight;
    } finally {
      this.#running.delete(key);
      const left = (this.#waitingBySource.get(source) ?? 1) - 1;
      if (left > 0) this.#waitingBySource.set(source, left);
      else this.#waitingBySource.delete(source);
    }
  }

  async #judge(username: string, password: string): Promise<boolean> {
    const hash = this.#hashes.get(username);
    const isRight = await this.#verify(password, hash ?? this.#dummy);
    return hash !== undefined && isRight;
  }

  #countFailure(name: string): void {
    const counter = this.#failures.get(name);
    // The age of the entry is that of its first failure, so the window ends a minute after it.
    if (counter === undefined) this.#failures.set(name, { count: 1 });
    else counter.count += 1;
  }

  async #inTurn(work: () => Promise<boolean>): Promise<boolean> {
    // Whoever ends hands its place to the next in line, so a newcomer cannot slip in between.
    if (this.#active >= AT_ONCE) await new Promise<void>((resolve) => this.#queue.push(resolve));
    else this.#active += 1;
    try {
      return await work();
    } finally {
      const next = this.#queue.shift();
      if (next === undefined) this.#active -= 1;
      else next();
    }
  }
}
