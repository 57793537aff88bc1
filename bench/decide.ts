import type { Agent } from '../src/core/agent.ts';
import type { RequestFacts } from '../src/core/facts.ts';
import { compilePolicy } from '../src/policy/compile.ts';

const AGENT: Agent = { id: 'bench', name: 'bench', labels: {}, identifiedBy: 'listener' };

function facts(host: string): RequestFacts {
  return {
    agent: AGENT,
    host,
    port: 443,
    layer: 'http',
    scheme: 'https',
    method: 'POST',
    path: '/v1/items',
    query: '',
    headers: { 'content-type': 'application/json', 'x-team': 'a' },
    httpVersion: '1.1',
    grpc: null,
    timeMs: 0,
  };
}

function policyOf(count: number, extra = ''): { policy: ReturnType<typeof compiled>; loadMs: number } {
  const rules = Array.from(
    { length: count },
    (_all, i) =>
      `  - { id: r${i}, match: { host: "host-${i}.example.com", method: [GET, POST], path: "/v1/**" }, action: allow }\n`,
  );
  const text = `version: 1\nrules:\n${rules.join('')}${extra}`;
  const startedAt = performance.now();
  const policy = compiled(text);
  return { policy, loadMs: performance.now() - startedAt };
}

function compiled(text: string) {
  const result = compilePolicy([{ name: 'bench.yaml', text, kind: 'rules' }]);
  if (!result.ok) throw new Error(result.problems.map((problem) => problem.text).join('\n'));
  return result.policy;
}

function microseconds(run: () => void): number {
  for (let i = 0; i < 20_000; i++) run();
  const rounds = [0, 1, 2, 3, 4].map(() => {
    const startedAt = performance.now();
    for (let i = 0; i < 50_000; i++) run();
    return ((performance.now() - startedAt) / 50_000) * 1000;
  });
  return rounds.sort((a, b) => a - b)[2] ?? NaN;
}

/** Cost of decisions without any socket. */
export function decideBench(): Promise<{ name: string; value: string }[]> {
  const small = policyOf(100);
  const large = policyOf(10_000);
  const conditions = policyOf(
    100,
    `  - { id: cel, match: { host: cel.example.com }, if: 'headers["x-team"] == "a" && path.startsWith("/v1/")', action: allow }\n`,
  );
  const hit = facts('host-42.example.com');
  const miss = facts('unknown.example.net');
  const cel = facts('cel.example.com');
  const us = (value: number): string => `${value.toFixed(2)} µs`;
  return Promise.resolve([
    { name: 'host rule, 100 rules', value: us(microseconds(() => void small.policy.request(hit))) },
    { name: 'host rule, 10,000 rules', value: us(microseconds(() => void large.policy.request(hit))) },
    { name: 'unknown host, 10,000 rules', value: us(microseconds(() => void large.policy.request(miss))) },
    { name: 'gate, 10,000 rules', value: us(microseconds(() => void large.policy.gate(hit))) },
    { name: 'rule with a CEL condition', value: us(microseconds(() => void conditions.policy.request(cel))) },
    { name: 'loading 10,000 rules', value: `${large.loadMs.toFixed(0)} ms` },
  ]);
}
