import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Ajv } from 'ajv';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { readCases } from '../../src/policy/case-schema.ts';
import { compileRules } from '../../src/policy/compile.ts';
import type { RuleFile } from '../../src/policy/compile.ts';
import { EXPRESSION_LIMITS } from '../../src/policy/expression.ts';
import { DEFAULT_VALUES } from '../../src/policy/file-schema.ts';
import { MATCH_KEYS, PROTOCOLS } from '../../src/policy/match-schema.ts';
import { formatProblem } from '../../src/policy/problem.ts';
import type { Problem } from '../../src/policy/problem.ts';
import { ACTIONS } from '../../src/policy/rule.ts';
import { MAX_MESSAGE_LENGTH, RULE_ID, RULE_KEYS } from '../../src/policy/rule-schema.ts';
import { suppose } from '../../src/policy/what-if.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const SCHEMA = JSON.parse(readFileSync(join(ROOT, 'docs/schemas/rules.schema.json'), 'utf8')) as {
  properties: { defaults: { properties: Record<string, { enum: string[] }> } };
  definitions: {
    rule: { properties: Record<string, { enum?: string[]; pattern?: string; maxLength?: number }> };
    match: { properties: Record<string, { oneOf?: { enum?: string[] }[] }> };
  };
};
const validate = new Ajv({ strict: false, allErrors: true }).compile(SCHEMA);

function yamlIn(folder: string): string[] {
  return readdirSync(join(ROOT, folder))
    .filter((name) => name.endsWith('.yaml'))
    .map((name) => join(folder, name));
}

const PACKS: readonly RuleFile[] = yamlIn('rules/packs').map((name) => ({ name, text: read(name), kind: 'pack' }));
const RULE_FILES = [...yamlIn('rules'), ...yamlIn('rules/examples')].filter((name) => !name.endsWith('.test.yaml'));
const TEST_FILES = [...yamlIn('rules'), ...yamlIn('rules/examples')].filter((name) => name.endsWith('.test.yaml'));

function read(name: string): string {
  return readFileSync(join(ROOT, name), 'utf8');
}

function compile(text: string, name = 'test.yaml'): ReturnType<typeof compileRules> {
  return compileRules([{ name, text, kind: 'rules' }, ...PACKS]);
}

describe('shipped rules', () => {
  it('all packs together are valid and deserve no note', () => {
    const names = PACKS.map((pack) => pack.name.replace(/^.*\//, '').replace('.yaml', ''));
    const result = compile(`version: 1\ninclude: [${names.join(', ')}]`);
    expect(result.ok ? result.notes.map(formatProblem) : result.problems.map(formatProblem)).toEqual([]);
    expect(names.length).toBeGreaterThan(30);
  });

  it.each(PACKS.map((pack) => pack.name))('%s only allows, names its hosts, and says what it is for', (name) => {
    const pack = PACKS.find((one) => one.name === name);
    const result = compileRules([{ name, text: pack?.text ?? '', kind: 'rules' }]);
    if (!result.ok) throw new Error(result.problems.map(formatProblem).join('\n'));
    for (const rule of result.rules) {
      expect(rule.action).toBe('allow');
      expect(rule.id.startsWith('pack-')).toBe(true);
      expect(rule.description).not.toBeNull();
      expect(rule.ports).not.toBeNull();
      expect(rule.hosts?.every((host) => host.kind !== 'any')).toBe(true);
    }
  });

  it.each(RULE_FILES)('%s is valid, deserves no note, and has cases beside it', (name) => {
    const result = compile(read(name), name);
    expect(result.ok ? result.notes.map(formatProblem) : result.problems.map(formatProblem)).toEqual([]);
    expect(TEST_FILES).toContain(name.replace('.yaml', '.test.yaml'));
  });

  it.each(TEST_FILES)('the cases of %s come out as written', (name) => {
    const problems: Problem[] = [];
    const { cases } = readCases(name, read(name), problems);
    const rules = name.replace('.test.yaml', '.yaml');
    const result = compile(read(rules), rules);
    expect(problems).toEqual([]);
    expect(cases.length).toBeGreaterThan(0);
    if (!result.ok) return;
    for (const one of cases) {
      const { verdict } = suppose(result.policy, one.supposed);
      const { verdict: wanted, reason, rules: ids } = one.expected;
      expect({ case: one.name, verdict: verdict.action }).toEqual({ case: one.name, verdict: wanted });
      if (reason !== null) expect({ case: one.name, reason: verdict.reason }).toEqual({ case: one.name, reason });
      for (const id of ids ?? []) expect(verdict.rules).toContain(id);
    }
  });

  it.each([...RULE_FILES, ...PACKS.map((pack) => pack.name)])(
    '%s points its editor at the schema, and passes it',
    (name) => {
      const text = read(name);
      const depth = name.split('/').length - 1;
      expect(
        text.startsWith(`# yaml-language-server: $schema=${'../'.repeat(depth)}docs/schemas/rules.schema.json\n`),
      ).toBe(true);
      validate(parse(text));
      expect(validate.errors ?? []).toEqual([]);
    },
  );
});

describe('the schema for editors', () => {
  it('knows the same keys, words and limits as the compiler', () => {
    const { rule, match } = SCHEMA.definitions;
    expect(Object.keys(rule.properties).sort()).toEqual([...RULE_KEYS].sort());
    expect(Object.keys(match.properties).sort()).toEqual([...MATCH_KEYS].sort());
    expect(rule.properties['action']?.enum).toEqual([...ACTIONS]);
    expect(rule.properties['id']?.pattern).toBe(RULE_ID.source);
    expect(rule.properties['message']?.maxLength).toBe(MAX_MESSAGE_LENGTH);
    expect(rule.properties['if']?.maxLength).toBe(EXPRESSION_LIMITS.length);
    expect(match.properties['protocol']?.oneOf?.[0]?.enum).toEqual([...PROTOCOLS]);
    const defaults = Object.fromEntries(
      Object.entries(SCHEMA.properties.defaults.properties).map(([key, value]) => [key, value.enum]),
    );
    expect(defaults).toEqual(DEFAULT_VALUES);
  });

  it.each([
    'version: 1\nrules: [{ id: a, action: alow }]',
    'version: 1\nrules: [{ id: A, action: allow }]',
    'version: 1\nrules: [{ id: a, action: allow, match: { hosts: a.com } }]',
    'version: 1\nrules: [{ id: a, action: allow, match: { host: [] } }]',
    'version: 1\nrules: [{ id: a, action: allow, match: { port: 0 } }]',
    'version: 1\nrules: [{ id: a, action: allow, match: { tool: x } }]',
    'rules: []',
  ])('refuses what the compiler refuses: %s', (text) => {
    expect(validate(parse(text))).toBe(false);
    expect(compile(text).ok).toBe(false);
  });
});
