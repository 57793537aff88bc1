import { describe, expect, test } from 'vitest';
import { MAX_SNIFF_BYTES, sniff } from '../../src/proxy/sniff.ts';

const text = (value: string): Buffer => Buffer.from(value, 'latin1');

describe('the first bytes', () => {
  test.each([
    ['GET / HTTP/1.1\r\n', 'http1'],
    ['CONNECT a:1 HTTP/1.0\r\n', 'http1'],
    ['G ', 'http1'],
    ['get /', 'http1'],
    ["!#$%&'*+-.^_`|~1a x", 'http1'],
    ['\r\nGET / HTTP/1.1', 'http1'],
    ['PRI * HTTP/2.0\r\n', 'h2'],
    ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'h2'],
    ['PRI * HTTP/1.1\r\n', 'http1'],
    ['PRI /x HTTP/1.1\r\n', 'http1'],
    ['PRINT / HTTP/1.1', 'http1'],
    ['\x16\x03\x01\x02\x00\x01', 'tls'],
    ['\x16\x03\x03\x00\x05\x01', 'tls'],
    ['\x05\x01\x00', 'socks5'],
    ['\x05\x02\x00\x02', 'socks5'],
    ['\x04\x01\x00\x50\x7f\x00\x00\x01\x00', 'socks4'],
    [`${'M'.repeat(32)} /`, 'http1'],
  ])('%j are %s', (bytes, expected) => {
    expect(sniff(text(bytes))).toBe(expected);
  });

  test.each([
    ' GET /',
    '\n',
    '\0',
    'GET\t/',
    'GET\r\n',
    'GÉT /',
    '\x16\x02',
    '\x16\x03\x05',
    '\x16\x03\x01\x00\x00',
    '\x16\x03\x01\x40\x01',
    '\x16\x03\x01\x00\x05\x02',
    '\x17\x03\x03',
    '\x80\x2e\x01\x03\x01',
    '\x05\x00',
    '\x04\x03',
    '\rx',
    'SSH-2.0-x\r\n',
    '220 smtp\x00',
    'M'.repeat(33),
    '\xff',
  ])('%j are unknown', (bytes) => {
    // "220 smtp" has a token and a space and is for the HTTP parser to refuse.
    expect(sniff(text(bytes))).toBe(bytes.startsWith('220 ') ? 'http1' : 'unknown');
  });

  test.each([
    'GET / HTTP/1.1',
    'PRI * HTTP/2.0\r\n',
    '\x16\x03\x01\x02\x00\x01',
    '\x05\x01',
    '\x04\x01',
    '\r\n',
    `${'M'.repeat(32)} `,
  ])('no prefix of %j is taken for something else', (bytes) => {
    const whole = text(bytes);
    const answer = sniff(whole);
    for (let length = 0; length < whole.length; length++) {
      expect(['incomplete', answer]).toContain(sniff(whole.subarray(0, length)));
    }
  });

  test('get an answer once the limit is reached', () => {
    expect(sniff(text('M'.repeat(MAX_SNIFF_BYTES)))).toBe('unknown');
  });
});
