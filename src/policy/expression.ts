import { Environment } from '@marcbachmann/cel-js';
import type { ASTNode } from '@marcbachmann/cel-js';
import { AgentView, GrpcView, MessageView } from './facts-view.ts';
import type { FactsView } from './facts-view.ts';
import { didYouMean } from './problem.ts';
import { compileRegex } from './regex.ts';
import type { Regex } from './regex.ts';

/** Variables of expressions with their CEL types. */
const VARIABLES = {
  agent: 'Agent',
  host: 'string',
  port: 'int',
  scheme: 'string',
  method: 'string',
  path: 'string',
  query: 'string',
  headers: 'map<string, string>',
  protocol: 'string',
  http_version: 'string',
  grpc: 'Grpc',
  now: 'google.protobuf.Timestamp',
  message: 'Message',
} as const;

export type Variable = keyof typeof VARIABLES;

/** Fields of the variables that have some. */
const FIELDS = {
  agent: { id: 'string', name: 'string', labels: 'map<string, string>', identified_by: 'string' },
  grpc: { service: 'string', method: 'string' },
  message: { direction: 'string', kind: 'string', size: 'int', text: 'string' },
} as const;

/**
 * Bounds of an expression. Its cost is then at most: nodes × elements of one list or header map × length of the texts, because macros over lists do not
 * nest, `split` is limited, no function makes a longer list, and regular expressions take linear time (regex.ts).
 */
export const EXPRESSION_LIMITS = { length: 4096, nodes: 300, depth: 24, listElements: 200, splitParts: 100 } as const;

/** Functions and methods that rules may call. Left out: what turns a small text into a big value or needs the clock's time zone tables unchecked. */
const CALLS = new Set(['size', 'has', 'int', 'double', 'string', 'bool', 'timestamp', 'duration']);
const METHODS = new Set([
  ...[
    'size',
    'startsWith',
    'endsWith',
    'contains',
    'matches',
    'lowerAscii',
    'upperAscii',
    'trim',
    'indexOf',
    'lastIndexOf',
    'substring',
    'split',
  ],
  ...[
    'getFullYear',
    'getMonth',
    'getDate',
    'getDayOfMonth',
    'getDayOfWeek',
    'getDayOfYear',
    'getHours',
    'getMinutes',
    'getSeconds',
  ],
]);
const MACROS = new Set(['all', 'exists', 'exists_one']);

/** A checked condition. */
export interface Expression {
  readonly text: string;
  readonly reads: ReadonlySet<Variable>;
  /** True or false; null when it failed. Never throws. */
  evaluate(facts: FactsView): boolean | null;
}

export type ExpressionResult =
  | { readonly ok: true; readonly value: Expression }
  /** `offset` counts UTF-16 units from the start of the text. */
  | { readonly ok: false; readonly offset: number; readonly text: string; readonly hint: string | null };

class Mistake extends Error {
  readonly offset: number;
  readonly hint: string | null;

  constructor(at: ASTNode | number, text: string, hint: string | null = null) {
    super(text);
    this.offset = typeof at === 'number' ? at : at.start;
    this.hint = hint;
  }
}

/** Compiled regular expressions by their text; the same few come back at every reload. */
const regexes = new Map<string, Regex>();
const MAX_REGEXES = 2000;

const environment = new Environment({
  limits: {
    maxAstNodes: EXPRESSION_LIMITS.nodes,
    maxDepth: EXPRESSION_LIMITS.depth,
    maxListElements: EXPRESSION_LIMITS.listElements,
    maxMapEntries: EXPRESSION_LIMITS.listElements,
    maxCallArguments: 8,
  },
})
  .registerType('Agent', { ctor: AgentView, fields: FIELDS.agent })
  .registerType('Grpc', { ctor: GrpcView, fields: FIELDS.grpc })
  .registerType('Message', { ctor: MessageView, fields: FIELDS.message })
  // What `matches` becomes: the library's own goes through RegExp and is compiled anew at every call.
  .registerFunction('string.matchesLinear(string): bool', (input: string, pattern: string) =>
    regexOf(pattern).test(input),
  );
for (const [name, type] of Object.entries(VARIABLES)) environment.registerVariable(name, type);

function regexOf(pattern: string): Regex {
  const known = regexes.get(pattern);
  if (known !== undefined) return known;
  const compiled = compileRegex(pattern);
  if (!compiled.ok) throw new Error(compiled.text);
  if (regexes.size >= MAX_REGEXES) regexes.clear();
  regexes.set(pattern, compiled.value);
  return compiled.value;
}

