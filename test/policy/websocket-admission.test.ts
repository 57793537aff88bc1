import { expect, test } from 'vitest';
import { compilePolicy } from '../../src/policy/compile.ts';
import type { RequestFacts } from '../../src/core/facts.ts';

function webSocket(rule: string): string {
  const result = compilePolicy([{ name: 'test.yaml', kind: 'rules', text: `version: 1\nrules:\n  - ${rule}\n` }]);
  if (!result.ok) throw new Error(result.problems.map((problem) => problem.text).join('\n'));
  const facts: RequestFacts = {
    agent: { id: 'a', name: 'a', labels: {}, identifiedBy: 'listener' },
    host: 'x.example',
    port: 443,
    layer: 'websocket',
    scheme: 'https',
    method: 'GET',
    path: '/',
    query: '',
    headers: {},
    httpVersion: '1.1',
    grpc: null,
    timeMs: 0,
  };
  return result.policy.request(facts).reason;
}

test.each([
  ['{ id: r, match: { host: x.example }, action: allow }', 'allowed'],
  ['{ id: r, match: { host: x.example, method: GET }, action: allow }', 'websocket_not_allowed'],
  ['{ id: r, match: { host: x.example, method: [GET, POST] }, action: warn }', 'websocket_not_allowed'],
  ['{ id: r, match: { host: x.example, method: GET, protocol: websocket }, action: allow }', 'allowed'],
  ['{ id: r, match: { host: x.example, protocol: http }, action: allow }', 'websocket_not_allowed'],
])('a rule that names methods means requests, not a channel both ways: %s', (rule, reason) => {
  expect(webSocket(rule)).toBe(reason);
});
