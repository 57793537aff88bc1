import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { frame2, headerBlock, headersFrame, resetFrame } from '../support/raw-h2.ts';
import type { RawH2 } from '../support/raw-h2.ts';
import { startRawServer } from '../support/raw-server.ts';
import { until } from '../support/waiting.ts';
import { CALM, CANCEL, CONTINUATION, DATA, NO_ERROR, RESETS, frames, h2World, request } from './h2-support.ts';
import type { H2World } from './h2-support.ts';

const PRIORITY = 2;
const SETTINGS = 4;
const PING = 6;
const GOAWAY = 7;
const WINDOW_UPDATE = 8;

const shared = closeAfterFile();
let world: H2World;
let proxy: TestProxy;

beforeAll(async () => {
  world = shared(await h2World());
  proxy = shared(await world.start());
});

afterEach(() => {
  expect(proxy.log.filter((entry) => entry.level === 'error')).toEqual([]);
});

async function stillWorks(which: TestProxy = proxy): Promise<void> {
  const over2 = await h2Through(which.port, 'h1.test', { ca: which.ca });
  expect((await over2.ask({ ':path': '/alive' })).status).toBe(200);
  over2.close();
}

/** The connection answers one more request: nothing before has harmed it. */
async function stillUsable(over2: RawH2, stream: number): Promise<void> {
  over2.send(headersFrame(stream, request('/usable'), { endStream: true }));
  expect(await over2.outcomeOf(stream)).toEqual({ kind: 'answer', status: 200 });
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

const NO_WINDOW = frame2(SETTINGS, 0, 0, Buffer.from([0, 4, 0, 0, 0, 0]));

describe('a stream that the client resets in the middle of its body', () => {
  it.each([
    ['NO_ERROR', NO_ERROR],
    ['CANCEL', CANCEL],
  ])('with %s is never forwarded as a whole request, and leaves a record', async (name, code) => {
    const path = `/cut-${name}`;
    const over2 = await frames(proxy);
    over2.send(headersFrame(1, request(path, 'POST'), { endStream: false }));
    over2.send(frame2(DATA, 0, 1, Buffer.from('half')));
    const seen = await until('half of the body', () =>
      world.origin.requests.find((r) => r.url === path && r.bodyBytes === 4),
    );
    over2.send(resetFrame(1, code));
    expect(await proxy.waitForRecord((r) => r.path === path)).toMatchObject({ outcome: 'aborted' });
    await until('the server to see it', () => seen.wasAborted);
    expect(seen.body).toBeNull();
    await stillUsable(over2, 3);
  });

  it.each([
    ['NO_ERROR', NO_ERROR],
    ['CANCEL', CANCEL],
  ])('with %s while the server does not read ends at once, too', async (name, code) => {
    const path = `/stuck-${name}`;
    const server = closeAfterTest(
      await startRawServer({
        script: async (connection) => {
          await connection.reader.head();
          connection.socket.pause();
        },
      }),
    );
    const own = closeAfterTest(await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'raw.test': server.port } }));
    const over2 = closeAfterTest(await h2Through(own.port, 'raw.test', { ca: own.ca }));
    const stream = over2.session.request({ ':method': 'POST', ':path': path });
    stream.on('error', () => undefined);
    let moved = performance.now();
    stream.on('drain', () => {
      moved = performance.now();
      while (stream.write(Buffer.alloc(256 * 1024)));
    });
    stream.write(Buffer.alloc(256 * 1024));
    await until('everything to be full', () => performance.now() - moved > 700);
    stream.close(code);
    expect(await own.waitForRecord((r) => r.path === path)).toMatchObject({ outcome: 'aborted' });
    expect(own.app.counts().exchanges).toBe(0);
  });
});

