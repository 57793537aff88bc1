import type { Code } from '../core/errors.ts';
import type { Verdict } from '../core/verdict.ts';

/** Actions that end the traffic. `approve` has nobody to ask yet. */
export function isRefusal(verdict: Verdict): boolean {
  return verdict.action === 'deny' || verdict.action === 'approve';
}

/** The verdict of an exchange that ended before the rules were asked. */
export function verdictOfCode(code: Code, action: 'deny' | 'allow' = 'deny'): Verdict {
  return { action, judged: action, reason: code, rules: [], mode: 'enforce', message: null, findings: [] };
}
