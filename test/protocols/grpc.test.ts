import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { ProxyError } from '../../src/core/errors.ts';
import type { Message } from '../../src/core/message.ts';
import { GrpcCodec, isGrpc, parseGrpcPath } from '../../src/protocols/grpc.ts';

function frame(payload: Buffer, flag = 0): Buffer {
  const prefix = Buffer.alloc(5);
  prefix[0] = flag;
  prefix.writeUInt32BE(payload.length, 1);
  return Buffer.concat([prefix, payload]);
}

function read(pieces: readonly Buffer[]): Message[] {
  const codec = new GrpcCodec({ direction: 'request', maxMessageBytes: 1000 });
  const messages = pieces.flatMap((piece) => codec.push(piece));
  return [...messages, ...codec.end()];
}

function outcome(bytes: Buffer): string {
  try {
    return `${read([bytes]).length}`;
  } catch (error) {
    return error instanceof ProxyError ? error.code : 'thrown';
  }
}

describe('gRPC framing', () => {
  test.each([
    ['nothing', Buffer.alloc(0), '0'],
    ['an empty message', frame(Buffer.alloc(0)), '1'],
    ['two messages', Buffer.concat([frame(Buffer.from('a')), frame(Buffer.from('bc'), 1)]), '2'],
    ['an unknown flag', frame(Buffer.from('a'), 2), 'bad_grpc'],
    ['a message over the limit', frame(Buffer.alloc(1001)), 'message_too_large'],
    ['half a prefix', Buffer.from([0, 0]), 'bad_grpc'],
    ['half a message', frame(Buffer.from('abc')).subarray(0, 7), 'bad_grpc'],
  ])('reads %s', (_name, bytes, expected) => {
    expect(outcome(bytes)).toBe(expected);
  });

  test('gives the same messages and bytes however it is chunked', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ maxLength: 50 }), { maxLength: 5 }),
        fc.array(fc.nat(300), { maxLength: 8 }),
        (payloads, cuts) => {
          const bytes = Buffer.concat(payloads.map((payload) => frame(Buffer.from(payload))));
          const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
          const messages = read([0, ...at].map((from, i) => bytes.subarray(from, at[i] ?? bytes.length)));
          expect(messages.map((message) => message.size)).toEqual(payloads.map((payload) => payload.length));
          expect(Buffer.concat(messages.flatMap((message) => [...message.bytes])).equals(bytes)).toBe(true);
        },
      ),
    );
  });
});

test.each([
  ['application/grpc', true],
  ['application/grpc+proto', true],
  ['Application/gRPC; charset=x', true],
  ['application/grpc-web', false],
  ['application/json', false],
  [undefined, false],
])('content type %s is gRPC: %s', (type, expected) => {
  expect(isGrpc(type)).toBe(expected);
});

test.each([
  ['/pkg.Service/Method', { service: 'pkg.Service', method: 'Method' }],
  ['/Service/Method', { service: 'Service', method: 'Method' }],
  ['/a/b/c', null],
  ['/a', null],
  ['/a/b?x', null],
])('path %s', (path, expected) => {
  expect(parseGrpcPath(path)).toEqual(expected);
});
