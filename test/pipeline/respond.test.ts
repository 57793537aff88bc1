import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CODES, ProtocolError, UpstreamError } from '../../src/core/errors.ts';
import type { Code } from '../../src/core/errors.ts';
import { headerValue } from '../../src/core/headers.ts';
import type { RawHeaders } from '../../src/core/headers.ts';
import type { Verdict } from '../../src/core/verdict.ts';
import {
  agentText,
  connectAnswer,
  grpcAnswer,
  httpAnswer,
  refusalOf,
  refusalOfVerdict,
  webSocketClose,
} from '../../src/pipeline/respond.ts';
import type { Refusal } from '../../src/pipeline/respond.ts';

const codes = Object.keys(CODES) as Code[];

function refusal(changes: Partial<Refusal> = {}): Refusal {
  return {
    code: 'host_not_allowed',
    detail: null,
    message: null,
    rule: null,
    exchange: '01JC0000000000000000000002',
    ...changes,
  };
}

function verdict(changes: Partial<Verdict>): Verdict {
  return {
    action: 'deny',
    judged: 'deny',
    reason: 'denied_by_rule',
    rules: [],
    mode: 'enforce',
    message: null,
    findings: [],
    ...changes,
  };
}

interface ErrorBody {
  readonly error: {
    readonly type: string;
    readonly code: string;
    readonly message: string;
    readonly rule: string | null;
    readonly exchange: string;
  };
}

function bodyOf(body: Buffer): ErrorBody {
  return JSON.parse(body.toString('utf8')) as ErrorBody;
}

describe('a refusal', () => {
  it('takes code and detail from our errors', () => {
    expect(refusalOf(new ProtocolError('bad_host', 'Two Host lines.'), 'x1')).toMatchObject({
      code: 'bad_host',
      detail: 'Two Host lines.',
      exchange: 'x1',
    });
  });

  it('tells nothing of foreign errors', () => {
    const answer = httpAnswer(refusalOf(new Error('password is hunter2'), 'x1'));
    expect(answer.status).toBe(500);
    expect(answer.body.toString()).not.toContain('hunter2');
    expect(bodyOf(answer.body).error.code).toBe('internal_error');
  });

  it('tells nothing of the cause of our errors', () => {
    const error = new UpstreamError('connect_failed', null, { cause: new Error('10.0.0.7 is hidden') });
    expect(httpAnswer(refusalOf(error, 'x1')).body.toString()).not.toContain('10.0.0.7');
  });

  it('takes reason, first rule and coaching text from a verdict', () => {
    const given = verdict({ reason: 'message_denied', rules: ['a', 'b'], message: 'Ask first.' });
    expect(refusalOfVerdict(given, 'x1')).toMatchObject({ code: 'message_denied', rule: 'a', message: 'Ask first.' });
  });

  it.each(['allowed', 'unheard_of', 'constructor'])('counts the reason %s as a denial by rule', (reason) => {
    expect(refusalOfVerdict(verdict({ reason }), 'x1').code).toBe('denied_by_rule');
  });
});

