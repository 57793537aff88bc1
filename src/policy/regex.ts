import { parseRegex } from './regex-parser.ts';
import type { Instruction } from './regex-parser.ts';
import { good } from './problem.ts';
import type { Compiled } from './problem.ts';

/**
 * Looks for a regular expression in a text, in time that grows with the length of the text and with nothing else. V8's own engine backtracks, so one
 * unlucky expression in a rule file and one chosen header would stop the proxy.
 * States of the automaton are made when they are first needed and kept up to a limit.
 */
export interface Regex {
  readonly text: string;
  /** @throws RegexWorkError when a text needs more new states than the limit */
  test(input: string): boolean;
}

/** The expression and the text together need too many states; the caller counts it as a failed expression. */
export class RegexWorkError extends Error {}

/** States kept per expression; at the limit all are forgotten and made again. */
const MAX_KEPT_STATES = 500;
/** Work on new transitions for one text, in instructions looked at: some tens of milliseconds. Known transitions are free. */
const MAX_WORK_PER_TEXT = 2_000_000;

interface State {
  /** Instructions that wait for a unit, `end` and `match` among them; sorted. */
  readonly waiting: readonly number[];
  /** A match ends here, whatever follows. */
  readonly isMatch: boolean;
  /** A match ends here if the text does. */
  readonly isMatchAtEnd: boolean;
  /** By class of units. */
  readonly next: (State | undefined)[];
}

export function compileRegex(text: string): Compiled<Regex> {
  const program = parseRegex(text);
  return program.ok ? good(new Automaton(text, program.value)) : program;
}

class Automaton implements Regex {
  readonly text: string;
  readonly #program: readonly Instruction[];
  /** First units of the classes of units that the program tells apart, ascending from 0. */
  readonly #bounds: readonly number[];
  /** Class of each unit below 256. */
  readonly #lowClasses: Uint16Array;
  #states = new Map<string, State>();
  #start: State;
  #work = 0;

  constructor(text: string, program: readonly Instruction[]) {
    this.text = text;
    this.#program = program;
    const bounds = new Set([0]);
    for (const instruction of program) {
      if (instruction.op !== 'units') continue;
      instruction.set.forEach((unit, i) => bounds.add(i % 2 === 0 ? unit : unit + 1));
    }
    this.#bounds = [...bounds].sort((a, b) => a - b);
    this.#lowClasses = Uint16Array.from({ length: 256 }, (_, unit) => this.#search(unit));
    this.#start = this.#state([0], true);
  }

  test(input: string): boolean {
    this.#work = 0;
    let state = this.#start;
    for (let i = 0; i < input.length; i++) {
      if (state.isMatch) return true;
      const unit = input.charCodeAt(i);
      const unitClass = unit < 256 ? (this.#lowClasses[unit] ?? 0) : this.#search(unit);
      state = state.next[unitClass] ?? this.#step(state, unitClass);
      // Nothing waits any more: an expression with ^ has failed.
      if (state.waiting.length === 0) return false;
    }
    return state.isMatch || state.isMatchAtEnd;
  }

  #search(unit: number): number {
    let low = 0;
    let high = this.#bounds.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#bounds[middle] ?? 0) <= unit) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #step(state: State, unitClass: number): State {
    this.#work += this.#program.length;
    if (this.#work > MAX_WORK_PER_TEXT) throw new RegexWorkError('the expression needs too many states on this text');
    const unit = this.#bounds[unitClass] ?? 0;
    const reached: number[] = [];
    for (const index of state.waiting) {
      const instruction = this.#program[index];
      if (instruction?.op === 'units' && contains(instruction.set, unit)) reached.push(instruction.next);
    }
    // A match may start anywhere: instruction 0 joins at every position.
    reached.push(0);
    const next = this.#state(reached, false);
    state.next[unitClass] = next;
    return next;
  }

  #state(from: readonly number[], isStart: boolean): State {
    const waiting = [...this.#closure(from, isStart, false)].sort((a, b) => a - b);
    const key = `${waiting.join(',')}${isStart ? '^' : ''}`;
    const known = this.#states.get(key);
    if (known !== undefined) return known;
    if (this.#states.size >= MAX_KEPT_STATES) {
      // Old states still point at one another; a new start lets all of them go.
      this.#states = new Map();
      this.#start = this.#state([0], true);
    }
    const isMatchIn = (indexes: Iterable<number>): boolean => {
      for (const index of indexes) if (this.#program[index]?.op === 'match') return true;
      return false;
    };
    const state: State = {
      waiting,
      isMatch: isMatchIn(waiting),
      isMatchAtEnd: isMatchIn(this.#closure(from, isStart, true)),
      next: [],
    };
    this.#states.set(key, state);
    return state;
  }

  #closure(from: readonly number[], isStart: boolean, isEnd: boolean): Set<number> {
    const seen = new Set<number>();
    const waiting = new Set<number>();
    const open = [...from];
    for (let index = open.pop(); index !== undefined; index = open.pop()) {
      if (seen.has(index)) continue;
      seen.add(index);
      const instruction = this.#program[index];
      if (instruction === undefined) continue;
      switch (instruction.op) {
        case 'jump':
          open.push(instruction.next);
          break;
        case 'split':
          open.push(instruction.next, instruction.other);
          break;
        case 'start':
          if (isStart) open.push(instruction.next);
          break;
        case 'end':
          if (isEnd) open.push(instruction.next);
          else waiting.add(index);
          break;
        case 'units':
        case 'match':
          waiting.add(index);
      }
    }
    return waiting;
  }
}

function contains(set: readonly number[], unit: number): boolean {
  for (let i = 0; i + 1 < set.length; i += 2) if (unit >= (set[i] ?? 0) && unit <= (set[i + 1] ?? 0)) return true;
  return false;
}
