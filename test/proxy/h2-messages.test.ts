import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { answerOf, h2Through } from '../support/h2-client.ts';
import type { TestProxy } from '../support/proxy.ts';
import { frame2, headerBlock, headersFrame } from '../support/raw-h2.ts';
import type { H2Outcome, RawH2 } from '../support/raw-h2.ts';
import { CONTINUATION, DATA, NO_ERROR, OK, RST_STREAM, frames, h2World, request } from './h2-support.ts';
import type { Fields, H2World } from './h2-support.ts';

const shared = closeAfterFile();
let world: H2World;
let proxy: TestProxy;

beforeAll(async () => {
  world = shared(await h2World());
  proxy = shared(await world.start());
});

beforeEach(() => {
  world.script = OK;
});

afterEach(() => {
  expect(proxy.log.filter((entry) => entry.level === 'error')).toEqual([]);
});

/** The connection answers one more request: nothing before has harmed it. */
async function stillUsable(over2: RawH2, stream: number): Promise<void> {
  over2.send(headersFrame(stream, request('/usable'), { endStream: true }));
  expect(await over2.outcomeOf(stream)).toEqual({ kind: 'answer', status: 200 });
}

describe('a head', () => {
  const BASE = request('/head', 'GET', 'raw.test');
  const without = (name: string): Fields => BASE.filter(([n]) => n !== name);
  const withValue = (name: string, value: string): Fields => BASE.map(([n, v]) => [n, n === name ? value : v]);

  /** Outcomes besides a reset: the stream is refused, and nothing arrives. */
  const REFUSED: readonly (readonly [string, Fields, H2Outcome['kind'] | number])[] = [
    ['an upper-case name', [...BASE, ['X-Upper', 'a']], 'reset'],
    ['connection', [...BASE, ['connection', 'close']], 'reset'],
    ['keep-alive', [...BASE, ['keep-alive', '5']], 'reset'],
    ['proxy-connection', [...BASE, ['proxy-connection', 'close']], 'reset'],
    ['upgrade', [...BASE, ['upgrade', 'websocket']], 'reset'],
    ['transfer-encoding', [...BASE, ['transfer-encoding', 'chunked']], 'reset'],
    ['te: gzip', [...BASE, ['te', 'gzip']], 'reset'],
    ['two :path', [...BASE, [':path', '/other']], 'reset'],
    ['two :method', [...BASE, [':method', 'POST']], 'reset'],
    ['two :authority', [...BASE, [':authority', 'denied.test']], 'reset'],
    ['two :scheme', [...BASE, [':scheme', 'http']], 'reset'],
    ['a pseudo header behind others', [...without(':path'), ['x', 'y'], [':path', '/head']], 'reset'],
    ['a pseudo header of answers', [...BASE, [':status', '200']], 'reset'],
    [':protocol without CONNECT', [...BASE, [':protocol', 'websocket']], 'reset'],
    ['no :path', without(':path'), 'reset'],
    ['no :method', without(':method'), 'reset'],
    ['no :scheme', without(':scheme'), 'reset'],
    ['an empty :path', withValue(':path', ''), 'reset'],
    ['a host of somebody else', [...BASE, ['host', 'denied.test']], 421],
    ['two hosts', [...BASE, ['host', 'raw.test'], ['host', 'denied.test']], 'reset'],
    ['an :authority of somebody else', withValue(':authority', 'denied.test'), 421],
    ['another port in :authority', withValue(':authority', 'raw.test:8443'), 421],
    ['a host of somebody else and no :authority', [...without(':authority'), ['host', 'denied.test']], 421],
    ['an absolute :path to somebody else', withValue(':path', 'https://denied.test/'), 'reset'],
    ['a :path that is no path', withValue(':path', 'head'), 'reset'],
    ['* for a GET', withValue(':path', '*'), 'reset'],
    ['content-length twice, different', [...BASE, ['content-length', '1'], ['content-length', '2']], 'reset'],
    ['content-length that is no number', [...BASE, ['content-length', '1x']], 'reset'],
    ['a negative content-length', [...BASE, ['content-length', '-1']], 'reset'],
    ['a content-length for nothing', [...BASE, ['content-length', '5']], 'reset'],
    ['two content-types', [...BASE, ['content-type', 'text/plain'], ['content-type', 'application/json']], 400],
    ['TRACE', withValue(':method', 'TRACE'), 405],
    [
      'CONNECT',
      [
        [':method', 'CONNECT'],
        [':authority', 'raw.test'],
      ],
      405,
    ],
    [
      'CONNECT to somebody else',
      [
        [':method', 'CONNECT'],
        [':authority', 'denied.test:443'],
      ],
      405,
    ],
    [
      'CONNECT for a protocol that is no WebSocket',
      [...withValue(':method', 'CONNECT'), [':protocol', 'connect-udp']],
      501,
    ],
  ];

  it.each(REFUSED)('with %s is refused, and nothing reaches the server', async (_name, headers, wanted) => {
    const before = world.raw.received.join('').length;
    const over2 = await frames(proxy, 'raw.test');
    over2.send(headersFrame(1, headers, { endStream: true }));
    const outcome = await over2.outcomeOf(1);
    if (typeof wanted === 'number') expect(outcome).toEqual({ kind: 'answer', status: wanted });
    else expect(outcome.kind).toBe(wanted);
    over2.send(headersFrame(3, request('/usable', 'GET', 'raw.test'), { endStream: true }));
    expect(await over2.outcomeOf(3)).toEqual({ kind: 'answer', status: 200 });
    const there = world.raw.received.join('').slice(before);
    expect(there).toMatch(/^GET \/usable HTTP\/1\.1\r\n/);
    expect(there.match(/HTTP\/1\.1\r\n/g)).toHaveLength(1);
  });

  it.each<readonly [string, Fields, RegExp]>([
    [
      '`__proto__` and its friends',
      [...BASE, ['__proto__', 'a'], ['constructor', 'b'], ['tostring', 'c']],
      /\r\n__proto__: a\r\nconstructor: b\r\ntostring: c\r\n/,
    ],
    ['te: trailers', [...BASE, ['te', 'trailers']], /\r\nhost: raw\.test\r\n/i],
    ['cookie in crumbs', [...BASE, ['cookie', 'a=1'], ['x', 'y'], ['cookie', 'b=2']], /\r\ncookie: a=1; b=2\r\n/],
    ['another :scheme', withValue(':scheme', 'http'), /^GET \/head HTTP/],
    ['host instead of :authority', [...without(':authority'), ['host', 'raw.test']], /\r\nhost: raw\.test\r\n/i],
    ['a host that agrees', [...BASE, ['host', 'RAW.test:443']], /\r\nhost: raw\.test\r\n/i],
  ])('with %s passes, cleaned', async (_name, headers, wanted) => {
    const before = world.raw.received.join('').length;
    const over2 = await frames(proxy, 'raw.test');
    over2.send(headersFrame(1, headers, { endStream: true }));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 200 });
    const there = world.raw.received.join('').slice(before);
    expect(there).toMatch(wanted);
    expect(there.match(/^(?:host|cookie):/gim)?.length).toBe(/cookie/i.test(there) ? 2 : 1);
  });

  it.each([
    ['CR', '\r'],
    ['LF', '\n'],
    ['NUL', '\0'],
    ['CRLF and a header', '\r\nX-Smuggled: 1'],
  ])('with %s in a value does not reach the server with it', async (_name, bytes) => {
    const before = world.raw.received.join('').length;
    const over2 = await frames(proxy, 'raw.test');
    over2.send(headersFrame(1, [...BASE, ['x-value', `a${bytes}b`]], { endStream: true }));
    await over2.outcomeOf(1);
    expect(world.raw.received.join('').slice(before)).not.toMatch(/x-value|x-smuggled/i);
  });
});

