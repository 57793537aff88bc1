import { createHash } from 'node:crypto';
import type { Policy } from '../core/facts.ts';
import type { Action, Mode } from '../core/verdict.ts';
import { DEFAULT_VALUES, readFile } from './file-schema.ts';
import type { DefaultKey, ParsedFile, Place } from './file-schema.ts';
import { notesOn } from './notes.ts';
import { didYouMean } from './problem.ts';
import type { Problem } from './problem.ts';
import { isMessageRule } from './rule.ts';
import type { Defaults, Rule } from './rule.ts';
import { RulePolicy } from './rule-policy.ts';

/** A file of rules, or a pack that rule files may include by name. `name` is shown in problems. */
export interface RuleFile {
  readonly name: string;
  readonly text: string;
  readonly kind: 'rules' | 'pack';
}

/** What a compiled rule is, for lists and banners. Empty lists mean: all. */
export interface CompiledRuleSummary {
  readonly id: string;
  readonly description: string | null;
  readonly action: Action;
  readonly mode: Mode;
  readonly agents: readonly string[];
  readonly hosts: readonly string[];
  readonly protocols: readonly string[];
  readonly readsMessages: boolean;
  readonly isIntercepted: boolean;
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

export type CompileResult =
  | {
      readonly ok: true;
      readonly policy: Policy;
      readonly rules: readonly CompiledRuleSummary[];
      readonly notes: readonly Problem[];
    }
  | { readonly ok: false; readonly problems: readonly Problem[] };

/** As `CompileResult`, with the rules themselves for commands that explain. */
export type RulesResult =
  | {
      readonly ok: true;
      readonly policy: RulePolicy;
      readonly rules: readonly Rule[];
      readonly notes: readonly Problem[];
    }
  | { readonly ok: false; readonly problems: readonly Problem[] };

const UNSET: Defaults = { http: 'deny', websocket: 'http', grpc: 'http', raw: 'deny' };
/** Problems listed at most; a wrong generator makes thousands of the same kind. */
const MAX_PROBLEMS = 200;

/**
 * Compiles all files together: parse, check, compile. Nothing is half done: either every file is good or there is no policy.
 * @param files rule files in any order, and the packs they may include; packs that nobody includes are not read
 */
export function compilePolicy(files: readonly RuleFile[]): CompileResult {
  const result = compileRules(files);
  return result.ok ? { ...result, rules: result.rules.map(summarize) } : result;
}

/** The same, giving the rules in full. */
export function compileRules(files: readonly RuleFile[]): RulesResult {
  const problems: Problem[] = [];
  const parsed = readAll(files, problems);
  const rules = parsed.flatMap((file) => file.rules);
  refuseDuplicates(rules, problems);
  const notes: Problem[] = [];
  const defaults = mergeDefaults(parsed, notes);
  if (problems.length > 0) return { ok: false, problems: inOrder(problems) };
  const policy = new RulePolicy(rules, defaults, revisionOf(rules, defaults));
  notes.push(...notesOn(rules));
  return { ok: true, policy, rules, notes: inOrder(notes) };
}

function readAll(files: readonly RuleFile[], problems: Problem[]): ParsedFile[] {
  const packs = new Map<string, RuleFile>();
  for (const file of files) if (file.kind === 'pack') packs.set(packNameOf(file.name), file);
  const parsed = files
    .filter((file) => file.kind === 'rules')
    .map((file) => readFile(file.name, file.text, 'rules', problems));
  const included = new Set<string>();
  // Packs may include packs: the list grows while it is walked, and each pack joins once.
  for (const file of parsed) {
    for (const { pack, place } of file.includes) {
      if (included.has(pack)) continue;
      included.add(pack);
      const found = packs.get(pack);
      if (found === undefined) {
        const hint = didYouMean(pack, packs.keys()) ?? 'subfloor rules packs lists them';
        problems.push({ ...placeOf(place), text: `there is no pack ${JSON.stringify(pack)}`, hint });
      } else parsed.push(readFile(found.name, found.text, 'pack', problems));
    }
  }
  return parsed;
}

/** Name by which a pack is included: its file name without folder and ending. */
export function packNameOf(fileName: string): string {
  return fileName.replace(/^.*[\\/]/, '').replace(/\.ya?ml$/, '');
}

function refuseDuplicates(rules: readonly Rule[], problems: Problem[]): void {
  const first = new Map<string, Rule>();
  for (const rule of rules) {
    const known = first.get(rule.id);
    if (known === undefined) first.set(rule.id, rule);
    else
      problems.push({
        ...placeOf(rule),
        text: `the rule id ${JSON.stringify(rule.id)} is taken`,
        hint: `it is first used in ${known.file}:${known.line}`,
      });
  }
}

/** Several files may set a default; the strictest wins, and a disagreement is noted. */
function mergeDefaults(files: readonly ParsedFile[], notes: Problem[]): Defaults {
  const chosen = new Map<DefaultKey, { readonly value: string; readonly place: Place }>();
  const settings = files.flatMap((file) => file.defaults);
  const strictness = (key: DefaultKey, value: string): number =>
    (DEFAULT_VALUES[key] as readonly string[]).indexOf(value);
  for (const { key, value, place } of settings) {
    const known = chosen.get(key);
    if (known === undefined || strictness(key, value) < strictness(key, known.value)) chosen.set(key, { value, place });
  }
  for (const { key, value, place } of settings) {
    const winner = chosen.get(key);
    if (winner === undefined || winner.value === value) continue;
    const where = `${winner.place.file}:${winner.place.line}`;
    notes.push({
      ...placeOf(place),
      text: `defaults.${key}: ${value} has no effect: ${where} says ${winner.value}, and the strictest wins`,
      hint: null,
    });
  }
  const pick = <K extends DefaultKey>(key: K, values: readonly Defaults[K][]): Defaults[K] =>
    values.find((value) => value === chosen.get(key)?.value) ?? UNSET[key];
  return {
    http: pick('http', DEFAULT_VALUES.http),
    websocket: pick('websocket', DEFAULT_VALUES.websocket),
    grpc: pick('grpc', DEFAULT_VALUES.grpc),
    raw: pick('raw', DEFAULT_VALUES.raw),
  };
}

/**
 * Hash of what the rules mean: the same for other file names, order, comments and spelling of YAML.
 * The first 16 hex digits of a SHA-256 tell two versions apart; it is a name, not a seal.
 */
function revisionOf(rules: readonly Rule[], defaults: Defaults): string {
  const texts = (patterns: readonly { readonly text: string }[] | null | undefined): readonly string[] | null =>
    patterns?.map((pattern) => pattern.text) ?? null;
  const canonical = [...rules]
    .sort((a, b) => (a.id < b.id ? -1 : 1))
    .map((rule) => [
      ...[
        rule.id,
        rule.description,
        rule.action,
        rule.mode,
        rule.message,
        rule.isIntercepted,
        rule.agents?.texts ?? null,
        texts(rule.hosts),
        rule.ports,
      ],
      ...[rule.methods, texts(rule.paths), rule.protocols, rule.scheme, rule.direction, rule.condition?.text ?? null],
      ...[texts(rule.grpc?.services), texts(rule.grpc?.methods)],
    ]);
  const { http, websocket, grpc, raw } = defaults;
  return createHash('sha256')
    .update(JSON.stringify([1, [http, websocket, grpc, raw], canonical]))
    .digest('hex')
    .slice(0, 16);
}

function summarize(rule: Rule): CompiledRuleSummary {
  const { id, description, action, mode, isIntercepted, file, line, column } = rule;
  return {
    id,
    description,
    action,
    mode,
    isIntercepted,
    file,
    line,
    column,
    agents: rule.agents?.texts ?? [],
    hosts: rule.hosts?.map((host) => host.text) ?? [],
    protocols: rule.protocols ?? [],
    readsMessages: isMessageRule(rule),
  };
}

function placeOf({ file, line, column }: Place): Place {
  return { file, line, column };
}

function inOrder(problems: readonly Problem[]): readonly Problem[] {
  const sorted = [...problems].sort((a, b) =>
    a.file < b.file ? -1 : a.file > b.file ? 1 : a.line - b.line || a.column - b.column,
  );
  const rest = sorted.length - MAX_PROBLEMS;
  const last = sorted[MAX_PROBLEMS];
  if (rest <= 0 || last === undefined) return sorted;
  return [
    ...sorted.slice(0, MAX_PROBLEMS),
    { ...placeOf(last), text: `${rest} more problems from here on`, hint: null },
  ];
}