describe('a client that makes us work for nothing', () => {
  const resetting: readonly (readonly [string, (stream: number) => Buffer])[] = [
    ['resets with CANCEL', (stream) => resetFrame(stream, CANCEL)],
    ['resets with NO_ERROR', (stream) => resetFrame(stream, NO_ERROR)],
    ['resets with a code nobody knows', (stream) => resetFrame(stream, 0xdead)],
    // MadeYouReset (CVE-2025-8671): the resets are ours, the client only provokes them.
    ['opens the window by zero', (stream) => frame2(WINDOW_UPDATE, 0, stream, uint32(0))],
    ['overflows the window', (stream) => frame2(WINDOW_UPDATE, 0, stream, uint32(0x7fffffff))],
    ['sends HEADERS on a half-closed stream', (stream) => headersFrame(stream, request('/again'), { endStream: true })],
  ];
  it.each(resetting)('and %s, stream after stream, is cut off with a record', async (name, provoke) => {
    const path = `/never?${encodeURIComponent(name)}`;
    const own = closeAfterTest(await world.start());
    const over2 = await frames(own);
    for (let i = 0; i < 150; i++) {
      const stream = 1 + 2 * i;
      over2.send(Buffer.concat([headersFrame(stream, request(path), { endStream: true }), provoke(stream)]));
    }
    for (;;) if ((await over2.frame()) === null) break;
    await until('the exchanges to end', () => own.app.counts().exchanges === 0);
    expect((await own.waitForRecord((r) => r.kind === 'tunnel')).error).toMatch(/^(h2_flood|bad_request)$/);
    expect(own.recordsNow().filter((r) => r.kind === 'exchange').length).toBeLessThanOrEqual(128 + RESETS + 2);
    await stillWorks(own);
  });

  it.each<readonly [string, Buffer]>([
    ['DATA on a half-closed stream', frame2(DATA, 0, 9, Buffer.from('x'))],
    ['a PRIORITY of a wrong size', frame2(PRIORITY, 0, 9, Buffer.alloc(4))],
  ])('by %s, for which nghttp2 ends the session without a word to us, does not hold it', async (_name, frame) => {
    const own = closeAfterTest(await world.start({ responseHeadMs: 300, slowWriteMs: 300 }));
    const over2 = await frames(own);
    for (const [stream, path] of [
      [3, '/never'],
      [5, '/big?mb=10'],
      [7, '/small'],
    ] as const)
      over2.send(headersFrame(stream, request(path), { endStream: true }));
    over2.send(Buffer.concat([NO_WINDOW, headersFrame(9, request('/never'), { endStream: true }), frame]));
    expect(await over2.outcomeOf(999)).toMatchObject({ kind: 'goaway' });
    await until('the connection to go', () => own.app.counts().connections === 0);
    expect(own.app.counts()).toMatchObject({ exchanges: 0, tunnels: 0 });
  });

  it('is not punished for giving up now and then', async () => {
    const over2 = await frames(proxy);
    for (let i = 0; i < RESETS; i++)
      over2.send(
        Buffer.concat([headersFrame(1 + 2 * i, request('/never'), { endStream: true }), resetFrame(1 + 2 * i, CANCEL)]),
      );
    await stillUsable(over2, 1 + 2 * RESETS);
  });

  it.each<readonly [string, Buffer, number]>([
    ['SETTINGS', frame2(SETTINGS, 0, 0, Buffer.from([0, 3, 0, 0, 0, 100])), 1_500_000],
    ['PING', frame2(PING, 0, 0, Buffer.alloc(8)), 1_500_000],
    ['empty DATA', frame2(DATA, 0, 1, Buffer.alloc(0)), 20_000],
    ['empty CONTINUATION', frame2(CONTINUATION, 0, 3, Buffer.alloc(0)), 20_000],
  ])('by a flood of %s, reading nothing, is cut off', async (name, frame, count) => {
    const own = closeAfterTest(await world.start({ idleMs: 500 }));
    const over2 = await frames(own);
    over2.send(headersFrame(1, request('/flood', 'POST'), { endStream: false }));
    if (name.endsWith('CONTINUATION')) over2.send(frame2(1, 0, 3, headerBlock(request('/flood'))));
    over2.socket.pause();
    const flood = Buffer.concat(Array<Buffer>(1000).fill(frame));
    for (let i = 0; i < count / 1000 && own.recordsNow().length === 0; i++) {
      over2.send(flood);
      await until(
        'the flood to be taken',
        () => own.recordsNow().length > 0 || over2.socket.writableLength < 1_000_000,
      );
    }
    expect((await own.waitForRecord((r) => r.kind === 'tunnel')).error).toMatch(/^(h2_flood|bad_request|slow_peer)$/);
    await until('the exchanges to end', () => own.app.counts().exchanges === 0);
    await stillWorks(own);
  });

  it('by headers that unpack to a thousand times their size is refused, and the next one is served', async () => {
    const over2 = await frames(proxy);
    // One large entry for the dynamic table (incremental indexing), then thousands of one-byte references to it.
    const size = 4000;
    const entry = Buffer.concat([Buffer.from([0x40, 1, 0x78, 0x7f, ...varint(size - 127)]), Buffer.alloc(size, 'a')]);
    const bomb = Buffer.concat([headerBlock(request('/bomb')), entry, Buffer.alloc(8000, 0xbe)]);
    for (let stream = 1; stream < 60; stream += 2) {
      over2.send(
        frame2(
          1,
          5,
          stream,
          stream === 1 ? bomb : Buffer.concat([headerBlock(request('/bomb')), Buffer.alloc(8000, 0xbe)]),
        ),
      );
      const outcome = await over2.outcomeOf(stream);
      expect(outcome.kind).toBe('reset');
    }
    expect(world.origin.requests.some((r) => r.url === '/bomb')).toBe(false);
    await stillWorks();
  });
});

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
  return [...bytes, rest];
}

