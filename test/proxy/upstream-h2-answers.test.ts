import type { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import type { UpstreamRequest } from '../../src/core/stream.ts';
import { frame2, headerBlock, headersFrame, resetFrame } from '../support/raw-h2.ts';
import { until, within } from '../support/waiting.ts';
import {
  CANCEL,
  CONTINUATION,
  HEADERS,
  INTERNAL_ERROR,
  NO_ERROR,
  PUSH_PROMISE,
  REFUSED_STREAM,
  ask,
  data,
  goaway,
  head,
  large,
  lastData,
  lastHead,
  lastTrailers,
  rawServer,
  split,
  upstreamTo,
} from './upstream-h2-support.ts';
import type { Peer } from './upstream-h2-support.ts';

const OPEN = { endStream: false };

describe('an answer', () => {
  const sum: [string, string] = ['x-sum', '1'];
  const many = Array.from({ length: 201 }, (): [string, string] => ['a', 'b']);
  const status: [string, string] = [':status', '200'];
  const length = (said: string): Buffer => head('200', ['content-length', said]);
  const [hel, hello] = [data('hel'), lastData('hello')];

  /** From Node 24 on the connection goes with the stream. */
  const CUT = /^upstream_(protocol|reset)$/;

  it.each<[string, Buffer[], string | RegExp, string]>([
    ['that ends with its DATA', [head(), hel, lastData('lo')], 'whole', 'hello'],
    ['that ends with an empty DATA frame', [head(), hel, lastData('')], 'whole', 'hel'],
    ['that ends with its head', [lastHead()], 'whole', ''],
    ['that ends with trailers', [head(), hel, lastTrailers(sum)], 'whole', 'hel'],
    ['that ends, and is reset with NO_ERROR then', [head(), hello, resetFrame(1, NO_ERROR)], 'whole', 'hello'],
    ['that ends, and is reset with INTERNAL_ERROR then', [head(), hello, resetFrame(1, 2)], 'whole', 'hello'],
    ['that ends with its head, and is reset then', [lastHead(), resetFrame(1, NO_ERROR)], 'whole', ''],
    ['that is reset with NO_ERROR in its middle', [head(), hel, resetFrame(1, NO_ERROR)], 'upstream_reset', 'hel'],
    ['that is reset with NO_ERROR after its head', [head(), resetFrame(1, NO_ERROR)], 'upstream_reset', ''],
    ['that is reset with NO_ERROR before its head', [resetFrame(1, NO_ERROR)], 'upstream_reset', ''],
    ['that is reset with an error in its middle', [head(), hel, resetFrame(1, 2)], 'upstream_reset', 'hel'],
    ['that is reset with CANCEL before its head', [resetFrame(1, CANCEL)], 'upstream_reset', ''],
    ['that is refused', [resetFrame(1, REFUSED_STREAM)], 'upstream_reset retry-safe', ''],
    ['as long as it was said to be', [length('5'), hello], 'whole', 'hello'],
    ['longer than it was said to be', [length('3'), hello], CUT, ''],
    ['shorter than it was said to be', [length('9'), hel, lastData('')], 'upstream_protocol', 'hel'],
    ['without the body that was announced', [lastHead('200', ['content-length', '9'])], 'upstream_protocol', ''],
    [
      'with two lengths',
      [head('200', ['content-length', '5'], ['content-length', '6']), hello],
      'upstream_protocol',
      '',
    ],
    ['with a length that is no number', [length('+5'), hello], 'upstream_protocol', ''],
    ['with a body that 204 forbids', [head('204'), hello], CUT, ''],
    ['of 304 with the length of what it stands for', [lastHead('304', ['content-length', '9'])], 'whole', ''],
    ['with a header in upper case', [lastHead('200', ['X-Upper', '1'])], 'upstream_protocol', ''],
    ['with a connection header', [lastHead('200', ['connection', 'close'])], 'upstream_protocol', ''],
    ['with transfer-encoding', [lastHead('200', ['transfer-encoding', 'chunked'])], 'upstream_protocol', ''],
    ['without a status', [lastTrailers(sum)], 'upstream_protocol', ''],
    ['with two statuses', [lastTrailers(status, status)], 'upstream_protocol', ''],
    ['with a status that is none', [lastHead('2x0')], 'upstream_protocol', ''],
    ['with a pseudo header of requests', [lastHead('200', [':path', '/'])], 'upstream_protocol', ''],
    ['that ends with an informational head', [lastHead('103')], 'upstream_protocol', ''],
    ['of 101', [head('101'), hello], 'upstream_protocol', ''],
    ['with trailers that do not end it', [head(), hel, headersFrame(1, [sum], OPEN)], 'upstream_protocol', 'hel'],
    ['with a head as large as allowed', [split([status, ...large(60_000)], 1)], 'whole', ''],
    ['with a head over the limit', [split([status, ...large(70_000)], 1)], 'upstream_header_too_large', ''],
    ['with too many headers', [split([status, ...many], 1)], 'upstream_header_too_large', ''],
    [
      'with too large hints',
      [split([[':status', '103'], ...large(70_000)], 0), lastHead()],
      'upstream_header_too_large',
      '',
    ],
    ['with trailers over the limit', [head(), hel, split(large(70_000), 1)], 'upstream_header_too_large', 'hel'],
    ['over the window', [head(), ...Array.from({ length: 80 }, () => data(Buffer.alloc(16_000)))], CUT, 'any'],
  ])('%s', async (_name, frames, expected, body) => {
    const upstream = await upstreamTo(await rawServer((peer) => peer.send(...frames)));
    const asked = ask(upstream, {}, (source) => body === 'any' && source.pause());
    expect(await within('the outcome', asked.outcome)).toEqual(
      expected instanceof RegExp ? expect.stringMatching(expected) : expected,
    );
    // What came in one read with the reset is lost on Node 26; the answer is not whole either way.
    const isBroken = expected !== 'whole' && asked.received.length === 0;
    if (body !== 'any' && !isBroken) expect(asked.received.toString()).toBe(body);
    await until('the stream to be over', () => upstream.activeStreams === 0);
    if (expected !== CUT) expect(upstream.isUsable).toBe(true);
  });

  const more = frame2(CONTINUATION, 0, 1, headerBlock([['a', 'b']]));
  const flood = frame2(CONTINUATION, 0, 1, headerBlock([['a', 'b'.repeat(1000)]]));
  const cut = (how: (socket: Socket) => void) => (peer: Peer) => {
    peer.send(head(), hel);
    setTimeout(() => how(peer.socket), 50);
  };
  const pushed: [string, string][] = [
    [':method', 'GET'],
    [':scheme', 'http'],
    [':authority', 'server.test'],
    [':path', '/pushed'],
  ];
  it.each<[string, (peer: Peer) => void]>([
    ['is cut by a FIN in its middle', cut((socket) => socket.end())],
    ['is cut by a RST in its middle', cut((socket) => socket.resetAndDestroy())],
    ['never begins, because the server leaves', ({ socket }) => void socket.end()],
    [
      'comes with a pushed stream',
      (peer) => peer.send(frame2(PUSH_PROMISE, 4, 1, Buffer.concat([Buffer.from([0, 0, 0, 2]), headerBlock(pushed)]))),
    ],
  ])('that %s fails with its connection, also for a reader that is paused', async (_name, script) => {
    const upstream = await upstreamTo(await rawServer(script));
    const asked = ask(upstream, {}, (body) => body.pause());
    expect(await within('the outcome', asked.outcome)).toMatch(/^upstream_(reset|protocol)$/);
    await until('the connection to go', () => upstream.closed());
    expect(upstream.isUsable).toBe(false);
    expect(() => ask(upstream)).toThrow(
      expect.objectContaining({ code: 'upstream_reset', isRetrySafe: true }) as Error,
    );
  });

  it.each<[string, Buffer]>([
    ['in HTTP/1.1', Buffer.from('HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n')],
    ['in a frame over the agreed size', Buffer.concat([head(), data(Buffer.alloc(20_000))])],
    ['with DATA before its head', lastData('x')],
    [
      'with too many CONTINUATION frames',
      Buffer.concat([frame2(HEADERS, 0, 1, headerBlock([status])), ...Array.from({ length: 20 }, () => more)]),
    ],
    [
      // Node's own reader would end the process here.
      'with CONTINUATION frames without end',
      Buffer.concat([frame2(HEADERS, 0, 1, headerBlock([status])), ...Array.from({ length: 2000 }, () => flood)]),
    ],
    ['on a stream that nobody opened', headersFrame(7, [status], { endStream: true })],
  ])(
    '%s fails, at its deadline at the latest, and its connection is not used for much longer',
    async (_name, bytes) => {
      const port = await rawServer((peer) => peer.send(bytes));
      const upstream = await upstreamTo(port, { responseHeadMs: 500, idleMs: 500 });
      expect(await within('the outcome', ask(upstream).outcome)).toMatch(/^upstream_/);
      // Only a request can show it on Node 20.
      if (upstream.isUsable) expect(await within('the outcome', ask(upstream).outcome)).toMatch(/^upstream_/);
      await until('the connection to be given up', () => !upstream.isUsable);
    },
  );

  it('loses a header whose value is none', async () => {
    const port = await rawServer((peer) => peer.send(lastHead('200', ['x-a', 'b\r\nx-c: d'], ['x-e', 'f'])));
    const asked = ask(await upstreamTo(port));
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.head?.headers).toEqual(['x-e', 'f']);
  });

  it('comes after all informational heads, in their order', async () => {
    const port = await rawServer((peer) =>
      peer.send(
        head('100'),
        head('103', ['link', '</a>']),
        head('103', ['link', '</b>']),
        head('200', ['x-a', '1'], ['x-a', '2']),
        lastData('x'),
      ),
    );
    const asked = ask(await upstreamTo(port));
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.informational.map(({ status, headers }) => [status, ...headers])).toEqual([
      [100],
      [103, 'link', '</a>'],
      [103, 'link', '</b>'],
    ]);
    expect(asked.head).toMatchObject({ httpVersion: '2', status: 200, reason: '', headers: ['x-a', '1', 'x-a', '2'] });
  });

  it.each<[string, Buffer[], Partial<UpstreamRequest>, number | null]>([
    ['not known', [head(), lastData('hello')], {}, null],
    ['as announced', [head('200', ['content-length', '5']), lastData('hello')], {}, 5],
    ['none when the head ends it', [lastHead()], {}, 0],
    ['none for HEAD, whatever is announced', [lastHead('200', ['content-length', '5'])], { method: 'HEAD' }, 0],
    ['none for 304', [head('304'), lastData('')], {}, 0],
  ])('has a length that is %s', async (_name, frames, request, expected) => {
    const asked = ask(await upstreamTo(await rawServer((peer) => peer.send(...frames))), request);
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.body?.length).toBe(expected);
  });

  it('has its trailers', async () => {
    const port = await rawServer((peer) => peer.send(head(), data('x'), lastTrailers(['x-sum', '1'], ['x-sum', '2'])));
    const asked = ask(await upstreamTo(port));
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.trailers).toEqual(['x-sum', '1', 'x-sum', '2']);
  });
});

