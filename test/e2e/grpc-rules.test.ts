import grpc from '@grpc/grpc-js';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { grpcThrough } from '../support/grpc-client.ts';
import type { GrpcClient } from '../support/grpc-client.ts';
import { startGrpcOrigin } from '../support/grpc-server.ts';
import type { GrpcOrigin } from '../support/grpc-server.ts';
import { h2Through } from '../support/h2-client.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { headersFrame, rawH2 } from '../support/raw-h2.ts';
import { until, within } from '../support/waiting.ts';

const { status } = grpc;
// Refusals are what these tests are about; the client need not print them.
grpc.setLogVerbosity(grpc.logVerbosity.NONE);

const RULES = `
version: 1
defaults: { grpc: deny }
rules:
  - id: calls
    description: gRPC to this host, by service and method
    match: { host: grpc.test, grpc: { service: test.*, method: [Unary, Collect, Chat] } }
    action: allow
  - id: no-secret-service
    description: a service that is closed inside a host that is open
    match: { host: grpc.test, grpc: { service: test.Secret* } }
    action: deny
    message: "The secret service is closed: 100 % é."
  - id: small-messages
    description: messages of a certain size are denied
    match: { host: grpc.test, protocol: grpc, direction: request }
    if: message.size == 4242
    action: deny
    message: Not this one.
  - id: small-answers
    description: and so are they in answers
    match: { host: grpc.test, protocol: grpc, direction: response }
    if: message.size == 4343
    action: deny
  - id: web
    description: this host is open for HTTP alone
    match: { host: web.test }
    action: allow
`;

const shared = closeAfterFile();
let origin: GrpcOrigin;
let proxy: TestProxy;
let channel: GrpcClient;

beforeAll(async () => {
  origin = shared(await startGrpcOrigin('grpc.test'));
  proxy = shared(
    await startProxy({
      rules: RULES,
      hosts: { 'grpc.test': origin.port, 'web.test': origin.port },
      limits: { messageBytes: 1024 * 1024 },
    }),
  );
  channel = shared(grpcThrough(proxy, 'grpc.test:443'));
});

function message(text: string): Buffer {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(text.length, 1);
  return Buffer.concat([prefix, Buffer.from(text)]);
}

