/** Something wrong, or worth knowing, in a rule file. `line` and `column` count from 1. */
export interface Problem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** What is wrong, with the wrong value in it. */
  readonly text: string;
  /** What to write instead, or null. */
  readonly hint: string | null;
}

/** Why a piece of a rule could not be compiled. */
export interface Refusal {
  readonly ok: false;
  readonly text: string;
  readonly hint: string | null;
}

export type Compiled<T> = { readonly ok: true; readonly value: T } | Refusal;

export function good<T>(value: T): Compiled<T> {
  return { ok: true, value };
}

export function bad(text: string, hint: string | null = null): Refusal {
  return { ok: false, text, hint };
}

/** `file:line:column: text (hint)`, as compilers print it, so that editors and terminals can jump there. */
export function formatProblem(problem: Problem): string {
  const hint = problem.hint === null ? '' : ` (${problem.hint})`;
  return `${problem.file}:${problem.line}:${problem.column}: ${problem.text}${hint}`;
}

/** A value for an error text: quoted, one line, at most 60 characters. */
export function show(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length <= 60 ? text : `${text.slice(0, 57)}...`;
}

/** `did you mean "…"?` for the nearest of `known`, or null when none is near. */
export function didYouMean(word: string, known: Iterable<string>): string | null {
  const nearest = nearestOf(word, known);
  return nearest === null ? null : `did you mean ${JSON.stringify(nearest)}?`;
}

function nearestOf(word: string, known: Iterable<string>): string | null {
  if (word.length > 64) return null;
  const lower = word.toLowerCase();
  let best: string | null = null;
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1;
  for (const candidate of known) {
    const other = candidate.toLowerCase();
    // A plural, a prefix or another case is nearer than any edit distance says.
    const distance = other.startsWith(lower) || lower.startsWith(other) ? 1 : editDistance(lower, other);
    if (distance < bestDistance) {
      bestDistance = distance;
      best = candidate;
    }
  }
  return best;
}

/** Edits from one word to the other: a character more, less or changed, or two neighbors swapped (optimal string alignment). */
function editDistance(a: string, b: string): number {
  let before: number[] = [];
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const change = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const swap = isSwap ? (before[j - 2] ?? 0) + 1 : Infinity;
      next.push(Math.min(change, swap, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    before = row;
    row = next;
  }
  return row[b.length] ?? 0;
}
