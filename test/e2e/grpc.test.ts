import { createHash } from 'node:crypto';
import type { ServerHttp2Stream } from 'node:http2';
import { setTimeout as sleep } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { grpcThrough } from '../support/grpc-client.ts';
import type { GrpcClient } from '../support/grpc-client.ts';
import { BULK_MESSAGE_BYTES, startGrpcOrigin } from '../support/grpc-server.ts';
import type { GrpcOrigin } from '../support/grpc-server.ts';
import { startH2Origin } from '../support/h2-server.ts';
import type { H2Origin } from '../support/h2-server.ts';
import { startOrigin } from '../support/https-server.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { frame2, rawH2 } from '../support/raw-h2.ts';
import { until, within } from '../support/waiting.ts';

const { status } = grpc;

const RULES = `
version: 1
defaults: { grpc: deny }
rules:
  - id: calls
    description: gRPC to these hosts, by service and method
    match: { host: ["*.grpc.test", grpc.test], grpc: { service: test.*, method: [Unary, Collect, Spread, Chat, Never, Fail, Bulk, Count] } }
    action: allow
`;

const shared = closeAfterFile();
let origin: GrpcOrigin;
let proxy: TestProxy;
/** Answers with what the test wants; it sees resets, which a gRPC server hides. */
let h2: H2Origin;
let channel: GrpcClient;

beforeAll(async () => {
  const keepalive = { 'grpc.keepalive_time_ms': 100, 'grpc.keepalive_timeout_ms': 1000 };
  origin = shared(await startGrpcOrigin('grpc.test', { server: keepalive }));
  h2 = shared(
    await startH2Origin({
      answer: (stream, headers) => {
        answers.get(headers[':path'] ?? '')?.(stream);
        return true;
      },
    }),
  );
  const h1 = shared(await startOrigin());
  proxy = shared(
    await startProxy({
      rules: RULES,
      hosts: {
        'grpc.test': origin.port,
        'h2.grpc.test': h2.port,
        'h1.grpc.test': h1.port,
      },
      limits: { messageBytes: 1024 * 1024 },
    }),
  );
  channel = shared(grpcThrough(proxy, 'grpc.test:443'));
});

type Answer = ServerHttp2Stream;
const answers = new Map<string, (stream: Answer) => void>();

function open(target: string, options?: Parameters<typeof grpcThrough>[2]): GrpcClient {
  return closeAfterTest(grpcThrough(proxy, target, options));
}

function message(text: string): Buffer {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(text.length, 1);
  return Buffer.concat([prefix, Buffer.from(text)]);
}

