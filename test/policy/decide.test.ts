import { describe, expect, it } from 'vitest';
import type { Layer } from '../../src/core/verdict.ts';
import { agentOf, policyOf, requestTo } from './policies.ts';

const gateFacts = (
  host: string,
  port = 443,
  agent = agentOf(),
): { agent: typeof agent; host: string; port: number } => ({ agent, host, port });

describe('the gate', () => {
  const policy = policyOf(`
    rules:
      - { id: docs, action: allow, match: { host: docs.example.com, path: /public/** } }
      - { id: any-port, action: allow, match: { host: "*.example.com", port: [443, 8000-8099] }, agents: [ci-*, "label:team=web"] }
      - { id: pinned, action: allow, match: { host: pinned.example.com, port: 443 }, intercept: false }
      - { id: pinned-seen, action: allow, match: { host: pinned.example.com } }
      - { id: raw, action: allow, match: { host: db.example.com, protocol: raw } }
      - { id: sometimes, action: allow, match: { host: some.example.com }, if: 'port == 443 && agent.id == "ci-1"' }
      - { id: maybe, action: allow, match: { host: maybe.example.com }, if: '"x" in headers' }
      - { id: no-evil, action: deny, match: { host: evil.example.com }, message: No. }
      - { id: no-path, action: deny, match: { host: docs.example.com, path: /public/secret } }
      - { id: no-8001, action: deny, match: { port: 8001 } }
      - { id: no-guest, action: deny, if: agent.id == "guest" }
      - { id: ask, action: approve, match: { host: ask.example.com } }
      - { id: watch, action: deny, mode: monitor, match: { host: watch.example.com } }
      - { id: watch-allow, action: allow, match: { host: watch.example.com } }
      - { id: only-watched, action: allow, mode: monitor, match: { host: watched-only.test } }
      - { id: message, action: deny, match: { host: docs.example.com, direction: request } }
  `);

  it.each([
    ['docs.example.com', 443, 'default', 'allow', 'allowed', 'docs', 'intercept'],
    ['docs.example.com', 22, 'default', 'allow', 'allowed', 'docs', 'intercept'],
    ['other.example.com', 443, 'default', 'deny', 'host_not_allowed', '', 'intercept'],
    ['other.example.com', 443, 'ci-2', 'allow', 'allowed', 'any-port', 'intercept'],
    ['other.example.com', 8050, 'ci-2', 'allow', 'allowed', 'any-port', 'intercept'],
    ['other.example.com', 22, 'ci-2', 'deny', 'host_not_allowed', '', 'intercept'],
    ['other.example.com', 8001, 'ci-2', 'deny', 'denied_by_rule', 'no-8001', 'intercept'],
    ['evil.example.com', 443, 'ci-2', 'deny', 'denied_by_rule', 'no-evil', 'intercept'],
    ['pinned.example.com', 443, 'default', 'allow', 'allowed', 'pinned,pinned-seen', 'passthrough'],
    ['pinned.example.com', 8443, 'default', 'allow', 'allowed', 'pinned-seen', 'intercept'],
    ['pinned.example.com', 443, 'guest', 'deny', 'denied_by_rule', 'no-guest', 'intercept'],
    ['db.example.com', 5432, 'default', 'allow', 'allowed', 'raw', 'intercept'],
    ['some.example.com', 443, 'ci-1', 'allow', 'allowed', 'any-port,sometimes', 'intercept'],
    ['some.example.com', 444, 'ci-1', 'deny', 'host_not_allowed', '', 'intercept'],
    ['maybe.example.com', 443, 'default', 'allow', 'allowed', 'maybe', 'intercept'],
    ['ask.example.com', 443, 'default', 'approve', 'approval_required', 'ask', 'intercept'],
    ['watched-only.test', 443, 'default', 'deny', 'host_not_allowed', 'only-watched', 'intercept'],
    ['unheard.test', 443, 'default', 'deny', 'host_not_allowed', '', 'intercept'],
  ])('%s:%i for %s: %s, %s, %s, %s', (host, port, agent, action, reason, rules, mode) => {
    const gate = policy.gate(gateFacts(host, port, agentOf(agent)));
    expect([gate.verdict.action, gate.verdict.reason, gate.verdict.rules.join(), gate.mode]).toEqual([
      action,
      reason,
      rules,
      mode,
    ]);
  });

  it('gives the message of the rule that denies', () => {
    expect(policy.gate(gateFacts('evil.example.com')).verdict.message).toBe('No.');
  });

  it('shows what a rule in monitor mode would have done', () => {
    const { verdict } = policy.gate(gateFacts('watch.example.com'));
    expect(verdict).toMatchObject({
      action: 'allow',
      judged: 'deny',
      mode: 'monitor',
      rules: ['watch', 'watch-allow'],
    });
  });

  it('knows agents by label', () => {
    const agent = agentOf('x', { team: 'web' });
    expect(policy.gate(gateFacts('other.example.com', 443, agent)).verdict.action).toBe('allow');
  });

  it('opens for defaults that admit a layer', () => {
    expect(policyOf('defaults: { http: allow }').gate(gateFacts('a.test')).verdict.action).toBe('allow');
    expect(policyOf('defaults: { raw: allow }').gate(gateFacts('a.test')).verdict.action).toBe('allow');
    expect(policyOf('defaults: { websocket: http }').gate(gateFacts('a.test')).verdict.action).toBe('deny');
  });

  it('leaves time to the requests when it is not told the time, but not in a tunnel that nobody looks into', () => {
    const timed = policyOf(`
      rules:
        - { id: seen, action: allow, match: { host: a.test } }
        - { id: pinned, action: allow, match: { host: b.test }, intercept: false }
        - { id: not-at-night, action: deny, if: now.getHours() < 6 }`);
    const noon = Date.UTC(2026, 0, 5, 12);
    const night = Date.UTC(2026, 0, 5, 3);
    expect(timed.gate(gateFacts('a.test')).verdict.action).toBe('allow');
    expect(timed.gate(gateFacts('b.test')).verdict).toMatchObject({
      action: 'deny',
      reason: 'rule_error',
      rules: ['not-at-night'],
    });
    expect(timed.gate({ ...gateFacts('b.test'), timeMs: noon })).toMatchObject({
      verdict: { action: 'allow' },
      mode: 'passthrough',
    });
    expect(timed.gate({ ...gateFacts('a.test'), timeMs: night }).verdict.action).toBe('deny');
    expect(timed.request(requestTo('https://a.test/', { timeMs: night })).action).toBe('deny');
  });
});

