import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseBasic } from '../../src/agents/basic.ts';

function basic(text: string): string {
  return `Basic ${Buffer.from(text).toString('base64')}`;
}

describe('basic credentials', () => {
  it.each([
    ['user:word', { username: 'user', password: 'word' }],
    ['user:', { username: 'user', password: '' }],
    ['user:a:b:', { username: 'user', password: 'a:b:' }],
    ['ü:ß€', { username: 'ü', password: 'ß€' }],
    [' a : b ', { username: ' a ', password: ' b ' }],
  ])('%j is read', (text, credentials) => {
    expect(parseBasic(basic(text))).toEqual(credentials);
    expect(parseBasic(basic(text).replace('Basic ', 'bAsIc   '))).toEqual(credentials);
  });

  it.each([
    ['no scheme', 'dXNlcjp3b3Jk'],
    ['another scheme', 'Bearer dXNlcjp3b3Jk'],
    ['no value', 'Basic'],
    ['an empty value', 'Basic '],
    ['no colon', basic('user')],
    ['no user', basic(':word')],
    ['a line break', basic('user:wo\r\nrd')],
    ['a NUL', basic('us\0er:word')],
    ['missing padding', basic('user:word1').replaceAll('=', '')],
    ['the URL alphabet', basic('user:\xff\xfe?').replaceAll('/', '_').replaceAll('+', '-') + '_'],
    ['a space inside', 'Basic dXNl cjp3b3Jk'],
    ['bits behind the end', 'Basic dTp3b3JkMR=='],
    ['something behind', `${basic('user:word')}, x`],
    ['bytes that are no UTF-8', `Basic ${Buffer.from([0x75, 0x3a, 0xff]).toString('base64')}`],
    ['too much', basic(`user:${'x'.repeat(5000)}`)],
  ])('%s is refused', (_name, header) => {
    expect(parseBasic(header)).toBeNull();
  });

  it('what a client encodes is what is read', () => {
    const text = fc
      .string({ unit: 'grapheme', minLength: 1, maxLength: 100 })
      .filter((s) => !/[\x00-\x1f\x7f]/.test(s));
    fc.assert(
      fc.property(
        text.filter((s) => !s.includes(':')),
        text,
        (username, password) => {
          expect(parseBasic(basic(`${username}:${password}`))).toEqual({ username, password });
        },
      ),
    );
  });

  it('no text throws', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        parseBasic(text);
        parseBasic(`Basic ${text}`);
      }),
    );
  });
});
