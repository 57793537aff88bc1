import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { ProxyError } from '../../src/core/errors.ts';
import type { Message, MessageCodec } from '../../src/core/message.ts';
import { SseCodec } from '../../src/protocols/sse.ts';
import { WholeBodyCodec } from '../../src/protocols/whole-body.ts';

function read(codec: MessageCodec, pieces: readonly Buffer[]): Message[] {
  return [...pieces.flatMap((piece) => codec.push(piece)), ...codec.end()];
}

function split(bytes: Buffer, cuts: readonly number[]): Buffer[] {
  const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
  return [0, ...at].map((from, i) => bytes.subarray(from, at[i] ?? bytes.length));
}

describe('server-sent events', () => {
  test.each([
    ['data: a\n\ndata: b\n\n', ['data: a\n\n', 'data: b\n\n']],
    ['data: a\r\n\r\ndata: b\r\n\r\n', ['data: a\r\n\r\n', 'data: b\r\n\r\n']],
    ['data: a\r\rdata: b\r\r ', ['data: a\r\r', 'data: b\r\r', ' ']],
    ['data: a\r\n\ndata: b\n\r\n', ['data: a\r\n\n', 'data: b\n\r\n']],
    [': comment\n\nid: 1\nevent: x\ndata: y\n\n', [': comment\n\n', 'id: 1\nevent: x\ndata: y\n\n']],
    ['\n\ndata: a\n\n', ['\n', '\n', 'data: a\n\n']],
    ['data: unfinished', ['data: unfinished']],
    ['', []],
  ])('%j is cut at its empty lines', (text, expected) => {
    expect(read(new SseCodec('response', 1000), [Buffer.from(text)]).map((event) => event.text)).toEqual(expected);
  });

  test('are given out as soon as their empty line is there', () => {
    const codec = new SseCodec('response', 1000);
    expect(codec.push(Buffer.from('data: a\n'))).toEqual([]);
    expect(codec.push(Buffer.from('\n'))).toHaveLength(1);
  });

  test('are the same however they are chunked, byte for byte', () => {
    const line = fc.constantFrom('data: x', ': c', '', 'id: 1', 'data: ü');
    const eol = fc.constantFrom('\n', '\r\n', '\r');
    fc.assert(
      fc.property(
        fc.array(fc.tuple(line, eol), { maxLength: 15 }),
        fc.array(fc.nat(200), { maxLength: 8 }),
        (lines, cuts) => {
          const bytes = Buffer.from(lines.map(([text, end]) => text + end).join(''));
          const whole = read(new SseCodec('response', 1000), [bytes]);
          const pieces = read(new SseCodec('response', 1000), split(bytes, cuts));
          expect(pieces.map((event) => event.bytes.map(String).join(''))).toEqual(
            whole.map((event) => event.bytes.map(String).join('')),
          );
          expect(Buffer.concat(whole.flatMap((event) => [...event.bytes])).equals(bytes)).toBe(true);
        },
      ),
    );
  });

  test('over the limit are refused, not cut', () => {
    const codec = new SseCodec('response', 10);
    expect(() => codec.push(Buffer.from('data: 0123456789'))).toThrow(ProxyError);
  });
});

describe('a body that is read whole', () => {
  test('is one message, given at the end', () => {
    const codec = new WholeBodyCodec('request', 100);
    expect(codec.push(Buffer.from('{"a":'))).toEqual([]);
    expect(codec.push(Buffer.from('1}'))).toEqual([]);
    expect(codec.end()).toMatchObject([{ text: '{"a":1}', size: 7, framing: 'body' }]);
  });

  test('has no text when it is not UTF-8', () => {
    const codec = new WholeBodyCodec('request', 100);
    codec.push(Buffer.from([0xff, 0xfe]));
    expect(codec.end()[0]?.text).toBeNull();
  });

  test('over the limit is refused', () => {
    expect(() => new WholeBodyCodec('request', 3).push(Buffer.from('abcd'))).toThrow(ProxyError);
  });
});
