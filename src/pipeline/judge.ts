import type { MessageFacts, Policy } from '../core/facts.ts';
import { pathReadings } from '../core/url.ts';
import type { Verdict } from '../core/verdict.ts';
import type { HttpFacts } from './facts.ts';

/** Actions that end the traffic. `approve` has nobody to ask yet. */
export function isRefusal(verdict: Verdict): boolean {
  return verdict.action === 'deny' || verdict.action === 'approve';
}

/** Reasons that say no rule admits, as against a rule that denies. */
const NOT_ADMITTED: ReadonlySet<string> = new Set(['request_not_allowed', 'websocket_not_allowed', 'grpc_not_allowed']);

/**
 * Asks a policy about one request and its messages. A path with `%2F` is read in two ways by servers (core/url.ts): it is admitted by its literal reading
 * only, and denied by a rule that matches either.
 */
export class Judge {
  readonly facts: HttpFacts;
  readonly #others: readonly HttpFacts[];

  constructor(facts: HttpFacts) {
    this.facts = facts;
    this.#others = pathReadings(facts.path)
      .slice(1)
      .map((path) => facts.withPath(path));
  }

  request(policy: Policy): Verdict {
    const verdict = policy.request(this.facts);
    if (isRefusal(verdict)) return verdict;
    for (const other of this.#others) {
      const second = policy.request(other);
      if (isRefusal(second) && !NOT_ADMITTED.has(second.reason)) return second;
    }
    return verdict;
  }

  needsMessages(policy: Policy): boolean {
    return policy.needsMessages(this.facts) || this.#others.some((other) => policy.needsMessages(other));
  }

  message(policy: Policy, message: MessageFacts): Verdict {
    const verdict = policy.message(this.facts, message);
    if (isRefusal(verdict)) return verdict;
    return this.#others.map((other) => policy.message(other, message)).find(isRefusal) ?? verdict;
  }
}
