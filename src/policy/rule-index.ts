import {
  ACTIONS,
  admittedLayers,
  isAdmitting,
  isConditionGateReadable,
  isDecidedAtGate,
  isMessageRule,
  layersOf,
} from './rule.ts';
import type { Defaults, Rule } from './rule.ts';

/** A rule with what decisions need, worked out once. */
export interface IndexedRule {
  readonly rule: Rule;
  /** Position in the one order of all rules: strictest action first, then id. Order of files and lines is not in it. */
  readonly order: number;
  readonly layers: number;
  /** Layers that the rule admits; 0 for rules that restrict and for rules in monitor mode. */
  readonly admits: number;
  /** What it would admit outside monitor mode. */
  readonly wouldAdmit: number;
  readonly isAdmitting: boolean;
  readonly isEnforced: boolean;
  readonly isDecidedAtGate: boolean;
  readonly isConditionGateReadable: boolean;
  readonly readsTime: boolean;
  /** The path matters, in `match` or in `if`. */
  readonly readsPath: boolean;
}

/** The rules that can match one host, by what they decide; each list in the one order. */
export interface HostRules {
  readonly requests: readonly IndexedRule[];
  readonly messages: readonly IndexedRule[];
  /** Rules for the gate: those it decides and those that admit something. */
  readonly gate: readonly IndexedRule[];
}

/** Hosts whose rules are kept ready. Agents choose hosts, so the number is bounded; at the bound all are forgotten. */
const MAX_KEPT_HOSTS = 16_384;

/** Puts rules in the one order and works out their facts. */
export function indexRules(rules: readonly Rule[], defaults: Defaults): IndexedRule[] {
  const strictness = (rule: Rule): number => ACTIONS.indexOf(rule.action);
  const sorted = [...rules].sort((a, b) => strictness(a) - strictness(b) || (a.id < b.id ? -1 : 1));
  return sorted.map((rule, order) => ({
    rule,
    order,
    layers: layersOf(rule),
    admits: admittedLayers(rule, defaults),
    wouldAdmit: admittedLayers({ ...rule, mode: 'enforce' }, defaults),
    isAdmitting: isAdmitting(rule.action),
    isEnforced: rule.mode === 'enforce',
    isDecidedAtGate: isDecidedAtGate(rule),
    isConditionGateReadable: isConditionGateReadable(rule),
    readsTime: rule.condition?.reads.has('now') === true,
    readsPath: rule.paths !== null || rule.condition?.reads.has('path') === true,
  }));
}

/**
 * Finds the rules of a host without looking at the others: names in one map, `*.tail` and globs in another under their literal tail, which is looked
 * up for every dot of the host. Only rules without a host are always looked at.
 */
export class RuleIndex {
  readonly all: readonly IndexedRule[];
  readonly #exact = new Map<string, IndexedRule[]>();
  /** By tail: rules whose pattern is `*.tail`, and globs that still have to be tested. */
  readonly #tails = new Map<
    string,
    { readonly sure: IndexedRule[]; readonly globs: { rule: IndexedRule; test: (host: string) => boolean }[] }
  >();
  readonly #everywhere: IndexedRule[] = [];
  readonly #everywhereOnly: HostRules;
  readonly #kept = new Map<string, HostRules>();

  constructor(all: readonly IndexedRule[]) {
    this.all = all;
    for (const indexed of all) this.#file(indexed);
    this.#everywhereOnly = split(this.#everywhere);
  }

  #file(indexed: IndexedRule): void {
    const { hosts } = indexed.rule;
    if (hosts === null || hosts.some((host) => host.kind === 'any')) {
      this.#everywhere.push(indexed);
      return;
    }
    for (const host of hosts) {
      if (host.kind === 'exact') {
        const list = this.#exact.get(host.text);
        if (list === undefined) this.#exact.set(host.text, [indexed]);
        else list.push(indexed);
      } else if (host.kind !== 'any') {
        const tail = this.#tails.get(host.tail) ?? { sure: [], globs: [] };
        this.#tails.set(host.tail, tail);
        if (host.kind === 'suffix') tail.sure.push(indexed);
        else tail.globs.push({ rule: indexed, test: host.test });
      }
    }
  }

  /** Rules that can match a canonical host. */
  at(host: string): HostRules {
    const kept = this.#kept.get(host);
    if (kept !== undefined) return kept;
    const found = new Set(this.#exact.get(host));
    for (let dot = host.indexOf('.'); dot !== -1; dot = host.indexOf('.', dot + 1)) {
      const tail = this.#tails.get(host.slice(dot + 1));
      if (tail === undefined) continue;
      for (const rule of tail.sure) found.add(rule);
      for (const glob of tail.globs) if (glob.test(host)) found.add(glob.rule);
    }
    if (found.size === 0) return this.#everywhereOnly;
    for (const rule of this.#everywhere) found.add(rule);
    const rules = split([...found].sort((a, b) => a.order - b.order));
    if (this.#kept.size >= MAX_KEPT_HOSTS) this.#kept.clear();
    this.#kept.set(host, rules);
    return rules;
  }
}

function split(rules: readonly IndexedRule[]): HostRules {
  const requests = rules.filter((indexed) => !isMessageRule(indexed.rule));
  return {
    requests,
    messages: rules.filter((indexed) => isMessageRule(indexed.rule)),
    gate: requests.filter((indexed) => indexed.isDecidedAtGate || indexed.wouldAdmit !== 0),
  };
}
