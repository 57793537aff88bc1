import type { Agent } from '../core/agent.ts';
import type { GateFacts, RequestFacts } from '../core/facts.ts';
import type { Direction } from '../core/message.ts';
import type { Action, Layer, Mode } from '../core/verdict.ts';
import type { Expression, Variable } from './expression.ts';
import { methodOf } from './facts-view.ts';
import type { HostPattern, TextPattern } from './glob.ts';

/** Layers as bits, so that a rule's layers are one number. */
export const LAYER_BITS = { http: 1, websocket: 2, grpc: 4, raw: 8, mcp: 16, llm: 32 } as const satisfies Record<
  Layer,
  number
>;
export const ALL_LAYERS = 63;
/** Layers of traffic that is made of HTTP requests. */
export const HTTP_LAYERS = ALL_LAYERS & ~LAYER_BITS.raw;

/** Strictest first. */
export const ACTIONS = ['deny', 'approve', 'redact', 'warn', 'allow'] as const satisfies readonly Action[];

/** How one layer is admitted when no rule names it: not at all, always, or with the http layer. */
export interface Defaults {
  readonly http: 'deny' | 'allow';
  readonly websocket: 'deny' | 'http' | 'allow';
  readonly grpc: 'deny' | 'http' | 'allow';
  readonly raw: 'deny' | 'allow';
}

export interface AgentPatterns {
  /** Any of them, on the id or the name. */
  readonly names: readonly TextPattern[];
  /** Any of them. */
  readonly labels: readonly { readonly key: string; readonly value: TextPattern }[];
  readonly texts: readonly string[];
}

export interface PortRange {
  readonly from: number;
  readonly to: number;
}

/** A rule as written and checked. A null part matches everything. */
export interface Rule {
  readonly id: string;
  readonly description: string | null;
  readonly action: Action;
  readonly mode: Mode;
  readonly message: string | null;
  readonly isIntercepted: boolean;
  readonly agents: AgentPatterns | null;
  readonly hosts: readonly HostPattern[] | null;
  readonly ports: readonly PortRange[] | null;
  readonly methods: readonly string[] | null;
  readonly paths: readonly TextPattern[] | null;
  readonly protocols: readonly Layer[] | null;
  readonly scheme: 'http' | 'https' | null;
  readonly direction: Direction | null;
  readonly grpc: {
    readonly services: readonly TextPattern[] | null;
    readonly methods: readonly TextPattern[] | null;
  } | null;
  readonly condition: Expression | null;
  readonly file: string;
  readonly line: number;
  readonly column: number;
}

/** Whether the action admits traffic rather than restricting it. */
export function isAdmitting(action: Action): boolean {
  return action === 'allow' || action === 'warn';
}

/** A rule that looks at single messages, and therefore never decides about requests. */
export function isMessageRule(rule: Rule): boolean {
  return rule.direction !== null || rule.condition?.reads.has('message') === true;
}

const GRPC_FACTS: readonly Variable[] = ['grpc'];
const HTTP_FACTS: readonly Variable[] = ['scheme', 'method', 'path', 'query', 'headers', 'http_version', 'message'];

/**
 * Layers whose traffic a rule can match: those it names, else all; but a rule that asks for something only HTTP requests have, in `match` or in `if`, is about
 * those, and one that asks for gRPC names is about gRPC.
 */
export function layersOf(rule: Rule): number {
  let layers =
    rule.protocols === null ? ALL_LAYERS : rule.protocols.reduce((bits, layer) => bits | LAYER_BITS[layer], 0);
  if (
    rule.methods !== null ||
    rule.paths !== null ||
    rule.scheme !== null ||
    rule.direction !== null ||
    reads(rule, HTTP_FACTS)
  )
    layers &= HTTP_LAYERS;
  if (rule.grpc !== null || reads(rule, GRPC_FACTS)) layers &= LAYER_BITS.grpc;
  return layers;
}

