import type { GateFacts, GateVerdict, MessageFacts, Policy, RequestFacts } from '../core/facts.ts';
import type { Verdict } from '../core/verdict.ts';
import { decide, NOT_ADMITTED, verdict } from './decide.ts';
import type { Hit } from './decide.ts';
import { FactsView } from './facts-view.ts';
import { readingsOf } from './glob.ts';
import { LAYER_BITS, layersAdmittedByDefault, matchesGate, matchesPath, matchesRequest } from './rule.ts';
import type { Defaults, Rule } from './rule.ts';
import { indexRules, RuleIndex } from './rule-index.ts';
import type { IndexedRule } from './rule-index.ts';

/** `matches` and `fails` are told apart for the reason; `undecided` is left to a later station. */
type Answer = 'matches' | 'fails' | 'undecided' | 'no';

const NOTHING_TO_SAY = verdict('allow', 'allowed', [], null);

/** The compiled rules. Decisions are synchronous, never throw, and cost the same however many rules speak of other hosts. */
export class RulePolicy implements Policy {
  readonly revision: string;
  readonly ruleCount: number;
  readonly defaults: Defaults;
  readonly index: RuleIndex;
  readonly #admittedByDefault: number;
  readonly #view = new FactsView();
  /** Verdicts of requests that one allow rule alone decides, which are nearly all. */
  readonly #allowed = new Map<IndexedRule, Verdict>();

  constructor(rules: readonly Rule[], defaults: Defaults, revision: string) {
    this.revision = revision;
    this.ruleCount = rules.length;
    this.defaults = defaults;
    this.index = new RuleIndex(indexRules(rules, defaults));
    this.#admittedByDefault = layersAdmittedByDefault(defaults);
  }

