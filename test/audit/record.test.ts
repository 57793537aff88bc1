import { existsSync, readFileSync } from 'node:fs';
import { Ajv2020 } from 'ajv/dist/2020.js';
import type { ValidateFunction } from 'ajv/dist/2020.js';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MAX_RECORD_BYTES } from '../../src/audit/facts.ts';
import { flatText, toFlat } from '../../src/audit/flat.ts';
import { createFormatter } from '../../src/audit/formatter.ts';
import { ocsfText, toOcsf } from '../../src/audit/ocsf.ts';
import type { AuditEvent } from '../../src/core/exchange.ts';
import type { Finding } from '../../src/core/finding.ts';
import { exchangeEvent, finding, tunnel, tunnelEvent, verdict } from './events.ts';

const context = { sequence: 7, uid: '01JC0000000000000000000009', productVersion: '0.1.0' };

const ours = new Ajv2020({ allErrors: true, strict: false });
ours.addSchema(readJson(new URL('../../docs/schemas/record.schema.json', import.meta.url)), 'record');
const isFlat = validator(ours, 'record');
const isFacts = validator(ours, 'record#/$defs/facts');
const isGap = validator(ours, 'record#/$defs/gap');

/** The OCSF schema is not part of the project; where it lies beside it, records are checked against it. */
const ocsfSchema = new URL('../../../shared/ocsf/ocsf-1.8.0.schema.json', import.meta.url);
const isOcsf = existsSync(ocsfSchema)
  ? new Ajv2020({ strict: false, validateFormats: false }).compile(readJson(ocsfSchema))
  : null;

function readJson(url: URL): object {
  return JSON.parse(readFileSync(url, 'utf8')) as object;
}

function validator(ajv: Ajv2020, id: string): ValidateFunction {
  const found = ajv.getSchema(id);
  if (found === undefined) throw new Error(`no schema ${id}`);
  return found;
}

function expectValid(validate: ValidateFunction, value: unknown): void {
  validate(value);
  expect(validate.errors ?? []).toEqual([]);
}

interface Ocsf {
  readonly class_uid: number;
  readonly activity_id: number;
  readonly unmapped: { readonly subfloor: Readonly<Record<string, unknown>> };
}

const events: readonly (readonly [string, AuditEvent])[] = [
  ['an allowed request', exchangeEvent()],
  ['a denied request', deniedEvent()],
  [
    'a redacted request',
    exchangeEvent({
      verdict: verdict({ action: 'redact', judged: 'redact' }),
      outcome: { kind: 'redacted', status: 200, error: null, cause: null },
      findings: [finding()],
    }),
  ],
  [
    'a request that a monitor rule would deny',
    exchangeEvent({ verdict: verdict({ judged: 'deny', mode: 'monitor' }) }),
  ],
  ['a warned request', exchangeEvent({ verdict: verdict({ action: 'warn', judged: 'warn' }) })],
  [
    'an upstream failure',
    exchangeEvent({
      outcome: { kind: 'failed', status: 502, error: 'connect_refused', cause: 'ECONNREFUSED' },
      upstreamTls: null,
      upstreamAlpn: null,
    }),
  ],
  [
    'an aborted request',
    exchangeEvent({ outcome: { kind: 'aborted', status: null, error: 'client_aborted', cause: null } }),
  ],
  [
    'a request that could not be parsed',
    exchangeEvent({
      method: null,
      path: null,
      scheme: null,
      httpVersion: null,
      recognition: null,
      outcome: { kind: 'failed', status: 400, error: 'bad_request', cause: null },
    }),
  ],
  ['a request with an unusual method', exchangeEvent({ method: 'PROPFIND' })],
  [
    'a plain request by absolute form',
    exchangeEvent({
      scheme: 'http',
      port: 80,
      tunnel: tunnel({ via: 'absolute_form', mode: 'plain', sni: null, alpn: null, tlsVersion: null }),
      upstreamTls: null,
    }),
  ],
  [
    'a gRPC call',
    exchangeEvent({
      recognition: {
        protocol: 'grpc',
        operation: 'pkg.Service/Method',
        subject: null,
        server: null,
        basis: 'declared',
      },
      messagesOut: 1,
      messagesIn: 12,
    }),
  ],
  [
    'a tool call',
    exchangeEvent({
      recognition: {
        protocol: 'mcp',
        operation: 'tools/call',
        subject: 'create_issue',
        server: 'mcp.example.com',
        basis: 'declared',
      },
    }),
  ],
  [
    'missing credentials',
    exchangeEvent({
      exchange: null,
      outcome: { kind: 'failed', status: 407, error: 'proxy_auth_required', cause: null },
    }),
  ],
  [
    'IPv6 on both sides',
    exchangeEvent({ tunnel: tunnel({ sourceAddress: '2001:db8::7' }), upstreamAddress: '2001:db8::1' }),
  ],
  [
    'a source that is no address',
    exchangeEvent({ tunnel: tunnel({ sourceAddress: 'unix' }), upstreamAddress: null, upstreamPort: null }),
  ],
  ['an intercepted tunnel', tunnelEvent()],
  ['a passthrough tunnel', tunnelEvent({ tunnel: tunnel({ mode: 'passthrough', tlsVersion: null, alpn: null }) })],
  [
    'a refused tunnel',
    tunnelEvent({
      verdict: verdict({ action: 'deny', judged: 'deny', reason: 'host_not_allowed', rules: [] }),
      outcome: { kind: 'denied', status: 403, error: null, cause: null },
      upstreamAddress: null,
    }),
  ],
  [
    'a failed tunnel',
    tunnelEvent({ outcome: { kind: 'failed', status: 502, error: 'dns_failed', cause: 'ENOTFOUND' } }),
  ],
  [
    'a tunnel that the agent dropped',
    tunnelEvent({ outcome: { kind: 'aborted', status: null, error: 'client_aborted', cause: 'ECONNRESET' } }),
  ],
];

