import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { RequestFacts } from '../../src/core/facts.ts';
import type { Action, Verdict } from '../../src/core/verdict.ts';
import { compileRules } from '../../src/policy/compile.ts';
import type { RulePolicy } from '../../src/policy/rule-policy.ts';
import { agentOf, requestTo } from './policies.ts';

/** A rule as data, for the rule file and for the plain evaluation below. */
interface Sketch {
  readonly action: Exclude<Action, 'redact'>;
  readonly mode: 'enforce' | 'monitor';
  readonly host: readonly string[] | null;
  readonly port: number | null;
  readonly method: string | null;
  readonly path: string | null;
  readonly protocol: 'http' | 'websocket' | 'grpc' | null;
  readonly agent: string | null;
  readonly condition: keyof typeof CONDITIONS | null;
}

const HOSTS = ['a.test', 'b.test', 'x.a.test', 'y.x.a.test', 'api-1.b.test', 'q.api-1.b.test', '10.0.0.1'] as const;
const HOST_PATTERNS: Readonly<Record<string, RegExp>> = {
  'a.test': /^a\.test$/,
  'b.test': /^b\.test$/,
  '*.a.test': /^.+\.a\.test$/,
  '*.x.a.test': /^.+\.x\.a\.test$/,
  '*.test': /^.+\.test$/,
  'api-*.b.test': /^api-[^.]*\.b\.test$/,
  '*.api-*.b.test': /^.+\.api-[^.]*\.b\.test$/,
  '10.0.0.1': /^10\.0\.0\.1$/,
  '*': /^.*$/,
};
const PATHS: Readonly<Record<string, RegExp>> = {
  '/v1/*': /^\/v1\/[^/]+$/,
  '/v1/**': /^\/v1\/.*$/,
  '/v1/a': /^\/v1\/a$/,
};
/** Text and meaning; null stands for an expression that fails. */
const CONDITIONS = {
  'port == 443': (facts: RequestFacts) => facts.port === 443,
  '"x" in headers': (facts: RequestFacts) => 'x' in facts.headers,
  'headers["x"] == "1"': (facts: RequestFacts) => ('x' in facts.headers ? facts.headers['x'] === '1' : null),
  'method == "POST" || headers["y"] == "1"': (facts: RequestFacts) =>
    facts.layer !== 'websocket' && facts.method === 'POST'
      ? true
      : 'y' in facts.headers
        ? facts.headers['y'] === '1'
        : null,
} as const;

const STRICTEST = ['deny', 'approve', 'warn', 'allow'] as const;
const REASONS = { http: 'request_not_allowed', websocket: 'websocket_not_allowed', grpc: 'grpc_not_allowed' } as const;

const sketch: fc.Arbitrary<Sketch> = fc.record({
  action: fc.constantFrom('deny', 'approve', 'warn', 'allow', 'allow', 'allow'),
  mode: fc.constantFrom('enforce', 'enforce', 'enforce', 'monitor'),
  host: fc.option(fc.uniqueArray(fc.constantFrom(...Object.keys(HOST_PATTERNS)), { minLength: 1, maxLength: 3 })),
  port: fc.option(fc.constantFrom(443, 8443), { freq: 1 }),
  method: fc.option(fc.constantFrom('GET', 'POST'), { freq: 1 }),
  path: fc.option(fc.constantFrom(...Object.keys(PATHS)), { freq: 1 }),
  protocol: fc.option(fc.constantFrom('http', 'websocket', 'grpc'), { freq: 1 }),
  agent: fc.option(fc.constantFrom('ci-*', 'bot'), { freq: 1 }),
  condition: fc.option(
    fc.constantFrom('port == 443', '"x" in headers', 'headers["x"] == "1"', 'method == "POST" || headers["y"] == "1"'),
    { freq: 1 },
  ),
});

const request = fc
  .record({
    host: fc.constantFrom(...HOSTS),
    port: fc.constantFrom(443, 8443),
    path: fc.constantFrom('/v1/a', '/v1/b', '/v1/a/b', '/', '/v1//a', '/v1/a/'),
    layer: fc.constantFrom('http', 'websocket', 'grpc'),
    method: fc.constantFrom('GET', 'POST'),
    headers: fc.constantFrom<Record<string, string>[]>({}, { x: '1' }, { x: '2' }, { y: '1' }),
    agent: fc.constantFrom('ci-7', 'bot', 'other'),
  })
  .map(({ host, port, path, agent, ...parts }) =>
    requestTo(`https://${host}:${port}${path}`, { ...parts, agent: agentOf(agent) }),
  );

function idOf(index: number): string {
  return `r${index}`;
}

/** Sketches that no check refuses. */
function isSensible({ protocol, method }: Sketch): boolean {
  return !(protocol === 'grpc' && method === 'GET') && !(protocol === 'websocket' && method === 'POST');
}