describe('a call', () => {
  it('with one message each way gets its answer, metadata and trailers', async () => {
    const outcome = await channel.call('Unary', ['hello'], { 'x-from-client': 'yes' });
    expect(outcome).toMatchObject({ code: status.OK, messages: [Buffer.from('hello')] });
    expect(outcome.head?.get('x-answered-by')).toEqual(['origin']);
    expect(outcome.trailer.get('x-trailer')).toEqual(['at the end']);
    expect(origin.calls.at(-1)).toMatchObject({ method: 'Unary', metadata: { 'x-from-client': 'yes' } });
  });

  it.each([
    ['client streaming', 'Collect', ['one ', 'two ', 'three'], ['one two three']],
    ['server streaming', 'Spread', ['abcdef'], ['a', 'b', 'c', 'd', 'e', 'f']],
    ['bidirectional', 'Chat', ['x', '', 'z'], ['x', '', 'z']],
    ['client streaming without a message', 'Collect', [], ['']],
    ['bidirectional without a message', 'Chat', [], []],
  ] as const)('with %s keeps its messages and their order', async (_name, method, sent, expected) => {
    const outcome = await channel.call(method, sent);
    expect(outcome.code).toBe(status.OK);
    expect(outcome.messages.map(String)).toEqual(expected);
  });

  it('in both directions interleaves: each message gets through before the next is sent', async () => {
    const { stream, messages, outcome } = channel.open('Chat');
    for (let i = 0; i < 20; i++) {
      stream.write(Buffer.from(`turn ${i}`));
      await until(`the echo of turn ${i}`, () => messages.length === i + 1);
    }
    stream.end();
    expect((await within('the end', outcome)).code).toBe(status.OK);
    expect(messages.map(String)).toEqual(Array.from({ length: 20 }, (_, i) => `turn ${i}`));
  });

  it('carries compressed messages as they are', async () => {
    const compressing = open('grpc.test:443', {
      channel: { 'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip },
    });
    const outcome = await compressing.call('Unary', ['z'.repeat(50_000)]);
    expect(outcome).toMatchObject({ code: status.OK });
    expect(outcome.messages[0]?.toString()).toBe('z'.repeat(50_000));
  });

  it('carries metadata both ways: repeated, binary, and 30 KB of it', async () => {
    const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
    const large = 'm'.repeat(30 * 1024);
    const { stream, outcome } = channel.open('Unary', {
      'x-echo': 'text, with a comma',
      'x-echo-data-bin': bytes,
      'x-echo-large': large.slice(0, 12_000),
      'x-filler': large,
    });
    stream.end(Buffer.from('hello'));
    const { code, head, trailer } = await within('the answer', outcome);
    expect(code).toBe(status.OK);
    for (const received of [head, trailer]) {
      expect(received?.get('x-echo')).toEqual(['text, with a comma']);
      expect(received?.get('x-echo-data-bin')).toEqual([bytes]);
      expect(received?.get('x-echo-large')).toEqual([large.slice(0, 12_000)]);
    }
    expect(origin.calls.at(-1)?.metadata).toMatchObject({ 'x-echo-data-bin': bytes, 'x-filler': large });
    const answer = await channel.call('Unary', [''], { 'x-want-metadata': '30720' });
    expect(answer.head?.get('x-large')).toEqual([large]);
  });

  it('that fails has the status and the message of the server', async () => {
    expect(await channel.call('Fail', ['x'])).toMatchObject({
      code: status.FAILED_PRECONDITION,
      details: 'not like this: 100 % sure',
    });
  });

  it('of an unknown method is refused by whoever knows it', async () => {
    const other = closeAfterTest(
      await startProxy({
        rules:
          'rules: [{ id: all, description: all of it, match: { host: grpc.test, protocol: grpc }, action: allow }]',
        hosts: { 'grpc.test': origin.port },
      }),
    );
    const client = closeAfterTest(grpcThrough(other, 'grpc.test:443'));
    expect(await client.call('/test.Echo/Nothing', ['x'])).toMatchObject({ code: status.UNIMPLEMENTED });
  });

  it('shares its channel with many others', async () => {
    const own = open('grpc.test:443');
    const outcomes = await Promise.all([
      ...Array.from({ length: 30 }, (_, i) => own.call('Unary', [`call ${i}`])),
      ...Array.from({ length: 10 }, (_, i) => own.call('Spread', [`spread ${i}`])),
      ...Array.from({ length: 10 }, (_, i) => own.call('Chat', [`chat ${i}`, '!'])),
    ]);
    expect(outcomes.map(({ code }) => code)).toEqual(Array.from({ length: 50 }, () => status.OK));
    expect(outcomes.map(({ messages }) => Buffer.concat(messages).toString())).toEqual([
      ...Array.from({ length: 30 }, (_, i) => `call ${i}`),
      ...Array.from({ length: 10 }, (_, i) => `spread ${i}`),
      ...Array.from({ length: 10 }, (_, i) => `chat ${i}!`),
    ]);
    own.close();
    const tunnel = await proxy.waitForRecord(
      (r) => r.kind === 'tunnel' && proxy.recordsNow().filter((other) => other.tunnel === r.tunnel).length === 51,
    );
    expect(tunnel).toMatchObject({ host: 'grpc.test', alpn: 'h2', verdict: 'allow' });
  });

  it('leaves one record with its protocol, operation, messages and bytes', async () => {
    const own = open('grpc.test:443');
    await own.call('Chat', ['one', 'three', 'fifteen']);
    expect(
      await proxy.waitForRecord((r) => r.operation === 'test.Echo/Chat' && r.messages_out === 3 && r.bytes_out === 30),
    ).toMatchObject({
      kind: 'exchange',
      protocol: 'grpc',
      method: 'POST',
      path: '/test.Echo/Chat',
      verdict: 'allow',
      rules: ['calls'],
      outcome: 'forwarded',
      status: 200,
      messages_in: 3,
      bytes_in: 30,
      upstream_alpn: 'h2',
      error: null,
    });
  });

  it('in an open stream survives keepalive pings of the client and of the server', async () => {
    const own = open('grpc.test:443', {
      channel: {
        'grpc.keepalive_time_ms': 100,
        'grpc.keepalive_timeout_ms': 500,
        'grpc.keepalive_permit_without_calls': 1,
      },
    });
    const { stream, messages, outcome } = own.open('Chat');
    stream.write(Buffer.from('before'));
    await until('the first echo', () => messages.length === 1);
    // Whoever's ping is not answered closes the connection within 1.1 seconds.
    await sleep(1500);
    stream.end(Buffer.from('after'));
    expect(await within('the end', outcome)).toMatchObject({ code: status.OK });
    expect(messages.map(String)).toEqual(['before', 'after']);
  });

  it('is not needed for a ping: each one is answered with its own bytes', async () => {
    const client = closeAfterTest(await rawH2(proxy.port, 'grpc.test', proxy.ca));
    const PING = 6;
    const sent = Array.from({ length: 20 }, (_, i) => Buffer.alloc(8, i));
    client.send(Buffer.concat(sent.map((bytes) => frame2(PING, 0, 0, bytes))));
    const answered: Buffer[] = [];
    while (answered.length < sent.length) {
      const frame = await client.frame();
      if (frame === null) break;
      if (frame.type === PING && frame.flags === 1) answered.push(frame.payload);
    }
    expect(answered).toEqual(sent);
  });
});

describe('20 MB', () => {
  const COUNT = (20 * 1024 * 1024) / BULK_MESSAGE_BYTES;
  const sum = createHash('sha256');
  for (let i = 0; i < COUNT; i++) sum.update(Buffer.alloc(BULK_MESSAGE_BYTES, i));
  const expected = sum.digest('hex');

  it('in an answer wait in the server while the client does not read, and arrive whole', async () => {
    const before = origin.bulkWritten;
    const { stream, messages, outcome } = channel.open('Bulk');
    stream.end(Buffer.from(String(COUNT)));
    await until('the first message', () => messages.length > 0);
    stream.pause();
    const stalledAt = await standstill(() => origin.bulkWritten - before);
    expect(stalledAt).toBeLessThan(COUNT / 2);
    stream.resume();
    expect((await within('the rest', outcome)).code).toBe(status.OK);
    const hash = createHash('sha256');
    for (const part of messages) hash.update(part);
    expect(messages).toHaveLength(COUNT);
    expect(hash.digest('hex')).toBe(expected);
  });

  it('in a request wait in the client while the server does not read, and arrive whole', async () => {
    const { stream, outcome } = channel.open('Count', { 'x-hold': '1' });
    let written = 0;
    const more = (): void => {
      if (written === COUNT) stream.end();
      else stream.write(Buffer.alloc(BULK_MESSAGE_BYTES, written++), more);
    };
    more();
    const stalledAt = await standstill(() => written);
    expect(stalledAt).toBeGreaterThan(0);
    expect(stalledAt).toBeLessThan(COUNT / 2);
    origin.release();
    const { code, messages } = await within('the answer', outcome);
    expect(code).toBe(status.OK);
    expect(Buffer.concat(messages).toString()).toBe(`${20 * 1024 * 1024} ${expected}`);
  });

  /** The number at which it stays for a while. */
  async function standstill(read: () => number): Promise<number> {
    let since = performance.now();
    let last = -1;
    return until('a standstill', () => {
      const now = read();
      if (now !== last) since = performance.now();
      last = now;
      return now > 0 && performance.now() - since > 400 ? now : null;
    });
  }
});

describe('a call that is given up', () => {
  it.each([
    ['at its deadline', status.DEADLINE_EXCEEDED, { deadlineMs: 300 }],
    ['by the client', status.CANCELLED, {}],
  ] as const)('%s reaches the server as a reset', async (_name, expected, { deadlineMs }: { deadlineMs?: number }) => {
    const own = open('h2.grpc.test:443');
    const before = h2.requests.length;
    const { stream, outcome } = own.open(
      'Never',
      {},
      deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs },
    );
    stream.write(Buffer.from('hello'));
    const request = await until('the call at the server', () => h2.requests[before]);
    expect(request.headers['te']).toBe('trailers');
    expect(request.headers['grpc-timeout'] !== undefined).toBe(deadlineMs !== undefined);
    if (deadlineMs === undefined) stream.cancel();
    expect((await within('the end', outcome)).code).toBe(expected);
    expect(await until('the reset at the server', () => request.resetCode)).toBe(8);
    expect(await proxy.waitForRecord((r) => r.host === 'h2.grpc.test' && r.outcome === 'aborted')).toMatchObject({
      protocol: 'grpc',
      operation: 'test.Echo/Never',
      verdict: 'allow',
    });
  });

  it('is seen as cancelled by a real server, in the middle of a stream', async () => {
    const { stream, messages, outcome } = channel.open('Chat');
    stream.write(Buffer.from('one'));
    await until('the echo', () => messages.length === 1);
    const before = origin.cancelled.length;
    stream.cancel();
    expect((await within('the end', outcome)).code).toBe(status.CANCELLED);
    await until('the server to see it', () => origin.cancelled.slice(before).includes('Chat'));
    expect((await channel.call('Unary', ['still here'])).code).toBe(status.OK);
  });
});