describe('layers', () => {
  const rules = `
    rules:
      - { id: family, action: allow, match: { host: a.test } }
      - { id: http-only, action: allow, match: { host: h.test, protocol: http } }
      - { id: ws-only, action: allow, match: { host: w.test, protocol: websocket } }
      - { id: grpc-only, action: allow, match: { host: g.test, protocol: grpc } }
      - { id: grpc-names, action: allow, match: { host: n.test, grpc: { service: "pkg.*", method: Get* } } }
      - { id: raw-only, action: allow, match: { host: r.test, protocol: raw } }
      - { id: marked, action: warn, match: { host: m.test } }
      - { id: nothing-to-x, action: deny, match: { host: x.test } }
      - { id: all-of-x, action: allow, match: { host: x.test, protocol: [http, websocket, grpc, raw] } }`;
  const policy = policyOf(rules);
  const strict = policyOf(`defaults: { websocket: deny, grpc: deny }\n${rules}`);
  const open = policyOf(`defaults: { http: allow, raw: allow }\n${rules}`);
  const LAYERS = ['http', 'websocket', 'grpc', 'raw', 'mcp', 'llm'] as const;

  function admitted(of: typeof policy, host: string): string {
    return LAYERS.filter((layer) => judge(of, host, layer).action !== 'deny').join(' ');
  }

  function judge(of: typeof policy, host: string, layer: Layer): ReturnType<typeof policy.raw> {
    return layer === 'raw'
      ? of.raw(gateFacts(host))
      : of.request(requestTo(`https://${host}/pkg.Things/GetOne`, { layer }));
  }

  it.each([
    ['a.test', 'http websocket grpc', 'http', 'http websocket grpc raw'],
    ['h.test', 'http', 'http', 'http websocket grpc raw'],
    ['w.test', 'websocket', 'websocket', 'http websocket grpc raw'],
    ['g.test', 'grpc', 'grpc', 'http websocket grpc raw'],
    ['n.test', 'grpc', 'grpc', 'http websocket grpc raw'],
    ['r.test', 'raw', 'raw', 'http websocket grpc raw'],
    ['m.test', 'http websocket grpc', 'http', 'http websocket grpc raw'],
    ['x.test', '', '', ''],
    ['none.test', '', '', 'http websocket grpc raw'],
  ])('%s admits %s; with strict defaults %s; with open ones %s', (host, usual, strictly, openly) => {
    expect([admitted(policy, host), admitted(strict, host), admitted(open, host)]).toEqual([usual, strictly, openly]);
  });

  it.each([
    ['http', 'request_not_allowed'],
    ['websocket', 'websocket_not_allowed'],
    ['grpc', 'grpc_not_allowed'],
    ['raw', 'raw_not_allowed'],
    ['mcp', 'request_not_allowed'],
    ['llm', 'request_not_allowed'],
  ] as const)('without a rule, %s gives %s', (layer, reason) => {
    expect(judge(policy, 'none.test', layer)).toMatchObject({ action: 'deny', reason, rules: [], message: null });
  });

  it('a warn rule marks layers that it does not admit itself, and names the rule that does', () => {
    const both = policyOf(`rules:
      - { id: mark, action: warn, match: { host: a.test } }
      - { id: bytes, action: allow, match: { host: a.test, protocol: raw } }`);
    expect(both.raw(gateFacts('a.test'))).toMatchObject({ action: 'warn', rules: ['mark', 'bytes'] });
    expect(both.request(requestTo('https://a.test/'))).toMatchObject({ action: 'warn', rules: ['mark'] });
  });

  it('a rule about what only HTTP has does not touch raw bytes', () => {
    const raw = policyOf(`rules:
      - { id: bytes, action: allow, match: { host: a.test, protocol: raw } }
      - { id: no-delete, action: deny, match: { method: DELETE } }
      - { id: no-agentless, action: deny, if: 'headers["user-agent"] == ""' }
      - { id: no-admin, action: deny, if: 'grpc.service == "Admin"' }`);
    expect(raw.raw(gateFacts('a.test')).action).toBe('allow');
  });

  it('a condition on gRPC names is about gRPC alone', () => {
    const grpc = policyOf(`rules:
      - { id: all, action: allow, match: { host: a.test } }
      - { id: no-admin, action: deny, if: 'grpc.service == "pkg.Admin"' }`);
    expect(grpc.request(requestTo('https://a.test/pkg.Admin/Reset')).action).toBe('allow');
    expect(grpc.request(requestTo('https://a.test/pkg.Admin/Reset', { layer: 'grpc' })).action).toBe('deny');
    expect(grpc.request(requestTo('https://a.test/pkg.Other/Get', { layer: 'grpc' })).action).toBe('allow');
  });

  it('the CONNECT of a WebSocket over HTTP/2 counts as GET', () => {
    const get = policyOf(
      'rules: [{ id: a, action: allow, match: { host: a.test, protocol: websocket, method: GET } }]',
    );
    expect(get.request(requestTo('https://a.test/', { layer: 'websocket', method: 'CONNECT' })).action).toBe('allow');
  });
});

