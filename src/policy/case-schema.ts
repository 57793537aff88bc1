import type { Agent } from '../core/agent.ts';
import type { Direction, Framing } from '../core/message.ts';
import { canonicalHost, normalizePath, parseAbsoluteUrl } from '../core/url.ts';
import type { Action, Mode } from '../core/verdict.ts';
import { isCode } from '../core/errors.ts';
import { PROTOCOLS, readWord } from './match-schema.ts';
import { show } from './problem.ts';
import type { Problem } from './problem.ts';
import { ACTIONS } from './rule.ts';
import { supposeRequest } from './what-if.ts';
import type { Supposed } from './what-if.ts';
import { YamlSource } from './yaml-source.ts';
import type { Entry, YamlValue } from './yaml-source.ts';

/** What a case says must come out; null parts do not matter. */
export interface Expected {
  readonly verdict: Action | null;
  readonly judged: Action | null;
  readonly reason: string | null;
  /** Ids that must all be among the deciding rules; empty: no rule decides. */
  readonly rules: readonly string[] | null;
  readonly mode: Mode | null;
  readonly tunnel: 'intercept' | 'passthrough' | null;
  /** Part of the message for the agent. */
  readonly message: string | null;
}

export interface Case {
  readonly name: string;
  readonly supposed: Supposed;
  readonly expected: Expected;
  readonly line: number;
}

/** A `*.test.yaml` file. */
export interface CaseFile {
  /** The rules under test: the file beside it, or all files of the folder together. */
  readonly against: 'file' | 'folder';
  readonly cases: readonly Case[];
}

const CASE_KEYS = [
  'name',
  'agent',
  'url',
  'host',
  'port',
  'method',
  'headers',
  'protocol',
  'message',
  'time',
  'expect',
] as const;
const EXPECT_KEYS = ['verdict', 'judged', 'reason', 'rule', 'mode', 'tunnel', 'message'] as const;
const MESSAGE_KEYS = ['direction', 'kind', 'text', 'size'] as const;
const KINDS = [
  'chunk',
  'body',
  'sse_event',
  'grpc',
  'websocket_text',
  'websocket_binary',
  'json_rpc',
] as const satisfies readonly Framing[];
/** A Monday, noon UTC: cases without a time do not depend on when they run. */
const DEFAULT_TIME_MS = Date.UTC(2026, 0, 5, 12);
const MAX_CASES = 10_000;

type Entries = ReadonlyMap<string, Entry>;

/** Reads a test file. Problems go to `problems`; cases that could be read are returned all the same. */
export function readCases(name: string, text: string, problems: Problem[]): CaseFile {
  const source = new YamlSource(name, text, problems);
  const entries = source.map(source.root, 'a test file', ['version', 'against', 'cases']);
  if (entries === null) return { against: 'file', cases: [] };
  const version = entries.get('version')?.value;
  if (version === undefined || source.scalar(version) !== 1)
    source.problem((version ?? source.root).offset, 'the file has no version: 1');
  const against = readWord(source, entries.get('against')?.value, 'against', ['file', 'folder'] as const) ?? 'file';
  const value = entries.get('cases')?.value;
  const items = value === undefined ? null : source.list(value);
  if (value === undefined || items === null || items.length === 0) {
    source.problem((value ?? source.root).offset, 'the file has no cases', 'write a list under cases:');
    return { against, cases: [] };
  }
  if (items.length > MAX_CASES) source.problem(value.offset, `the file has more than ${MAX_CASES} cases`);
  return { against, cases: items.slice(0, MAX_CASES).flatMap((item) => readCase(source, item) ?? []) };
}

