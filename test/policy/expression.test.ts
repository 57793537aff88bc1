import { describe, expect, it } from 'vitest';
import { compileExpression } from '../../src/policy/expression.ts';
import { FactsView } from '../../src/policy/facts-view.ts';
import { agentOf, requestTo } from './policies.ts';

const FACTS = requestTo('https://api.example.com:8443/v1/models?limit=2', {
  agent: agentOf('ci-7', { team: 'search' }),
  headers: { 'user-agent': 'curl/8.5', 'x-trace': 'abc', constructor: 'here' },
  timeMs: Date.UTC(2026, 0, 5, 23, 30),
});

function evaluate(text: string, message: { text: string | null; size: number } | null = null): boolean | null {
  const compiled = compileExpression(text);
  if (!compiled.ok) throw new Error(compiled.text);
  const facts = message === null ? null : { direction: 'request' as const, framing: 'body' as const, ...message };
  return compiled.value.evaluate(new FactsView().fillRequest(FACTS, facts, FACTS.path));
}

describe('conditions', () => {
  it.each<[string, boolean | null]>([
    ['agent.id == "ci-7" && agent.name == "ci-7 by name" && agent.identified_by == "listener"', true],
    ['agent.labels.team == "search"', true],
    ['agent.labels.owner == "me"', null],
    ['has(agent.labels.owner)', false],
    ['"owner" in agent.labels', false],
    ['host.endsWith(".example.com") && port == 8443 && scheme == "https"', true],
    ['method in ["GET", "HEAD"]', true],
    ['path.startsWith("/v1/") && query == "limit=2"', true],
    ['headers["user-agent"].startsWith("curl/")', true],
    ['headers["authorization"] == ""', null],
    ['"authorization" in headers', false],
    ['"__proto__" in headers', false],
    ['headers["constructor"] == "here"', true],
    ['headers.exists(name, name.startsWith("x-"))', true],
    ['headers.all(name, headers[name].size() < 100)', true],
    ['protocol == "http" && http_version == "1.1"', true],
    ['now.getHours() == 23 && now.getHours("Europe/Berlin") == 0', true],
    ['now > timestamp("2026-01-01T00:00:00Z") && now.getDayOfWeek() == 1', true],
    ['path.matches("^/v[0-9]+/(models|files)$")', true],
    ['(host + path).matches(r"com/v1")', true],
    ['host . matches ( "^api[.]" ) && path.matches("z|m")', true],
    ['path.split("/", 5).size() == 3', true],
    ['grpc.service == "x"', null],
    ['grpc.service == "x" || true', true],
    ['int(query.substring(6)) > 1', true],
    ['int(host) > 1', null],
    ['message.size > 1', null],
  ])('%s is %s', (text, expected) => {
    expect(evaluate(text)).toBe(expected);
  });

  it.each<[string, { text: string | null; size: number }, boolean | null]>([
    ['message.text.contains("x") && message.size == 3', { text: 'axb', size: 3 }, true],
    ['message.kind == "body" && message.direction == "request"', { text: '', size: 0 }, true],
    ['message.text.contains("x")', { text: null, size: 3 }, null],
    ['has(message.text)', { text: null, size: 3 }, false],
    ['message.text.contains("x")', { text: 'x'.repeat(4 * 1024 * 1024 + 1), size: 5_000_000 }, null],
  ])('%s on a message of %o is %s', (text, message, expected) => {
    expect(evaluate(text, message)).toBe(expected);
  });

  it.each<[string, number, string, string | null]>([
    ['hosst == "a"', 0, 'unknown variable hosst', 'did you mean "host"?'],
    ['host == "a" && hots == "b"', 15, 'unknown variable hots', 'did you mean "host"?'],
    ['agent.nam == "a"', 6, 'unknown field nam', 'did you mean "name"?'],
    ['port == "443"', 0, 'no such overload', null],
    ['host', 0, 'gives string', null],
    ['host == "a', 8, 'unterminated', null],
    ['host.matches(path)', 13, 'must be a literal', null],
    ['host.matches("(a")', 13, 'not closed', null],
    ['host.matches(/*x*/"a")', 13, 'xpected', null],
    ['host.map(x, x)', 4, 'not available', null],
    ['bytes(host) == b"a"', 0, 'not available', null],
    ['dyn(host)', 0, 'not available', null],
    ['path.split("/").size() > 1', 4, 'needs a limit', null],
    ['path.split("/", 1000).size() > 1', 4, 'needs a limit', null],
    ['headers.exists(a, headers.exists(b, a == b))', 25, 'inside another', null],
    ['headers.exists(host, host == "x")', 15, 'hides host', null],
    ['now.getHours("Mars/Base") == 1', 13, 'no time zone', null],
    ['now.getHours(host) == 1', 13, 'literal', null],
    ['   ', 0, 'empty', null],
    ['host == "' + 'a'.repeat(5000) + '"', 0, 'longer than', null],
    [Array.from({ length: 200 }, () => 'port == 1').join(' || '), 0, '', null],
    [`${'('.repeat(200)}port == 1${')'.repeat(200)}`, 0, '', null],
  ])('%s is refused', (text, offset, problem, hint) => {
    const compiled = compileExpression(text);
    expect(compiled.ok).toBe(false);
    if (compiled.ok) return;
    expect(compiled.text.toLowerCase()).toContain(problem.toLowerCase());
    if (problem !== '' && problem !== 'xpected') expect(Math.abs(compiled.offset - offset)).toBeLessThanOrEqual(1);
    if (hint !== null) expect(compiled.hint).toBe(hint);
  });

  it('names what it reads', () => {
    const compiled = compileExpression('headers.exists(h, h == "x") && message.size > 1 || agent.id == path');
    expect(compiled.ok && [...compiled.value.reads].sort()).toEqual(['agent', 'headers', 'message', 'path']);
  });
});
