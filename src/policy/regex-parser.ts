import { bad, good } from './problem.ts';
import type { Compiled } from './problem.ts';

/**
 * Regular expressions for `matches`, in the part of RE2's syntax that needs no backtracking and no look-around: literals, `.`, classes, `\d \w \s`, groups,
 * `|`, `* + ? {n,m}`, `^` and `$` (ends of the text), and the flags `(?i)` (ASCII) and `(?s)` at the start. Everything else is refused by name.
 * Units are UTF-16 code units.
 */

/** Inclusive ranges of code units, sorted and disjoint, flat: `[from, to, from, to, …]`. */
export type UnitSet = readonly number[];

/** A program for regex.ts: each instruction goes on at `next`, or at the listed places. */
export type Instruction =
  | { readonly op: 'units'; readonly set: UnitSet; next: number }
  | { readonly op: 'split'; next: number; other: number }
  | { readonly op: 'jump'; next: number }
  | { readonly op: 'start'; next: number }
  | { readonly op: 'end'; next: number }
  | { readonly op: 'match' };

type Node =
  | { readonly kind: 'units'; readonly set: UnitSet }
  | { readonly kind: 'start' | 'end' | 'empty' }
  | { readonly kind: 'sequence'; readonly parts: readonly Node[] }
  | { readonly kind: 'choice'; readonly parts: readonly Node[] }
  | { readonly kind: 'repeat'; readonly part: Node; readonly min: number; readonly max: number | null };

/** Longest expression, in characters. */
export const MAX_REGEX_LENGTH = 512;
/** Largest program, in instructions: repetitions count as often as they may repeat. */
export const MAX_REGEX_SIZE = 1000;
const MAX_REPEAT = 500;
const MAX_DEPTH = 20;
const LAST_UNIT = 0xffff;

