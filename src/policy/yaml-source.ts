import { isAlias, isMap, isScalar, isSeq, LineCounter, parseDocument, visit } from 'yaml';
import type { Document, Node } from 'yaml';
import { didYouMean, show } from './problem.ts';
import type { Problem } from './problem.ts';

/** Largest rule file, in characters. */
export const MAX_FILE_LENGTH = 4 * 1024 * 1024;
/** Uses of aliases in one file: more looks like an attempt to blow it up. */
const MAX_ALIASES = 1000;
/** Values reached through aliases in one file. */
const MAX_ALIASED_VALUES = 20_000;

/** One `key: value` of a map. */
export interface Entry {
  readonly key: string;
  readonly keyOffset: number;
  readonly value: YamlValue;
}

/** A node of the file with its place. */
export interface YamlValue {
  readonly offset: number;
  readonly node: Node | null;
}

/** What a scalar may be. */
export type ScalarValue = string | number | boolean | null | bigint;

/** A parsed rule file that knows where everything stands, and collects what is wrong with it. */
export class YamlSource {
  readonly file: string;
  readonly root: YamlValue;
  readonly #text: string;
  readonly #lines = new LineCounter();
  readonly #problems: Problem[];
  readonly #document: Document.Parsed | null;
  #anchors: Map<string, { readonly offset: number; readonly node: Node }[]> | null = null;
  #aliases = 0;
  #aliasedValues = 0;

  constructor(file: string, text: string, problems: Problem[]) {
    this.file = file;
    this.#text = text;
    this.#problems = problems;
    this.root = { offset: 0, node: null };
    this.#document = null;
    if (text.length > MAX_FILE_LENGTH) {
      this.problem(0, `the file is larger than ${MAX_FILE_LENGTH} characters`, 'split it');
      return;
    }
    const document = this.#parse(text);
    if (document === null) return;
    this.#document = document;
    // Warnings are unknown tags: a value we would read in another way than its author.
    for (const { pos, message, code } of [...document.errors, ...document.warnings]) {
      if (code === 'MULTIPLE_DOCS')
        this.problem(pos[0], 'the file has more than one document', 'remove the --- or split the file');
      else this.problem(pos[0], `not valid YAML: ${lowerFirst(message)}`);
    }
    this.root = this.#value(document.contents, 0);
  }

