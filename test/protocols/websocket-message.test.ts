import { randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { ProxyError } from '../../src/core/errors.ts';
import { WebSocketReader, acceptOf, encodeClose, encodeFrame, isKey } from '../../src/protocols/websocket-message.ts';
import type { WsEvent } from '../../src/protocols/websocket-message.ts';

const LIMIT = 100_000;

function read(bytes: readonly Buffer[], role: 'client' | 'server' = 'client', inspect = true): WsEvent[] {
  const reader = new WebSocketReader({ role, maxMessageBytes: LIMIT, inspect });
  return bytes.flatMap((piece) => reader.push(piece));
}

function outcome(bytes: Buffer, role: 'client' | 'server' = 'client', inspect = true): string {
  try {
    return read([bytes], role, inspect)
      .map((event) => event.kind)
      .join(' ');
  } catch (error) {
    return error instanceof ProxyError ? error.code : 'thrown';
  }
}

const mask = (): Buffer => randomBytes(4);
const text = (value: string, fin = true, opcode = 1): Buffer => {
  const frame = encodeFrame(opcode, Buffer.from(value), mask());
  if (!fin) frame[0] = (frame[0] ?? 0) & 0x7f;
  return frame;
};

function forwarded(events: readonly WsEvent[]): Buffer {
  return Buffer.concat(events.flatMap((event) => (event.kind === 'message' ? [...event.bytes] : [event.bytes])));
}

describe('the frames of a client', () => {
  const table: readonly (readonly [string, Buffer, string])[] = [
    ['a text', text('hi'), 'message'],
    ['an empty text', text(''), 'message'],
    ['a ping', encodeFrame(9, Buffer.from('x'), mask()), 'control'],
    ['a close', encodeClose(1000, 'bye', mask()), 'close'],
    ['a close without code', encodeFrame(8, Buffer.alloc(0), mask()), 'close'],
    ['fragments', Buffer.concat([text('a', false), text('b', true, 0)]), 'message'],
    [
      'a ping between fragments',
      Buffer.concat([text('a', false), encodeFrame(9, Buffer.alloc(0), mask()), text('b', true, 0)]),
      'control message',
    ],
    ['no mask', encodeFrame(1, Buffer.from('hi'), null), 'bad_websocket'],
    ['RSV1 (compressed)', Buffer.from([0xc1, 0x80, 1, 2, 3, 4]), 'bad_websocket'],
    ['RSV2', Buffer.from([0xa1, 0x80, 1, 2, 3, 4]), 'bad_websocket'],
    ['opcode 3', Buffer.from([0x83, 0x80, 1, 2, 3, 4]), 'bad_websocket'],
    ['opcode 11', Buffer.from([0x8b, 0x80, 1, 2, 3, 4]), 'bad_websocket'],
    ['a fragmented ping', Buffer.from([0x09, 0x80, 1, 2, 3, 4]), 'bad_websocket'],
    ['a long ping', encodeFrame(9, Buffer.alloc(126), mask()), 'bad_websocket'],
    ['a continuation of nothing', text('x', true, 0), 'bad_websocket'],
    ['a new message inside another', Buffer.concat([text('a', false), text('b')]), 'bad_websocket'],
    [
      'a length that could be shorter',
      Buffer.concat([Buffer.from([0x81, 0xfe, 0, 1]), mask(), Buffer.from('x')]),
      'bad_websocket',
    ],
    [
      'a 64-bit length that could be shorter',
      Buffer.concat([Buffer.from([0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 1]), mask(), Buffer.from('x')]),
      'bad_websocket',
    ],
    [
      'a length beyond the limit',
      Buffer.concat([Buffer.from([0x82, 0xff, 0, 0, 0, 0, 0, 2, 0, 0]), mask()]),
      'message_too_large',
    ],
    [
      'a length beyond 2^53',
      Buffer.concat([Buffer.from([0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0]), mask()]),
      'message_too_large',
    ],
    ['text that is not UTF-8', encodeFrame(1, Buffer.from([0xff, 0xfe]), mask()), 'bad_websocket'],
    ['a surrogate in UTF-8', encodeFrame(1, Buffer.from([0xed, 0xa0, 0x80]), mask()), 'bad_websocket'],
    ['half a close code', encodeFrame(8, Buffer.from([3]), mask()), 'bad_websocket'],
    ['close code 1005', encodeClose(1005, '', mask()), 'bad_websocket'],
    ['close code 999', encodeClose(999, '', mask()), 'bad_websocket'],
    ['bytes after the close', Buffer.concat([encodeClose(1000, '', mask()), text('x')]), 'bad_websocket'],
  ];
  test.each(table)('with %s', (_name, bytes, expected) => {
    expect(outcome(bytes)).toBe(expected);
  });

  test('are checked in the same way when nobody looks into messages', () => {
    for (const [name, bytes, expected] of table) {
      const found = outcome(bytes, 'client', false);
      if (expected === 'bad_websocket' || expected === 'message_too_large') expect(found, name).toBe(expected);
    }
  });

  test('of a server must not be masked', () => {
    expect(outcome(encodeFrame(1, Buffer.from('hi'), null), 'server')).toBe('message');
    expect(outcome(text('hi'), 'server')).toBe('bad_websocket');
  });

  test('whose fragments together are over the limit are refused', () => {
    const half = encodeFrame(2, Buffer.alloc(60_000), mask());
    half[0] = 2;
    const rest = encodeFrame(0, Buffer.alloc(60_000), mask());
    expect(outcome(Buffer.concat([half, rest]))).toBe('message_too_large');
    expect(outcome(Buffer.concat([half, rest]), 'client', false)).toBe('message_too_large');
  });
});

describe('any chunking', () => {
  const message = fc.record({
    isText: fc.boolean(),
    value: fc.string({ maxLength: 300, unit: 'binary' }),
    pieces: fc.integer({ min: 1, max: 4 }),
  });
  test('gives the same messages, and exactly the bytes that came', () => {
    fc.assert(
      fc.property(
        fc.array(message, { minLength: 1, maxLength: 5 }),
        fc.array(fc.nat(3000), { maxLength: 10 }),
        fc.boolean(),
        (messages, cuts, inspect) => {
          const frames = messages.flatMap(({ isText, value, pieces }) => {
            const payload = Buffer.from(value);
            return Array.from({ length: pieces }, (_all, i) => {
              const from = Math.floor((payload.length * i) / pieces);
              const to = Math.floor((payload.length * (i + 1)) / pieces);
              const frame = encodeFrame(i === 0 ? (isText ? 1 : 2) : 0, payload.subarray(from, to), mask());
              if (i < pieces - 1) frame[0] = (frame[0] ?? 0) & 0x7f;
              return frame;
            });
          });
          const bytes = Buffer.concat(frames);
          const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
          const split = [0, ...at].map((from, i) => bytes.subarray(from, at[i] ?? bytes.length));
          const events = read(split, 'client', inspect);
          expect(forwarded(events).equals(bytes)).toBe(true);
          if (!inspect) return;
          const found = events.filter((event) => event.kind === 'message');
          expect(found.map((event) => event.size)).toEqual(messages.map(({ value }) => Buffer.byteLength(value)));
          expect(found.map((event) => event.text)).toEqual(
            messages.map(({ isText, value }) => (isText ? Buffer.from(value).toString() : null)),
          );
        },
      ),
    );
  });

  test('never throws anything but a refusal', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 30 }), { maxLength: 6 }),
        fc.boolean(),
        fc.boolean(),
        (pieces, isClient, inspect) => {
          try {
            read(
              pieces.map((piece) => Buffer.from(piece)),
              isClient ? 'client' : 'server',
              inspect,
            );
          } catch (error) {
            expect(error).toBeInstanceOf(ProxyError);
          }
        },
      ),
    );
  });
});

test('the accept value is that of RFC 6455', () => {
  expect(acceptOf('dGhlIHNhbXBsZSBub25jZQ==')).toBe('s3pPLMBiTxaQ9kYGzzhZRbK+xOo=');
  expect(isKey('dGhlIHNhbXBsZSBub25jZQ==')).toBe(true);
  expect(isKey('short')).toBe(false);
});
