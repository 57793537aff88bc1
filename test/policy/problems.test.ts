import { describe, expect, it } from 'vitest';
import { compilePolicy } from '../../src/policy/compile.ts';
import { notesOf, problemsOf } from './policies.ts';

/** One rule with these lines in it, from line 3 on. */
function rule(...lines: string[]): string {
  return ['version: 1', 'rules:', '  - id: one', ...lines.map((line) => `    ${line}`)].join('\n');
}

describe('problems point at the mistake', () => {
  it.each<[string, string, string, string]>([
    ['an unknown key', rule('acton: deny', 'action: deny'), '4:5', 'did you mean "action"?'],
    ['an unknown key of match', rule('action: deny', 'match: { hosts: a.com }'), '5:14', 'did you mean "host"?'],
    ['an unknown action', rule('action: alow'), '4:13', 'did you mean "allow"?'],
    ['a missing action', rule('description: x'), '3:5', 'has no action'],
    ['a missing id', 'version: 1\nrules:\n  - action: deny', '3:5', 'has no id'],
    ['a bad id', 'version: 1\nrules:\n  - { id: My Rule, action: deny }', '3:11', 'no rule id'],
    ['a wrong version', 'version: 2', '1:10', 'must be 1'],
    ['a missing version', 'rules: []', '1:1', 'no version'],
    ['an empty file', '# nothing\n', '1:1', 'empty'],
    ['rules that are no list', 'version: 1\nrules: { a: 1 }', '2:8', 'must be a list'],
    ['a rule that is no map', 'version: 1\nrules: [deny]', '2:9', 'must be a map'],
    ['a repeated key', rule('action: deny', 'action: allow'), '5:5', 'unique'],
    ['broken YAML', 'version: 1\nrules: [', '2:9', 'not valid YAML'],
    ['two documents', 'version: 1\n---\nversion: 1', '2:1', 'more than one document'],
    ['an unknown tag', rule('action: !foo deny'), '4:13', 'not valid YAML'],
    ['a number where text is wanted', rule('action: allow', 'match: { host: 7 }'), '5:20', 'quotes'],
    ['an empty list', rule('action: allow', 'match: { host: [] }'), '5:20', 'never matches'],
    ['an empty match', rule('action: allow', 'match: {}'), '5:12', 'empty'],
    ['a URL as host', rule('action: allow', 'match: { host: [a.com, "https://b.com/x"] }'), '5:28', 'is a URL'],
    ['a port in the host', rule('action: allow', 'match: { host: "*.a.com:8443" }'), '5:20', 'port: 8443'],
    ['port 0', rule('action: allow', 'match: { host: a.com, port: 0 }'), '5:33', 'never matches'],
    ['a port range backwards', rule('action: allow', 'match: { port: [1, 90-80] }'), '5:24', 'never matches'],
    ['a port that is a word', rule('action: allow', 'match: { port: https }'), '5:20', 'not a port'],
    ['a method in lower case', rule('action: allow', 'match: { method: [GET, post] }'), '5:28', 'write POST'],
    ['a method that is never forwarded', rule('action: allow', 'match: { method: TRACE }'), '5:22', 'never matches'],
    ['a path without slash', rule('action: allow', 'match: { path: v1 }'), '5:20', 'write "/v1"'],
    ['a protocol to come', rule('action: allow', 'match: { protocol: mcp }'), '5:24', 'arrives with the MCP part'],
    ['a key to come', rule('action: allow', 'match: { tool: x }'), '5:14', 'arrives with the MCP part'],
    ['a model', rule('action: allow', 'match: { model: x }'), '5:14', 'arrives with the LLM part'],
    ['a finding', rule('action: deny', 'match: { finding: credential }'), '5:14', 'arrives with the detection part'],
    ['an unknown protocol', rule('action: allow', 'match: { protocol: htp }'), '5:24', 'did you mean "http"?'],
    ['redact', rule('action: redact'), '4:5', 'arrives with the detection part'],
    ['a bad mode', rule('action: deny', 'mode: monitored'), '5:11', 'did you mean "monitor"?'],
    ['a label without value', rule('action: deny', 'agents: ["label:team"]'), '5:14', 'label:key=value'],
    [
      'intercept that is no boolean',
      rule('action: allow', 'match: { host: a.com }', 'intercept: no'),
      '6:16',
      'true or false',
    ],
    ['a passthrough without host', rule('action: allow', 'intercept: false'), '5:5', 'needs a host'],
    [
      'a passthrough with a path',
      rule('action: allow', 'match: { host: a.com, path: /x }', 'intercept: false'),
      '5:27',
      'not intercepted',
    ],
    [
      'a passthrough with a condition',
      rule('action: allow', 'match: { host: a.com }', 'if: port == 1', 'intercept: false'),
      '6:5',
      'not intercepted',
    ],
    [
      'a passthrough that denies',
      rule('action: deny', 'match: { host: a.com }', 'intercept: false'),
      '6:5',
      'only allow and warn',
    ],
    ['raw with a method', rule('action: allow', 'match: { protocol: raw, method: GET }'), '5:29', 'can never match'],
    [
      'raw with a condition on headers',
      rule('action: allow', 'match: { protocol: raw }', 'if: \'"a" in headers\''),
      '6:5',
      'can never match',
    ],
    [
      'gRPC names with another protocol',
      rule('action: allow', 'match: { protocol: http, grpc: { service: a } }'),
      '5:30',
      'can never match',
    ],
    ['gRPC by GET', rule('action: allow', 'match: { protocol: grpc, method: GET }'), '5:30', 'can never match'],
    [
      'WebSocket by POST',
      rule('action: allow', 'match: { protocol: websocket, method: POST }'),
      '5:35',
      'can never match',
    ],
    ['an allow that reads messages', rule('action: allow', 'if: message.size > 1'), '5:5', 'admits nothing'],
    ['an allow with a direction', rule('action: allow', 'match: { direction: request }'), '5:14', 'admits nothing'],
    ['a constant condition', rule('action: deny', 'if: "1 == 2"'), '5:9', 'always false'],
    ['a boolean as condition', rule('action: deny', 'if: true'), '5:9', 'constant'],
    ['an unknown variable', rule('action: deny', 'if: port == 1 && hots == "a"'), '5:22', 'did you mean "host"?'],
    ['an unknown variable in quotes', rule('action: deny', `if: 'hots == "a"'`), '5:10', 'did you mean "host"?'],
    [
      'an unknown variable in a block',
      rule('action: deny', 'if: |', '  port == 1 &&', '    hots == "a"'),
      '7:9',
      'did you mean "host"?',
    ],
    [
      'an unknown variable in a folded block',
      rule('action: deny', 'if: >-', '  port == 1', '  && hots == "a"'),
      '7:10',
      'did you mean "host"?',
    ],
    ['an unknown pack', 'version: 1\ninclude: [nmp]', '2:11', 'there is no pack "nmp"'],
    ['a pack by path', 'version: 1\ninclude: [packs/npm.yaml]', '2:11', 'without folder'],
    ['an unknown default', 'version: 1\ndefaults: { htpp: deny }', '2:13', 'did you mean "http"?'],
    ['a default it cannot have', 'version: 1\ndefaults: { raw: http }', '2:18', 'cannot be "http"'],
    ['a message that is too long', rule('action: deny', `message: ${'x'.repeat(1001)}`), '5:14', 'longer than'],
    ['an unknown alias', rule('action: deny', 'agents: *nobody'), '5:13', 'stands for nothing'],
  ])('%s', (_name, text, place, part) => {
    const problems = problemsOf(text);
    expect(problems.join('\n')).toContain(`test.yaml:${place}: `);
    expect(problems.find((problem) => problem.startsWith(`test.yaml:${place}: `))).toContain(part);
  });

  it('all of them come at once, in order', () => {
    const problems = problemsOf(rule('action: alow', 'match: { host: "a:1", port: 0 }', 'colour: red'));
    expect(problems.map((problem) => problem.split(' ')[0])).toEqual([
      'test.yaml:4:13:',
      'test.yaml:5:20:',
      'test.yaml:5:33:',
      'test.yaml:6:5:',
    ]);
  });

  it('an id is taken once over all files, packs included', () => {
    const files = [
      { name: 'a.yaml', text: 'version: 1\ninclude: [p]\nrules: [{ id: x, action: deny }]', kind: 'rules' as const },
      { name: 'packs/p.yaml', text: 'version: 1\nrules: [{ id: x, action: deny }]', kind: 'pack' as const },
      { name: 'b.yaml', text: 'version: 1\nrules: [{ id: x, action: deny }]', kind: 'rules' as const },
    ];
    const result = compilePolicy(files);
    expect(result.ok ? [] : result.problems.map((problem) => problem.file)).toEqual(['b.yaml', 'packs/p.yaml']);
  });

  it('a pack that nobody includes is not read, and a pack cannot set defaults', () => {
    const pack = { name: 'packs/p.yaml', text: 'version: 1\ndefaults: { http: allow }', kind: 'pack' as const };
    expect(problemsOf('version: 1', pack)).toEqual([]);
    expect(problemsOf('version: 1\ninclude: p', pack).join()).toContain('packs/p.yaml:2:1: a pack cannot set defaults');
  });

  it('packs that include one another end', () => {
    const a = {
      name: 'a.yaml',
      text: 'version: 1\ninclude: b\nrules: [{ id: a, action: deny }]',
      kind: 'pack' as const,
    };
    const b = {
      name: 'b.yaml',
      text: 'version: 1\ninclude: [a, b]\nrules: [{ id: b, action: deny }]',
      kind: 'pack' as const,
    };
    const result = compilePolicy([{ name: 'x', text: 'version: 1\ninclude: a', kind: 'rules' }, a, b]);
    expect(result.ok && result.rules.map((rule) => rule.id).sort()).toEqual(['a', 'b']);
  });
});

