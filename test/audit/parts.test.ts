import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { flatText } from '../../src/audit/flat.ts';
import { milliseconds } from '../../src/audit/json-text.ts';
import { ocsfText } from '../../src/audit/ocsf.ts';
import type { AuditEvent } from '../../src/core/exchange.ts';
import { exchangeEvent, finding, tunnel, verdict } from './events.ts';

const context = { sequence: 7, uid: '01JC0000000000000000000009', productVersion: '0.1.0' };
const text = fc.oneof(
  fc.constantFrom('a', 'b', '\u0001', '\u0006"', 'x'.repeat(3000)),
  fc.string({ unit: 'binary', maxLength: 20 }),
);
const nullable = fc.option(text);
const count = fc.nat(5);

/** Few values for each fact, so that events are alike in most of them. */
const changes: fc.Arbitrary<Partial<AuditEvent>> = fc.record(
  {
    method: fc.constantFrom('GET', 'POST', null),
    host: fc.constantFrom('a.test', 'b.test'),
    port: fc.constantFrom(443, 80),
    scheme: fc.constantFrom('http', 'https', null),
    httpVersion: fc.constantFrom('1.1', '2', null),
    hasQuery: fc.boolean(),
    policy: fc.constantFrom('r1', ''),
    exchange: nullable,
    path: nullable,
    timeMs: count,
    startedAtMs: count,
    bytesOut: count,
    bytesIn: count,
    messagesOut: count,
    messagesIn: count,
    upstreamAddress: fc.constantFrom('10.0.0.1', 'no address', null),
    upstreamPort: fc.constantFrom(1, null),
    upstreamAlpn: nullable,
    upstreamTls: fc.constantFrom('TLSv1.3', null),
    findings: fc.constantFrom([], [finding()]),
    verdict: fc
      .record({ reason: fc.constantFrom('allowed', 'denied_by_rule'), rules: fc.array(fc.constantFrom('a', 'b')) })
      .map((facts) => verdict(facts)),
    outcome: fc.record({
      kind: fc.constantFrom('forwarded', 'denied', 'failed'),
      status: fc.constantFrom(200, null),
      error: fc.constantFrom('upstream_reset', null),
      cause: nullable,
    }),
    recognition: fc.option(
      fc.record({
        protocol: fc.constantFrom('http', 'grpc'),
        operation: text,
        subject: nullable,
        server: nullable,
        basis: fc.constant('inferred' as const),
      }),
    ),
    timings: fc.record({
      queue: fc.option(fc.double()),
      inspect: fc.option(fc.double()),
      upstreamConnect: fc.constant(null),
      firstByte: fc.constant(1.5),
      total: count,
    }),
  },
  { requiredKeys: [] },
);

describe('records of one tunnel, written one after the other', () => {
  it.each([
    ['OCSF', ocsfText],
    ['flat', flatText],
  ])('are in %s what each would be alone', (_name, write) => {
    const late = fc.record(
      { sni: nullable, alpn: nullable, tlsVersion: fc.constantFrom('TLSv1.2', null) },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.array(fc.tuple(changes, late), { maxLength: 12 }), (all) => {
        const shared = { ...tunnel() };
        for (const [change, learned] of all) {
          Object.assign(shared, learned);
          const event = exchangeEvent({ ...change, tunnel: shared });
          const alone = write({ ...event, tunnel: { ...shared } }, context);
          expect(write(event, context)).toBe(alone);
          expect(() => JSON.parse(alone) as unknown).not.toThrow();
        }
      }),
      { numRuns: 300 },
    );
  });
});

it.each([
  [0, '0'],
  [0.0004, '0'],
  [0.0005, '0.001'],
  [1, '1'],
  [1.5, '1.5'],
  [12.034, '12.034'],
  [0.9999, '1'],
  [86_400_000.25, '86400000.25'],
  [-1, 'null'],
  [NaN, 'null'],
  [Infinity, 'null'],
  [null, 'null'],
])('%s ms are written as %s', (value, expected) => {
  expect(milliseconds(value)).toBe(expected);
});