/** Checked conditions by their text: generated rules repeat them, and a reload brings nearly all of them back. */
const expressions = new Map<string, ExpressionResult>();
const MAX_EXPRESSIONS = 2000;

/** Parses, checks types and bounds, and compiles. The same text gives the same expression. */
export function compileExpression(text: string): ExpressionResult {
  const known = expressions.get(text);
  if (known !== undefined) return known;
  const compiled = compileAnew(text);
  if (expressions.size >= MAX_EXPRESSIONS) expressions.clear();
  // Long texts that are refused are not worth keeping.
  if (compiled.ok) expressions.set(text, compiled);
  return compiled;
}

function compileAnew(text: string): ExpressionResult {
  if (text.length > EXPRESSION_LIMITS.length)
    return fail(0, `the condition is longer than ${EXPRESSION_LIMITS.length} characters`);
  if (text.trim() === '') return fail(0, 'the condition is empty');
  try {
    const parsed = environment.parse(text);
    const survey = new Survey(text);
    survey.visit(parsed.ast);
    const checked = parsed.check();
    if (checked.error !== undefined) return failWith(checked.error, text);
    if (checked.type !== 'bool') return fail(0, `the condition gives ${checked.type ?? 'nothing'}, not true or false`);
    const rewritten = survey.rewrite();
    const run = rewritten === text ? parsed : environment.parse(rewritten);
    // Unchecked expressions are checked at every evaluation.
    if (run !== parsed && !run.check().valid) return fail(0, 'the condition cannot be compiled');
    return { ok: true, value: new CelExpression(text, survey.reads, run) };
  } catch (error) {
    return failWith(error, text);
  }
}

class CelExpression implements Expression {
  readonly text: string;
  readonly reads: ReadonlySet<Variable>;
  readonly #run: (facts: Record<string, unknown>) => unknown;

  constructor(text: string, reads: ReadonlySet<Variable>, run: (facts: Record<string, unknown>) => unknown) {
    this.text = text;
    this.reads = reads;
    this.#run = run;
  }

  evaluate(facts: FactsView): boolean | null {
    try {
      const result = this.#run(facts as unknown as Record<string, unknown>);
      return typeof result === 'boolean' ? result : null;
    } catch {
      // The text of the error may hold payload.
      return null;
    }
  }
}

/** Walks the tree before it is checked: what it reads, and whether everything in it is bounded. */
class Survey {
  readonly reads = new Set<Variable>();
  readonly #text: string;
  readonly #matchCalls: { readonly from: number; readonly to: number }[] = [];

  constructor(text: string) {
    this.#text = text;
  }

  visit(node: ASTNode, isInMacro = false): void {
    switch (node.op) {
      case 'id':
        if (isVariable(node.args)) this.reads.add(node.args);
        return;
      case 'value':
        return;
      case 'call':
        if (!CALLS.has(node.args[0]))
          throw new Mistake(node, `${node.args[0]}() is not available in rules`, didYouMean(node.args[0], CALLS));
        for (const argument of node.args[1]) this.visit(argument, isInMacro);
        return;
      case 'rcall':
        this.#method(node.args[0], node.args[1], node.args[2], isInMacro);
        return;
      case '.':
      case '.?':
        this.visit(node.args[0], isInMacro);
        return;
      case 'list':
        for (const item of node.args) this.visit(item, isInMacro);
        return;
      case 'map':
        for (const [key, value] of node.args) {
          this.visit(key, isInMacro);
          this.visit(value, isInMacro);
        }
        return;
      case '!_':
      case '-_':
        this.visit(node.args, isInMacro);
        return;
      default:
        for (const part of node.args) this.visit(part, isInMacro);
    }
  }