function deniedEvent(): AuditEvent {
  return exchangeEvent({
    method: 'POST',
    verdict: verdict({
      action: 'deny',
      judged: 'deny',
      reason: 'denied_by_rule',
      rules: ['secrets-stay-home'],
      message: 'Ask first.',
    }),
    outcome: { kind: 'denied', status: 403, error: null, cause: null },
    findings: [finding()],
    upstreamAddress: null,
  });
}

describe('the OCSF record', () => {
  it.skipIf(isOcsf === null).each(events)('of %s is valid OCSF 1.8.0', (_name, event) => {
    if (isOcsf !== null) expectValid(isOcsf, toOcsf(event, context));
  });

  it.each(events)('of %s holds our facts under unmapped.subfloor', (_name, event) => {
    expectValid(isFacts, (toOcsf(event, context) as Ocsf).unmapped.subfloor);
  });

  it('has every name of the product description', () => {
    const { subfloor } = (toOcsf(exchangeEvent(), context) as Ocsf).unmapped;
    expect(subfloor).toMatchObject({
      exchange: '01JC0000000000000000000002',
      tunnel: '01JC0000000000000000000001',
      agent: 'researcher',
      identified_by: 'proxy_auth',
      transport: 'connect',
      protocol: 'http',
      operation: 'GET',
      subject: null,
      server: null,
      verdict: 'allow',
      reason: 'allowed',
      rules: ['docs-read'],
      mode: 'enforce',
      findings: [],
      bytes_out: 0,
      bytes_in: 5120,
      timings_ms: { queue: 0.031, inspect: 0.125, upstream_connect: 21.5, first_byte: 120.75, total: 150.063 },
      policy: 'b1946ac92492',
      error: null,
    });
  });

  it('says protocol tunnel for a tunnel', () => {
    expect((toOcsf(tunnelEvent(), context) as Ocsf).unmapped.subfloor).toMatchObject({
      kind: 'tunnel',
      protocol: 'tunnel',
      operation: null,
      exchange: null,
    });
  });

  it.each<[string, AuditEvent, object]>([
    ['allowed', exchangeEvent(), { action_id: 1, disposition_id: 1, status_id: 1, severity_id: 1, is_alert: false }],
    [
      'blocked',
      deniedEvent(),
      {
        action_id: 2,
        disposition_id: 2,
        status_id: 2,
        severity_id: 4,
        is_alert: true,
        firewall_rule: { uid: 'secrets-stay-home' },
      },
    ],
    [
      'detected only',
      exchangeEvent({ verdict: verdict({ judged: 'deny', mode: 'monitor' }) }),
      { action_id: 3, disposition_id: 15, status_id: 1, severity_id: 2 },
    ],
    [
      'an alert',
      exchangeEvent({ verdict: verdict({ action: 'warn', judged: 'warn' }) }),
      { action_id: 3, disposition_id: 19, is_alert: true },
    ],
    [
      'corrected',
      exchangeEvent({ outcome: { kind: 'redacted', status: 200, error: null, cause: null } }),
      { action_id: 4, disposition_id: 11, status_id: 1 },
    ],
    [
      'an error',
      exchangeEvent({ outcome: { kind: 'failed', status: 502, error: 'connect_refused', cause: 'ECONNREFUSED' } }),
      { action_id: 1, disposition_id: 27, status_id: 2, status_code: 'connect_refused', status_detail: 'ECONNREFUSED' },
    ],
    [
      'rejected',
      exchangeEvent({ outcome: { kind: 'failed', status: 400, error: 'bad_framing', cause: null } }),
      { action_id: 2, disposition_id: 25 },
    ],
    [
      'unauthorized',
      exchangeEvent({ outcome: { kind: 'denied', status: 407, error: 'proxy_auth_rejected', cause: null } }),
      { action_id: 2, disposition_id: 26 },
    ],
  ])('says %s in the security_control profile', (_name, event, expected) => {
    expect(toOcsf(event, context)).toMatchObject(expected);
  });

  it.each<[string, number]>([
    ['GET', 3],
    ['POST', 6],
    ['PATCH', 9],
    ['CONNECT', 1],
    ['PROPFIND', 99],
  ])('of a %s has activity %i', (method, activity) => {
    expect(toOcsf(exchangeEvent({ method }), context)).toMatchObject({
      class_uid: 4002,
      activity_id: activity,
      type_uid: 400200 + activity,
      activity_name: method,
    });
  });

  it.each<[AuditEvent['outcome']['kind'], number]>([
    ['forwarded', 2],
    ['aborted', 3],
    ['failed', 4],
    ['denied', 5],
  ])('of a tunnel that was %s has activity %i', (kind, activity) => {
    const event = tunnelEvent({ outcome: { kind, status: null, error: null, cause: null } });
    expect(toOcsf(event, context)).toMatchObject({
      class_uid: 4001,
      activity_id: activity,
      type_uid: 400100 + activity,
    });
  });

  it('follows a tunnel whose facts are learned late', () => {
    const late = { ...tunnel({ mode: 'undecided', sni: null, alpn: null, tlsVersion: null }) };
    expect((toOcsf(exchangeEvent({ tunnel: late }), context) as Ocsf).unmapped.subfloor).toMatchObject({
      sni: null,
      tunnel_mode: 'undecided',
    });
    Object.assign(late, { mode: 'intercept', sni: 'api.example.com', alpn: 'h2', tlsVersion: 'TLSv1.3' });
    const record = toOcsf(exchangeEvent({ tunnel: late }), context) as Ocsf;
    expect(record.unmapped.subfloor).toMatchObject({ sni: 'api.example.com', tunnel_mode: 'intercept', alpn: 'h2' });
    expect(record).toMatchObject({ tls: { version: '1.3', sni: 'api.example.com' } });
  });
});

