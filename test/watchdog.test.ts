import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Log } from '../src/core/ports.ts';
import { watchEventLoop } from '../src/watchdog.ts';

/** stallMs 500 has a period of 100 ms. */
const STALL_MS = 500;
const PERIOD_MS = 100;

let clockMs = 0;
let lines: { readonly facts: object; readonly text: string }[] = [];

function log(): Log {
  const other = (): void => expect.unreachable('stalls are warnings');
  return { debug: other, info: other, error: other, warn: (facts, text) => lines.push({ facts, text }) };
}

/** The next tick comes, so much later than it should. */
function tick(lateMs = 0): void {
  clockMs += PERIOD_MS + lateMs;
  vi.advanceTimersToNextTimer();
}

beforeEach(() => {
  clockMs = 1_000_000;
  lines = [];
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
});
afterEach(() => {
  vi.useRealTimers();
});

describe('the watch of the event loop', () => {
  it('reports a stall once, with its length', () => {
    const watch = watchEventLoop(STALL_MS, log(), () => clockMs);
    for (const lateMs of [0, 0, 1234.4, 0, 0, 0]) tick(lateMs);
    expect(lines).toEqual([
      { facts: { lateMs: 1234 }, text: expect.stringContaining('event loop stood still') as string },
    ]);
    watch.close();
  });

  it('reports every stall, and remembers the worst', () => {
    const watch = watchEventLoop(STALL_MS, log(), () => clockMs);
    for (const lateMs of [700, 0, 2000, 600]) tick(lateMs);
    expect(lines.map((line) => line.facts)).toEqual([{ lateMs: 700 }, { lateMs: 2000 }, { lateMs: 600 }]);
    expect(watch.worstMs()).toBe(2000);
    watch.close();
  });

  it('keeps quiet about short delays, however many, and still knows the worst', () => {
    const watch = watchEventLoop(STALL_MS, log(), () => clockMs);
    for (let i = 0; i < 50; i++) tick(STALL_MS - i);
    tick(STALL_MS);
    expect(lines).toEqual([]);
    expect(watch.worstMs()).toBe(STALL_MS);
    watch.close();
  });

  it('looks no more once it is closed', () => {
    const watch = watchEventLoop(STALL_MS, log(), () => clockMs);
    watch.close();
    expect(vi.getTimerCount()).toBe(0);
  });

  it.each([
    [1, 20],
    [100, 50],
    [500, 100],
    [60_000, 100],
  ])('for stalls of %d ms it looks every %d ms', (stallMs, periodMs) => {
    const looks = vi.fn(() => clockMs);
    const watch = watchEventLoop(stallMs, log(), looks);
    looks.mockClear();
    vi.advanceTimersByTime(periodMs - 1);
    expect(looks).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1);
    expect(looks).toHaveBeenCalled();
    watch.close();
  });

  it('keeps no process alive', () => {
    vi.useRealTimers();
    const spy = vi.spyOn(globalThis, 'setInterval');
    const watch = watchEventLoop(STALL_MS, log());
    const timer: unknown = spy.mock.results[0]?.value;
    expect(timer).toHaveProperty('hasRef');
    expect((timer as NodeJS.Timeout).hasRef()).toBe(false);
    watch.close();
    spy.mockRestore();
  });
});
