import { ConfigError } from './errors.ts';

/** Where a value was written: a file with line and column from 1, or a variable or flag, which has neither. */
export interface Place {
  /** File name, or the name of the variable or flag. */
  readonly source: string;
  readonly line: number | null;
  readonly column: number | null;
}

/** A value with its place; what YAML files, variables and flags are read into before a schema looks at them. */
export type Located = LocatedScalar | LocatedList | LocatedMap;

export interface LocatedScalar {
  readonly type: 'scalar';
  readonly at: Place;
  readonly value: string | number | boolean | null;
  /** As it was written: `0x10`, `1e3`, `007`. */
  readonly text: string;
}

export interface LocatedList {
  readonly type: 'list';
  readonly at: Place;
  readonly items: readonly Located[];
}

export interface LocatedMap {
  readonly type: 'map';
  readonly at: Place;
  /** In the order of the file; keys are unique. */
  readonly entries: readonly { readonly key: string; readonly keyAt: Place; readonly value: Located }[];
}

/** More problems than this are counted, not listed. */
const MAX_LISTED = 50;

/** Collects everything that is wrong, so that an operator mends a file in one go. */
export class Problems {
  readonly #found: { readonly at: Place; readonly text: string }[] = [];
  #more = 0;

  add(at: Place, text: string): void {
    if (this.#found.length < MAX_LISTED) this.#found.push({ at, text });
    else this.#more += 1;
  }

  get isEmpty(): boolean {
    return this.#found.length === 0;
  }

  /** One line a problem, in the order of the file. Its position is that of the first problem. */
  error(): ConfigError {
    const found = [...this.#found].sort(
      (a, b) =>
        Number(a.at.line === null) - Number(b.at.line === null) ||
        (a.at.line ?? 0) - (b.at.line ?? 0) ||
        (a.at.column ?? 0) - (b.at.column ?? 0),
    );
    const [first] = found;
    if (first === undefined) return new ConfigError('something is wrong');
    const rest = found.slice(1).map(({ at, text }) => `${placeText(at)}: ${text}`);
    if (this.#more > 0) rest.push(`and ${this.#more} more`);
    if (first.at.line === null) return new ConfigError([`${first.at.source}: ${first.text}`, ...rest].join('\n'));
    return new ConfigError([first.text, ...rest].join('\n'), {
      file: first.at.source,
      line: first.at.line,
      column: first.at.column,
    });
  }

  /** @throws ConfigError when anything was found */
  throwIfAny(): void {
    if (!this.isEmpty) throw this.error();
  }
}

/** `subfloor.yaml:3:7`, or the name of the variable or flag. */
export function placeText(at: Place): string {
  return at.line === null ? at.source : `${at.source}:${at.line}:${at.column ?? 1}`;
}

/** A value as an error text may show it: quoted, short, one line, without control characters. */
export function quoted(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 57)}...` : text);
}

/** What stands there, in words for an error text. */
export function described(value: Located): string {
  if (value.type !== 'scalar') return value.type === 'list' ? 'a list' : 'a mapping';
  return value.value === null ? 'nothing' : quoted(value.text);
}

/**
 * The candidate with the smallest edit distance, if one is near enough to be meant.
 * @param candidates at most a few hundred short words
 */
export function nearest(word: string, candidates: Iterable<string>): string | null {
  let best: string | null = null;
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1;
  if (word.length > 100) return null;
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** Optimal string alignment: insertions, deletions, replacements and swapped neighbors cost 1 each. */
function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const cost = a[i - 1] === b[j - 1] ? 0 : 1;
      let value = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + cost);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        value = Math.min(value, (beforeLast[j - 2] ?? 0) + 1);
      }
      row.push(value);
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length] ?? 0;
}