describe('files that mean harm', () => {
  it('aliases work, and a bomb of them is refused', () => {
    expect(
      problemsOf(
        'version: 1\nrules:\n  - { id: a, action: allow, match: { host: &h [a.com, b.com] } }\n  - { id: b, action: deny, match: { host: *h } }',
      ),
    ).toEqual([]);
    const list = Array.from({ length: 500 }, (_, i) => `h${i}.com`).join(', ');
    const rules = Array.from({ length: 60 }, (_, i) => `  - { id: r${i}, action: deny, match: { host: *h } }`).join(
      '\n',
    );
    const bomb = `version: 1\nrules:\n  - { id: a, action: deny, match: { host: &h [${list}] } }\n${rules}`;
    expect(problemsOf(bomb).join()).toContain('aliases in this file stand for more than');
    const many = Array.from({ length: 1100 }, (_, i) => `  - { id: m${i}, action: deny, match: { host: *h } }`).join(
      '\n',
    );
    expect(
      problemsOf(`version: 1\nrules:\n  - { id: a, action: deny, match: { host: &h a.com } }\n${many}`).join(),
    ).toContain('more than 1000 times');
  });

  it('deep nesting and oversize files are problems, not crashes', () => {
    expect(problemsOf('['.repeat(100_000)).length).toBeGreaterThan(0);
    expect(problemsOf(`version: 1\n# ${'x'.repeat(4 * 1024 * 1024)}`).join()).toContain('larger than');
  });

  it('a thousand mistakes are cut with a word', () => {
    const rules = Array.from({ length: 1000 }, (_, i) => `  - { id: r${i}, action: nope }`).join('\n');
    const problems = problemsOf(`version: 1\nrules:\n${rules}`);
    expect(problems).toHaveLength(201);
    expect(problems.at(-1)).toContain('800 more problems');
  });
});

