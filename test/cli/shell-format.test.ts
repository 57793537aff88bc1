import { execFileSync } from 'node:child_process';
import { parseEnv } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SHELLS, formatVariables } from '../../src/cli/shell-format.ts';
import { emptyFolder } from './command.ts';

const NASTY = [
  '',
  ' ',
  "it's",
  '"quoted"',
  '$HOME `id` $(id) ${x}',
  'back\\slash\\',
  "'; touch pwned; '",
  '!history #comment ~ * ? [a] {b,c} <in >out | & ; ( )',
  'http://user:p%40ss@[::1]:8080',
  'ünïcödé \u2019 \u{1f680}',
  '-n',
  '--flag',
  '=x=',
];

describe('variables in the syntax of a shell', () => {
  it('sh reads every value back, and runs nothing', () => {
    const folder = emptyFolder();
    const values = fc.array(fc.string({ unit: fc.constantFrom(...Array.from('\'"\\$`\n\t !#~*?&|;()<>{}[]aé=-%')) }), {
      minLength: 40,
      maxLength: 40,
    });
    fc.assert(
      fc.property(values, (random) => {
        const all = [...NASTY, ...random, 'line\nbreak', '\n', '\r\n'];
        const variables = new Map(all.map((value, i) => [`V${i}`, value] as const));
        const read = all.map((_value, i) => `printf '%s\\0' "$V${i}"`).join('\n');
        const script = `${formatVariables(variables, 'sh')}\n${read}\n`;
        const output = execFileSync('sh', ['-c', script], { cwd: folder, env: {}, encoding: 'utf8' });
        expect(output.split('\0').slice(0, -1)).toEqual(all);
        expect(execFileSync('ls', ['-A', folder], { encoding: 'utf8' })).toBe('');
      }),
      { numRuns: 20 },
    );
  });

  it('sh forgets what is unset', () => {
    const script = `V=1\nexport V\n${formatVariables(new Map([['V', null]]), 'sh')}\nprintf '%s' "\${V-gone}"`;
    expect(execFileSync('sh', ['-c', script], { encoding: 'utf8' })).toBe('gone');
  });

  it('Node reads dotenv files back', () => {
    for (const value of NASTY) {
      try {
        const text = formatVariables(new Map([['V', value]]), 'dotenv');
        expect(parseEnv(text)['V']).toBe(value);
      } catch (error) {
        // Refused rather than written in a way that readers take differently.
        expect(String(error)).toMatch(/quotes/);
      }
    }
  });

  it.each([
    ['fish', `set -gx V 'it\\'s \\\\ $x'\n`],
    ['powershell', `$env:V = 'it''s \\ $x'\n`],
    ['docker', `V=it's \\ $x\n`],
    ['json', `{\n  "V": "it's \\\\ $x"\n}\n`],
  ] as const)('%s', (shell, text) => {
    expect(formatVariables(new Map([['V', "it's \\ $x"]]), shell)).toBe(text);
  });

  it('PowerShell takes typographic quotes for quotes, so they are doubled', () => {
    expect(formatVariables(new Map([['V', 'a\u2019; calc']]), 'powershell')).toBe(`$env:V = 'a\u2019\u2019; calc'\n`);
  });

  it.each(['dotenv', 'docker'] as const)('a line break cannot stand in %s, and is refused', (shell) => {
    expect(() => formatVariables(new Map([['V', 'a\nEVIL=1']]), shell)).toThrow('line break');
  });

  it.each(SHELLS)('NUL and odd names are refused for %s', (shell) => {
    expect(() => formatVariables(new Map([['V', 'a\0b']]), shell)).toThrow('NUL');
    expect(() => formatVariables(new Map([['V;id', 'a']]), shell)).toThrow('no variable name');
  });
});
