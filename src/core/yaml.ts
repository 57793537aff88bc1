import { LineCounter, isAlias, isMap, isScalar, isSeq, parseDocument } from 'yaml';
import type { Document } from 'yaml';
import type { Located, LocatedMap, Place, Problems } from './located.ts';

export interface YamlLimits {
  readonly maxBytes?: number;
}

/** A settings or agents file has a few hundred lines; a larger one was named by mistake. */
const MAX_BYTES = 4 * 1024 * 1024;
/** Aliases count anew at each use, so that ten lines cannot stand for a billion values. */
const MAX_NODES = 200_000;
const MAX_DEPTH = 32;

/**
 * Reads one YAML 1.2 document, keeping the place of every key and value. Duplicate keys, unknown tags, merge keys, more than one document and
 * keys that are not plain text are problems. Error texts never show an excerpt of the file: it may hold a password.
 * @param source file name (or variable) for the places
 * @returns null when the text is empty or does not parse; the reasons are in `problems`
 */
export function readYaml(text: string, source: string, problems: Problems, limits: YamlLimits = {}): Located | null {
  const maxBytes = limits.maxBytes ?? MAX_BYTES;
  const start: Place = { source, line: 1, column: 1 };
  if (text.length > maxBytes) {
    problems.add(start, `the file is larger than ${maxBytes} bytes`);
    return null;
  }
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, strict: true, uniqueKeys: true });
  const placeOf = (offset: number): Place => {
    const { line, col } = lines.linePos(offset);
    return { source, line: Math.max(1, line), column: Math.max(1, col) };
  };
  for (const problem of [...document.errors, ...document.warnings]) {
    problems.add(placeOf(problem.pos[0]), sentence(problem.message));
  }
  if (document.errors.length > 0 || document.warnings.length > 0) return null;
  return new Walk(document, placeOf, problems).start(start);
}

/** The library's messages start with a capital and may run over several lines. */
function sentence(message: string): string {
  const line = message.split('\n', 1)[0] ?? '';
  return `not valid YAML: ${line.slice(0, 200)}`;
}

class Walk {
  readonly #document: Document.Parsed;
  readonly #placeOf: (offset: number) => Place;
  readonly #problems: Problems;
  #nodes = 0;

  constructor(document: Document.Parsed, placeOf: (offset: number) => Place, problems: Problems) {
    this.#document = document;
    this.#placeOf = placeOf;
    this.#problems = problems;
  }

  start(at: Place): Located | null {
    if (this.#document.contents === null) return null;
    const root = this.#read(this.#document.contents, at, 0);
    return root?.type === 'scalar' && root.value === null ? null : root;
  }

  #read(node: unknown, fallback: Place, depth: number): Located | null {
    this.#nodes += 1;
    if (this.#nodes === MAX_NODES) this.#problems.add(fallback, 'too many values; do aliases repeat one another?');
    if (this.#nodes >= MAX_NODES) return null;
    if (depth > MAX_DEPTH) {
      this.#problems.add(fallback, `nested deeper than ${MAX_DEPTH} levels`);
      return null;
    }
    if (isAlias(node)) return this.#read(node.resolve(this.#document), this.#at(node.range, fallback), depth + 1);
    if (isScalar(node)) {
      const at = this.#at(node.range, fallback);
      const { value } = node;
      const known =
        value === null || typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean';
      if (!known) {
        this.#problems.add(at, 'a value of this kind is not supported');
        return null;
      }
      return { type: 'scalar', at, value, text: node.source ?? String(value) };
    }
    if (isSeq(node)) {
      const at = this.#at(node.range, fallback);
      const items = node.items.map((item) => this.#read(item, at, depth + 1));
      return { type: 'list', at, items: items.filter((item) => item !== null) };
    }
    if (isMap(node)) {
      const at = this.#at(node.range, fallback);
      const entries: LocatedMap['entries'][number][] = [];
      for (const { key, value } of node.items) {
        const keyAt = isScalar(key) ? this.#at(key.range, at) : at;
        if (!isScalar(key) || key.value === null) {
          this.#problems.add(keyAt, 'a key must be plain text');
          continue;
        }
        const name = typeof key.value === 'string' ? key.value : (key.source ?? '');
        const read =
          value === null
            ? ({ type: 'scalar', at: keyAt, value: null, text: '' } as const)
            : this.#read(value, keyAt, depth + 1);
        if (read !== null) entries.push({ key: name, keyAt, value: read });
      }
      return { type: 'map', at, entries };
    }
    this.#problems.add(fallback, 'a value of this kind is not supported');
    return null;
  }

  #at(range: readonly [number, number, number] | null | undefined, fallback: Place): Place {
    return range === null || range === undefined ? fallback : this.#placeOf(range[0]);
  }
}