function readCase(source: YamlSource, value: YamlValue): Case | null {
  const before = source.problemCount;
  const entries = source.map(value, 'a case', CASE_KEYS);
  if (entries === null) return null;
  const at = (key: string): YamlValue | undefined => entries.get(key)?.value;
  const nameValue = at('name');
  const name = nameValue === undefined ? 'unnamed' : (source.text(nameValue, 'name') ?? '');
  const supposed = readSupposed(source, value, entries);
  const expectValue = at('expect');
  if (expectValue === undefined) source.problem(value.offset, 'the case has no expect', 'for example expect: deny');
  const expected = expectValue === undefined ? null : readExpected(source, expectValue);
  if (supposed === null || expected === null || source.problemCount > before) return null;
  return { name, supposed, expected, line: source.position(value.offset).line };
}

function readSupposed(source: YamlSource, value: YamlValue, entries: Entries): Supposed | null {
  const at = (key: string): YamlValue | undefined => entries.get(key)?.value;
  const protocol = readWord(source, at('protocol'), 'protocol', PROTOCOLS) ?? 'http';
  const place = readPlace(source, value, entries);
  if (place === null) return null;
  const message = at('message');
  const isTunnel = at('url') === undefined;
  if (isTunnel && protocol !== 'raw' && (['method', 'headers', 'message'] as const).some((key) => entries.has(key))) {
    source.problem(value.offset, 'a case with host is about the tunnel alone', 'write url for a request');
  }
  const facts = supposeRequest({
    ...place,
    agent: readAgent(source, at('agent')),
    layer: protocol,
    method: readPlain(source, at('method'), 'method') ?? (protocol === 'grpc' ? 'POST' : 'GET'),
    headers: readStrings(source, at('headers'), 'headers', true),
    timeMs: readTime(source, at('time')),
  });
  return {
    facts,
    station: protocol === 'raw' ? 'raw' : isTunnel ? 'tunnel' : 'request',
    message: message === undefined ? null : readMessage(source, message),
  };
}

type UrlParts = Pick<Supposed['facts'], 'host' | 'port' | 'scheme' | 'path' | 'query'>;

function readPlace(source: YamlSource, value: YamlValue, entries: Entries): UrlParts | null {
  const url = entries.get('url')?.value;
  const host = entries.get('host')?.value;
  if ((url === undefined) === (host === undefined)) {
    source.problem(value.offset, 'a case needs either url or host', 'url for a request, host (and port) for a tunnel');
    return null;
  }
  if (url !== undefined) {
    const text = source.text(url, 'url');
    if (text === null) return null;
    const parts = readUrl(text);
    if (parts === null)
      source.problem(
        url.offset,
        `${show(text)} is no URL that the proxy would forward`,
        'for example https://api.example.com/v1/models?limit=2',
      );
    return parts;
  }
  const text = host === undefined ? null : source.text(host, 'host');
  const name = text === null ? null : canonicalHost(text);
  if (host !== undefined && text !== null && name === null) source.problem(host.offset, `${show(text)} is no host`);
  const portValue = entries.get('port')?.value;
  const port = portValue === undefined ? 443 : source.scalar(portValue);
  if (typeof port !== 'number' || !Number.isInteger(port) || port < 1 || port > 65_535) {
    source.problem((portValue ?? value).offset, 'port must be a number from 1 to 65535');
    return null;
  }
  return name === null ? null : { host: name, port, scheme: port === 80 ? 'http' : 'https', path: '/', query: '' };
}

/** Takes a URL apart as the proxy does; null for one that it would refuse. */
export function readUrl(text: string): UrlParts | null {
  const url = parseAbsoluteUrl(text);
  const normalized = url === null ? null : normalizePath(url.target);
  return url === null || normalized === null ? null : { ...url.destination, scheme: url.scheme, ...normalized };
}

function readAgent(source: YamlSource, value: YamlValue | undefined): Agent {
  const agent = (id: string, name: string, labels: Readonly<Record<string, string>>): Agent => ({
    id,
    name,
    labels,
    identifiedBy: 'listener',
  });
  if (value === undefined) return agent('default', 'default', {});
  const scalar = source.scalar(value);
  if (typeof scalar === 'string') return agent(scalar, scalar, {});
  const entries = source.map(value, 'agent', ['id', 'name', 'labels']);
  const id = readPlain(source, entries?.get('id')?.value, 'agent.id') ?? 'default';
  const name = readPlain(source, entries?.get('name')?.value, 'agent.name') ?? id;
  return agent(id, name, readStrings(source, entries?.get('labels')?.value, 'labels', false));
}

