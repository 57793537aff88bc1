import type { Action, Mode } from '../core/verdict.ts';
import { compileExpression } from './expression.ts';
import type { Expression } from './expression.ts';
import { FactsView } from './facts-view.ts';
import { MATCHES_ALL, readAgents, readMatch, readWord } from './match-schema.ts';
import { show } from './problem.ts';
import { ACTIONS, isAdmitting, isMessageRule, LAYER_BITS, layersOf } from './rule.ts';
import type { Rule } from './rule.ts';
import type { Entry, YamlSource, YamlValue } from './yaml-source.ts';

/** Keys of a rule. */
export const RULE_KEYS = [
  'id',
  'description',
  'agents',
  'match',
  'if',
  'action',
  'message',
  'mode',
  'intercept',
] as const;
const MODES = ['enforce', 'monitor'] as const satisfies readonly Mode[];
export const RULE_ID = /^[a-z0-9][a-z0-9._-]{0,63}$/;
/** Longest message for the agent, in characters: it travels in headers of gRPC answers too. */
export const MAX_MESSAGE_LENGTH = 1000;
const MAX_DESCRIPTION_LENGTH = 2000;

type Entries = ReadonlyMap<string, Entry>;

/** Reads one rule. Reports everything that is wrong with it; null when it is unusable. */
export function readRule(source: YamlSource, value: YamlValue): Rule | null {
  const before = source.problemCount;
  const entries = source.map(value, 'a rule', RULE_KEYS);
  if (entries === null) return null;
  const at = (key: string): YamlValue | undefined => entries.get(key)?.value;
  const id = readId(source, value, at('id'));
  const action = readAction(source, value, at('action'), id);
  const matchValue = at('match');
  const { match, entries: matchEntries } =
    matchValue === undefined
      ? { match: MATCHES_ALL, entries: new Map<string, Entry>() }
      : readMatch(source, matchValue);
  const rule: Rule = {
    id: id ?? '',
    action: action ?? 'deny',
    description: readText(source, at('description'), 'description', MAX_DESCRIPTION_LENGTH),
    agents: readAgents(source, at('agents')),
    ...match,
    condition: readCondition(source, at('if')),
    message: readText(source, at('message'), 'message', MAX_MESSAGE_LENGTH),
    mode: readWord(source, at('mode'), 'mode', MODES) ?? 'enforce',
    isIntercepted: readIntercept(source, at('intercept')),
    file: source.file,
    ...source.position(value.offset),
  };
  if (id === null || action === null) return null;
  checkRule(source, rule, value, entries, matchEntries, source.problemCount === before);
  return rule;
}

function readId(source: YamlSource, rule: YamlValue, value: YamlValue | undefined): string | null {
  if (value === undefined) {
    source.problem(rule.offset, 'the rule has no id', 'give it a short name such as docs-read');
    return null;
  }
  const id = source.text(value, 'id');
  if (id === null || RULE_ID.test(id)) return id;
  source.problem(
    value.offset,
    `${show(id)} is no rule id`,
    'use a-z, 0-9, ".", "_" and "-", at most 64 characters, first a letter or digit',
  );
  return null;
}

function readAction(
  source: YamlSource,
  rule: YamlValue,
  value: YamlValue | undefined,
  id: string | null,
): Action | null {
  if (value !== undefined) return readWord(source, value, 'action', ACTIONS);
  source.problem(
    rule.offset,
    `the rule ${id ?? ''} has no action`.replace('  ', ' '),
    `write one of ${ACTIONS.join(', ')}`,
  );
  return null;
}

function readText(source: YamlSource, value: YamlValue | undefined, what: string, limit: number): string | null {
  if (value === undefined) return null;
  const text = source.text(value, what)?.trim() ?? null;
  if (text === '') source.problem(value.offset, `${what} is empty`, 'leave it out');
  if (text !== null && text.length > limit) source.problem(value.offset, `${what} is longer than ${limit} characters`);
  return text;
}

function readIntercept(source: YamlSource, value: YamlValue | undefined): boolean {
  if (value === undefined) return true;
  const scalar = source.scalar(value);
  if (typeof scalar === 'boolean') return scalar;
  source.problem(value.offset, `intercept must be true or false, not ${source.describe(value)}`);
  return true;
}