  #method(name: string, receiver: ASTNode, parts: readonly ASTNode[], isInMacro: boolean): void {
    // The node of a call starts where its receiver does.
    const place = Math.max(receiver.start, this.#text.indexOf(name, receiver.end));
    const isMacro = MACROS.has(name);
    if (!isMacro && !METHODS.has(name)) {
      throw new Mistake(place, `.${name}() is not available in rules`, didYouMean(name, [...METHODS, ...MACROS]));
    }
    if (isMacro && isInMacro)
      throw new Mistake(
        place,
        `.${name}() inside another ${[...MACROS].join(', ')}`,
        'nested loops are refused; write two rules',
      );
    this.visit(receiver, isInMacro);
    const [first, second] = parts;
    if (isMacro) {
      if (first?.op === 'id' && isVariable(first.args))
        throw new Mistake(first, `the loop variable hides ${first.args}`, 'choose another name');
      for (const part of parts.slice(1)) this.visit(part, true);
      return;
    }
    for (const part of parts) this.visit(part, isInMacro);
    if (name === 'matches') this.#matches(receiver, first);
    if (
      name === 'split' &&
      !(
        second?.op === 'value' &&
        typeof second.args === 'bigint' &&
        second.args > 0n &&
        second.args <= EXPRESSION_LIMITS.splitParts
      )
    ) {
      throw new Mistake(
        place,
        `split needs a limit from 1 to ${EXPRESSION_LIMITS.splitParts} as its second argument`,
        'for example path.split("/", 10)',
      );
    }
    if (name.startsWith('get') && first !== undefined) this.#timeZone(first);
  }

  #matches(receiver: ASTNode, pattern: ASTNode | undefined): void {
    if (pattern?.op !== 'value' || typeof pattern.args !== 'string') {
      throw new Mistake(
        pattern ?? receiver,
        'the regular expression of matches must be a literal',
        'write it in quotes: r"^[a-z]+$"',
      );
    }
    const regex = compileRegex(pattern.args);
    if (!regex.ok) throw new Mistake(pattern, regex.text, regex.hint);
    this.#matchCalls.push({ from: receiver.end, to: pattern.start });
  }

  #timeZone(zone: ASTNode): void {
    if (zone.op !== 'value' || typeof zone.args !== 'string')
      throw new Mistake(zone, 'the time zone must be a literal', 'for example "Europe/Berlin"');
    try {
      new Intl.DateTimeFormat('en-US', { timeZone: zone.args });
    } catch {
      throw new Mistake(zone, `${JSON.stringify(zone.args)} is no time zone`, 'for example "Europe/Berlin"');
    }
  }

  /** The same expression with our own `matches`. The text is changed and not the tree, whose nodes belong to the library. */
  rewrite(): string {
    let text = this.#text;
    for (const { from, to } of this.#matchCalls.sort((a, b) => b.from - a.from)) {
      const call = text.slice(from, to);
      const own = call.replace(/\.(\s*)matches(\s*\(\s*)$/, '.$1matchesLinear$2');
      // Without the change the library's RegExp would run.
      if (own === call) throw new Error('a comment stands inside a call of matches');
      text = text.slice(0, from) + own + text.slice(to);
    }
    return text;
  }
}

function isVariable(name: string): name is Variable {
  return Object.hasOwn(VARIABLES, name);
}

function fail(offset: number, text: string, hint: string | null = null): ExpressionResult {
  return { ok: false, offset, text, hint };
}

/** Turns an error of the library, or ours, into a positioned one. */
function failWith(error: unknown, expression: string): ExpressionResult {
  if (error instanceof Mistake) return fail(error.offset, error.message, error.hint);
  if (!(error instanceof Error)) throw error;
  const range: unknown = 'range' in error ? error.range : undefined;
  const offset =
    typeof range === 'object' && range !== null && 'start' in range && typeof range.start === 'number'
      ? range.start
      : 0;
  const summary: unknown = 'summary' in error ? error.summary : error.message;
  const text = typeof summary === 'string' ? summary : error.message;
  const unknown = /^Unknown variable: (\w+)$/.exec(text)?.[1];
  if (unknown !== undefined) {
    return fail(
      offset,
      `unknown variable ${unknown}`,
      didYouMean(unknown, Object.keys(VARIABLES)) ?? `known are ${Object.keys(VARIABLES).join(', ')}`,
    );
  }
  const field = /^No such key: (\w+)$/.exec(text)?.[1];
  if (field !== undefined) {
    const owner = /(\w+)\s*$/.exec(expression.slice(0, Math.max(0, offset - 1)))?.[1] ?? '';
    const fields = Object.entries(FIELDS).find(([name]) => name === owner)?.[1];
    return fail(
      offset,
      `unknown field ${field}`,
      fields === undefined
        ? null
        : (didYouMean(field, Object.keys(fields)) ?? `known are ${Object.keys(fields).join(', ')}`),
    );
  }
  return fail(offset, text.charAt(0).toLowerCase() + text.slice(1));
}
