import type { Verdict } from '../core/verdict.ts';

/** Actions that end the traffic. `approve` has nobody to ask yet. */
export function isRefusal(verdict: Verdict): boolean {
  return verdict.action === 'deny' || verdict.action === 'approve';
}