  gate(facts: GateFacts): GateVerdict {
    const hits: Hit[] = [];
    const undecided: IndexedRule[] = [];
    let isPassthrough = false;
    for (const indexed of this.index.at(facts.host).gate) {
      if (!matchesGate(indexed.rule, facts)) continue;
      const answer = this.#atGate(indexed, facts);
      if (answer === 'no') continue;
      if (!indexed.isAdmitting) {
        if (answer === 'undecided') undecided.push(indexed);
        else hits.push(hit(indexed, answer === 'fails', 0));
        continue;
      }
      if (answer === 'fails') continue;
      // At the gate an admitting rule opens the way if it may admit anything at all later; a mark is only put when it is sure.
      const isSure = indexed.isDecidedAtGate && answer === 'matches';
      const action = indexed.rule.action === 'warn' && !isSure ? 'allow' : indexed.rule.action;
      hits.push({
        indexed,
        action,
        isFailure: false,
        admits: indexed.admits !== 0,
        wouldAdmit: indexed.wouldAdmit !== 0,
      });
      if (!indexed.rule.isIntercepted && indexed.isEnforced) isPassthrough = true;
    }
    // Nobody looks into this tunnel later, so what is undecided now stays so: doubt ends in deny.
    if (isPassthrough) hits.unshift(...undecided.map((indexed) => hit(indexed, true, 0)));
    const answer = decide(hits, this.#admittedByDefault !== 0, 'denied_by_rule', 'host_not_allowed');
    const isRefused = answer.action === 'deny' || answer.action === 'approve';
    return { verdict: answer, mode: isPassthrough && !isRefused ? 'passthrough' : 'intercept' };
  }

  raw(facts: GateFacts): Verdict {
    const hits: Hit[] = [];
    const bit = LAYER_BITS.raw;
    for (const indexed of this.index.at(facts.host).requests) {
      if ((indexed.layers & bit) === 0 || !matchesGate(indexed.rule, facts)) continue;
      const { condition } = indexed.rule;
      const result = condition === null ? true : condition.evaluate(this.#view.fillGate(facts, 'raw'));
      if (result === true || (result === null && !indexed.isAdmitting)) hits.push(hit(indexed, result === null, bit));
    }
    return decide(hits, (this.#admittedByDefault & bit) !== 0, 'denied_by_rule', NOT_ADMITTED.raw);
  }

  request(facts: RequestFacts): Verdict {
    const bit = LAYER_BITS[facts.layer];
    const hits: Hit[] = [];
    let readings: readonly string[] | null = null;
    let refusedAt: string | null = null;
    for (const indexed of this.index.at(facts.host).requests) {
      // Rules come strictest first: after a refusal only its equals are of interest.
      if (refusedAt !== null && indexed.rule.action !== refusedAt) break;
      if ((indexed.layers & bit) === 0 || !matchesRequest(indexed.rule, facts)) continue;
      readings ??= readingsOf(facts.path);
      const answer = this.#onPath(indexed, facts, null, readings);
      if (answer === 'no') continue;
      hits.push(hit(indexed, answer === 'fails', bit));
      if (!indexed.isAdmitting && indexed.isEnforced) refusedAt = indexed.rule.action;
    }
    const only = hits.length === 1 ? hits[0] : undefined;
    if (only?.admits === true && only.action === 'allow') return this.#allowedBy(only);
    return decide(hits, (this.#admittedByDefault & bit) !== 0, 'denied_by_rule', NOT_ADMITTED[facts.layer]);
  }

  needsMessages(facts: RequestFacts): boolean {
    const bit = LAYER_BITS[facts.layer];
    for (const { rule, layers } of this.index.at(facts.host).messages) {
      if ((layers & bit) === 0 || !matchesRequest(rule, facts)) continue;
      if (rule.paths === null || readingsOf(facts.path).some((path) => matchesPath(rule, path))) return true;
    }
    return false;
  }

  message(facts: RequestFacts, message: MessageFacts): Verdict {
    const bit = LAYER_BITS[facts.layer];
    const hits: Hit[] = [];
    let readings: readonly string[] | null = null;
    for (const indexed of this.index.at(facts.host).messages) {
      const { rule } = indexed;
      if ((indexed.layers & bit) === 0 || (rule.direction !== null && rule.direction !== message.direction)) continue;
      if (!matchesRequest(rule, facts)) continue;
      readings ??= readingsOf(facts.path);
      const answer = this.#onPath(indexed, facts, message, readings);
      if (answer !== 'no') hits.push(hit(indexed, answer === 'fails', bit));
    }
    // The request was admitted before; its messages need no second admission.
    return hits.length === 0 ? NOTHING_TO_SAY : decide(hits, true, 'message_denied', 'message_denied');
  }

  #atGate(indexed: IndexedRule, facts: GateFacts): Answer {
    const { condition } = indexed.rule;
    if (condition === null) return 'matches';
    if (!indexed.isConditionGateReadable || (indexed.readsTime && facts.timeMs === undefined)) return 'undecided';
    const result = condition.evaluate(this.#view.fillGate(facts, undefined));
    return result === null ? 'fails' : result ? 'matches' : 'no';
  }

  /** A rule that admits must match the path as it stands; one that restricts may match any way to read it. */
  #onPath(
    indexed: IndexedRule,
    facts: RequestFacts,
    message: MessageFacts | null,
    readings: readonly string[],
  ): Answer {
    const { rule } = indexed;
    if (rule.paths === null && rule.condition === null) return 'matches';
    const count = indexed.isAdmitting || !indexed.readsPath ? 1 : readings.length;
    let answer: Answer = 'no';
    for (let i = 0; i < count; i++) {
      const path = readings[i] ?? facts.path;
      if (!matchesPath(rule, path)) continue;
      const result =
        rule.condition === null ? true : rule.condition.evaluate(this.#view.fillRequest(facts, message, path));
      if (result === true) return 'matches';
      if (result === null && !indexed.isAdmitting) answer = 'fails';
    }
    return answer;
  }

  #allowedBy(only: Hit): Verdict {
    const known = this.#allowed.get(only.indexed);
    if (known !== undefined) return known;
    const { id, message } = only.indexed.rule;
    const made = verdict('allow', 'allowed', [id], message);
    this.#allowed.set(only.indexed, made);
    return made;
  }
}

function hit(indexed: IndexedRule, isFailure: boolean, bit: number): Hit {
  return {
    indexed,
    action: indexed.rule.action,
    isFailure,
    admits: (indexed.admits & bit) !== 0,
    wouldAdmit: (indexed.wouldAdmit & bit) !== 0,
  };
}
