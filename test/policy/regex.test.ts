import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { compileRegex, RegexWorkError } from '../../src/policy/regex.ts';

function find(pattern: string, text: string): boolean {
  const compiled = compileRegex(pattern);
  if (!compiled.ok) throw new Error(compiled.text);
  return compiled.value.test(text);
}

describe('regular expressions of rules', () => {
  it.each([
    ['abc', 'xxabcxx', true],
    ['^abc$', 'abc', true],
    ['^abc$', 'abcd', false],
    ['^abc', 'xabc', false],
    ['a|b|cd', 'xcdx', true],
    ['', '', true],
    ['^$', '', true],
    ['^$', 'a', false],
    ['(^|,)x', 'a,x', true],
    ['x($|,)', 'x', true],
    ['a{2,3}', 'aa', true],
    ['^a{2,3}$', 'aaaa', false],
    ['^(ab?)+$', 'abaab', true],
    ['[^a-c]', 'abc', false],
    ['[]a]', ']', true],
    ['[a-]', '-', true],
    ['\\d{3}-\\w+', 'x 123-abc', true],
    ['\\.', 'a', false],
    ['\\x41\\x{42}', 'AB', true],
    ['(?i)SeCrEt', 'my secret', true],
    ['(?i)[^a]', 'A', false],
    ['a.b', 'a\nb', false],
    ['(?s)a.b', 'a\nb', true],
    ['(?is)A.B', 'a\nb', true],
    ['ü+', 'xüüx', true],
    ['^(?:a|ab)(?:c|bcd)$', 'abcd', true],
    ['a+?b', 'aab', true],
  ])('%s in %j is %s', (pattern, text, expected) => {
    expect(find(pattern, text)).toBe(expected);
  });

  it.each([
    ['(?=a)', 'look-around'],
    ['(?<n>a)', 'look-around'],
    ['(a)\\1', '\\1'],
    ['\\bword', '\\b'],
    ['a(b', 'not closed'],
    ['a)', 'closes nothing'],
    ['[a', 'not closed'],
    ['*a', 'repeats nothing'],
    ['a**', 'quantifier'],
    ['a{1001}', 'larger than'],
    ['a{3,2}', 'ends before'],
    ['a{x}', 'no repetition'],
    ['^*', 'anchor'],
    ['[b-a]', 'order'],
    ['[[:alpha:]]', '[:name:]'],
    ['(?m)a', 'flag m'],
    ['(a{500}){500}', 'larger than'],
    [`${'('.repeat(30)}a${')'.repeat(30)}`, 'deeper'],
    ['a'.repeat(600), 'longer'],
    ['[😀]', 'U+FFFF'],
    ['a\\', 'ends in'],
  ])('%s is refused: %s', (pattern, text) => {
    const compiled = compileRegex(pattern);
    expect(compiled.ok).toBe(false);
    if (!compiled.ok) expect(compiled.text).toContain(text);
  });

  it('answers on expressions and texts that make backtracking engines hang', () => {
    const text = 'a'.repeat(200_000);
    for (const pattern of ['(a+)+$b', '(a|a)*b', '(a*)*b', 'a*a*a*a*a*a*b', '(.*)*x', '^(([a-z])+.)+[A-Z]([a-z])+$']) {
      expect(find(pattern, text)).toBe(false);
    }
  });

  it('gives up, with an error, when the states explode', () => {
    const compiled = compileRegex('(a|b)*a(a|b){60}c');
    if (!compiled.ok) throw new Error(compiled.text);
    let text = '';
    let seed = 1;
    for (let i = 0; i < 200_000; i++) {
      seed = (seed * 48_271) % 2_147_483_647;
      text += seed % 2 === 0 ? 'a' : 'b';
    }
    expect(() => compiled.value.test(text)).toThrow(RegexWorkError);
    expect(compiled.value.test(`a${'b'.repeat(60)}c`)).toBe(true);
  });

  it('finds what RegExp finds', () => {
    const atom = fc.constantFrom('a', 'b', 'c', '.', '[ab]', '[^a]', '\\d', '\\w', '1');
    const { pattern } = fc.letrec<{ pattern: string; piece: string }>((tie) => ({
      piece: fc.oneof(
        { depthSize: 'small' },
        atom,
        tie('pattern').map((inner) => `(${inner})`),
        fc
          .tuple(tie('piece'), fc.constantFrom('*', '+', '?', '{2}', '{1,2}', '{1,}'))
          .map(([inner, times]) => `(?:${inner})${times}`),
      ),
      pattern: fc.oneof(
        { depthSize: 'small' },
        fc.array(tie('piece'), { maxLength: 3 }).map((pieces) => pieces.join('')),
        fc.tuple(tie('pattern'), tie('pattern')).map(([a, b]) => `${a}|${b}`),
        tie('pattern').map((inner) => `^(?:${inner})`),
        tie('pattern').map((inner) => `(?:${inner})$`),
      ),
    }));
    const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c', '1', '\n', 'é'), maxLength: 12 });
    fc.assert(
      fc.property(pattern, text, (source, input) => {
        const compiled = compileRegex(source);
        fc.pre(compiled.ok);
        expect(compiled.value.test(input)).toBe(new RegExp(source).test(input));
      }),
      { numRuns: 1500 },
    );
  });
});