describe('a reader that stalls', () => {
  const BODY = Buffer.alloc(300_000, 'subfloor');
  const frames = (): Buffer[] => {
    const parts: Buffer[] = [head()];
    for (let at = 0; at < BODY.length; at += 15_000) parts.push(data(BODY.subarray(at, at + 15_000)));
    return parts;
  };

  it.each<[string, (peer: Peer) => void]>([
    ['the socket is closed', (peer) => void peer.socket.end()],
    ['the socket is reset', (peer) => void setTimeout(() => peer.socket.resetAndDestroy(), 100)],
    [
      'GOAWAY and the end',
      (peer) => {
        peer.send(goaway(1, INTERNAL_ERROR));
        peer.socket.end();
      },
    ],
    ['the stream is reset', (peer) => peer.send(resetFrame(1, NO_ERROR))],
  ])('still gets the rest of a whole answer after %s', async (_name, then) => {
    const port = await rawServer((peer) => {
      peer.send(...frames(), lastData(''));
      then(peer);
    });
    const upstream = await upstreamTo(port);
    const asked = ask(upstream, {}, (body) => body.pause());
    await until('the head', () => asked.head);
    if (!_name.includes('stream')) await until('the connection to go', () => upstream.closed());
    else await sleep(100);
    expect(asked.isOver).toBe(false);
    // In pieces: pausing works on the rest as well.
    for (let i = 0; !asked.isOver && i < 100; i++) {
      asked.body?.resume();
      asked.body?.pause();
      await sleep(1);
    }
    asked.body?.resume();
    expect(await within('the outcome', asked.outcome)).toBe('whole');
    expect(asked.received.equals(BODY)).toBe(true);
  });

  it('is told at once when the answer is cut', async () => {
    const port = await rawServer((peer) => {
      peer.send(...frames());
      peer.socket.end();
    });
    const asked = ask(await upstreamTo(port), {}, (body) => body.pause());
    expect(await within('the outcome', asked.outcome)).toBe('upstream_reset');
  });

  it('may cancel what is left', async () => {
    const port = await rawServer((peer) => {
      peer.send(...frames(), lastData(''));
      peer.socket.end();
    });
    const upstream = await upstreamTo(port);
    const asked = ask(upstream, {}, (body) => body.pause());
    await until('the connection to go', () => upstream.closed());
    asked.body?.cancel();
    asked.body?.resume();
    await sleep(20);
    expect(asked.isOver).toBe(false);
    expect(asked.received).toHaveLength(0);
  });
});