describe('the flat record', () => {
  it.each(events)('of %s fits its schema', (_name, event) => {
    expectValid(isFlat, toFlat(event, context));
  });

  it('says where and when beside our facts', () => {
    expect(toFlat(exchangeEvent(), context)).toMatchObject({
      time: 1_793_700_000_250,
      start_time: 1_793_700_000_100,
      sequence: 7,
      host: 'api.example.com',
      port: 443,
      path: '/v1/pages/7',
      method: 'GET',
      status: 200,
      source_address: '10.1.2.3',
      has_query: true,
    });
  });
});

describe('the gap record', () => {
  const gap = { fromMs: 1000, toMs: 2500, dropped: 3, cause: 'ENOSPC' };

  it.skipIf(isOcsf === null)('is valid OCSF 1.8.0', () => {
    const record: unknown = JSON.parse(createFormatter({ format: 'ocsf', productVersion: '0.1.0' }).gap(gap));
    if (isOcsf !== null) expectValid(isOcsf, record);
    expectValid(isGap, (record as Ocsf).unmapped.subfloor);
  });

  it('fits the schema of the flat format', () => {
    expectValid(isFlat, JSON.parse(createFormatter({ format: 'flat', productVersion: '0.1.0' }).gap(gap)));
  });
});

describe('what is never in a record', () => {
  it('is a query or fragment, should a caller have left it on the path', () => {
    for (const write of [ocsfText, flatText]) {
      const line = write(exchangeEvent({ path: '/a?token=hidden#hidden' }), context);
      expect(line).not.toContain('hidden');
      expect(line).toContain('"path":"/a"');
    }
  });

  it('is the coaching text of a rule or a label of the agent', () => {
    const line = ocsfText(deniedEvent(), context);
    expect(line).not.toContain('Ask first');
    expect(line).not.toContain('blue');
  });
});