describe('a server', () => {
  const head = { ':status': 200, 'content-type': 'application/grpc' };
  /** A body, and trailers that say all is well. */
  const answerWith = (stream: Answer, body: Buffer): void => {
    stream.respond(head, { waitForTrailers: true });
    stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
    stream.end(body);
  };
  /** The client is told by a reset, whose code it reads in its own way. */
  const CUT_BY_US = [status.INTERNAL, status.UNKNOWN, status.CANCELLED];
  const cut = [status.UNAVAILABLE, status.INTERNAL];
  it.each<[string, (stream: Answer) => void, readonly grpc.status[], string]>([
    ['that dies before its answer', (stream) => stream.session?.destroy(), cut, 'upstream_reset'],
    ['that dies in mid-stream', (stream) => dieAfter(stream, () => stream.session?.destroy()), cut, 'upstream_reset'],
    ['that resets the stream', (stream) => dieAfter(stream, () => stream.destroy(new Error())), cut, 'upstream_reset'],
    ['that resets it with NO_ERROR', (stream) => dieAfter(stream, () => stream.destroy()), cut, 'upstream_reset'],
    [
      'that ends inside a message',
      (stream) => answerWith(stream, message('whole').subarray(0, 8)),
      CUT_BY_US,
      'bad_grpc',
    ],
    ['whose framing is garbage', (stream) => answerWith(stream, Buffer.from('\x07garbage')), CUT_BY_US, 'bad_grpc'],
    [
      'that sends a message over the limit',
      (stream) => answerWith(stream, message('x'.repeat(1024 * 1024 + 1))),
      [status.RESOURCE_EXHAUSTED],
      'message_too_large',
    ],
  ])('%s gives an error and never OK', async (_name, answer, codes, error) => {
    answers.set('/test.Echo/Spread', answer);
    const outcome = await open('h2.grpc.test:443').call('Spread', ['x']);
    expect(codes, outcome.details).toContain(outcome.code);
    const record = await proxy.waitForRecord(
      (r) => r.host === 'h2.grpc.test' && r.operation === 'test.Echo/Spread' && r.error === error,
    );
    expect(record.outcome).not.toBe('forwarded');
  });

  function dieAfter(stream: Answer, how: () => void): void {
    stream.respond(head);
    stream.write(message('first'), () => setTimeout(how, 50));
  }

  it('that answers with an error page is reported as such, not as OK', async () => {
    answers.set('/test.Echo/Unary', (stream) => {
      stream.respond({ ':status': 503, 'content-type': 'text/html' });
      stream.end('<h1>busy</h1>');
    });
    expect(await open('h2.grpc.test:443').call('Unary', ['x'])).toMatchObject({ code: status.UNAVAILABLE });
  });

  it('that speaks no HTTP/2 is UNAVAILABLE with our reason', async () => {
    const outcome = await open('h1.grpc.test:443').call('Unary', ['x']);
    expect(outcome.code).not.toBe(status.OK);
    expect(outcome.details).toContain('upstream_tls_failed');
  });
});
