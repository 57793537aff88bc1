import type { HostPattern } from './glob.ts';
import { hostMatches } from './glob.ts';
import type { Problem } from './problem.ts';
import { isAdmitting, isDecidedAtGate, isMessageRule } from './rule.ts';
import type { Rule } from './rule.ts';

/** Comparisons of a rule that leaves tunnels untouched with rules that need to look inside; beyond it the notes are left out. */
const MAX_COMPARISONS = 1_000_000;

/** What is allowed and probably not meant. */
export function notesOn(rules: readonly Rule[]): Problem[] {
  const notes: Problem[] = [];
  const note = (rule: Rule, text: string, hint: string | null): void => {
    notes.push({ file: rule.file, line: rule.line, column: rule.column, text: `${rule.id}: ${text}`, hint });
  };
  for (const rule of rules) {
    if (!isAdmitting(rule.action)) continue;
    if (rule.action === 'allow' && rule.mode === 'monitor')
      note(rule, 'an allow rule in monitor mode admits nothing', 'it only shows in the record what it would admit');
    if (isMessageRule(rule) || rule.mode === 'monitor') continue;
    if (rule.action === 'allow' && (rule.hosts === null || rule.hosts.some((host) => host.kind === 'any'))) {
      note(
        rule,
        `admits ${rule.agents === null ? 'every agent' : 'its agents'} to every host${rule.condition === null ? '' : ' that its condition lets pass'}`,
        'name hosts',
      );
    }
  }
  noteUninspected(rules, note);
  return notes;
}

/** Tunnels that are left untouched escape every rule that has to look inside; that must not go unsaid. */
function noteUninspected(rules: readonly Rule[], note: (rule: Rule, text: string, hint: string | null) => void): void {
  const untouched = rules.filter((rule) => !rule.isIntercepted && rule.mode === 'enforce');
  const inspecting = rules.filter((rule) => rule.action !== 'allow' && (isMessageRule(rule) || !isDecidedAtGate(rule)));
  if (untouched.length * inspecting.length > MAX_COMPARISONS) return;
  for (const rule of untouched) {
    const escaped = inspecting.filter(
      (other) => !other.protocols?.every((layer) => layer === 'raw') && canMeet(rule.hosts, other.hosts),
    );
    if (escaped.length === 0) continue;
    const names = escaped.slice(0, 3).map((other) => other.id);
    const more = escaped.length > 3 ? ` and ${escaped.length - 3} more` : '';
    note(
      rule,
      `its tunnels are not inspected, so these rules do not see them: ${names.join(', ')}${more}`,
      'intercept the host if they must',
    );
  }
}

function canMeet(a: readonly HostPattern[] | null, b: readonly HostPattern[] | null): boolean {
  if (a === null || b === null) return true;
  return a.some((one) => b.some((other) => patternsMeet(one, other)));
}

/** Whether some host can match both. Two globs under one tail are taken to meet. */
function patternsMeet(a: HostPattern, b: HostPattern): boolean {
  if (a.kind === 'any' || b.kind === 'any') return true;
  if (a.kind === 'exact') return hostMatches(b, a.text);
  if (b.kind === 'exact') return hostMatches(a, b.text);
  return a.tail === b.tail || a.tail.endsWith(`.${b.tail}`) || b.tail.endsWith(`.${a.tail}`);
}
