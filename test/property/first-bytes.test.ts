import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { MAX_SNIFF_BYTES, sniff } from '../../src/proxy/sniff.ts';
import { Socks5Parser, type Socks5Event } from '../../src/proxy/socks5.ts';

const starts = fc.constantFrom(
  '',
  '\x16\x03',
  '\x16\x03\x01\x00\x10',
  'PRI * HTTP/2.0',
  'GET',
  'PRI',
  '\x05',
  '\x05\x01\x00',
  '\x04\x01',
  '\r',
  'M'.repeat(32),
);
const firstBytes = fc
  .tuple(starts, fc.uint8Array({ maxLength: 100 }))
  .map(([start, rest]) => Buffer.concat([Buffer.from(start, 'latin1'), rest]));

describe('sniffing', () => {
  test('an answer never changes when bytes are added', () => {
    fc.assert(
      fc.property(firstBytes, (bytes) => {
        let answer = sniff(bytes.subarray(0, 0));
        for (let length = 1; length <= bytes.length; length++) {
          const next = sniff(bytes.subarray(0, length));
          if (answer !== 'incomplete') expect(next).toBe(answer);
          answer = next;
        }
      }),
      { numRuns: 1000 },
    );
  });

  test('as many bytes as the limit always get an answer', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: MAX_SNIFF_BYTES, maxLength: MAX_SNIFF_BYTES }), starts, (rest, start) => {
        const bytes = Buffer.concat([Buffer.from(start, 'latin1'), rest]).subarray(0, MAX_SNIFF_BYTES);
        expect(sniff(bytes)).not.toBe('incomplete');
      }),
      { numRuns: 1000 },
    );
  });
});

/** Events of a whole handshake in which every client is accepted at once; the rest that came after a request is joined to its event. */
function run(chunks: readonly Buffer[], requireAuth: boolean): readonly Socks5Event[] {
  const parser = new Socks5Parser({ requireAuth });
  const events: Socks5Event[] = [];
  const take = (batch: readonly Socks5Event[]): void => {
    for (const event of batch) {
      const last = events.at(-1);
      if (last?.kind === 'send' && event.kind === 'send')
        events[events.length - 1] = { kind: 'send', bytes: Buffer.concat([last.bytes, event.bytes]) };
      else events.push(event.kind === 'request' ? { ...event, rest: Buffer.alloc(0) } : event);
    }
    if (batch.at(-1)?.kind === 'credentials') take(parser.accept());
  };
  for (const chunk of chunks) take(parser.push(chunk));
  return events;
}

describe('SOCKS5', () => {
  const greeting = fc.constantFrom([5, 1, 0], [5, 1, 2, 1, 1, 97, 1, 98], [5, 2, 0, 2, 1, 2, 97, 98, 0], [5, 1, 1], []);
  const request = fc.constantFrom(
    [5, 1, 0, 1, 10, 0, 0, 1, 0, 80],
    [5, 1, 0, 3, 3, 97, 46, 98, 1, 187],
    [5, 1, 0, 4],
    [5, 2, 0, 1],
    [5, 1, 0, 3],
    [],
  );
  const stream = fc
    .tuple(greeting, request, fc.uint8Array({ maxLength: 40 }))
    .map((parts) => Buffer.concat(parts.map((part) => Buffer.from(part))));

  test('the same bytes give the same events however they are chunked', () => {
    fc.assert(
      fc.property(
        stream,
        fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1 }),
        fc.boolean(),
        (bytes, sizes, requireAuth) => {
          const chunks: Buffer[] = [];
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const size = sizes[i % sizes.length] ?? 1;
            chunks.push(bytes.subarray(at, at + size));
            at += size;
          }
          expect(run(chunks, requireAuth)).toEqual(run([bytes], requireAuth));
        },
      ),
      { numRuns: 1000 },
    );
  });

  test('nothing follows the end of a handshake', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ minLength: 1, maxLength: 30 })), fc.boolean(), (chunks, requireAuth) => {
        const events = run(
          chunks.map((chunk) => Buffer.from(chunk)),
          requireAuth,
        );
        const end = events.findIndex((event) => event.kind === 'request' || event.kind === 'failed');
        if (end !== -1) expect(end).toBe(events.length - 1);
      }),
      { numRuns: 1000 },
    );
  });
});
