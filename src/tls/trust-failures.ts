/**
 * How a client shows that it does not trust our root (reference: measured with some thirty clients).
 * - `alert`: a TLS alert such as unknown_ca (curl, Python, Go, Chromium)
 * - `closed_before_finish`: gone before the handshake ended, without a word (Node, npm, Deno)
 * - `closed_without_request`: the handshake ended, no request came (GnuTLS: wget, git, apt). Also what a spare connection looks like
 */
export type TrustFailureForm = 'alert' | 'closed_before_finish' | 'closed_without_request';

export interface TrustFailureReport {
  /** Failures of this host and agent since the last success, or since they were first noted. */
  readonly count: number;
  /** Whether to log the explanation now: rare enough to be read. */
  readonly shouldExplain: boolean;
  /** What happened and what to do, for the operator; holds the host and the agent id, nothing secret. */
  readonly explanation: string;
}

export interface TrustFailuresOptions {
  /** Pairs of host and agent that are remembered; the one noted longest ago is forgotten first. */
  readonly max?: number;
  readonly now?: () => number;
}

interface Entry {
  count: number;
  /** Failures that say what they mean, which is all but `closed_without_request`. */
  clearCount: number;
  explainedAtMs: number | null;
}

const MINUTE_MS = 60_000;
/** The same pair is explained again after this long. */
const REPEAT_MS = 10 * MINUTE_MS;
/** Explanations for all pairs together, per minute: an agent that tries a hundred hosts needs to be told once. */
const MAX_PER_MINUTE = 6;
/** A client that opens connections ahead and never uses them does so a few times; one that distrusts us does it always. */
const AMBIGUOUS_UNTIL = 3;
const MAX_AGENTS = 10_000;

/** Counts clients that reject our root, per host and agent, and knows when to say so. Holds no sockets and no timers. */
export class TrustFailures {
  readonly #max: number;
  readonly #now: () => number;
  readonly #entries = new Map<string, Entry>();
  /** Agents that finished a request over an intercepted connection: they have our root somewhere. */
  readonly #trusting = new Set<string>();
  #minuteStartedMs = Number.NEGATIVE_INFINITY;
  #explainedThisMinute = 0;

  constructor(options: TrustFailuresOptions = {}) {
    this.#max = Math.max(1, options.max ?? 5000);
    this.#now = options.now ?? Date.now;
  }

  /** Pairs of host and agent that are remembered now. */
  get size(): number {
    return this.#entries.size;
  }

  /** Counts one failure. @param host and agentId as they stand in the tunnel */
  note(host: string, agentId: string, form: TrustFailureForm): TrustFailureReport {
    const key = keyOf(host, agentId);
    const entry = this.#entries.get(key) ?? { count: 0, clearCount: 0, explainedAtMs: null };
    entry.count += 1;
    if (form !== 'closed_without_request') entry.clearCount += 1;
    this.#entries.delete(key);
    this.#entries.set(key, entry);
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#max) break;
      this.#entries.delete(oldest);
    }
    return {
      count: entry.count,
      shouldExplain: this.#shouldExplain(entry),
      explanation: explain(host, agentId, form, entry.count, this.#trusting.has(agentId)),
    };
  }

  /** A request came over an intercepted connection: this agent trusts us for this host, and what was counted was something else. */
  noteSuccess(host: string, agentId: string): void {
    // An empty map is the normal state, and this is called for every tunnel.
    if (this.#entries.size > 0) this.#entries.delete(keyOf(host, agentId));
    if (this.#trusting.size < MAX_AGENTS) this.#trusting.add(agentId);
  }

  #shouldExplain(entry: Entry): boolean {
    if (entry.clearCount === 0 && entry.count < AMBIGUOUS_UNTIL) return false;
    const nowMs = this.#now();
    if (entry.explainedAtMs !== null && nowMs - entry.explainedAtMs < REPEAT_MS) return false;
    if (nowMs - this.#minuteStartedMs >= MINUTE_MS) {
      this.#minuteStartedMs = nowMs;
      this.#explainedThisMinute = 0;
    }
    if (this.#explainedThisMinute >= MAX_PER_MINUTE) return false;
    this.#explainedThisMinute += 1;
    entry.explainedAtMs = nowMs;
    return true;
  }
}

/** A NUL stands in neither part, so two pairs never share a key. */
function keyOf(host: string, agentId: string): string {
  return `${host}\0${agentId}`;
}

const SEEN: Readonly<Record<TrustFailureForm, string>> = {
  alert: 'refused our certificate with a TLS alert',
  closed_before_finish:
    'closed the connection before the TLS handshake ended, as clients do that do not trust our certificate',
  closed_without_request:
    'closed the connection after the TLS handshake without a request. That can be a spare connection that was not needed, or a client that does not trust our certificate',
};

function explain(
  host: string,
  agentId: string,
  form: TrustFailureForm,
  count: number,
  isTrustingElsewhere: boolean,
): string {
  const times = count === 1 ? '' : ` (${count} times)`;
  const seen = `Agent "${agentId}" ${SEEN[form]}${times}; host ${host}.`;
  // Clients with certificates built in are never let past by themselves: that is the operator's decision.
  const remedy = isTrustingElsewhere
    ? `The same agent trusts our root on other connections, so either one of its programs uses a trust store of its own ("subfloor env" lists the variables for each), ` +
      `or this program accepts only the certificate of ${host} itself. In the second case a rule for the host with "intercept: false" lets it through, judged by name alone.`
    : `Its programs need our root CA: set the variables that "subfloor env" prints, or add ca.pem to the trust store of the machine ("subfloor ca show" names the fingerprint to compare).`;
  return `${seen} ${remedy}`;
}
