import { describe, expect, it } from 'vitest';
import { compileHost, compileName, compilePath, hostMatches, readingsOf } from '../../src/policy/glob.ts';

function host(pattern: string, name: string): boolean {
  const compiled = compileHost(pattern);
  if (!compiled.ok) throw new Error(compiled.text);
  return hostMatches(compiled.value, name);
}

function path(pattern: string, value: string): boolean {
  const compiled = compilePath(pattern);
  if (!compiled.ok) throw new Error(compiled.text);
  return compiled.value.test(value);
}

describe('host globs', () => {
  it.each([
    ['example.com', 'example.com', true],
    ['EXAMPLE.com.', 'example.com', true],
    ['bücher.example', 'xn--bcher-kva.example', true],
    ['example.com', 'www.example.com', false],
    ['*.example.com', 'example.com', false],
    ['*.example.com', 'www.example.com', true],
    ['*.example.com', 'a.b.c.example.com', true],
    ['*.example.com', 'evilexample.com', false],
    ['*.example.com', 'example.com.evil.net', false],
    ['*.Bücher.example', 'a.xn--bcher-kva.example', true],
    ['api-*.example.com', 'api-eu.example.com', true],
    ['api-*.example.com', 'api-.example.com', true],
    ['api-*.example.com', 'api-eu.west.example.com', false],
    ['api-*.example.com', 'x.api-eu.example.com', false],
    ['bedrock.*.amazonaws.com', 'bedrock.eu-west-1.amazonaws.com', true],
    ['bedrock.*.amazonaws.com', 'bedrock.a.b.amazonaws.com', false],
    ['bedrock.*.amazonaws.com', 'bedrock.amazonaws.com', false],
    ['*.api-*.example.com', 'a.api-1.example.com', true],
    ['*.api-*.example.com', 'a.b.api-1.example.com', true],
    ['*.api-*.example.com', 'api-1.example.com', false],
    ['*', 'anything.test', true],
    ['*', '10.0.0.1', true],
    ['*', '::1', true],
    ['127.1', '127.0.0.1', true],
    ['0x7f.0.0.1', '127.0.0.1', true],
    ['[2001:DB8::1]', '2001:db8::1', true],
    ['::ffff:10.0.0.1', '10.0.0.1', true],
    ['*.example.com', '::1', false],
  ])('%s on %s is %s', (pattern, name, expected) => {
    expect(host(pattern, name)).toBe(expected);
  });

  it.each([
    ['https://example.com', 'URL'],
    ['example.com/path', 'more than a host'],
    ['example.com:443', 'port in it'],
    ['*.example.com:8443', 'port in it'],
    ['[::1]:443', 'port in it'],
    ['user@example.com', 'more than a host'],
    ['example.*', 'open'],
    ['*.*', 'open'],
    ['foo*', 'open'],
    ['**.example.com', '**'],
    ['*.{a,b}.example.com', 'glob cannot have'],
    ['!*.example.com', 'glob cannot have'],
    ['+(a|b)*.example.com', 'glob cannot have'],
    ['10.0.0.*', 'open'],
    ['*.0.0.1', 'address'],
    ['*.5', 'address'],
    ['fe80::*', 'address'],
    ['', 'empty'],
    ['exa mple.com', 'not a host'],
    ['a..b', 'not a host'],
  ])('%s is refused: %s', (pattern, text) => {
    const compiled = compileHost(pattern);
    expect(compiled.ok).toBe(false);
    if (!compiled.ok) expect(compiled.text).toContain(text);
  });
});

