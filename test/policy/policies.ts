import type { Agent } from '../../src/core/agent.ts';
import type { RequestFacts } from '../../src/core/facts.ts';
import type { Layer } from '../../src/core/verdict.ts';
import { compileRules } from '../../src/policy/compile.ts';
import type { RuleFile } from '../../src/policy/compile.ts';
import { formatProblem } from '../../src/policy/problem.ts';
import type { RulePolicy } from '../../src/policy/rule-policy.ts';
import { readUrl } from '../../src/policy/case-schema.ts';

/** A policy from the text of one file; the test fails with its problems when it is not valid. */
export function policyOf(text: string, ...more: readonly RuleFile[]): RulePolicy {
  const result = compileRules([{ name: 'test.yaml', text: withVersion(text), kind: 'rules' }, ...more]);
  if (!result.ok) throw new Error(result.problems.map(formatProblem).join('\n'));
  return result.policy;
}

/** Problems of one file, as text. */
export function problemsOf(text: string, ...more: readonly RuleFile[]): string[] {
  const result = compileRules([{ name: 'test.yaml', text, kind: 'rules' }, ...more]);
  return result.ok ? [] : result.problems.map(formatProblem);
}

export function notesOf(text: string, ...more: readonly RuleFile[]): string[] {
  const result = compileRules([{ name: 'test.yaml', text: withVersion(text), kind: 'rules' }, ...more]);
  if (!result.ok) throw new Error(result.problems.map(formatProblem).join('\n'));
  return result.notes.map(formatProblem);
}

/** Texts in tests are indented as the code around them; what stands at the top must stand at the margin. */
function withVersion(text: string): string {
  const flush = text.replace(/^ +(rules|defaults|include):/gm, '$1:');
  return flush.includes('version:') ? flush : `version: 1\n${flush}`;
}

export function agentOf(id = 'default', labels: Readonly<Record<string, string>> = {}): Agent {
  return { id, name: `${id} by name`, labels, identifiedBy: 'listener' };
}

interface Parts {
  readonly agent?: Agent;
  readonly method?: string;
  readonly layer?: Layer;
  readonly headers?: Readonly<Record<string, string>>;
  readonly timeMs?: number;
}

/** Facts of a request to a URL. */
export function requestTo(url: string, parts: Parts = {}): RequestFacts {
  const place = readUrl(url);
  if (place === null) throw new Error(`not a URL: ${url}`);
  const layer = parts.layer ?? 'http';
  const [, service, method] = /^\/([^/]+)\/([^/]+)$/.exec(place.path) ?? [];
  return {
    ...place,
    agent: parts.agent ?? agentOf(),
    layer,
    method: parts.method ?? (layer === 'grpc' ? 'POST' : 'GET'),
    headers: Object.assign(Object.create(null) as Record<string, string>, parts.headers),
    httpVersion: layer === 'grpc' ? '2' : '1.1',
    grpc: layer === 'grpc' && service !== undefined && method !== undefined ? { service, method } : null,
    timeMs: parts.timeMs ?? Date.UTC(2026, 0, 5, 12),
  };
}