describe('the HTTP answer', () => {
  it('is a 403 with the body that the documentation promises', () => {
    const answer = httpAnswer(refusal({ rule: 'r1', message: 'Use the mirror', host: 'docs.example.com' }));
    expect(answer.status).toBe(403);
    expect(answer.reason).toBe('Forbidden');
    expect(headerValue(answer.headers, 'content-type')).toBe('application/json');
    expect(headerValue(answer.headers, 'cache-control')).toBe('no-store');
    expect(headerValue(answer.headers, 'x-subfloor-exchange')).toBe('01JC0000000000000000000002');
    expect(headerValue(answer.headers, 'x-should-retry')).toBe('false');
    expect(bodyOf(answer.body)).toEqual({
      error: {
        type: 'egress_denied',
        code: 'host_not_allowed',
        message:
          'Use the mirror. No rule allows this host. Do not retry; ask the operator to add a rule for docs.example.com if it should be allowed.',
        rule: 'r1',
        exchange: '01JC0000000000000000000002',
      },
    });
  });

  it.each(codes)(
    'for %s has the status of the table, a body of the announced length and lower-case headers',
    (code) => {
      const answer = httpAnswer(refusal({ code }));
      const { status, kind } = CODES[code];
      if (status !== null) expect(answer.status).toBe(status);
      expect(answer.status).toBeGreaterThanOrEqual(400);
      expect(headerValue(answer.headers, 'content-length')).toBe(String(answer.body.length));
      expect(bodyOf(answer.body).error.type).toBe(kind === 'policy' ? 'egress_denied' : 'egress_error');
      expect(answer.headers.filter((_, i) => i % 2 === 0).every((name) => name === name.toLowerCase())).toBe(true);
      expect(answer.reason).not.toBe('Refused');
    },
  );

  it('never invites to repeat what the policy refused', () => {
    for (const code of codes) {
      if (CODES[code].kind !== 'policy') continue;
      const { headers } = httpAnswer(refusal({ code }));
      expect(headerValue(headers, 'x-should-retry'), code).toBe('false');
      expect(headerValue(headers, 'retry-after'), code).toBeUndefined();
    }
  });

  it('leaves the retry to the client where it may help', () => {
    const { headers } = httpAnswer(refusal({ code: 'draining' }));
    expect(headerValue(headers, 'x-should-retry')).toBeUndefined();
    expect(headerValue(headers, 'retry-after')).toBe('2');
  });

  it('has no body but its length for HEAD', () => {
    const whole = httpAnswer(refusal());
    const head = httpAnswer(refusal(), { headersOnly: true });
    expect(head.body).toHaveLength(0);
    expect(head.headers).toEqual(whole.headers);
  });

  it('challenges for Basic with 407', () => {
    const answer = httpAnswer(refusal({ code: 'proxy_auth_required' }));
    expect(answer.status).toBe(407);
    expect(headerValue(answer.headers, 'proxy-authenticate')).toBe('Basic realm="subfloor"');
  });

  it('names the methods with 405', () => {
    expect(headerValue(httpAnswer(refusal({ code: 'method_not_supported' })).headers, 'allow')).toContain('GET');
  });
});

describe('the CONNECT answer', () => {
  it('is a whole response that ends the connection', () => {
    const text = connectAnswer(refusal()).toString('latin1');
    const [head = '', body = ''] = text.split('\r\n\r\n');
    const lines = head.split('\r\n');
    expect(lines[0]).toBe('HTTP/1.1 403 Forbidden');
    expect(lines).toContain('connection: close');
    expect(lines).toContain(`content-length: ${body.length}`);
    expect(bodyOf(Buffer.from(body)).error.code).toBe('host_not_allowed');
  });

  it('counts bytes, not characters', () => {
    const bytes = connectAnswer(refusal({ message: 'Größe ✓' }));
    const at = bytes.indexOf('\r\n\r\n') + 4;
    expect(bytes.subarray(0, at).toString('latin1')).toContain(`content-length: ${bytes.length - at}\r\n`);
  });
});

describe('the gRPC answer', () => {
  it('is permission denied, with headers that are complete alone', () => {
    const answer = grpcAnswer(refusal({ rule: 'r1', message: 'Größe: 100%' }));
    expect(answer.status).toBe(200);
    expect(headerValue(answer.headers, 'content-type')).toBe('application/grpc');
    expect(headerValue(answer.headers, 'grpc-status')).toBe('7');
    const message = headerValue(answer.headers, 'grpc-message') ?? '';
    expect(message).toContain('Gr%C3%B6%C3%9Fe: 100%25');
    expect(decodeURIComponent(message)).toContain('(host_not_allowed, rule r1, exchange 01JC0000000000000000000002)');
    expect(headerValue(answer.trailers, 'grpc-status')).toBe('7');
    expect(headerValue(answer.trailers, 'content-type')).toBeUndefined();
  });

  it.each<[Code, string]>([
    ['denied_by_rule', '7'],
    ['proxy_auth_required', '16'],
    ['bad_grpc', '3'],
    ['http_version', '12'],
    ['message_too_large', '8'],
    ['idle_timeout', '4'],
    ['too_many_streams', '14'],
    ['connect_refused', '14'],
    ['upstream_timeout', '14'],
    ['upstream_protocol', '13'],
    ['draining', '14'],
    ['internal_error', '13'],
    ['client_aborted', '1'],
  ])('for %s has status %s', (code, status) => {
    expect(headerValue(grpcAnswer(refusal({ code })).trailers, 'grpc-status')).toBe(status);
  });
});