function readCondition(source: YamlSource, value: YamlValue | undefined): Expression | null {
  if (value === undefined) return null;
  if (typeof source.scalar(value) === 'boolean') {
    source.problem(
      value.offset,
      `if is the constant ${String(source.scalar(value))}`,
      'leave it out, or write a condition',
    );
    return null;
  }
  const text = source.text(value, 'if');
  if (text === null) return null;
  const compiled = compileExpression(text);
  if (!compiled.ok) {
    source.problem(source.offsetInside(value, text, compiled.offset), `if: ${compiled.text}`, compiled.hint);
    return null;
  }
  if (compiled.value.reads.size === 0) {
    const result = compiled.value.evaluate(new FactsView());
    source.problem(
      value.offset,
      `if reads no fact: it is always ${result === null ? 'an error' : String(result)}`,
      'leave it out, or write a condition',
    );
  }
  return compiled.value;
}

/**
 * What no single key shows: combinations that can never match or would not do what they say.
 * @param isSound all single keys are good; reach is not worth telling of a rule that is half read
 */
function checkRule(
  source: YamlSource,
  rule: Rule,
  value: YamlValue,
  entries: Entries,
  matchEntries: Entries,
  isSound: boolean,
): void {
  const place = (key: string): number =>
    matchEntries.get(key)?.keyOffset ?? entries.get(key)?.keyOffset ?? value.offset;
  if (rule.action === 'redact') {
    source.problem(
      place('action'),
      'redact needs a finding; it arrives with the detection part',
      'use deny or warn until then',
    );
  }
  if (isMessageRule(rule) && rule.action === 'allow') {
    const key = rule.direction === null ? 'if' : 'direction';
    const cause = rule.direction === null ? 'reads message' : 'has a direction';
    source.problem(
      place(key),
      `an allow rule that ${cause} admits nothing`,
      'requests are admitted before their messages are seen; deny what must not pass instead',
    );
  }
  if (isSound) checkReach(source, rule, place);
  if (!rule.isIntercepted) checkPassthrough(source, rule, place, matchEntries);
}

function checkReach(source: YamlSource, rule: Rule, place: (key: string) => number): void {
  const found = whyNever(rule);
  if (found === null) return;
  source.problem(place(found.key), `the rule can never match: ${found.text}`, found.hint);
}

function whyNever(rule: Rule): { readonly key: string; readonly text: string; readonly hint: string } | null {
  const { protocols, methods } = rule;
  const isOnly = (layer: string): boolean => protocols?.length === 1 && protocols[0] === layer;
  if (protocols?.includes('raw')) {
    const key = (['method', 'path', 'scheme', 'direction', 'grpc'] as const).find((name) => part(rule, name) !== null);
    if (key !== undefined) return { key, text: `raw tunnels have no ${key}`, hint: 'remove it, or raw from protocol' };
    if ((layersOf(rule) & LAYER_BITS.raw) === 0) {
      return { key: 'if', text: 'raw tunnels have no HTTP facts', hint: 'read agent, host, port and now only' };
    }
  }
  if (rule.grpc !== null && protocols !== null && !protocols.includes('grpc')) {
    return { key: 'grpc', text: `protocol is ${protocols.join(', ')}`, hint: 'write protocol: grpc' };
  }
  if (layersOf(rule) === 0) {
    return {
      key: 'if',
      text: 'its condition reads grpc, and its protocol is another one',
      hint: 'write protocol: grpc',
    };
  }
  if (methods === null) return null;
  if ((isOnly('grpc') || rule.grpc !== null) && !methods.includes('POST')) {
    return { key: 'method', text: 'gRPC requests are POST', hint: 'remove method' };
  }
  if (isOnly('websocket') && !methods.includes('GET')) {
    return { key: 'method', text: 'WebSocket requests are GET', hint: 'remove method' };
  }
  return null;
}

function part(rule: Rule, key: 'method' | 'path' | 'scheme' | 'direction' | 'grpc'): unknown {
  switch (key) {
    case 'method':
      return rule.methods;
    case 'path':
      return rule.paths;
    case 'scheme':
      return rule.scheme;
    case 'direction':
      return rule.direction;
    case 'grpc':
      return rule.grpc;
  }
}

function checkPassthrough(source: YamlSource, rule: Rule, place: (key: string) => number, matchEntries: Entries): void {
  if (!isAdmitting(rule.action)) {
    source.problem(
      place('intercept'),
      `intercept: false on a rule whose action is ${rule.action}`,
      'only allow and warn rules can leave a tunnel untouched',
    );
    return;
  }
  if (rule.hosts === null)
    source.problem(place('intercept'), 'intercept: false needs a host', 'name the hosts that pin their certificates');
  const judged =
    [...matchEntries.keys()].find((key) => key !== 'host' && key !== 'port') ??
    (rule.condition === null ? undefined : 'if');
  if (judged !== undefined) {
    source.problem(
      place(judged),
      `${judged} cannot be judged in a tunnel that is not intercepted`,
      'with intercept: false use host, port and agents only',
    );
  }
}