describe('notes', () => {
  it.each<[string, string]>([
    ['rules: [{ id: a, action: allow }]', 'admits every agent to every host'],
    ['rules: [{ id: a, action: allow, match: { host: "*" }, agents: b }]', 'admits its agents to every host'],
    ['rules: [{ id: a, action: allow, mode: monitor, match: { host: a.com } }]', 'admits nothing'],
    [
      'rules: [{ id: a, action: allow, intercept: false, match: { host: "*.a.com" } }, { id: b, action: deny, match: { host: x.a.com, path: /x } }]',
      'these rules do not see them: b',
    ],
  ])('%s', (text, part) => {
    expect(notesOf(text).join('\n')).toContain(part);
  });

  it('nothing is said of rules that mean what they say', () => {
    const text = `rules:
      - { id: a, action: allow, match: { host: a.com } }
      - { id: b, action: allow, match: { host: b.com, method: GET, protocol: http } }
      - { id: c, action: allow, intercept: false, match: { host: c.com } }
      - { id: d, action: deny, match: { host: a.com, path: /x } }
      - { id: e, action: deny, match: { host: c.com }, agents: evil }`;
    expect(notesOf(text)).toEqual([]);
  });

  it('of defaults that disagree the strictest wins, and the others are told', () => {
    const other = {
      name: 'other.yaml',
      text: 'version: 1\ndefaults: { websocket: deny, http: deny }',
      kind: 'rules' as const,
    };
    const notes = notesOf('defaults: { websocket: allow, http: allow, raw: allow }', other);
    expect(notes).toHaveLength(2);
    expect(notes.join()).toContain('defaults.websocket: allow has no effect: other.yaml:2 says deny');
  });
});

describe('the revision', () => {
  const revision = (...texts: string[]): string => {
    const result = compilePolicy(
      texts.map((text, i) => ({ name: `${i}.yaml`, text: `version: 1\n${text}`, kind: 'rules' })),
    );
    return result.ok ? result.policy.revision : 'bad';
  };

  it('stays when only order, files, comments or spelling change', () => {
    const one = revision(
      'rules:\n - { id: a, action: deny, match: { host: A.com } }\n - { id: b, action: allow, match: { host: b.com } }',
    );
    expect(
      revision(
        'rules: # two\n - id: b\n   action: allow\n   match: { host: "b.com" }',
        'rules: [{ id: a, action: deny, match: { host: [a.com] } }]',
      ),
    ).toBe(one);
  });

  it('changes with anything that means something', () => {
    const revisions = [
      '',
      'defaults: { raw: allow }',
      ...['deny', 'allow'].map((action) => `rules: [{ id: a, action: ${action} }]`),
    ].map((text) => revision(text));
    revisions.push(
      revision('rules: [{ id: a, action: deny, mode: monitor }]'),
      revision('rules: [{ id: a, action: deny, if: port == 1 }]'),
      revision('rules: [{ id: a, action: deny, if: port == 2 }]'),
    );
    expect(new Set(revisions).size).toBe(revisions.length);
    expect(revisions).not.toContain('bad');
  });
});
