import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { readCases } from '../../src/policy/case-schema.ts';
import { compileRules } from '../../src/policy/compile.ts';
import { compileExpression } from '../../src/policy/expression.ts';
import { hostMatches, compileHost, compilePath } from '../../src/policy/glob.ts';
import { MATCH_KEYS } from '../../src/policy/match-schema.ts';
import { formatProblem } from '../../src/policy/problem.ts';
import type { Problem } from '../../src/policy/problem.ts';
import { RULE_KEYS } from '../../src/policy/rule-schema.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const DOCS = readFileSync(`${ROOT}docs/rules.md`, 'utf8');
const PACKS = ['anthropic', 'npm', 'github-read'].map((name) => ({
  name: `${name}.yaml`,
  text: readFileSync(`${ROOT}rules/packs/${name}.yaml`, 'utf8'),
  kind: 'pack' as const,
}));
const BLOCKS = [...DOCS.matchAll(/```yaml\n([\s\S]*?)```/g)].map((block) => block[1] ?? '');

/** Cells in backquotes of the table rows between two headings. */
function patternRows(heading: string): { pattern: string; yes: string[]; no: string[] }[] {
  const section = DOCS.slice(DOCS.indexOf(heading));
  const table = section.slice(section.indexOf('| pattern |')).split('\n\n')[0] ?? '';
  const quoted = (cell: string): string[] => [...cell.matchAll(/`([^`]+)`/g)].map((match) => match[1] ?? '');
  return table
    .split('\n')
    .slice(2)
    .map((row) => row.split(' | ').map((cell) => cell.replace(/^\| | \|$/g, '')))
    .map(([pattern = '', yes = '', no = '']) => ({
      pattern: quoted(pattern)[0] ?? '',
      yes: quoted(yes),
      no: quoted(no),
    }));
}

describe('docs/rules.md', () => {
  it('has rules and cases to show', () => {
    expect(BLOCKS.length).toBeGreaterThan(6);
  });

  it.each(BLOCKS.map((text, index) => [index + 1, text] as const))(
    'example %i is valid and deserves no note',
    (_index, text) => {
      if (text.includes('cases:')) {
        const problems: Problem[] = [];
        expect(readCases('example', text, problems).cases.length).toBeGreaterThan(0);
        expect(problems.map(formatProblem)).toEqual([]);
        return;
      }
      const result = compileRules([{ name: 'example', text, kind: 'rules' }, ...PACKS]);
      expect((result.ok ? result.notes : result.problems).map(formatProblem)).toEqual([]);
    },
  );

  it('its host patterns match what it says', () => {
    const rows = patternRows('**Hosts.**');
    expect(rows.length).toBe(5);
    for (const { pattern, yes, no } of rows) {
      const compiled = compileHost(pattern);
      if (!compiled.ok) throw new Error(compiled.text);
      for (const host of yes)
        expect(`${pattern} ${host} ${hostMatches(compiled.value, host)}`).toBe(`${pattern} ${host} true`);
      for (const host of no)
        expect(`${pattern} ${host} ${hostMatches(compiled.value, host)}`).toBe(`${pattern} ${host} false`);
    }
  });

  it('its path patterns match what it says', () => {
    const rows = patternRows('**Paths.**');
    expect(rows.length).toBe(5);
    for (const { pattern, yes, no } of rows) {
      const compiled = compilePath(pattern);
      if (!compiled.ok) throw new Error(compiled.text);
      for (const path of yes) expect(`${pattern} ${path} ${compiled.value.test(path)}`).toBe(`${pattern} ${path} true`);
      for (const path of no) expect(`${pattern} ${path} ${compiled.value.test(path)}`).toBe(`${pattern} ${path} false`);
    }
  });

  it('names every key and every method of conditions that there is', () => {
    for (const key of [...RULE_KEYS, ...MATCH_KEYS]) expect(DOCS).toContain(`\`${key}\``);
    const samples: Readonly<Record<string, string>> = {
      startsWith: 'path.startsWith("a")',
      endsWith: 'path.endsWith("a")',
      contains: 'path.contains("a")',
      lowerAscii: 'path.lowerAscii() == "a"',
      upperAscii: 'path.upperAscii() == "a"',
      trim: 'path.trim() == "a"',
      indexOf: 'path.indexOf("a") == 1',
      lastIndexOf: 'path.lastIndexOf("a") == 1',
      substring: 'path.substring(1) == "a"',
      matches: 'path.matches("a")',
      exists_one: '["a"].exists_one(a, a == path)',
      getDayOfYear: 'now.getDayOfYear() == 1',
      getDate: 'now.getDate() == 1',
      duration: 'now - timestamp("2026-01-01T00:00:00Z") > duration("1h")',
    };
    for (const [name, text] of Object.entries(samples)) {
      expect(DOCS).toContain(`\`${name}\``);
      expect(compileExpression(text)).toMatchObject({ ok: true });
    }
  });
});
