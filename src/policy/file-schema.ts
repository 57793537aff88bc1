import { RULE_ID, readRule } from './rule-schema.ts';
import { readWord } from './match-schema.ts';
import { show } from './problem.ts';
import type { Problem } from './problem.ts';
import type { Defaults, Rule } from './rule.ts';
import { YamlSource } from './yaml-source.ts';
import type { YamlValue } from './yaml-source.ts';

const FILE_KEYS = ['version', 'include', 'defaults', 'rules'] as const;
/** Values of each key of `defaults`, strictest first. */
export const DEFAULT_VALUES = {
  http: ['deny', 'allow'],
  websocket: ['deny', 'http', 'allow'],
  grpc: ['deny', 'http', 'allow'],
  raw: ['deny', 'allow'],
} as const;
export type DefaultKey = keyof Defaults;
const DEFAULT_KEYS = ['http', 'websocket', 'grpc', 'raw'] as const satisfies readonly DefaultKey[];
/** Most rules of one file. */
const MAX_RULES = 50_000;

/** A place to point at. */
export interface Place {
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

/** One file, read and checked on its own. */
export interface ParsedFile {
  readonly file: string;
  readonly rules: readonly Rule[];
  readonly includes: readonly { readonly pack: string; readonly place: Place }[];
  readonly defaults: readonly { readonly key: DefaultKey; readonly value: string; readonly place: Place }[];
}

/** Reads a rule file or pack. Problems go to `problems`; what could be read is returned all the same. */
export function readFile(name: string, text: string, kind: 'rules' | 'pack', problems: Problem[]): ParsedFile {
  const before = problems.length;
  const source = new YamlSource(name, text, problems);
  const nothing: ParsedFile = { file: name, rules: [], includes: [], defaults: [] };
  if (source.isEmpty) {
    if (problems.length === before) source.problem(0, 'the file is empty', 'start it with version: 1');
    return nothing;
  }
  const entries = source.map(source.root, 'a rule file', FILE_KEYS);
  if (entries === null) return nothing;
  const version = entries.get('version')?.value;
  if (version === undefined) source.problem(source.root.offset, 'the file has no version', 'start it with version: 1');
  else if (source.scalar(version) !== 1)
    source.problem(version.offset, `version must be 1, not ${source.describe(version)}`);
  const defaults = entries.get('defaults');
  if (defaults !== undefined && kind === 'pack')
    source.problem(defaults.keyOffset, 'a pack cannot set defaults', 'set them in a rule file');
  return {
    file: name,
    rules: readRules(source, entries.get('rules')?.value),
    includes: readIncludes(source, entries.get('include')?.value),
    defaults: readDefaults(source, defaults?.value),
  };
}

function readRules(source: YamlSource, value: YamlValue | undefined): Rule[] {
  if (value === undefined) return [];
  const items = source.list(value);
  if (items === null) {
    // `rules:` with nothing under it is a file that somebody is about to fill.
    if (source.scalar(value) !== null)
      source.problem(value.offset, `rules must be a list, not ${source.describe(value)}`);
    return [];
  }
  if (items.length > MAX_RULES) {
    source.problem(value.offset, `the file has more than ${MAX_RULES} rules`, 'split it');
    return [];
  }
  const rules: Rule[] = [];
  for (const item of items) {
    const rule = readRule(source, item);
    if (rule !== null) rules.push(rule);
  }
  return rules;
}

function readIncludes(source: YamlSource, value: YamlValue | undefined): { pack: string; place: Place }[] {
  if (value === undefined) return [];
  const includes: { pack: string; place: Place }[] = [];
  for (const { text, offset } of source.texts(value, 'include') ?? []) {
    if (RULE_ID.test(text)) includes.push({ pack: text, place: { file: source.file, ...source.position(offset) } });
    else source.problem(offset, `${show(text)} is no pack name`, 'write the name without folder and .yaml');
  }
  return includes;
}

function readDefaults(
  source: YamlSource,
  value: YamlValue | undefined,
): { key: DefaultKey; value: string; place: Place }[] {
  if (value === undefined) return [];
  const entries = source.map(value, 'defaults', DEFAULT_KEYS);
  const defaults: { key: DefaultKey; value: string; place: Place }[] = [];
  for (const key of DEFAULT_KEYS) {
    const entry = entries?.get(key);
    if (entry === undefined) continue;
    const word = readWord(source, entry.value, `defaults.${key}`, DEFAULT_VALUES[key]);
    if (word !== null)
      defaults.push({ key, value: word, place: { file: source.file, ...source.position(entry.value.offset) } });
  }
  return defaults;
}