describe('requests', () => {
  const policy = policyOf(`
    rules:
      - { id: read, action: allow, match: { host: api.test, method: [GET, HEAD] }, message: Reading is fine. }
      - { id: write, action: allow, match: { host: api.test, method: POST, path: [/v1/things, /v1/things/*], scheme: https } }
      - { id: no-admin, action: deny, match: { path: [/admin, /admin/**] }, message: Admin is for people. }
      - { id: b-no-admin, action: deny, match: { host: api.test, path: /admin } }
      - { id: ask-export, action: approve, match: { host: api.test, path: /export } }
      - { id: mark-big, action: warn, match: { host: api.test }, if: query.size() > 20, message: Long. }
      - { id: no-token, action: deny, match: { host: api.test, path: /header }, if: '!headers["x-token"].startsWith("good")' }
      - { id: allow-token, action: allow, match: { host: api.test, path: /needs, method: PUT }, if: 'headers["x-token"] == "good"' }
      - { id: watch-put, action: deny, mode: monitor, match: { host: api.test, method: [PUT, GET], path: /watched }, message: Not shown. }
      - { id: watch-mark, action: warn, mode: monitor, match: { host: api.test, path: /watched-mark } }
      - { id: watch-allow, action: allow, mode: monitor, match: { host: api.test, method: PATCH } }`);

  it.each<[string, string, Readonly<Record<string, string>>, string, string, string]>([
    ['GET', 'https://api.test/v1/things', {}, 'allow', 'allowed', 'read'],
    ['POST', 'https://api.test/v1/things', {}, 'allow', 'allowed', 'write'],
    ['POST', 'https://api.test/v1/things/7', {}, 'allow', 'allowed', 'write'],
    ['POST', 'https://api.test/v1/things/7/8', {}, 'deny', 'request_not_allowed', ''],
    ['POST', 'https://api.test/v1//things', {}, 'deny', 'request_not_allowed', ''],
    ['POST', 'http://api.test:443/v1/things', {}, 'deny', 'request_not_allowed', ''],
    ['DELETE', 'https://api.test/v1/things', {}, 'deny', 'request_not_allowed', ''],
    ['GET', 'https://api.test/admin', {}, 'deny', 'denied_by_rule', 'b-no-admin,no-admin'],
    ['GET', 'https://api.test/admin/x', {}, 'deny', 'denied_by_rule', 'no-admin'],
    ['GET', 'https://api.test//admin', {}, 'deny', 'denied_by_rule', 'b-no-admin,no-admin'],
    ['GET', 'https://api.test/admin%2Fx', {}, 'deny', 'denied_by_rule', 'no-admin'],
    ['GET', 'https://api.test/admin;a=b', {}, 'deny', 'denied_by_rule', 'b-no-admin,no-admin'],
    ['GET', 'https://api.test/%61dmin', {}, 'deny', 'denied_by_rule', 'b-no-admin,no-admin'],
    ['GET', 'https://api.test/administrator', {}, 'allow', 'allowed', 'read'],
    ['GET', 'https://api.test/export', {}, 'approve', 'approval_required', 'ask-export'],
    ['GET', 'https://api.test/a?aaaaaaaaaaaaaaaaaaaaaaaaa', {}, 'warn', 'allowed', 'mark-big'],
    ['GET', 'https://api.test/header', { 'x-token': 'good-1' }, 'allow', 'allowed', 'read'],
    ['GET', 'https://api.test/header', { 'x-token': 'bad' }, 'deny', 'denied_by_rule', 'no-token'],
    ['GET', 'https://api.test/header', {}, 'deny', 'rule_error', 'no-token'],
    ['PUT', 'https://api.test/needs', { 'x-token': 'good' }, 'allow', 'allowed', 'allow-token'],
    ['PUT', 'https://api.test/needs', {}, 'deny', 'request_not_allowed', ''],
  ])('%s %s %o: %s, %s, %s', (method, url, headers, action, reason, rules) => {
    const verdict = policy.request(requestTo(url, { method, headers }));
    expect([verdict.action, verdict.reason, verdict.rules.join()]).toEqual([action, reason, rules]);
    expect(verdict).toMatchObject({ judged: action, mode: 'enforce', findings: [] });
  });

  it('the message is that of a deciding rule', () => {
    expect(policy.request(requestTo('https://api.test/admin')).message).toBe('Admin is for people.');
    expect(policy.request(requestTo('https://api.test/')).message).toBe('Reading is fine.');
    expect(policy.request(requestTo('https://api.test/', { method: 'DELETE' })).message).toBeNull();
  });

  it('monitor mode changes nothing but what the record says', () => {
    expect(policy.request(requestTo('https://api.test/watched'))).toMatchObject({
      action: 'allow',
      judged: 'deny',
      mode: 'monitor',
      reason: 'allowed',
      rules: ['watch-put', 'read'],
      message: 'Reading is fine.',
    });
    expect(policy.request(requestTo('https://api.test/watched-mark'))).toMatchObject({
      action: 'allow',
      judged: 'warn',
      mode: 'monitor',
    });
    // Denied anyway: monitor mode has nothing to add.
    expect(policy.request(requestTo('https://api.test/watched', { method: 'PUT' }))).toMatchObject({
      action: 'deny',
      mode: 'enforce',
      rules: [],
    });
  });

  it('an allow rule in monitor mode admits nothing and says what it would have admitted', () => {
    const verdict = policy.request(requestTo('https://api.test/', { method: 'PATCH' }));
    expect(verdict).toMatchObject({
      action: 'deny',
      judged: 'allow',
      mode: 'monitor',
      reason: 'request_not_allowed',
      rules: ['watch-allow'],
    });
  });

  it('a rule that really matched is named before one that failed', () => {
    const both = policyOf(`rules:
      - { id: a-fails, action: deny, match: { host: a.test }, if: 'headers["none"] == ""' }
      - { id: b-matches, action: deny, match: { host: a.test }, if: 'port == 443' }`);
    expect(both.request(requestTo('https://a.test/'))).toMatchObject({
      reason: 'denied_by_rule',
      rules: ['b-matches', 'a-fails'],
    });
  });

  it('a verdict names at most eight rules', () => {
    const many = policyOf(
      `rules:\n${Array.from({ length: 20 }, (_, i) => `  - { id: r${i}, action: allow, match: { host: a.test } }`).join('\n')}`,
    );
    expect(many.request(requestTo('https://a.test/')).rules).toHaveLength(8);
    expect(many.gate(gateFacts('a.test')).verdict.rules).toHaveLength(8);
  });

  it('without any rule everything is denied', () => {
    const empty = policyOf('rules: []');
    expect(empty.ruleCount).toBe(0);
    expect(empty.request(requestTo('https://a.test/')).action).toBe('deny');
    expect(empty.gate(gateFacts('a.test')).verdict.action).toBe('deny');
  });
});