describe('a denied call', () => {
  it.each([
    ['of a service that a rule denies', 'grpc.test', '/test.SecretThings/Unary', 'denied_by_rule', 'no-secret-service'],
    ['of a method that no rule allows', 'grpc.test', '/test.Echo/Other', 'grpc_not_allowed', null],
    ['of a method in another case', 'grpc.test', '/test.Echo/unary', 'grpc_not_allowed', null],
    ['of a service that no rule allows', 'grpc.test', '/other.Echo/Unary', 'grpc_not_allowed', null],
    ['to a host that is open for HTTP alone', 'web.test', '/test.Echo/Unary', 'grpc_not_allowed', null],
  ] as const)('%s is PERMISSION_DENIED, with our message, and never sent', async (_name, host, path, code, rule) => {
    const before = origin.calls.length;
    const outcome = await closeAfterTest(grpcThrough(proxy, `${host}:443`)).call(path, ['x']);
    expect(outcome.code).toBe(status.PERMISSION_DENIED);
    expect(outcome.details).toContain(code);
    if (rule !== null) expect(outcome.details).toContain('The secret service is closed: 100 % é.');
    const exchange = String(outcome.trailer.get('x-subfloor-exchange')[0]);
    expect(outcome.details).toContain(exchange);
    const record = await proxy.waitForRecord((r) => r.exchange === exchange);
    expect(record).toMatchObject({
      protocol: 'grpc',
      operation: path.slice(1),
      verdict: 'deny',
      reason: code,
      rules: rule === null ? [] : [rule],
      outcome: 'denied',
      upstream_address: null,
    });
    expect(origin.calls.length).toBe(before);
  });

  it('is answered with trailers only: one header section that ends the stream', async () => {
    const client = closeAfterTest(await h2Through(proxy.port, 'grpc.test', { ca: proxy.ca }));
    const answer = await client.ask(
      { ':method': 'POST', ':path': '/test.SecretThings/Get', 'content-type': 'application/grpc', te: 'trailers' },
      message('x'),
    );
    expect(answer).toMatchObject({
      status: 200,
      headers: { 'content-type': 'application/grpc', 'grpc-status': '7' },
      trailers: {},
    });
    expect(answer.body).toHaveLength(0);
    expect(String(answer.headers['grpc-message'])).toMatch(/^The secret service is closed: 100 %25 %C3%A9\./);
  });

  it('to a host that nobody may reach fails at CONNECT', async () => {
    const outcome = await closeAfterTest(grpcThrough(proxy, 'denied.test:443')).call(
      'Unary',
      ['x'],
      {},
      { deadline: Date.now() + 5000 },
    );
    expect(outcome.code).toBe(status.UNAVAILABLE);
    expect(await proxy.waitForRecord((r) => r.host === 'denied.test')).toMatchObject({
      kind: 'tunnel',
      verdict: 'deny',
    });
  });

  it('for its message is PERMISSION_DENIED when the answer has not begun, and the message is not sent', async () => {
    const outcome = await channel.call('Collect', ['fine', Buffer.alloc(4242)]);
    expect(outcome.code).toBe(status.PERMISSION_DENIED);
    expect(outcome.details).toContain('Not this one.');
    expect(await proxy.waitForRecord((r) => r.rules.includes('small-messages'))).toMatchObject({
      protocol: 'grpc',
      verdict: 'deny',
      outcome: 'denied',
    });
  });

  it.each([
    ['of the client', 'Chat', [Buffer.from('fine'), Buffer.alloc(4242)], ['fine']],
    ['of the server', 'Chat', [Buffer.from('fine'), Buffer.alloc(4343)], ['fine']],
  ] as const)(
    'for a later message %s ends with PERMISSION_DENIED, and the message goes no further',
    async (_name, method, sent, seen) => {
      const { stream, messages, outcome } = channel.open(method);
      const [first, second] = sent;
      stream.write(first);
      await until('the first echo', () => messages.length === 1);
      const before = origin.cancelled.length;
      stream.write(second);
      const end = await within('the end', outcome);
      expect(end.code).toBe(status.PERMISSION_DENIED);
      expect(end.details).toContain('message_denied');
      expect(messages.map(String)).toEqual(seen);
      await until('the server to see it', () => origin.cancelled.length > before);
    },
  );

  it.each([
    ['with half a message', '/test.Echo/Unary', message('whole').subarray(0, 7), '3', 'bad_grpc'],
    ['with an unknown flag', '/test.Echo/Unary', Buffer.from([9, 0, 0, 0, 0]), '3', 'bad_grpc'],
    ['with a message over the limit', '/test.Echo/Unary', Buffer.from([0, 0, 0x10, 0, 1, 1]), '8', 'message_too_large'],
  ] as const)('%s has the status of its reason', async (_name, path, body, expected, code) => {
    const client = closeAfterTest(await h2Through(proxy.port, 'grpc.test', { ca: proxy.ca }));
    const answer = await client.ask(
      { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' },
      body,
    );
    expect(answer.headers['grpc-status']).toBe(expected);
    expect(String(answer.headers['grpc-message'])).toContain(code);
  });

  it.each(['/Unary', '/test.Echo/Unary/more', '/test.Echo/Un%61ry?x=1', '/'])(
    'to %s, which names no method, is refused',
    async (path) => {
      const before = origin.calls.length;
      const client = closeAfterTest(await rawH2(proxy.port, 'grpc.test', proxy.ca));
      client.send(
        headersFrame(
          1,
          [
            [':method', 'POST'],
            [':scheme', 'https'],
            [':authority', 'grpc.test'],
            [':path', path],
            ['content-type', 'application/grpc'],
          ],
          { endStream: true },
        ),
      );
      expect(await client.outcomeOf(1)).toMatchObject({
        kind: 'answer',
        status: expect.not.stringMatching('2..') as unknown,
      });
      expect(origin.calls.length).toBe(before);
    },
  );
});