describe('an answer', () => {
  const early = 'HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig';

  it.each([
    ['with a length', early],
    ['without a body', 'HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n'],
    ['with trailers', 'HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\nX-Sum: 1\r\n\r\n'],
    ['of 204', 'HTTP/1.1 204 No Content\r\n\r\n'],
  ])('%s before the end of the request stops it with NO_ERROR; the connection goes on', async (_name, answer) => {
    world.script = answer;
    const over2 = await frames(proxy, 'raw.test');
    over2.send(headersFrame(1, request('/early', 'POST', 'raw.test'), { endStream: false }));
    over2.send(frame2(DATA, 0, 1, Buffer.alloc(1000)));
    expect((await over2.outcomeOf(1)).kind).toBe('answer');
    let hasEnded = false;
    for (;;) {
      const frame = await over2.frame();
      if (frame?.stream !== 1) continue;
      // The answer is whole before the reset.
      if (frame.type === RST_STREAM) {
        expect(frame.payload.readUInt32BE(0)).toBe(NO_ERROR);
        break;
      }
      if ((frame.flags & 1) !== 0) hasEnded = true;
    }
    if (!answer.includes('204') && !answer.includes(': 0')) expect(hasEnded).toBe(true);
    // What was on its way is dropped, and is no reset of the client's.
    over2.send(frame2(DATA, 1, 1, Buffer.alloc(1000)));
    await stillUsableAt(over2, 3);
  });

  async function stillUsableAt(over2: RawH2, stream: number): Promise<void> {
    world.script = OK;
    over2.send(headersFrame(stream, request('/usable', 'GET', 'raw.test'), { endStream: true }));
    expect(await over2.outcomeOf(stream)).toEqual({ kind: 'answer', status: 200 });
  }

  it('that is whole is no reset, however often: a thousand requests pass where twenty resets do not', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h1.test', { ca: proxy.ca }));
    for (let i = 0; i < 20; i++)
      for (const answer of await Promise.all(
        Array.from({ length: 10 }, (_, n) => over2.ask({ ':path': n % 2 === 0 ? '/trailers' : '/204' })).concat(
          Array.from({ length: 5 }, () => over2.ask({ ':path': '/early-answer' }, Buffer.alloc(200_000))),
        ),
      ))
        expect([200, 204, 413]).toContain(answer.status);
  });

  it.each([
    [204, 'HTTP/1.1 204 No Content\r\n\r\n', undefined],
    [205, 'HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n', undefined],
    [205, 'HTTP/1.1 205 Reset Content\r\nContent-Length: 5\r\n\r\nhello', undefined],
    [304, 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n', '5'],
  ])('of %i is whole and has no body', async (status, bytes, length) => {
    world.script = bytes;
    const over2 = closeAfterTest(await h2Through(proxy.port, 'raw.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': `/${status}` });
    expect(answer).toMatchObject({ status, resetCode: 0 });
    expect(answer.body.length).toBe(0);
    expect(answer.headers['content-length']).toBe(length);
  });

  it('to HEAD keeps its length', async () => {
    world.script = 'HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n';
    const over2 = closeAfterTest(await h2Through(proxy.port, 'raw.test', { ca: proxy.ca }));
    const stream = over2.session.request({ ':method': 'HEAD', ':path': '/head' });
    const answer = await answerOf(stream);
    expect(answer).toMatchObject({ status: 200, resetCode: 0 });
    expect(answer.headers['content-length']).toBe('12345');
  });

  const single = [
    'Content-Type',
    'Location',
    'ETag',
    'Last-Modified',
    'Age',
    'Date',
    'Server',
    'Expires',
    'Retry-After',
    'Content-Range',
    'Content-Encoding',
    'Content-Language',
    'Content-Location',
    'Content-MD5',
    'Access-Control-Allow-Credentials',
    'Access-Control-Max-Age',
    'Access-Control-Allow-Origin',
    'X-Content-Type-Options',
    'DNT',
    'TK',
    'Max-Forwards',
    'Referer',
    'From',
    'User-Agent',
    'Authorization',
    'If-Match',
    'Range',
    'Priority',
    'Vary',
    'Set-Cookie',
    '__proto__',
    'Constructor',
  ]
    .map((name) => `${name}: 1\r\n${name}: 1\r\n`)
    .join('');

  it.each([
    ['whose headers are all repeated', `HTTP/1.1 200 OK\r\n${single}Content-Length: 2\r\n\r\nok`],
    [
      'with connection headers',
      'HTTP/1.1 200 OK\r\nConnection: x\r\nX: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nProxy-Connection: y\r\nTE: x\r\nHTTP2-Settings: x\r\nHost: y\r\nContent-Length: 2\r\n\r\nok',
    ],
    [
      'after interim ones with all headers repeated',
      `HTTP/1.1 103 Early Hints\r\n${single}\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok`,
    ],
    [
      'with interim ones that have a length',
      'HTTP/1.1 103 Early Hints\r\nContent-Length: 3\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    ],
    [
      'with trailers that are all repeated',
      `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-A: 1\r\nX-A: 2\r\nETag: 1\r\nETag: 2\r\nDate: 1\r\nDate: 2\r\n\r\n`,
    ],
  ])('%s reaches an HTTP/2 client', async (_name, bytes) => {
    world.script = bytes;
    const over2 = closeAfterTest(await h2Through(proxy.port, 'raw.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/odd' });
    expect(answer).toMatchObject({ status: 200, resetCode: 0 });
    expect(answer.body.toString()).toBe('ok');
    for (const name of ['connection', 'keep-alive', 'upgrade', 'te', 'host', 'x'])
      expect(answer.headers[name]).toBeUndefined();
  });

  it.each([600, 999])(
    'with the status %i, which HTTP/2 has no room for, is refused or cut, never hung',
    async (status) => {
      world.script = `HTTP/1.1 ${status} Odd\r\nContent-Length: 0\r\n\r\n`;
      const over2 = await frames(proxy, 'raw.test');
      over2.send(headersFrame(1, request(`/status/${status}`, 'GET', 'raw.test'), { endStream: true }));
      const outcome = await over2.outcomeOf(1);
      expect(outcome.kind === 'reset' || (outcome.kind === 'answer' && outcome.status === 502)).toBe(true);
      expect(await proxy.waitForRecord((r) => r.path === `/status/${status}`)).toMatchObject({
        error: 'upstream_protocol',
      });
    },
  );
});

describe('a request body', () => {
  it.each([
    ['less than its content-length', '10', 'hello'],
    ['more than its content-length', '3', 'hello'],
  ])('of %s is reset and never whole for the server', async (name, length, body) => {
    const path = `/lie?${encodeURIComponent(name)}`;
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, [...request(path, 'POST'), ['content-length', length]], { endStream: false }));
    over2.send(frame2(DATA, 1, 1, Buffer.from(body)));
    // Newer versions of nghttp2 end the connection when there is more than was said.
    const outcome = await over2.outcomeOf(1);
    expect(outcome.kind).toMatch(/^(reset|goaway|closed)$/);
    expect(await proxy.waitForRecord((r) => r.path === path.split('?')[0] && r.outcome === 'aborted')).toBeDefined();
    expect(world.origin.requests.filter((r) => r.url === path && r.body !== null)).toEqual([]);
    if (outcome.kind === 'reset') await stillUsable(over2, 3);
  });

  it('of no bytes that ends late is a request without one', async () => {
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, [...request('/late-end', 'POST'), ['content-length', '0']], { endStream: false }));
    over2.send(frame2(DATA, 1, 1, Buffer.alloc(0)));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 200 });
    expect(world.origin.only('/late-end').bodyBytes).toBe(0);
  });

  it('ends with trailers that reach the server, without those that may not come so late', async () => {
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, request('/with-trailers', 'POST'), { endStream: false }));
    over2.send(frame2(DATA, 0, 1, Buffer.from('body')));
    const trailers: Fields = [
      ['x-sum', '1'],
      ['x-sum', '2'],
      ['authorization', 'x'],
      ['host', 'denied.test'],
    ];
    over2.send(headersFrame(1, trailers, { endStream: true }));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 200 });
    expect(world.origin.only('/with-trailers').rawTrailers.join()).toBe('x-sum,1,x-sum,2');
  });

  it.each<readonly [string, Fields]>([
    ['with a pseudo header', [[':path', '/x']]],
    ['with an upper-case name', [['X-Sum', '1']]],
    ['that are a connection header', [['transfer-encoding', 'chunked']]],
    ['that are another length', [['content-length', '9']]],
  ])('never looks whole behind trailers %s', async (name, trailers) => {
    const path = `/trailers-${name.replaceAll(' ', '-')}`;
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, request(path, 'POST'), { endStream: false }));
    over2.send(frame2(DATA, 0, 1, Buffer.from('body')));
    over2.send(headersFrame(1, trailers, { endStream: true }));
    expect((await over2.outcomeOf(1)).kind).toBe('reset');
    expect(await proxy.waitForRecord((r) => r.path === path)).toMatchObject({ outcome: 'aborted' });
    expect(world.origin.requests.filter((r) => r.url === path && r.body !== null)).toEqual([]);
  });

  it('with trailers over the limit for heads is refused', async () => {
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, request('/large-trailers', 'POST'), { endStream: false }));
    over2.send(frame2(DATA, 0, 1, Buffer.from('body')));
    const block = headerBlock(Array.from({ length: 6 }, (_, i) => [`x-${i}`, 'v'.repeat(15_000)] as const));
    for (let at = 0, first = true; at < block.length; at += 16_000, first = false) {
      const isLast = at + 16_000 >= block.length;
      over2.send(
        frame2(first ? 1 : CONTINUATION, (isLast ? 4 : 0) | (first ? 1 : 0), 1, block.subarray(at, at + 16_000)),
      );
    }
    const outcome = await over2.outcomeOf(1);
    if (outcome.kind === 'answer') expect(outcome.status).toBe(431);
    expect(world.origin.requests.filter((r) => r.url === '/large-trailers' && r.body !== null)).toEqual([]);
  });
});