describe('messages', () => {
  const policy = policyOf(`
    rules:
      - { id: open, action: allow, match: { host: "*" } }
      - { id: no-out, action: deny, match: { host: quiet.test, direction: request }, message: Listen only. }
      - { id: no-word, action: deny, match: { host: ws.test, protocol: websocket }, if: 'message.text.contains("secret")' }
      - { id: big, action: warn, match: { host: ws.test }, if: message.size > 100 }
      - { id: ask, action: approve, match: { host: ws.test, path: /ask }, if: message.size > 10 }
      - { id: watch, action: deny, mode: monitor, match: { host: ws.test }, if: 'message.kind == "websocket_text" && message.text == "hm"' }
      - { id: one-path, action: deny, match: { host: paths.test, path: /a/**, method: POST }, if: 'message.text == "x"' }`);
  const ws = requestTo('https://ws.test/', { layer: 'websocket' });
  const text = (value: string | null, size = value?.length ?? 0): Parameters<typeof policy.message>[1] => ({
    direction: 'request',
    framing: value === null ? 'websocket_binary' : 'websocket_text',
    size,
    text: value,
  });

  it('requests are judged without the rules for messages', () => {
    expect(policy.request(ws)).toMatchObject({ action: 'allow', rules: ['open'] });
    expect(policy.gate(gateFacts('quiet.test')).verdict.action).toBe('allow');
  });

  it('says which requests have messages that some rule may want to see', () => {
    expect(policy.needsMessages(ws)).toBe(true);
    expect(policy.needsMessages(requestTo('https://plain.test/'))).toBe(false);
    expect(policy.needsMessages(requestTo('https://paths.test/a/b', { method: 'POST' }))).toBe(true);
    expect(policy.needsMessages(requestTo('https://paths.test//a/b', { method: 'POST' }))).toBe(true);
    expect(policy.needsMessages(requestTo('https://paths.test/b', { method: 'POST' }))).toBe(false);
    expect(policy.needsMessages(requestTo('https://paths.test/a/b'))).toBe(false);
  });

  it.each<[string | null, number, string, string, string]>([
    ['hello', 5, 'allow', 'allowed', ''],
    ['my secret', 9, 'deny', 'message_denied', 'no-word'],
    ['long', 101, 'warn', 'allowed', 'big'],
    [null, 4, 'deny', 'rule_error', 'no-word'],
  ])('%j of %i bytes: %s, %s, %s', (value, size, action, reason, rules) => {
    const verdict = policy.message(ws, text(value, size));
    expect([verdict.action, verdict.reason, verdict.rules.join()]).toEqual([action, reason, rules]);
  });

  it('direction, approval and monitor mode work as for requests', () => {
    const quiet = requestTo('https://quiet.test/');
    expect(policy.message(quiet, text('x'))).toMatchObject({
      action: 'deny',
      reason: 'message_denied',
      message: 'Listen only.',
    });
    expect(policy.message(quiet, { ...text('x'), direction: 'response' }).action).toBe('allow');
    expect(
      policy.message(requestTo('https://ws.test/ask', { layer: 'websocket' }), text('x'.repeat(11))),
    ).toMatchObject({
      action: 'approve',
      reason: 'approval_required',
    });
    expect(policy.message(ws, text('hm'))).toMatchObject({ action: 'allow', judged: 'deny', mode: 'monitor' });
  });
});
