import type { Code } from '../core/errors.ts';
import type { Action, Layer, Verdict } from '../core/verdict.ts';
import type { IndexedRule } from './rule-index.ts';

/** A rule that matched at some station. */
export interface Hit {
  readonly indexed: IndexedRule;
  /** What the rule does here: its action, or `allow` for a warn rule that is only possible at the gate. */
  readonly action: Action;
  /** It counts as a match because its condition failed. */
  readonly isFailure: boolean;
  /** It admits the traffic in question, and would outside monitor mode. */
  readonly admits: boolean;
  readonly wouldAdmit: boolean;
}

/** Most rule ids of a verdict. */
export const MAX_VERDICT_RULES = 8;

const NO_FINDINGS = Object.freeze([]);

interface Decision {
  readonly action: Action;
  readonly reason: Code;
  readonly rules: readonly string[];
  readonly message: string | null;
}

/** What is said when no rule admits, by layer. */
export const NOT_ADMITTED: Readonly<Record<Layer, Code>> = {
  http: 'request_not_allowed',
  websocket: 'websocket_not_allowed',
  grpc: 'grpc_not_allowed',
  raw: 'raw_not_allowed',
  mcp: 'request_not_allowed',
  llm: 'request_not_allowed',
};

/** A verdict as a plain frozen value. */
export function verdict(action: Action, reason: Code, rules: readonly string[], message: string | null): Verdict {
  return Object.freeze({ action, judged: action, reason, rules, mode: 'enforce', message, findings: NO_FINDINGS });
}

/**
 * Of all rules that matched, the strictest decides; rules in monitor mode only say what they would have done.
 * @param hits in the one order of rules; they may stop after the first action that refuses
 * @param isAdmitted traffic of this kind needs no rule
 * @param denied reason of a deny rule, and `notAdmitted` of no rule at all
 */
export function decide(hits: readonly Hit[], isAdmitted: boolean, denied: Code, notAdmitted: Code): Verdict {
  const enforced = settle(hits, isAdmitted, denied, notAdmitted, false);
  if (hits.every((hit) => hit.indexed.isEnforced))
    return verdict(enforced.action, enforced.reason, enforced.rules, enforced.message);
  const judged = settle(hits, isAdmitted, denied, notAdmitted, true);
  if (judged.action === enforced.action)
    return verdict(enforced.action, enforced.reason, enforced.rules, enforced.message);
  const rules = [...new Set([...judged.rules, ...enforced.rules])].slice(0, MAX_VERDICT_RULES);
  return Object.freeze({ ...enforced, judged: judged.action, rules, mode: 'monitor', findings: NO_FINDINGS });
}

function settle(
  hits: readonly Hit[],
  isAdmitted: boolean,
  denied: Code,
  notAdmitted: Code,
  withMonitored: boolean,
): Decision {
  const counted = withMonitored ? hits : hits.filter((hit) => hit.indexed.isEnforced);
  for (const action of ['deny', 'approve', 'redact'] as const) {
    const deciding = counted.filter((hit) => hit.action === action);
    if (deciding.length === 0) continue;
    // Rules that really matched are named before those that only failed.
    deciding.sort((a, b) => Number(a.isFailure) - Number(b.isFailure));
    const reason = deciding[0]?.isFailure === true ? 'rule_error' : action === 'approve' ? 'approval_required' : denied;
    return { action, reason, ...namesOf(deciding) };
  }
  const admitting = counted.filter((hit) => (withMonitored ? hit.wouldAdmit : hit.admits));
  if (!isAdmitted && admitting.length === 0) return { action: 'deny', reason: notAdmitted, rules: [], message: null };
  const warning = counted.filter((hit) => hit.action === 'warn');
  if (warning.length === 0) return { action: 'allow', reason: 'allowed', ...namesOf(admitting) };
  // A warn rule marks traffic that it does not admit itself: then the rule that admits is named too.
  const isSelfAdmitted = isAdmitted || warning.some((hit) => admitting.includes(hit));
  return { action: 'warn', reason: 'allowed', ...namesOf(isSelfAdmitted ? warning : [...warning, ...admitting]) };
}

function namesOf(hits: readonly Hit[]): { rules: readonly string[]; message: string | null } {
  const rules = hits.slice(0, MAX_VERDICT_RULES).map((hit) => hit.indexed.rule.id);
  return { rules, message: hits.find((hit) => hit.indexed.rule.message !== null)?.indexed.rule.message ?? null };
}