/** Layers that an allow or warn rule admits. */
export function admittedLayers(rule: Rule, defaults: Defaults): number {
  if (!isAdmitting(rule.action) || rule.mode === 'monitor' || isMessageRule(rule)) return 0;
  if (rule.protocols !== null) return layersOf(rule);
  // `match: { grpc: … }` names the layer as clearly as `protocol: grpc` does.
  if (rule.grpc !== null) return LAYER_BITS.grpc;
  let layers: number = LAYER_BITS.http;
  // A rule that names methods means requests: GET is how a WebSocket starts, and then it carries anything both ways.
  if (defaults.websocket === 'http' && rule.methods === null) layers |= LAYER_BITS.websocket;
  if (defaults.grpc === 'http') layers |= LAYER_BITS.grpc;
  return layers & layersOf(rule);
}

/** Layers that need no rule. */
export function layersAdmittedByDefault(defaults: Defaults): number {
  let layers = 0;
  if (defaults.http === 'allow') layers |= LAYER_BITS.http;
  if (defaults.raw === 'allow') layers |= LAYER_BITS.raw;
  for (const layer of ['websocket', 'grpc'] as const) {
    if (defaults[layer] === 'allow' || (defaults[layer] === 'http' && defaults.http === 'allow'))
      layers |= LAYER_BITS[layer];
  }
  return layers;
}

const GATE_FACTS: ReadonlySet<Variable> = new Set(['agent', 'host', 'port', 'now']);

function reads(rule: Rule, variables: readonly Variable[]): boolean {
  return rule.condition !== null && variables.some((variable) => rule.condition?.reads.has(variable));
}

/** Whether the condition, if any, can be told at the gate. */
export function isConditionGateReadable(rule: Rule): boolean {
  if (rule.condition === null) return true;
  for (const variable of rule.condition.reads) if (!GATE_FACTS.has(variable)) return false;
  return true;
}

/** Whether the rule needs nothing but agent, host, port and time, and is about every layer: then the gate can decide it. */
export function isDecidedAtGate(rule: Rule): boolean {
  return layersOf(rule) === ALL_LAYERS && !isMessageRule(rule) && isConditionGateReadable(rule);
}

export function matchesAgent(patterns: AgentPatterns | null, agent: Agent): boolean {
  if (patterns === null) return true;
  for (const pattern of patterns.names) if (pattern.test(agent.id) || pattern.test(agent.name)) return true;
  for (const { key, value } of patterns.labels) {
    const label = Object.hasOwn(agent.labels, key) ? agent.labels[key] : undefined;
    if (label !== undefined && value.test(label)) return true;
  }
  return false;
}

function matchesPort(ranges: readonly PortRange[] | null, port: number): boolean {
  if (ranges === null) return true;
  for (const range of ranges) if (port >= range.from && port <= range.to) return true;
  return false;
}

function matchesAny(patterns: readonly TextPattern[] | null, value: string): boolean {
  if (patterns === null) return true;
  for (const pattern of patterns) if (pattern.test(value)) return true;
  return false;
}

/** Agent and port; the host is the index's work. */
export function matchesGate(rule: Rule, facts: GateFacts): boolean {
  return matchesPort(rule.ports, facts.port) && matchesAgent(rule.agents, facts.agent);
}

/** Methods are case-sensitive, but some servers take `post` for `POST`: a rule that restricts means both, a rule that admits only what it says. */
function matchesMethod(rule: Rule, methods: readonly string[], method: string): boolean {
  return methods.includes(method) || (!isAdmitting(rule.action) && methods.includes(method.toUpperCase()));
}

/** All of `match` but host, layer, path and direction. */
export function matchesRequest(rule: Rule, facts: RequestFacts): boolean {
  if (rule.methods !== null && !matchesMethod(rule, rule.methods, methodOf(facts))) return false;
  if (rule.scheme !== null && rule.scheme !== facts.scheme) return false;
  if (rule.grpc !== null) {
    if (facts.grpc === null) return false;
    if (!matchesAny(rule.grpc.services, facts.grpc.service) || !matchesAny(rule.grpc.methods, facts.grpc.method))
      return false;
  }
  return matchesGate(rule, facts);
}

export function matchesPath(rule: Rule, path: string): boolean {
  return matchesAny(rule.paths, path);
}