  #parse(text: string): Document.Parsed | null {
    try {
      return parseDocument(text, {
        version: '1.2',
        schema: 'core',
        uniqueKeys: true,
        prettyErrors: false,
        lineCounter: this.#lines,
      });
    } catch (error) {
      // The parser recurses: ten thousand opening brackets exhaust the stack.
      if (!(error instanceof RangeError)) throw error;
      this.problem(0, 'not valid YAML: nested too deeply');
      return null;
    }
  }

  get isEmpty(): boolean {
    return this.root.node === null || (isScalar(this.root.node) && this.root.node.value === null);
  }

  /** Problems so far, of all files. */
  get problemCount(): number {
    return this.#problems.length;
  }

  problem(offset: number, text: string, hint: string | null = null): void {
    this.#problems.push({ file: this.file, ...this.position(offset), text, hint });
  }

  /** Line and column of an offset, from 1. */
  position(offset: number): { line: number; column: number } {
    const { line, col } = this.#lines.linePos(offset);
    return line === 0 ? { line: 1, column: 1 } : { line, column: col };
  }

  /** Entries of a map, with unknown keys reported (`known` null: every key is good); null when it is no map. */
  map(value: YamlValue, what: string, known: readonly string[] | null): Map<string, Entry> | null {
    const { node } = value;
    if (!isMap(node)) {
      this.problem(value.offset, `${what} must be a map, not ${this.describe(value)}`);
      return null;
    }
    const entries = new Map<string, Entry>();
    for (const pair of node.items) {
      const keyNode = pair.key as Node | null;
      const keyOffset = keyNode?.range?.[0] ?? value.offset;
      const key = isScalar(keyNode) && typeof keyNode.value === 'string' ? keyNode.value : null;
      if (key === null) {
        this.problem(keyOffset, `a key of ${what} must be plain text`);
        continue;
      }
      if (known?.includes(key) === false) {
        this.problem(
          keyOffset,
          `unknown key ${show(key)} in ${what}`,
          didYouMean(key, known) ?? `known are ${known.join(', ')}`,
        );
        continue;
      }
      entries.set(key, { key, keyOffset, value: this.#value(pair.value as Node | null, keyOffset) });
    }
    return entries;
  }

  /** Items of a list; null when it is none. */
  list(value: YamlValue): YamlValue[] | null {
    return isSeq(value.node) ? value.node.items.map((item) => this.#value(item as Node | null, value.offset)) : null;
  }

  /** Value of a scalar; undefined when it is a map or a list. */
  scalar(value: YamlValue): ScalarValue | undefined {
    if (value.node === null) return null;
    if (!isScalar(value.node)) return undefined;
    const scalar = value.node.value;
    switch (typeof scalar) {
      case 'string':
      case 'number':
      case 'boolean':
      case 'bigint':
        return scalar;
      default:
        return scalar === null ? null : undefined;
    }
  }

  /** Text, or null with a problem. */
  text(value: YamlValue, what: string): string | null {
    const scalar = this.scalar(value);
    if (typeof scalar === 'string') return scalar;
    const hint = typeof scalar === 'number' || typeof scalar === 'boolean' ? 'put it in quotes' : null;
    this.problem(value.offset, `${what} must be text, not ${this.describe(value)}`, hint);
    return null;
  }

  /** One text or a list of texts, each with its place; null with a problem. Empty lists are refused: they would match nothing. */
  texts(value: YamlValue, what: string): { readonly text: string; readonly offset: number }[] | null {
    const items = this.list(value);
    if (items?.length === 0) {
      this.problem(
        value.offset,
        `${what} is an empty list, which never matches`,
        'leave the key out to match everything',
      );
      return null;
    }
    const texts: { text: string; offset: number }[] = [];
    for (const item of items ?? [value]) {
      const text = this.text(item, items === null ? what : `an item of ${what}`);
      if (text !== null) texts.push({ text, offset: item.offset });
    }
    return texts.length === 0 ? null : texts;
  }

  describe(value: YamlValue): string {
    if (value.node === null) return 'nothing';
    if (isMap(value.node)) return 'a map';
    if (isSeq(value.node)) return 'a list';
    const scalar = this.scalar(value);
    if (scalar === undefined) return 'this';
    if (scalar === null) return 'nothing';
    return typeof scalar === 'string'
      ? `the text ${show(scalar)}`
      : `${typeof scalar === 'boolean' ? '' : 'the number '}${show(scalar)}`;
  }

  /**
   * Place in the file of a character of a text value. Quotes, indentation and folded lines lie between the two; the walk goes through both
   * in step and skips in the file what the value does not have.
   */
  offsetInside(value: YamlValue, text: string, index: number): number {
    const range = value.node?.range;
    if (range === null || range === undefined) return value.offset;
    const raw = this.#text.slice(range[0], range[1]);
    let at = /^[|>]/.test(raw) ? raw.indexOf('\n') + 1 : 0;
    for (let i = 0; i <= index && i < text.length; i++) {
      const wanted = text.charAt(i);
      if (/\s/.test(wanted)) continue;
      while (at < raw.length && raw[at] !== wanted) at++;
      if (i === index) break;
      at++;
    }
    return at >= raw.length ? value.offset : range[0] + at;
  }

  #value(node: Node | null, fallbackOffset: number): YamlValue {
    const offset = node?.range?.[0] ?? fallbackOffset;
    if (!isAlias(node)) return { offset, node };
    if (++this.#aliases > MAX_ALIASES) {
      if (this.#aliases === MAX_ALIASES + 1)
        this.problem(offset, `the file uses aliases more than ${MAX_ALIASES} times`);
      return { offset, node: null };
    }
    const target = this.#anchored(node.source, offset);
    if (target === null) {
      this.problem(offset, `the alias *${node.source} stands for nothing that comes before it`);
      return { offset, node: null };
    }
    this.#aliasedValues += isSeq(target) || isMap(target) ? target.items.length : 1;
    if (this.#aliasedValues > MAX_ALIASED_VALUES) {
      this.problem(offset, `aliases in this file stand for more than ${MAX_ALIASED_VALUES} values`);
      return { offset, node: null };
    }
    return { offset, node: target };
  }

  /** The last node with this anchor before the alias. Done here since the library walks the whole document for every alias. */
  #anchored(name: string, before: number): Node | null {
    if (this.#anchors === null) {
      const anchors = new Map<string, { offset: number; node: Node }[]>();
      if (this.#document !== null) {
        visit(this.#document, {
          Node: (_, node) => {
            if (isAlias(node) || node.anchor === undefined) return;
            const list = anchors.get(node.anchor) ?? [];
            list.push({ offset: node.range?.[0] ?? 0, node });
            anchors.set(node.anchor, list);
          },
        });
      }
      this.#anchors = anchors;
    }
    return this.#anchors.get(name)?.findLast((anchor) => anchor.offset < before)?.node ?? null;
  }
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