describe('path globs', () => {
  it.each([
    ['/v1/models', '/v1/models', true],
    ['/v1/models', '/v1/models/', false],
    ['/v1/models', '/V1/models', false],
    ['/v1/*', '/v1/models', true],
    ['/v1/*', '/v1/', false],
    ['/v1/*', '/v1', false],
    ['/v1/*', '/v1//admin', false],
    ['/v1/*', '/v1/a/b', false],
    ['/v1/*', '/v1/a/', false],
    ['/v1/*', '/v1/.git', true],
    ['/v1/**', '/v1/', true],
    ['/v1/**', '/v1', false],
    ['/v1/**', '/v1/.git/config', true],
    ['/v1/**', '/v1//admin', true],
    ['/v1/**', '/v10/a', false],
    ['/**/x', '/x', true],
    ['/**/x', '/a/b/x', true],
    ['/**/x', '/a/b/y', false],
    ['**/x', '/a/x', true],
    ['/*/*/git-upload-pack', '/a/b.git/git-upload-pack', true],
    ['/*/*/git-upload-pack', '/a/b/c/git-upload-pack', false],
    ['/v1/a*b', '/v1/a-b', true],
    ['/v1/a*b', '/v1/ab', true],
    ['/v1/a*b', '/v1/a/b', false],
    ['/v1/*.json', '/v1/.json', true],
    ['/a/*/c', '/a//c', false],
    ['/users(1)/+(x)', '/users(1)/+(x)', true],
    ['/!important', '/!important', true],
    ['/v1/m%3Arun', '/v1/m:run', true],
    ['/v1/*', '/v1/a%2Fb', true],
    ['/', '/', true],
    ['/**', '*', false],
    ['*', '*', true],
    ['*', '/a/b', true],
    ['**', '/a/b', true],
  ])('%s on %s is %s', (pattern, value, expected) => {
    expect(path(pattern, value)).toBe(expected);
  });

  it.each([
    ['v1/models', 'neither / nor *'],
    ['/search?q=*', '?'],
    ['/a#b', '#'],
    ['/{a,b}', 'brackets'],
    ['/[ab]', 'brackets'],
    ['/a\\*', 'brackets'],
    ['/a/../b', 'no path'],
    ['/a%2', 'no path'],
    ['/v1/a**', '**'],
    ['/v1/***', '**'],
    [`/${'**/'.repeat(9)}x`, 'more than 8'],
    [`/${'a'.repeat(2000)}`, 'longer'],
    ['*x', 'neither'],
  ])('%s is refused: %s', (pattern, text) => {
    const compiled = compilePath(pattern);
    expect(compiled.ok).toBe(false);
    if (!compiled.ok) expect(compiled.text).toContain(text);
  });

  it('answers on patterns and paths that make backtracking matchers hang', () => {
    const long = 'a'.repeat(16_000);
    expect(path(`/${'*a'.repeat(100)}b`, `/${long}`)).toBe(false);
    expect(path(`/${'**/a*a*a*a*a*/'.repeat(8)}b`, `/${'aaaaaaaaaaaaaaaaaaaa/'.repeat(760)}`)).toBe(false);
    expect(host(`${'*a'.repeat(30)}.example.com`, `${'a'.repeat(62)}b.example.com`)).toBe(false);
  });
});

describe('name globs', () => {
  it.each([
    ['ci-*', 'ci-7', true],
    ['ci-*', 'CI-7', false],
    ['*-bot', 'my-bot', true],
    ['*', '', true],
    ['team/*', 'team/a/b', true],
    ['a*b*c', 'axxbyyc', true],
    ['*.Greeter', 'helloworld.Greeter', true],
    ['.*', '.x', true],
  ])('%s on %s is %s', (pattern, value, expected) => {
    const compiled = compileName(pattern, 'agent');
    expect(compiled.ok && compiled.value.test(value)).toBe(expected);
  });

  it.each(['', 'a?', '{a,b}', '!a', 'a**', '(a)'])('%j is refused', (pattern) => {
    expect(compileName(pattern, 'agent').ok).toBe(false);
  });
});

describe('readings of a path', () => {
  it('an ordinary path has one', () => {
    expect(readingsOf('/v1/models')).toEqual(['/v1/models']);
    expect(readingsOf('/')).toEqual(['/']);
  });

  it.each([
    '//admin',
    '/admin/',
    '/admin;x',
    '/admin;x=1/',
    '/x%2F..',
    '/%2Fadmin',
    '/admin%2F',
    '/admin%5C',
    '/admin%3Bx',
  ])('%s comes first and is among at most 16', (odd) => {
    const readings = readingsOf(odd);
    expect(readings[0]).toBe(odd);
    expect(readings.length).toBeGreaterThan(1);
    expect(readings.length).toBeLessThanOrEqual(16);
    if (odd.includes('admin')) expect(readings).toContain('/admin');
  });
});
