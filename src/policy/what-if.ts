import type { Agent } from '../core/agent.ts';
import type { GateVerdict, MessageFacts, RequestFacts } from '../core/facts.ts';
import type { Layer, Verdict } from '../core/verdict.ts';
import { hostMatches, readingsOf } from './glob.ts';
import { didYouMean } from './problem.ts';
import { LAYER_BITS, matchesAgent, matchesGate, matchesPath, matchesRequest } from './rule.ts';
import type { Rule } from './rule.ts';
import { FactsView, methodOf } from './facts-view.ts';
import type { IndexedRule } from './rule-index.ts';
import type { RulePolicy } from './rule-policy.ts';

/** Traffic that has not happened, for `rules explain` and `rules test`. */
export interface Supposed {
  readonly facts: RequestFacts;
  /** `tunnel`: the gate alone is asked; `raw`: gate, then the bytes in the tunnel; else gate, request and, if given, message. */
  readonly station: 'tunnel' | 'raw' | 'request';
  readonly message: MessageFacts | null;
}

/** What would happen. `verdict` is that of the last station reached. */
export interface Outcome {
  readonly verdict: Verdict;
  readonly station: 'gate' | 'raw' | 'request' | 'message';
  readonly tunnel: GateVerdict['mode'];
}

/** Asks the policy in the order in which the proxy does. */
export function suppose(policy: RulePolicy, supposed: Supposed): Outcome {
  const { facts, station, message } = supposed;
  const gate = policy.gate(facts);
  const tunnel = gate.mode;
  if (isRefusal(gate.verdict) || station === 'tunnel' || tunnel === 'passthrough')
    return { verdict: gate.verdict, station: 'gate', tunnel };
  if (station === 'raw') return { verdict: policy.raw(facts), station: 'raw', tunnel };
  const request = policy.request(facts);
  if (isRefusal(request) || message === null) return { verdict: request, station: 'request', tunnel };
  return { verdict: policy.message(facts, message), station: 'message', tunnel };
}

function isRefusal(verdict: Verdict): boolean {
  return verdict.action === 'deny' || verdict.action === 'approve';
}

/** What one rule had to say. */
export interface RuleAnswer {
  readonly rule: Rule;
  readonly isMatch: boolean;
  /** Why it matched or not, in words. */
  readonly why: string;
}

export interface Explanation extends Outcome {
  /** Rules that name the host, or match without naming one; strictest first. */
  readonly answers: readonly RuleAnswer[];
  /** For a refusal: what would be allowed instead, in words. */
  readonly alternatives: readonly string[];
}

/** Most rules and alternatives listed. */
const MAX_LISTED = 50;

/** Looks at every rule one by one, without the index; the verdict is the policy's own. */
export function explain(policy: RulePolicy, supposed: Supposed): Explanation {
  const outcome = suppose(policy, supposed);
  const { host } = supposed.facts;
  const answers: RuleAnswer[] = [];
  for (const indexed of policy.index.all) {
    const { rule } = indexed;
    if (rule.hosts !== null && !rule.hosts.some((pattern) => hostMatches(pattern, host))) continue;
    const whyNot = reasonAgainst(indexed, supposed, outcome);
    if (whyNot !== null && rule.hosts === null && !isNear(indexed, supposed)) continue;
    if (answers.length < MAX_LISTED)
      answers.push({ rule, isMatch: whyNot === null, why: whyNot ?? 'everything in it matches' });
  }
  return { ...outcome, answers, alternatives: isRefusal(outcome.verdict) ? alternativesTo(policy, supposed) : [] };
}

/** Rules without a host are worth a line only if nothing but their path or condition keeps them from matching. */
function isNear(indexed: IndexedRule, { facts }: Supposed): boolean {
  return (indexed.layers & LAYER_BITS[facts.layer]) !== 0 && matchesRequest(indexed.rule, facts);
}