describe('the WebSocket close', () => {
  it.each<[Code, number]>([
    ['message_denied', 1008],
    ['policy_changed', 1008],
    ['message_too_large', 1009],
    ['bad_websocket', 1002],
    ['upstream_reset', 1014],
    ['internal_error', 1011],
    ['draining', 1001],
    ['audit_unavailable', 1013],
  ])('for %s has code %i and a reason that begins with it', (code, expected) => {
    const close = webSocketClose(refusal({ code }));
    expect(close.code).toBe(expected);
    expect(close.reason.startsWith(`${code}: `)).toBe(true);
  });

  it('cuts a long reason at a whole character', () => {
    const { reason } = webSocketClose(refusal({ message: 'ö'.repeat(300) }));
    expect(Buffer.byteLength(reason)).toBeLessThanOrEqual(123);
    expect(reason).not.toContain('\ufffd');
    expect(reason.endsWith('…')).toBe(true);
  });
});

describe('texts for the agent', () => {
  it('do not advise to add a rule where a rule denies', () => {
    expect(agentText(refusal({ code: 'denied_by_rule', message: 'Only SELECT.' }))).toBe(
      'Only SELECT. A rule denies this. Do not send it again unchanged.',
    );
  });

  it('say of upstream failures that no rule is the reason', () => {
    expect(agentText(refusal({ code: 'connect_refused' }))).toContain('No rule is the reason');
  });

  const nasty = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 3000 }),
    fc.constantFrom(
      'a\r\nSet-Cookie: x=1',
      '\r\n\r\nHTTP/1.1 200 OK',
      '\ud800',
      '\u0000'.repeat(2000),
      '\u202eevil',
      '"}}',
      '%0d%0a',
    ),
  );

  it('cannot break out of any answer, whatever is in the refusal', () => {
    const clean = (headers: RawHeaders): void => {
      for (const part of headers) expect(part).toMatch(/^[\x20-\x7e]*$/);
    };
    fc.assert(
      fc.property(nasty, nasty, nasty, nasty, fc.constantFrom(...codes), (message, detail, rule, other, code) => {
        const given: Refusal = { code, message, detail, rule, exchange: other, host: other };
        const http = httpAnswer(given);
        clean(http.headers);
        expect(http.body.length).toBeLessThan(16_384);
        const body = bodyOf(http.body);
        expect(body.error.code).toBe(code);
        expect(body.error.message).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/);
        expect(http.body.toString('utf8')).not.toMatch(/\\ud[89ab]/i);

        const connect = connectAnswer(given);
        const headEnd = connect.indexOf('\r\n\r\n');
        expect(connect.subarray(headEnd + 4).equals(http.body)).toBe(true);

        const grpc = grpcAnswer(given);
        clean(grpc.headers);
        expect(grpc.headers.join('').length).toBeLessThan(8192);
        expect(() => decodeURIComponent(headerValue(grpc.headers, 'grpc-message') ?? '')).not.toThrow();

        const close = webSocketClose(given);
        expect(Buffer.byteLength(close.reason)).toBeLessThanOrEqual(123);
        expect(close.reason).not.toMatch(/[\u0000-\u001f\ud800-\udfff]/u);
      }),
      { numRuns: 200 },
    );
  });
});