function compile(sketches: readonly Sketch[], order: readonly number[], files: number): RulePolicy {
  const texts = Array.from({ length: files }, () => [] as object[]);
  order.forEach((index, position) => {
    const one = sketches[index];
    if (one === undefined || !isSensible(one)) return;
    const { host, port, method, path, protocol } = one;
    const match = Object.fromEntries(
      Object.entries({ host, port, method, path, protocol }).filter(([, value]) => value !== null),
    );
    texts[position % files]?.push({
      id: idOf(index),
      action: one.action,
      mode: one.mode,
      ...(Object.keys(match).length === 0 ? {} : { match }),
      ...(one.agent === null ? {} : { agents: one.agent }),
      ...(one.condition === null ? {} : { if: one.condition }),
    });
  });
  // JSON is YAML.
  const result = compileRules(
    texts.map((rules, i) => ({ name: `${i}.yaml`, text: JSON.stringify({ version: 1, rules }), kind: 'rules' })),
  );
  if (!result.ok) throw new Error(JSON.stringify(result.problems));
  return result.policy;
}

/** Every rule in turn, no index, no early end. */
function plainly(sketches: readonly Sketch[], facts: RequestFacts): Pick<Verdict, 'action' | 'judged' | 'reason'> {
  const method = facts.layer === 'websocket' ? 'GET' : facts.method;
  const readings = [
    ...new Set([
      facts.path,
      facts.path.replace(/\/+/g, '/'),
      facts.path.replace(/(.)\/$/, '$1'),
      facts.path.replace(/\/+/g, '/').replace(/(.)\/$/, '$1'),
    ]),
  ];
  const hits = sketches.filter(isSensible).flatMap((one) => {
    const restricts = one.action === 'deny' || one.action === 'approve';
    if (one.host !== null && !one.host.some((pattern) => HOST_PATTERNS[pattern]?.test(facts.host) === true)) return [];
    if (one.port !== null && one.port !== facts.port) return [];
    if (one.method !== null && one.method !== method) return [];
    if (one.protocol !== null && one.protocol !== facts.layer) return [];
    if (one.agent !== null && !(one.agent === 'ci-*' ? facts.agent.id.startsWith('ci-') : facts.agent.id === one.agent))
      return [];
    const pattern = one.path === null ? null : (PATHS[one.path] ?? null);
    if (pattern !== null && !(restricts ? readings : [facts.path]).some((path) => pattern.test(path))) return [];
    const result = one.condition === null ? true : CONDITIONS[one.condition](facts);
    if (result === false || (result === null && !restricts)) return [];
    return [{ one, isFailure: result === null }];
  });
  const settle = (counted: typeof hits): { action: Action; reason: string } => {
    const strictest = STRICTEST.find((action) => counted.some((hit) => hit.one.action === action));
    if (strictest === undefined) return { action: 'deny', reason: REASONS[facts.layer as keyof typeof REASONS] };
    if (strictest === 'warn' || strictest === 'allow') return { action: strictest, reason: 'allowed' };
    const isFailure = counted.filter((hit) => hit.one.action === strictest).every((hit) => hit.isFailure);
    return {
      action: strictest,
      reason: isFailure ? 'rule_error' : strictest === 'deny' ? 'denied_by_rule' : 'approval_required',
    };
  };
  return { ...settle(hits.filter((hit) => hit.one.mode === 'enforce')), judged: settle(hits).action };
}

const sketches = fc.array(sketch, { maxLength: 25 });

describe('decisions over random rules', () => {
  it('are those of a plain walk over all rules', () => {
    fc.assert(
      fc.property(sketches, fc.array(request, { minLength: 1, maxLength: 10 }), (rules, requests) => {
        const policy = compile(
          rules,
          rules.map((_, i) => i),
          1,
        );
        for (const facts of requests) {
          const { action, judged, reason } = policy.request(facts);
          expect({ action, judged, reason }).toEqual(plainly(rules, facts));
        }
      }),
      { numRuns: 400 },
    );
  });

  it('do not depend on the order of lines and files', () => {
    fc.assert(
      fc.property(
        sketches.chain((rules) =>
          fc.tuple(
            fc.constant(rules),
            fc.shuffledSubarray([...rules.keys()], { minLength: rules.length }),
            fc.integer({ min: 1, max: 3 }),
          ),
        ),
        request,
        ([rules, order, files], facts) => {
          const one = compile(rules, [...rules.keys()], 1);
          const other = compile(rules, order, files);
          expect(other.revision).toBe(one.revision);
          expect(other.request(facts)).toEqual(one.request(facts));
          expect(other.gate(facts)).toEqual(one.gate(facts));
          expect(other.raw(facts)).toEqual(one.raw(facts));
        },
      ),
      { numRuns: 200 },
    );
  });

  it('what a request is allowed, the gate lets through', () => {
    fc.assert(
      fc.property(sketches, request, (rules, facts) => {
        const policy = compile(rules, [...rules.keys()], 1);
        const { action } = policy.request(facts);
        if (action !== 'allow' && action !== 'warn') return;
        const gate = policy.gate({ agent: facts.agent, host: facts.host, port: facts.port }).verdict;
        expect(['allow', 'warn']).toContain(gate.action);
      }),
      { numRuns: 400 },
    );
  });

  it('one more deny rule never opens anything', () => {
    fc.assert(
      fc.property(sketches, sketch, request, (rules, extra, facts) => {
        const before = compile(rules, [...rules.keys()], 1).request(facts).action;
        const more = [...rules, { ...extra, action: 'deny' as const }];
        const after = compile(more, [...more.keys()], 1).request(facts).action;
        const rank = (action: Action): number => ['deny', 'approve', 'redact', 'warn', 'allow'].indexOf(action);
        expect(rank(after)).toBeLessThanOrEqual(rank(before));
      }),
      { numRuns: 200 },
    );
  });
});