describe('a client that never opens its window', () => {
  it.each([
    ['a large answer', '/big?mb=50'],
    ['an answer that we have taken whole', '/small'],
    ['an answer in chunks with trailers', '/trailers'],
  ])('is given up at the deadline for slow readers: %s', async (_name, path) => {
    const own = closeAfterTest(await world.start({ slowWriteMs: 300 }));
    const over2 = await frames(own);
    over2.send(NO_WINDOW);
    over2.send(headersFrame(1, request(path), { endStream: true }));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 200 });
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'reset', code: CALM });
  });

  it('and refuses the answer of the proxy itself is given up as well', async () => {
    const own = closeAfterTest(await world.start({ slowWriteMs: 300 }));
    const over2 = await frames(own);
    over2.send(NO_WINDOW);
    over2.send(headersFrame(1, request('/', 'TRACE'), { endStream: false }));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 405 });
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'reset', code: CALM });
  });

  it('does not make us collect a hundred answers', async () => {
    const over2 = await frames(proxy);
    over2.send(NO_WINDOW);
    for (let i = 0; i < 100; i++) over2.send(headersFrame(1 + 2 * i, request('/big?mb=10'), { endStream: true }));
    await until('all to be asked', () => world.origin.requests.filter((r) => r.url === '/big?mb=10').length === 100);
    await sleep(300);
    expect(process.memoryUsage().arrayBuffers).toBeLessThan(400 * 1024 * 1024);
    over2.close();
    await until('the exchanges to end', () => proxy.app.counts().exchanges === 0);
  });
});

describe('draining', () => {
  it('says GOAWAY, refuses new streams and lets open ones finish', async () => {
    const own = closeAfterTest(await world.start());
    const over2 = await frames(own);
    over2.send(headersFrame(1, request('/sse?events=4'), { endStream: true }));
    expect(await over2.outcomeOf(1)).toEqual({ kind: 'answer', status: 200 });
    const drained = own.app.drain();
    const codes: number[] = [];
    let isWhole = false;
    let late: number | null = null;
    for (;;) {
      const frame = await over2.frame();
      if (frame === null) break;
      if (frame.type === GOAWAY) {
        codes.push(frame.payload.readUInt32BE(4));
        if (codes.length === 1) over2.send(headersFrame(3, request('/late'), { endStream: true }));
      }
      if (frame.stream === 3) late = frame.type;
      if (frame.stream === 1 && frame.type === DATA && (frame.flags & 1) !== 0) isWhole = true;
    }
    await drained;
    expect(codes.at(-1)).toBe(NO_ERROR);
    expect(isWhole).toBe(true);
    expect(late).not.toBe(1);
    expect(world.origin.requests.some((r) => r.url === '/late')).toBe(false);
  });
});
