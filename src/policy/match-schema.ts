import type { Direction } from '../core/message.ts';
import type { Layer } from '../core/verdict.ts';
import { compileHost, compileName, compilePath } from './glob.ts';
import type { TextPattern } from './glob.ts';
import { didYouMean, show } from './problem.ts';
import type { Compiled } from './problem.ts';
import type { AgentPatterns, PortRange, Rule } from './rule.ts';
import type { Entry, YamlSource, YamlValue } from './yaml-source.ts';

/** Keys of `match` whose layers exist. */
export const MATCH_KEYS = ['host', 'port', 'method', 'path', 'protocol', 'scheme', 'direction', 'grpc'] as const;
/** Keys of layers to come: known by name, so that nobody believes they work. */
export const FUTURE_MATCH_KEYS: Readonly<Record<string, string>> = {
  ...Object.fromEntries(['tool', 'server', 'resource', 'prompt'].map((key) => [key, 'MCP'])),
  ...Object.fromEntries(['provider', 'model', 'operation'].map((key) => [key, 'LLM'])),
  ...Object.fromEntries(['finding', 'kind', 'confidence'].map((key) => [key, 'detection'])),
};
export const PROTOCOLS = ['http', 'websocket', 'grpc', 'raw'] as const satisfies readonly Layer[];
const FUTURE_PROTOCOLS: Readonly<Record<string, string>> = { mcp: 'MCP', llm: 'LLM' };
const KNOWN_METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'] as const;
/** Methods that the proxy never forwards. */
const REFUSED_METHODS = new Set(['CONNECT', 'TRACE', 'TRACK']);
const METHOD = /^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}$/;
/** Most items of one list. */
export const MAX_LIST = 10_000;

export type Match = Pick<Rule, 'hosts' | 'ports' | 'methods' | 'paths' | 'protocols' | 'scheme' | 'direction' | 'grpc'>;

export const MATCHES_ALL: Match = {
  hosts: null,
  ports: null,
  methods: null,
  paths: null,
  protocols: null,
  scheme: null,
  direction: null,
  grpc: null,
};

/** Reads `match`. Reports what is wrong and goes on, so that one run shows everything. */
export function readMatch(
  source: YamlSource,
  value: YamlValue,
): { readonly match: Match; readonly entries: ReadonlyMap<string, Entry> } {
  const known = [...MATCH_KEYS, ...Object.keys(FUTURE_MATCH_KEYS)];
  const entries = source.map(value, 'match', known);
  if (entries === null) return { match: MATCHES_ALL, entries: new Map() };
  if (entries.size === 0 && source.describe(value) === 'a map') {
    source.problem(value.offset, 'match is empty', 'leave it out to match everything');
  }
  for (const entry of entries.values()) {
    const part = FUTURE_MATCH_KEYS[entry.key];
    if (part !== undefined)
      source.problem(
        entry.keyOffset,
        `the key ${show(entry.key)} does not work yet: it arrives with the ${part} part`,
        'remove the rule until then',
      );
  }
  const at = (key: string): YamlValue | undefined => entries.get(key)?.value;
  return {
    entries,
    match: {
      hosts: readPatterns(source, at('host'), 'host', compileHost),
      ports: readPorts(source, at('port')),
      methods: readMethods(source, at('method')),
      paths: readPatterns(source, at('path'), 'path', compilePath),
      protocols: readProtocols(source, at('protocol')),
      scheme: readWord(source, at('scheme'), 'scheme', ['http', 'https'] as const),
      direction: readWord(source, at('direction'), 'direction', [
        'request',
        'response',
      ] as const satisfies readonly Direction[]),
      grpc: readGrpc(source, at('grpc')),
    },
  };
}

/** Reads `agents`: globs on id or name, and `label:key=value`. */
export function readAgents(source: YamlSource, value: YamlValue | undefined): AgentPatterns | null {
  if (value === undefined) return null;
  const texts = source.texts(value, 'agents') ?? [];
  const names: TextPattern[] = [];
  const labels: { key: string; value: TextPattern }[] = [];
  for (const { text, offset } of texts) {
    const label = text.startsWith('label:') ? /^label:([^=]+)=(.+)$/.exec(text) : null;
    if (text.startsWith('label:') && label === null) {
      source.problem(offset, `${show(text)} is no label pattern`, 'write label:key=value');
      continue;
    }
    const compiled = compileName(label?.[2] ?? text, 'agent pattern');
    if (!compiled.ok) source.problem(offset, compiled.text, compiled.hint);
    else if (label?.[1] === undefined) names.push(compiled.value);
    else labels.push({ key: label[1], value: compiled.value });
  }
  return { names, labels, texts: texts.map((item) => item.text) };
}

