import { createServer } from 'node:http2';
import type { ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import type { UpstreamRequest } from '../../src/core/stream.ts';
import { closeAfterFile } from '../support/closing.ts';
import { closeServers, listen } from '../support/https-server.ts';
import { headersFrame } from '../support/raw-h2.ts';
import { until, within } from '../support/waiting.ts';
import { valuesOf } from '../support/wire-reader.ts';
import {
  CANCEL,
  ENHANCE_YOUR_CALM,
  HEADERS,
  NO_ERROR,
  RST_STREAM,
  ask,
  data,
  goaway,
  head,
  large,
  lastData,
  lastHead,
  rawServer,
  setting,
  upstreamTo,
} from './upstream-h2-support.ts';

describe('GOAWAY', () => {
  it.each([
    ['NO_ERROR', NO_ERROR],
    ['ENHANCE_YOUR_CALM', ENHANCE_YOUR_CALM],
  ])('with %s lets streams after the last one be sent again, and takes no new ones', async (_name, code) => {
    const port = await rawServer(async (peer) => {
      await peer.frame(HEADERS);
      peer.send(goaway(1, code));
      if (code === NO_ERROR) peer.send(head(), lastData('first'));
    });
    const upstream = await upstreamTo(port);
    const [first, second] = [ask(upstream), ask(upstream)];
    expect(await within('the outcome', second.outcome)).toBe('upstream_reset retry-safe');
    expect(await within('the outcome', first.outcome)).toBe(code === NO_ERROR ? 'whole' : 'upstream_reset');
    expect(upstream.isUsable).toBe(false);
    // The server does not close its side: we do not wait for that.
    upstream.destroy();
    await until('the connection to go', () => upstream.socket.destroyed && upstream.closed());
  });

  it('in two steps, as RFC 9113 section 6.8 has it, refuses only what came after the second', async () => {
    const port = await rawServer(async (peer) => {
      peer.send(goaway(0x7fffffff, NO_ERROR));
      await sleep(50);
      peer.send(goaway(1, NO_ERROR), head(), lastData('first'));
    });
    const upstream = await upstreamTo(port);
    const asked = ask(upstream);
    await until('the first step', () => !upstream.isUsable);
    expect(() => ask(upstream)).toThrow(
      expect.objectContaining({ code: 'upstream_reset', isRetrySafe: true }) as Error,
    );
    expect(await within('the outcome', asked.outcome)).toBe('whole');
  });
});

describe('deadlines', () => {
  it('give up a server that does not answer, and leave the connection to others', async () => {
    const resets: number[] = [];
    const port = await rawServer(async (peer) => {
      const reset = await peer.frame(RST_STREAM);
      resets.push(reset?.payload.readUInt32BE(0) ?? -1);
      await peer.frame(HEADERS);
      peer.send(headersFrame(3, [[':status', '200']], { endStream: true }));
    });
    const upstream = await upstreamTo(port, { responseHeadMs: 200 });
    expect(await within('the outcome', ask(upstream).outcome)).toBe('upstream_timeout');
    const second = ask(upstream);
    expect(await within('the outcome', second.outcome)).toBe('whole');
    expect(second.stream.reused).toBe(true);
    expect(resets).toEqual([CANCEL]);
  });

  it('are not put off by informational heads without end', async () => {
    const port = await rawServer(async (peer) => {
      while (!peer.socket.destroyed) {
        peer.send(head('103', ['link', '</a>']));
        await sleep(20);
      }
    });
    const asked = ask(await upstreamTo(port, { responseHeadMs: 300 }));
    expect(await within('the outcome', asked.outcome)).toBe('upstream_timeout');
    expect(asked.informational.length).toBeGreaterThan(0);
  });

  it('give up a server that stops in mid-body, with what came so far', async () => {
    const asked = ask(await upstreamTo(await rawServer((peer) => peer.send(head(), data('hel'))), { idleMs: 200 }));
    expect(await within('the outcome', asked.outcome)).toBe('upstream_idle');
    expect(asked.received.toString()).toBe('hel');
  });

  it('do not run while the reader is paused, and run again afterwards', async () => {
    const port = await rawServer((peer) => peer.send(head(), data('hel')));
    const asked = ask(await upstreamTo(port, { idleMs: 100 }), {}, (body) => body.pause());
    await until('the head', () => asked.head);
    await sleep(500);
    expect(asked.isOver).toBe(false);
    asked.body?.resume();
    expect(await within('the outcome', asked.outcome)).toBe('upstream_idle');
    expect(asked.received.toString()).toBe('hel');
  });

  it('give up a server that does not take the request', async () => {
    const INITIAL_WINDOW_SIZE = 4;
    const port = await rawServer(() => undefined, setting(INITIAL_WINDOW_SIZE, 0));
    const asked = ask(await upstreamTo(port, { slowWriteMs: 200 }), { method: 'POST', length: null });
    let isKeepingUp = true;
    for (let i = 0; i < 100 && isKeepingUp; i++) isKeepingUp = asked.stream.body.write(Buffer.alloc(64 * 1024));
    expect(isKeepingUp).toBe(false);
    expect(await within('the outcome', asked.outcome)).toBe('upstream_idle');
  });
});

describe('a connection', () => {
  it.each([
    ['as many streams as the server says', 2, 2],
    ['a bounded number, whatever the server says', 0xffffffff, 1000],
  ])('takes %s', async (_name, said, expected) => {
    const MAX_CONCURRENT_STREAMS = 3;
    const port = await rawServer((peer) => peer.send(lastHead()), setting(MAX_CONCURRENT_STREAMS, said));
    const upstream = await upstreamTo(port);
    expect(upstream.capacity).toBe(100);
    await within('the outcome', ask(upstream).outcome);
    await until('the settings', () => upstream.capacity === expected);
  });

  it('resets a stream that is given up, tells its handler nothing more, and lives on', async () => {
    const codes: number[] = [];
    const port = await rawServer(async (peer) => {
      peer.send(head(), data('hel'));
      codes.push((await peer.frame(RST_STREAM))?.payload.readUInt32BE(0) ?? -1);
      peer.send(lastData('lo'));
      await peer.frame(HEADERS);
      peer.send(headersFrame(3, [[':status', '200']], { endStream: true }));
    });
    const upstream = await upstreamTo(port);
    const asked = ask(upstream);
    await until('the head', () => asked.received.length === 3);
    asked.stream.abort();
    expect(await within('the outcome', ask(upstream).outcome)).toBe('whole');
    expect(codes).toEqual([CANCEL]);
    expect(asked.isOver).toBe(false);
    expect(asked.received.toString()).toBe('hel');
    await until('both to be over', () => upstream.activeStreams === 0);
  });

  it('that is destroyed before it is ready harms nobody', async () => {
    const upstream = await upstreamTo(await rawServer(() => undefined));
    upstream.destroy();
    await sleep(50);
    expect(upstream.isUsable).toBe(false);
  });

  it('that is destroyed fails what is open', async () => {
    const upstream = await upstreamTo(await rawServer((peer) => peer.send(head())));
    const asked = ask(upstream);
    await until('the head', () => asked.head);
    upstream.destroy();
    expect(await within('the outcome', asked.outcome)).toBe('upstream_reset');
  });
});

describe('a request to a real server', () => {
  interface Seen {
    readonly headers: readonly string[];
    body: Buffer[];
    trailers: readonly string[];
  }
  const shared = closeAfterFile();
  const seen: Seen[] = [];
  /** Reads bodies only when it is told to. */
  const held: ServerHttp2Stream[] = [];
  let port = 0;

  beforeAll(async () => {
    const sockets = new Set<Socket>();
    const server = createServer();
    server.on('connection', (socket: Socket) => sockets.add(socket));
    server.on('stream', (stream, headers, _flags, ...rest: unknown[]) => {
      stream.on('error', () => undefined);
      const record: Seen = { headers: rest[0] as string[], body: [], trailers: [] };
      seen.push(record);
      stream.on('trailers', (_trailers, _more, ...raw: unknown[]) => (record.trailers = raw[0] as string[]));
      if (headers['expect'] !== undefined) stream.additionalHeaders({ ':status': 100 });
      if (headers[':path'] === '/held') held.push(stream);
      else stream.on('data', (chunk: Buffer) => record.body.push(chunk));
      stream.on('end', () => {
        stream.respond({ ':status': 200 });
        stream.end(`${Buffer.concat(record.body).length}`);
      });
    });
    port = await listen(server);
    shared({ close: () => closeServers([server], sockets) });
  });

  it('has its pseudo headers first, its own headers in order, and no hop-by-hop headers', async () => {
    const upstream = await upstreamTo(port);
    const asked = ask(upstream, {
      scheme: 'https',
      authority: 'server.test:8443',
      target: '/a?b=c',
      headers: [
        'X-One',
        '1',
        'Cookie',
        'a=1',
        'x-two',
        'a',
        'X-One',
        '2',
        'TE',
        'gzip',
        'Connection',
        'x',
        'Host',
        'evil.test',
        ':path',
        '/evil',
        '__proto__',
        'p',
        'Expect',
        'x',
      ],
    });
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(seen.at(-1)?.headers).toEqual([
      ':method',
      'GET',
      ':scheme',
      'https',
      ':authority',
      'server.test:8443',
      ':path',
      '/a?b=c',
      'x-one',
      '1',
      'x-one',
      '2',
      'cookie',
      'a=1',
      'x-two',
      'a',
      '__proto__',
      'p',
    ]);
  });

  it.each<[string, Partial<UpstreamRequest>, string, readonly string[]]>([
    ['te: trailers, when the agent said so', { wantsTrailers: true }, 'te', ['trailers']],
    ['the length of its body', { method: 'POST', length: 3 }, 'content-length', ['3']],
    [
      'a length of 0 that was sent',
      { method: 'POST', length: 0, headers: ['Content-Length', '0'] },
      'content-length',
      ['0'],
    ],
    [
      'no length when it is not known',
      { method: 'POST', length: null, headers: ['content-length', '7'] },
      'content-length',
      [],
    ],
    [
      'expect: 100-continue, when the agent waits',
      { method: 'POST', length: 3, expectsContinue: true },
      'expect',
      ['100-continue'],
    ],
    [
      'one line of a header that is repeated with the same value',
      { headers: ['Range', 'a', 'range', 'a'] },
      'range',
      ['a'],
    ],
    ['bytes beyond ASCII', { headers: ['x-a', 'é'] }, 'x-a', ['é']],
  ])('has %s', async (_name, request, name, expected) => {
    const asked = ask(await upstreamTo(port), request);
    if (request.length === 3) asked.stream.body.write(Buffer.from('abc'));
    if (request.length !== 0) asked.stream.body.end([]);
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(valuesOf(seen.at(-1)?.headers ?? [], name)).toEqual(expected);
    if (request.expectsContinue === true) expect(asked.informational.map(({ status }) => status)).toEqual([100]);
  });

  it.each<[string, Partial<UpstreamRequest>, string]>([
    [
      'repeats a header that counts once, with another value',
      { headers: ['Authorization', 'a', 'authorization', 'b'] },
      'bad_header',
    ],
    ['asks for an upgrade', { upgrade: 'websocket' }, 'upgrade_not_supported'],
  ])('is refused when it %s, and nothing is sent', async (_name, request, code) => {
    const upstream = await upstreamTo(port);
    const before = seen.length;
    expect(() => ask(upstream, request)).toThrow(expect.objectContaining({ code }) as Error);
    expect(upstream.activeStreams).toBe(0);
    expect(await within('the outcome', ask(upstream).outcome)).toBe('whole');
    expect(seen.length).toBe(before + 1);
  });

  it('has its trailers', async () => {
    const asked = ask(await upstreamTo(port), { method: 'POST', length: null });
    asked.stream.body.write(Buffer.from('hello'));
    asked.stream.body.end(['X-Sum', '1', 'connection', 'close']);
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(seen.at(-1)?.trailers).toEqual(['x-sum', '1']);
    expect(asked.received.toString()).toBe('5');
  });

  it('with trailers that the server would not take fails, and harms no other', async () => {
    const upstream = await upstreamTo(port);
    const other = ask(upstream, { method: 'POST', length: null });
    const asked = ask(upstream, { method: 'POST', length: null });
    asked.stream.body.write(Buffer.from('hello'));
    asked.stream.body.end(large(250_000).flat());
    expect(await within('the outcome', asked.outcome)).toMatch(/^upstream_/);
    other.stream.body.end([]);
    expect(await within('the outcome', other.outcome)).toBe('whole');
  });

  it('waits for a server that does not read, and goes on when it does', async () => {
    const upstream = await upstreamTo(port);
    const asked = ask(upstream, { method: 'POST', target: '/held', length: null });
    const { body } = asked.stream;
    let drains = 0;
    body.onDrain = () => drains++;
    let written = 0;
    while (body.write(Buffer.alloc(16 * 1024))) if (++written > 1000) break;
    expect(written).toBeLessThan(1000);
    const stream = await until('the request', () => held.at(-1));
    const record = seen.at(-1);
    stream.on('data', (chunk: Buffer) => record?.body.push(chunk));
    await until('a drain', () => drains > 0);
    body.end([]);
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.received.toString()).toBe(String((written + 1) * 16 * 1024));
  });

  it('that is aborted is not taken for a whole one', async () => {
    const before = held.length;
    const asked = ask(await upstreamTo(port), { method: 'POST', target: '/held', length: null });
    asked.stream.body.write(Buffer.from('half'));
    const stream = await until('the request', () => held[before]);
    asked.stream.abort();
    await until('the reset', () => stream.destroyed);
    expect(stream.rstCode).toBe(CANCEL);
    expect(asked.isOver).toBe(false);
  });

  it('runs beside a hundred others on its connection', async () => {
    const upstream = await upstreamTo(port);
    const all = Array.from({ length: 100 }, (_, i) => ask(upstream, { target: `/${i}` }));
    expect(upstream.activeStreams).toBe(100);
    expect(await within('all', Promise.all(all.map(({ outcome }) => outcome)))).toEqual(all.map(() => 'whole'));
    expect(all.map(({ stream }) => stream.reused)).toEqual(all.map((_, i) => i > 0));
    await until('all to be over', () => upstream.activeStreams === 0);
  });
});