function readPlain(source: YamlSource, value: YamlValue | undefined, what: string): string | null {
  return value === undefined ? null : source.text(value, what);
}

function readStrings(
  source: YamlSource,
  value: YamlValue | undefined,
  what: string,
  isLower: boolean,
): Readonly<Record<string, string>> {
  if (value === undefined) return {};
  const strings: Record<string, string> = {};
  for (const entry of source.map(value, what, null)?.values() ?? []) {
    const text = source.text(entry.value, `${what}.${entry.key}`);
    if (text !== null) strings[isLower ? entry.key.toLowerCase() : entry.key] = text;
  }
  return strings;
}

function readTime(source: YamlSource, value: YamlValue | undefined): number {
  if (value === undefined) return DEFAULT_TIME_MS;
  const text = source.text(value, 'time');
  const timeMs = text === null ? Number.NaN : Date.parse(text);
  if (!Number.isNaN(timeMs)) return timeMs;
  if (text !== null) source.problem(value.offset, `${show(text)} is no time`, 'for example 2026-01-05T12:00:00Z');
  return DEFAULT_TIME_MS;
}

function readMessage(source: YamlSource, value: YamlValue): Supposed['message'] {
  const entries = source.map(value, 'message', MESSAGE_KEYS);
  if (entries === null) return null;
  const text = readPlain(source, entries.get('text')?.value, 'message.text');
  const direction = readWord(source, entries.get('direction')?.value, 'message.direction', [
    'request',
    'response',
  ] as const satisfies readonly Direction[]);
  const framing = readWord(source, entries.get('kind')?.value, 'message.kind', KINDS);
  const sizeValue = entries.get('size')?.value;
  const size = sizeValue === undefined ? Buffer.byteLength(text ?? '') : source.scalar(sizeValue);
  if (typeof size !== 'number' || size < 0)
    source.problem((sizeValue ?? value).offset, 'message.size must be a number of bytes');
  return {
    text,
    direction: direction ?? 'request',
    framing: framing ?? (text === null ? 'websocket_binary' : 'body'),
    size: typeof size === 'number' ? size : 0,
  };
}

function readExpected(source: YamlSource, value: YamlValue): Expected | null {
  const nothing: Expected = {
    verdict: null,
    judged: null,
    reason: null,
    rules: null,
    mode: null,
    tunnel: null,
    message: null,
  };
  if (typeof source.scalar(value) === 'string')
    return { ...nothing, verdict: readWord(source, value, 'expect', ACTIONS) };
  const entries = source.map(value, 'expect', EXPECT_KEYS);
  if (entries === null) return null;
  if (entries.size === 0) source.problem(value.offset, 'expect is empty', 'for example expect: deny');
  const at = (key: string): YamlValue | undefined => entries.get(key)?.value;
  const reason = readPlain(source, at('reason'), 'expect.reason');
  if (reason !== null && !isCode(reason))
    source.problem(
      at('reason')?.offset ?? value.offset,
      `${show(reason)} is no reason code`,
      'docs/errors.md lists them',
    );
  const rule = at('rule');
  const ruleList = rule === undefined ? null : source.list(rule);
  return {
    verdict: readWord(source, at('verdict'), 'expect.verdict', ACTIONS),
    judged: readWord(source, at('judged'), 'expect.judged', ACTIONS),
    reason,
    rules:
      rule === undefined
        ? null
        : ruleList?.length === 0
          ? []
          : (source.texts(rule, 'expect.rule')?.map((item) => item.text) ?? null),
    mode: readWord(source, at('mode'), 'expect.mode', ['enforce', 'monitor'] as const satisfies readonly Mode[]),
    tunnel: readWord(source, at('tunnel'), 'expect.tunnel', ['intercept', 'passthrough'] as const),
    message: readPlain(source, at('message'), 'expect.message'),
  };
}