describe('a record of hostile strings', () => {
  const nasty = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 400 }),
    fc.constantFrom(
      '\n',
      '\r\n{"time":1}',
      '\ud800',
      '\udc00x',
      '\u2028',
      '\u0085',
      '"',
      '\\',
      '\u0000'.repeat(5000),
      'x'.repeat(100_000),
      '\u{1f600}'.repeat(3000),
      '',
    ),
  );
  const anyFinding: fc.Arbitrary<Finding> = fc.record({
    detector: nasty,
    kind: nasty,
    severity: fc.constantFrom('info', 'low', 'medium', 'high', 'critical'),
    confidence: fc.oneof(fc.double(), fc.constant(Number.NaN)),
    field: nasty,
    hash: fc.option(nasty),
    masked: fc.option(nasty),
  });
  const anyNumber = fc.oneof(fc.double(), fc.nat());
  const anyEvent = fc
    .record({
      isTunnel: fc.boolean(),
      texts: fc.array(nasty, { minLength: 24, maxLength: 24 }),
      numbers: fc.array(anyNumber, { minLength: 8, maxLength: 8 }),
      findings: fc.array(anyFinding, { maxLength: 60 }),
      rules: fc.array(nasty, { maxLength: 60 }),
    })
    .map(({ isTunnel, texts, numbers, findings, rules }): AuditEvent => {
      const s = (i: number): string => texts[i] ?? '';
      const n = (i: number): number => numbers[i] ?? 0;
      const agent = { id: s(0), name: s(1), labels: {}, identifiedBy: 'listener' as const };
      return (isTunnel ? tunnelEvent : exchangeEvent)({
        exchange: s(2),
        tunnel: tunnel({
          id: s(3),
          agent,
          sourceAddress: s(4),
          listener: s(5),
          sni: s(6),
          alpn: s(7),
          tlsVersion: s(8),
          sourcePort: n(0),
        }),
        httpVersion: s(9),
        method: s(10),
        scheme: s(11),
        host: s(12),
        path: s(13),
        recognition: { protocol: 'mcp', operation: s(14), subject: s(15), server: s(16), basis: 'declared' },
        verdict: verdict({ reason: s(17), rules, message: s(18) }),
        outcome: { kind: 'failed', status: 500, error: s(19), cause: s(20) },
        findings,
        bytesOut: n(1),
        bytesIn: n(2),
        timings: { queue: n(3), inspect: n(4), upstreamConnect: n(5), firstByte: n(6), total: n(7) },
        upstreamAddress: s(21),
        upstreamAlpn: s(22),
        upstreamTls: s(23),
        policy: s(2),
      });
    });

  it('is one line of ASCII, parses, and is at most 32 KiB', () => {
    fc.assert(
      fc.property(anyEvent, (event) => {
        for (const format of ['ocsf', 'flat'] as const) {
          const line = createFormatter({ format, productVersion: '0.1.0' }).line(event);
          expect(line).toMatch(/^[\x20-\x7e]+\n$/);
          expect(line.length).toBeLessThanOrEqual(MAX_RECORD_BYTES);
          expect(line).not.toMatch(/\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])/);
          const record = JSON.parse(line) as { unmapped?: { subfloor: unknown } };
          if (format === 'flat') expect(record).toHaveProperty('findings');
          else expect(record.unmapped?.subfloor).toHaveProperty('findings');
        }
      }),
      { numRuns: 150 },
    );
  });

  it('is within the limit even when every character has to be escaped', () => {
    const long = '\u0000'.repeat(100_000);
    const agent = { id: long, name: long, labels: {}, identifiedBy: 'listener' as const };
    const worst = exchangeEvent({
      exchange: long,
      tunnel: tunnel({ id: long, agent, listener: long, sni: long, alpn: long, tlsVersion: long }),
      httpVersion: long,
      method: long,
      scheme: long,
      host: long,
      path: long,
      recognition: { protocol: 'mcp', operation: long, subject: long, server: long, basis: 'declared' },
      verdict: verdict({ reason: long, rules: Array.from({ length: 100 }, () => long) }),
      outcome: { kind: 'failed', status: 500, error: long, cause: long },
      findings: Array.from({ length: 100 }, () =>
        finding({ detector: long, kind: long, field: long, hash: long, masked: long }),
      ),
      upstreamAddress: long,
      upstreamAlpn: long,
      upstreamTls: long,
      policy: long,
    });
    for (const format of ['ocsf', 'flat'] as const) {
      const line = createFormatter({ format, productVersion: long }).line(worst);
      expect(line.length).toBeLessThanOrEqual(MAX_RECORD_BYTES);
    }
  });

  it('marks what was cut and counts findings that did not fit, the least severe first', () => {
    const findings = [
      ...Array.from({ length: 50 }, () => finding({ severity: 'low' })),
      finding({ severity: 'critical' }),
    ];
    const record = toOcsf(exchangeEvent({ path: `/${'a'.repeat(5000)}`, findings }), context) as Ocsf;
    expect(record).toMatchObject({ severity_id: 5, http_request: { url: { path: `/${'a'.repeat(2047)}[cut]` } } });
    expect(record.unmapped.subfloor).toMatchObject({ findings_omitted: 19 });
    expect((record.unmapped.subfloor['findings'] as Finding[])[0]?.severity).toBe('critical');
    expectValid(isFacts, record.unmapped.subfloor);
  });
});