const DIGIT: UnitSet = [0x30, 0x39];
const WORD: UnitSet = [0x30, 0x39, 0x41, 0x5a, 0x5f, 0x5f, 0x61, 0x7a];
const SPACE: UnitSet = [0x09, 0x0a, 0x0c, 0x0d, 0x20, 0x20];
const NOT_NEWLINE: UnitSet = [0, 0x09, 0x0b, LAST_UNIT];
const CLASSES: Readonly<Record<string, UnitSet>> = {
  d: DIGIT,
  w: WORD,
  s: SPACE,
  D: invert(DIGIT),
  W: invert(WORD),
  S: invert(SPACE),
};
const CONTROLS: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11 };
const PUNCTUATION = /^[!-/:-@[-`{-~]$/;

class RegexError extends Error {}

/** Compiles the text of an expression to a program that starts at instruction 0. */
export function parseRegex(text: string): Compiled<readonly Instruction[]> {
  if (text.length > MAX_REGEX_LENGTH)
    return bad(`the regular expression is longer than ${MAX_REGEX_LENGTH} characters`);
  try {
    return good(assemble(new Parser(text).parse()));
  } catch (error) {
    if (error instanceof RegexError)
      return bad(`regular expression: ${error.message}`, 'matches knows the part of RE2 that docs/rules.md lists');
    throw error;
  }
}

class Parser {
  readonly #text: string;
  #at = 0;
  #depth = 0;
  #foldsCase = false;
  #dotIsAll = false;

  constructor(text: string) {
    this.#text = text;
  }

  parse(): Node {
    const flags = /^\(\?([a-zA-Z]*)\)/.exec(this.#text);
    if (flags !== null) {
      for (const flag of flags[1] ?? '') {
        if (flag === 'i') this.#foldsCase = true;
        else if (flag === 's') this.#dotIsAll = true;
        else throw new RegexError(`the flag ${flag} is not supported`);
      }
      this.#at = flags[0].length;
    }
    const node = this.#choice();
    if (this.#at < this.#text.length) throw new RegexError('a ) closes nothing');
    return node;
  }

  #choice(): Node {
    if (++this.#depth > MAX_DEPTH) throw new RegexError(`groups are nested deeper than ${MAX_DEPTH}`);
    const parts = [this.#sequence()];
    while (this.#take('|')) parts.push(this.#sequence());
    this.#depth--;
    return parts.length === 1 && parts[0] !== undefined ? parts[0] : { kind: 'choice', parts };
  }

  #sequence(): Node {
    const parts: Node[] = [];
    while (this.#at < this.#text.length && !this.#sees('|') && !this.#sees(')')) parts.push(this.#repeated());
    return { kind: 'sequence', parts };
  }

  #repeated(): Node {
    const part = this.#atom();
    const range = this.#quantifier();
    if (range === null) return part;
    if (part.kind === 'start' || part.kind === 'end') throw new RegexError('an anchor is repeated');
    // A lazy quantifier finds the same texts.
    this.#take('?');
    if (this.#quantifier() !== null) throw new RegexError('a quantifier follows a quantifier');
    return { kind: 'repeat', part, ...range };
  }

  #quantifier(): { min: number; max: number | null } | null {
    if (this.#take('*')) return { min: 0, max: null };
    if (this.#take('+')) return { min: 1, max: null };
    if (this.#take('?')) return { min: 0, max: 1 };
    if (!this.#sees('{')) return null;
    const counted = /^\{([0-9]{1,4})(,([0-9]{1,4})?)?\}/.exec(this.#text.slice(this.#at, this.#at + 12));
    if (counted === null) throw new RegexError('a { starts no repetition; write \\{ for the character');
    this.#at += counted[0].length;
    const min = Number(counted[1]);
    const max = counted[2] === undefined ? min : counted[3] === undefined ? null : Number(counted[3]);
    if (min > MAX_REPEAT || (max ?? 0) > MAX_REPEAT) throw new RegexError(`a repetition is larger than ${MAX_REPEAT}`);
    if (max !== null && max < min) throw new RegexError('a repetition ends before it starts');
    return { min, max };
  }

  #atom(): Node {
    const character = this.#next();
    switch (character) {
      case '(':
        return this.#group();
      case '[':
        return { kind: 'units', set: this.#fold(this.#bracket()) };
      case '.':
        return { kind: 'units', set: this.#dotIsAll ? [0, LAST_UNIT] : NOT_NEWLINE };
      case '^':
        return { kind: 'start' };
      case '$':
        return { kind: 'end' };
      case '\\':
        return { kind: 'units', set: this.#fold(this.#escape()) };
      case '*':
      case '+':
      case '?':
      case '{':
        throw new RegexError(`a ${character} repeats nothing`);
      default: {
        const unit = character.charCodeAt(0);
        return { kind: 'units', set: this.#fold([unit, unit]) };
      }
    }
  }

  #group(): Node {
    if (this.#take('?')) {
      if (!this.#take(':'))
        throw new RegexError('look-around, named groups and flags inside are not supported; use ( ) or (?: )');
    }
    const node = this.#choice();
    if (!this.#take(')')) throw new RegexError('a ( is not closed');
    return node;
  }

  #bracket(): UnitSet {
    const isNegated = this.#take('^');
    const ranges: number[] = [];
    let isFirst = true;
    while (isFirst || !this.#sees(']')) {
      if (this.#at >= this.#text.length) throw new RegexError('a [ is not closed');
      isFirst = false;
      if (this.#text.startsWith('[:', this.#at)) throw new RegexError('[:name:] classes are not supported');
      const from = this.#bracketPiece();
      if (!(this.#sees('-') && this.#text[this.#at + 1] !== ']' && this.#at + 1 < this.#text.length)) {
        ranges.push(...from);
        continue;
      }
      this.#at++;
      const to = this.#bracketPiece();
      const [low, lowEnd] = from;
      const [high, highEnd] = to;
      if (low === undefined || high === undefined || low !== lowEnd || high !== highEnd || high < low)
        throw new RegexError('a range in [ ] is not in order');
      ranges.push(low, high);
    }
    this.#at++;
    // Case is folded before the negation: (?i)[^a] must not find A.
    const set = this.#foldsCase ? foldCase(merge(ranges)) : merge(ranges);
    return isNegated ? invert(set) : set;
  }

  #bracketPiece(): UnitSet {
    const character = this.#next();
    if (character === '\\') return this.#escape();
    const unit = character.charCodeAt(0);
    if (unit >= 0xd800 && unit <= 0xdfff)
      throw new RegexError('characters beyond U+FFFF cannot stand in [ ]; use ( | )');
    return [unit, unit];
  }

  #escape(): UnitSet {
    if (this.#at >= this.#text.length) throw new RegexError('it ends in a \\');
    const character = this.#next();
    const set = CLASSES[character];
    if (set !== undefined) return set;
    const control = CONTROLS[character];
    if (control !== undefined) return [control, control];
    if (character === 'x') {
      const hex = /^(?:([0-9a-fA-F]{2})|\{([0-9a-fA-F]{1,4})\})/.exec(this.#text.slice(this.#at, this.#at + 6));
      if (hex === null) throw new RegexError('\\x needs two digits, or up to four in { }');
      this.#at += hex[0].length;
      const unit = Number.parseInt(hex[1] ?? hex[2] ?? '', 16);
      return [unit, unit];
    }
    if (!PUNCTUATION.test(character)) throw new RegexError(`\\${character} is not supported`);
    const unit = character.charCodeAt(0);
    return [unit, unit];
  }

  #fold(set: UnitSet): UnitSet {
    return this.#foldsCase ? foldCase(set) : set;
  }

  #next(): string {
    return this.#text[this.#at++] ?? '';
  }

  #sees(character: string): boolean {
    return this.#text[this.#at] === character;
  }

  #take(character: string): boolean {
    if (!this.#sees(character)) return false;
    this.#at++;
    return true;
  }
}

function merge(ranges: readonly number[]): UnitSet {
  const pairs: [number, number][] = [];
  for (let i = 0; i + 1 < ranges.length; i += 2) pairs.push([ranges[i] ?? 0, ranges[i + 1] ?? 0]);
  pairs.sort((a, b) => a[0] - b[0]);
  const merged: number[] = [];
  for (const [from, to] of pairs) {
    const last = merged.at(-1);
    if (last !== undefined && from <= last + 1) merged[merged.length - 1] = Math.max(last, to);
    else merged.push(from, to);
  }
  return merged;
}

function invert(set: UnitSet): UnitSet {
  const inverted: number[] = [];
  let from = 0;
  for (let i = 0; i + 1 < set.length; i += 2) {
    if ((set[i] ?? 0) > from) inverted.push(from, (set[i] ?? 0) - 1);
    from = (set[i + 1] ?? 0) + 1;
  }
  if (from <= LAST_UNIT) inverted.push(from, LAST_UNIT);
  return inverted;
}

function foldCase(set: UnitSet): UnitSet {
  const folded = [...set];
  for (let i = 0; i + 1 < set.length; i += 2) {
    for (const [base, shift] of [
      [0x41, 32],
      [0x61, -32],
    ] as const) {
      const from = Math.max(set[i] ?? 0, base);
      const to = Math.min(set[i + 1] ?? 0, base + 25);
      if (from <= to) folded.push(from + shift, to + shift);
    }
  }
  return merge(folded);
}

function assemble(root: Node): Instruction[] {
  const program: Instruction[] = [];
  const push = (instruction: Instruction): number => {
    if (program.length >= MAX_REGEX_SIZE)
      throw new RegexError(`it is larger than ${MAX_REGEX_SIZE} steps when repetitions are written out`);
    return program.push(instruction) - 1;
  };
  // Every node's code falls through to the instruction that comes after it.
  const emit = (node: Node): void => {
    switch (node.kind) {
      case 'units':
        push({ op: 'units', set: node.set, next: program.length + 1 });
        return;
      case 'start':
      case 'end':
        push({ op: node.kind, next: program.length + 1 });
        return;
      case 'empty':
        return;
      case 'sequence':
        for (const part of node.parts) emit(part);
        return;
      case 'choice':
        emitChoice(node.parts);
        return;
      case 'repeat':
        emitRepeat(node.part, node.min, node.max);
    }
  };
  const emitChoice = (parts: readonly Node[]): void => {
    const exits: { next: number }[] = [];
    parts.forEach((part, index) => {
      if (index === parts.length - 1) {
        emit(part);
        return;
      }
      const split = { op: 'split' as const, next: program.length + 1, other: 0 };
      push(split);
      emit(part);
      const exit = { op: 'jump' as const, next: 0 };
      push(exit);
      exits.push(exit);
      split.other = program.length;
    });
    for (const exit of exits) exit.next = program.length;
  };
  const emitRepeat = (part: Node, min: number, max: number | null): void => {
    for (let i = 0; i < min; i++) emit(part);
    if (max === null) {
      const split = { op: 'split' as const, next: program.length + 1, other: 0 };
      const start = push(split);
      emit(part);
      push({ op: 'jump', next: start });
      split.other = program.length;
      return;
    }
    const splits: { other: number }[] = [];
    for (let i = min; i < max; i++) {
      const split = { op: 'split' as const, next: program.length + 1, other: 0 };
      push(split);
      splits.push(split);
      emit(part);
    }
    for (const split of splits) split.other = program.length;
  };
  emit(root);
  push({ op: 'match' });
  return program;
}