function reasonAgainst(indexed: IndexedRule, supposed: Supposed, outcome: Outcome): string | null {
  const { rule } = indexed;
  const { facts, message } = supposed;
  if (!matchesAgent(rule.agents, facts.agent)) return `it is for the agents ${rule.agents?.texts.join(', ') ?? ''}`;
  if (!matchesGate(rule, facts))
    return `it is for port ${(rule.ports ?? []).map(({ from, to }) => (from === to ? from : `${from}-${to}`)).join(', ')}`;
  if (supposed.station === 'tunnel' || (outcome.tunnel === 'passthrough' && outcome.station === 'gate')) {
    if (indexed.isAdmitting || indexed.isDecidedAtGate) return conditionAgainst(indexed, supposed, [facts.path]);
    return 'it needs to see a request, and the tunnel shows none';
  }
  if ((indexed.layers & LAYER_BITS[facts.layer]) === 0) return `it is not about ${facts.layer}`;
  if (rule.methods !== null && !rule.methods.includes(methodOf(facts))) return `it is for ${rule.methods.join(', ')}`;
  if (rule.scheme !== null && rule.scheme !== facts.scheme) return `it is for ${rule.scheme}`;
  if (!matchesRequest(rule, facts)) return 'it is for other gRPC services or methods';
  const readings = indexed.isAdmitting
    ? [facts.path]
    : readingsOf(facts.path).filter((path) => matchesPath(rule, path));
  if (!readings.some((path) => matchesPath(rule, path)))
    return `it is for the paths ${(rule.paths ?? []).map((path) => path.text).join(', ')}`;
  if (rule.direction !== null || rule.condition?.reads.has('message') === true) {
    if (message === null) return 'it looks at single messages';
    if (rule.direction !== null && rule.direction !== message.direction)
      return `it looks at the messages of the ${rule.direction}`;
  }
  return conditionAgainst(indexed, supposed, readings);
}

function conditionAgainst(
  indexed: IndexedRule,
  { facts, message, station }: Supposed,
  readings: readonly string[],
): string | null {
  const { condition } = indexed.rule;
  if (condition === null) return null;
  if (station === 'tunnel' && !indexed.isConditionGateReadable) return null;
  const view = new FactsView();
  const results = readings.map((path) =>
    condition.evaluate(
      station === 'request'
        ? view.fillRequest(facts, message, path)
        : view.fillGate(facts, station === 'raw' ? 'raw' : undefined),
    ),
  );
  if (results.includes(true)) return null;
  if (!results.includes(null)) return 'its condition is false';
  return indexed.isAdmitting ? 'its condition fails, which admits nothing' : null;
}

function alternativesTo(policy: RulePolicy, { facts }: Supposed): string[] {
  const alternatives: string[] = [];
  const hosts = new Set<string>();
  for (const indexed of policy.index.all) {
    if (indexed.admits === 0) continue;
    const { rule } = indexed;
    for (const pattern of rule.hosts ?? []) hosts.add(pattern.text);
    if (rule.hosts !== null && !rule.hosts.some((pattern) => hostMatches(pattern, facts.host))) continue;
    if (alternatives.length < MAX_LISTED) alternatives.push(`${describeRule(rule)} (rule ${rule.id})`);
  }
  if (alternatives.length > 0) return alternatives;
  const near = didYouMean(facts.host, hosts);
  return near === null ? [] : [`a host of a similar name is allowed: ${near}`];
}

/** A rule's `match` in one line. */
export function describeRule(rule: Rule): string {
  const parts = [
    rule.protocols?.join('/') ?? null,
    rule.methods?.join(', ') ?? null,
    rule.hosts === null ? 'any host' : shorten(rule.hosts.map((host) => host.text)),
    rule.ports === null
      ? null
      : `port ${rule.ports.map(({ from, to }) => (from === to ? `${from}` : `${from}-${to}`)).join(', ')}`,
    rule.paths === null ? null : shorten(rule.paths.map((path) => path.text)),
    rule.scheme === null ? null : `over ${rule.scheme}`,
    rule.grpc === null
      ? null
      : `gRPC ${shorten((rule.grpc.services ?? []).map((it) => it.text))} ${shorten((rule.grpc.methods ?? []).map((it) => it.text))}`.trim(),
    rule.direction === null ? null : `messages of the ${rule.direction}`,
    rule.agents === null ? null : `for ${shorten(rule.agents.texts)}`,
    rule.condition === null ? null : `if ${rule.condition.text}`,
  ];
  return parts.filter((text) => text !== null).join(' ');
}

function shorten(texts: readonly string[]): string {
  return texts.length <= 4 ? texts.join(', ') : `${texts.slice(0, 3).join(', ')} and ${texts.length - 3} more`;
}

/** Facts of a request that somebody writes down; everything not said has a plain value. */
export function supposeRequest(parts: {
  readonly agent: Agent;
  readonly host: string;
  readonly port: number;
  readonly scheme: 'http' | 'https';
  readonly layer: Layer;
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly timeMs: number;
}): RequestFacts {
  const call = parts.layer === 'grpc' ? /^\/([^/]+)\/([^/]+)$/.exec(parts.path) : null;
  const headers: Record<string, string> = Object.assign(Object.create(null) as Record<string, string>, parts.headers);
  return {
    ...parts,
    headers,
    httpVersion: parts.layer === 'grpc' ? '2' : '1.1',
    grpc: call === null ? null : { service: call[1] ?? '', method: call[2] ?? '' },
  };
}
