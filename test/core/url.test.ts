import { describe, expect, test } from 'vitest';
import {
  canonicalHost,
  formatAuthority,
  isIpLiteral,
  normalizePath,
  parseAbsoluteUrl,
  parseAuthority,
  pathReadings,
} from '../../src/core/url.ts';

describe('a host has one spelling', () => {
  test.each([
    ['Example.COM', 'example.com'],
    ['example.com.', 'example.com'],
    ['localhost', 'localhost'],
    ['_dmarc.example.com', '_dmarc.example.com'],
    ['my_bucket.s3.example.com', 'my_bucket.s3.example.com'],
    ['r3---sn-4g5e.example.com', 'r3---sn-4g5e.example.com'],
    ['1e3', '1e3'],
    ['3com.example', '3com.example'],
    ['bücher.example', 'xn--bcher-kva.example'],
    ['BÜCHER.example。', 'xn--bcher-kva.example'],
    ['xn--bcher-kva.example', 'xn--bcher-kva.example'],
    ['xn--a.example', 'xn--a.example'],
    ['faß.de', 'xn--fa-hia.de'],
    ['ｅｘａｍｐｌｅ．com', 'example.com'],
    ['\u212Aelvin.example', 'kelvin.example'],
    ['a\u00adb.example', 'ab.example'],
    // IPv4
    ['127.0.0.1', '127.0.0.1'],
    ['127.0.0.1.', '127.0.0.1'],
    ['127.1', '127.0.0.1'],
    ['0x7f.1', '127.0.0.1'],
    ['0X7F.0.0.0x1', '127.0.0.1'],
    ['2130706433', '127.0.0.1'],
    ['017700000001', '127.0.0.1'],
    ['127.000.000.1', '127.0.0.1'],
    ['010.0.0.1', '8.0.0.1'],
    ['0', '0.0.0.0'],
    ['0x', '0.0.0.0'],
    ['127.0.0.１', '127.0.0.1'],
    // IPv6
    ['::1', '::1'],
    ['[::1]', '::1'],
    ['0:0:0:0:0:0:0:1', '::1'],
    ['::', '::'],
    ['2001:DB8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['2001:0db8::0001', '2001:db8::1'],
    ['::ffff:127.0.0.1', '127.0.0.1'],
    ['[::FFFF:7f00:1]', '127.0.0.1'],
    ['::ffff:0.0.0.0', '0.0.0.0'],
    ['::127.0.0.1', '::7f00:1'],
    ['64:ff9b::10.0.0.1', '64:ff9b::a00:1'],
    [`${'a'.repeat(63)}.example`, `${'a'.repeat(63)}.example`],
  ])('%j is %j', (text, expected) => {
    expect(canonicalHost(text)).toBe(expected);
  });

  test.each([
    '',
    '.',
    '..',
    'a..b',
    '.a',
    'a..',
    'a b',
    ' a',
    'a\t',
    'a\nb',
    'a\0b',
    'a/b',
    'a\\b',
    'a?b',
    'a#b',
    'a@b',
    'a:b',
    'a:80',
    'a%2eb',
    'ex%61mple.com',
    '*.example.com',
    '*',
    'a,b',
    "a'b",
    'a|b',
    'a`b',
    'a{b}',
    '"a"',
    'a+b',
    'a=b',
    '℀.example',
    'a／b',
    'a＠b',
    'a％41',
    '\u{1F4A9}\0',
    '\ud800.example',
    '1.2.3.256',
    '1.2.3.4.5',
    'example.0x',
    'example.1',
    'example.09',
    '09',
    '0x100000000',
    '4294967296',
    '[127.0.0.1]',
    '[example.com]',
    '[::1',
    '::1]',
    '[::1]]',
    '[[::1]]',
    '[]',
    ':',
    ':::',
    '1::2::3',
    '::g',
    '12345::',
    'fe80::1%eth0',
    '[fe80::1%25eth0]',
    '::1%0',
    '::1 ',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '::1.2.3',
    '::1.2.3.256',
    '::01.2.3.4',
    '../../x',
    'a'.repeat(64),
    `${'a'.repeat(64)}.example`,
    Array.from({ length: 64 }, () => 'abc').join('.'),
    'a'.repeat(5000),
  ])('%j is refused', (text) => {
    expect(canonicalHost(text)).toBeNull();
  });

  test('a name of 253 characters passes and one of 254 does not', () => {
    const name = `${Array.from({ length: 3 }, () => 'a'.repeat(63)).join('.')}.${'a'.repeat(61)}`;
    expect(name).toHaveLength(253);
    expect(canonicalHost(name)).toBe(name);
    expect(canonicalHost(`${name}.`)).toBe(name);
    expect(canonicalHost(`${name}a`)).toBeNull();
  });

  test.each([
    ['127.0.0.1', true],
    ['::1', true],
    ['example.com', false],
    ['1.2.3.4.example', false],
  ])('whether %j is an IP literal: %j', (host, expected) => {
    expect(isIpLiteral(host)).toBe(expected);
  });
});

describe('an authority', () => {
  test.each([
    ['example.com:443', 'example.com', 443],
    ['EXAMPLE.com.:1', 'example.com', 1],
    ['[::1]:65535', '::1', 65_535],
    ['[::ffff:10.0.0.1]:80', '10.0.0.1', 80],
    ['0x7f.1:80', '127.0.0.1', 80],
  ])('%j names host and port', (text, host, port) => {
    expect(parseAuthority(text, null)).toEqual({ host, port });
  });

  test.each(['example.com', '[::1]', '127.0.0.1'])('%j needs a default port', (text) => {
    expect(parseAuthority(text, null)).toBeNull();
    expect(parseAuthority(text, 443)?.port).toBe(443);
  });

  test.each([
    '',
    ':80',
    'a:',
    'a:0',
    'a:65536',
    'a:99999',
    'a:123456',
    'a:+1',
    'a:-1',
    'a: 1',
    'a:1 ',
    ' a:1',
    'a:01',
    'a:0x50',
    'a:1e1',
    'a:８０',
    'a:1:2',
    'a::1',
    '::1',
    '::1:80',
    '[::1',
    '[::1]80',
    '[::1]x:80',
    '[::1]:',
    '[a]:80',
    'user@a:80',
    'user:pw@a:80',
    'a/:80',
    'a:80/',
    'a:80?',
    'a:80#',
    'http://a:80',
    '*:80',
    'bücher.example:80',
    'a\r\n:80',
    'a:80\r',
    'a%2e:80',
    '[::1%25eth0]:80',
    'a,b:80',
    'a\\:80',
  ])('%j is refused', (text) => {
    expect(parseAuthority(text, null)).toBeNull();
    expect(parseAuthority(text, 80)).toBeNull();
  });

  test.each([
    [{ host: 'example.com', port: 443 }, undefined, 'example.com:443'],
    [{ host: 'example.com', port: 443 }, 443, 'example.com'],
    [{ host: 'example.com', port: 80 }, 443, 'example.com:80'],
    [{ host: '::1', port: 443 }, undefined, '[::1]:443'],
    [{ host: '::1', port: 443 }, 443, '[::1]'],
  ])('%j with default %j is written %j', (destination, defaultPort, expected) => {
    expect(formatAuthority(destination, defaultPort)).toBe(expected);
  });
});

describe('an absolute URL', () => {
  test.each([
    ['http://example.com', 'http', 'example.com', 80, '/'],
    ['HTTPS://Example.com/', 'https', 'example.com', 443, '/'],
    ['http://example.com?a=b', 'http', 'example.com', 80, '/?a=b'],
    ['http://example.com:8080/a%2Fb/../c;d?e=|{}', 'http', 'example.com', 8080, '/a%2Fb/../c;d?e=|{}'],
    ['http://[::1]:81//x', 'http', '::1', 81, '//x'],
    ['http://example.com/http://other/@', 'http', 'example.com', 80, '/http://other/@'],
  ])('%s is taken apart, its target kept as sent', (text, scheme, host, port, target) => {
    expect(parseAbsoluteUrl(text)).toEqual({ scheme, destination: { host, port }, target });
  });

  test.each([
    '',
    '/',
    '*',
    'example.com:80',
    'http:',
    'http:/',
    'http://',
    'http:///x',
    'http:example.com',
    'http:/example.com',
    'ftp://a/',
    'ws://a/',
    'file:///etc',
    'javascript:1',
    'http://user@a/',
    'http://user:pw@a/',
    'http://@a/',
    'http://a@b@c/',
    'http://a/#f',
    'http://a#f',
    'http://a\\b/',
    'http://a/\\',
    'http:\\\\a/',
    'http://a/ b',
    ' http://a/',
    'http://a/\t',
    'http://a/ü',
    'http://a:/',
    'http://a:x/',
    'http://a:80:80/',
    'http://a/\0',
    'http://a/\x7f',
    'http://*/',
    'http://a%2eb/',
    'http://::1/',
    'httpx://a/',
    'http://a\r\nx/',
  ])('%j is refused', (text) => {
    expect(parseAbsoluteUrl(text)).toBeNull();
  });
});

describe('a path for matching', () => {
  test.each([
    ['/', '/', ''],
    ['*', '*', ''],
    ['/v1/messages', '/v1/messages', ''],
    ['/v1/messages?beta=true', '/v1/messages', 'beta=true'],
    ['/a?', '/a', ''],
    ['/a?b?c', '/a', 'b?c'],
    ['/a?x=/../y&z=%', '/a', 'x=/../y&z=%'],
    ['/%61%7E%2D%2e%5f', '/a~-._', ''],
    ['/v1/models/m%3AgenerateContent', '/v1/models/m:generateContent', ''],
    ['/%21%24%26%27%28%29%2a%2b%2c%3d%40', "/!$&'()*+,=@", ''],
    ['/a%2fb', '/a%2Fb', ''],
    ['/@scope%2fname', '/@scope%2Fname', ''],
    ['/a%5cb', '/a%5Cb', ''],
    ['/a%3bb;c', '/a%3Bb;c', ''],
    ['/%3f%23%25', '/%3F%23%25', ''],
    ['/a%20b', '/a%20b', ''],
    ['/%c3%bc', '/%C3%BC', ''],
    ['/%252e%252e/', '/%252e%252e/', ''],
    ['/%252f', '/%252f', ''],
    ['/{a}|"<>^`[]', '/%7Ba%7D%7C%22%3C%3E%5E%60%5B%5D', ''],
    ['/%7ba%7d', '/%7Ba%7D', ''],
    ['//admin', '//admin', ''],
    ['/v1//admin', '/v1//admin', ''],
    ['/.well-known/x', '/.well-known/x', ''],
    ['/...', '/...', ''],
    ['/a..b/c.', '/a..b/c.', ''],
    ['/..a', '/..a', ''],
    ['/%2egit', '/.git', ''],
    ['/%e9', '/%E9', ''],
  ])('%j becomes %j', (target, path, query) => {
    expect(normalizePath(target)).toEqual({ path, query });
  });

  test.each([
    '',
    'a',
    'example.com:443',
    'http://a/',
    '?a',
    '/..',
    '/.',
    '/../',
    '/./',
    '/a/../b',
    '/a/.',
    '/a/..?x',
    '/a/./b',
    '/%2e',
    '/%2e%2e/',
    '/.%2E/',
    '/%2E./a',
    '/a%2f..%2fb',
    '/a%2f..',
    '/a%2F%2e%2e%2Fb',
    '/%2e%2e%2f',
    '/..%5c',
    '/a%5c..%5cb',
    '/..;/manager',
    '/..;a=b/x',
    '/.;/x',
    '/..%3b/x',
    '/%2e%2e;x/',
    '/a\\b',
    '/\\..',
    '/a#b',
    '/a?b#c',
    '/a b',
    '/a?b c',
    '/a\tb',
    '/%00',
    '/a%0ab',
    '/%1f',
    '/%7f',
    '/%',
    '/%a',
    '/%zz',
    '/%u002e',
    '/%%32e',
    '/a%',
    '/ü',
    '/a?ü',
    '/\0',
    '/\x7f',
    '/\r\n',
    '/%c0%ae',
    '/%c1%9c',
    '/%e0%80%af',
    '/%f0%80%80%af',
    '**',
    '*?a',
  ])('%j is refused', (target) => {
    expect(normalizePath(target)).toBeNull();
  });

  test.each([
    ['/a/b', ['/a/b']],
    ['/a%2Fb', ['/a%2Fb', '/a/b']],
    ['/a%5Cb%2Fc', ['/a%5Cb%2Fc', '/a/b/c']],
    ['/a%252Fb', ['/a%252Fb']],
  ])('%j can be read as %j', (path, readings) => {
    expect(pathReadings(path)).toEqual(readings);
  });
});