/** One of a few words; null when absent or wrong. */
export function readWord<T extends string>(
  source: YamlSource,
  value: YamlValue | undefined,
  what: string,
  words: readonly T[],
): T | null {
  if (value === undefined) return null;
  const text = source.text(value, what);
  if (text === null) return null;
  const word = words.find((candidate) => candidate === text);
  if (word !== undefined) return word;
  source.problem(
    value.offset,
    `${what} cannot be ${show(text)}`,
    didYouMean(text, words) ?? `write one of ${words.join(', ')}`,
  );
  return null;
}

function readPatterns<T>(
  source: YamlSource,
  value: YamlValue | undefined,
  what: string,
  compile: (text: string) => Compiled<T>,
): readonly T[] | null {
  if (value === undefined) return null;
  const patterns: T[] = [];
  for (const { text, offset } of bounded(source, value, source.texts(value, what) ?? [], what)) {
    const compiled = compile(text);
    if (compiled.ok) patterns.push(compiled.value);
    else source.problem(offset, compiled.text, compiled.hint);
  }
  return patterns;
}

function bounded<T>(source: YamlSource, value: YamlValue, items: readonly T[], what: string): readonly T[] {
  if (items.length <= MAX_LIST) return items;
  source.problem(value.offset, `${what} has more than ${MAX_LIST} items`, 'write several rules');
  return [];
}

function readMethods(source: YamlSource, value: YamlValue | undefined): readonly string[] | null {
  if (value === undefined) return null;
  const methods: string[] = [];
  for (const { text, offset } of source.texts(value, 'method') ?? []) {
    const upper = text.toUpperCase();
    if (!METHOD.test(text)) source.problem(offset, `${show(text)} is no method`, didYouMean(text, KNOWN_METHODS));
    else if (text.includes('*'))
      source.problem(offset, `${show(text)}: methods are no globs`, 'leave method out to match all');
    else if (REFUSED_METHODS.has(upper))
      source.problem(offset, `the method ${text} never matches: the proxy does not forward it`);
    else if (text !== upper && KNOWN_METHODS.some((known) => known === upper))
      source.problem(offset, `${show(text)}: methods are case-sensitive`, `write ${upper}`);
    else methods.push(text);
  }
  return methods;
}

function readProtocols(source: YamlSource, value: YamlValue | undefined): readonly Layer[] | null {
  if (value === undefined) return null;
  const protocols: Layer[] = [];
  for (const { text, offset } of source.texts(value, 'protocol') ?? []) {
    const protocol = PROTOCOLS.find((known) => known === text);
    const future = Object.hasOwn(FUTURE_PROTOCOLS, text) ? FUTURE_PROTOCOLS[text] : undefined;
    if (protocol !== undefined) protocols.push(protocol);
    else if (future !== undefined)
      source.problem(
        offset,
        `protocol ${text} does not work yet: it arrives with the ${future} part`,
        'remove the rule until then',
      );
    else
      source.problem(
        offset,
        `protocol cannot be ${show(text)}`,
        didYouMean(text, PROTOCOLS) ?? `write one of ${PROTOCOLS.join(', ')}`,
      );
  }
  return protocols;
}

function readPorts(source: YamlSource, value: YamlValue | undefined): readonly PortRange[] | null {
  if (value === undefined) return null;
  const items = source.list(value);
  if (items?.length === 0)
    source.problem(value.offset, 'port is an empty list, which never matches', 'leave the key out to match everything');
  const ranges: PortRange[] = [];
  for (const item of bounded(source, value, items ?? [value], 'port')) {
    const range = toPortRange(source.scalar(item));
    if (typeof range === 'string')
      source.problem(
        item.offset,
        `port ${source.describe(item)}: ${range}`,
        'write a number from 1 to 65535, or a range as "8000-8099"',
      );
    else ranges.push(range);
  }
  return ranges;
}

function toPortRange(scalar: unknown): PortRange | string {
  const text = typeof scalar === 'number' || typeof scalar === 'string' ? String(scalar) : '';
  const parts = /^([0-9]{1,6})(?:-([0-9]{1,6}))?$/.exec(text);
  if (parts === null) return 'not a port';
  const from = Number(parts[1]);
  const to = parts[2] === undefined ? from : Number(parts[2]);
  if (from === 0 || from > 65_535 || to > 65_535) return 'no such port, so it never matches';
  return to < from ? 'the range ends before it starts, so it never matches' : { from, to };
}

function readGrpc(source: YamlSource, value: YamlValue | undefined): Match['grpc'] {
  if (value === undefined) return null;
  const entries = source.map(value, 'grpc', ['service', 'method']);
  if (entries === null) return null;
  if (entries.size === 0)
    source.problem(value.offset, 'grpc is empty', 'name service, method or both; protocol: grpc matches all of it');
  const read = (key: string): readonly TextPattern[] | null =>
    readPatterns(source, entries.get(key)?.value, `grpc.${key}`, (text) => compileName(text, `gRPC ${key}`));
  return { services: read('service'), methods: read('method') };
}
