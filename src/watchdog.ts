import type { Log } from './core/ports.ts';

/**
 * Reports stalls of the event loop: while it stands, every connection stands. Measured as the lateness of a timer, so one stall gives one line.
 * @param stallMs lateness from which on a stall is reported
 */
export function watchEventLoop(stallMs: number, log: Log): { readonly worstMs: () => number; close(): void } {
  const periodMs = Math.max(20, Math.min(100, stallMs / 2));
  let expectedAt = performance.now() + periodMs;
  let worstMs = 0;
  const timer = setInterval(() => {
    const lateMs = performance.now() - expectedAt;
    if (lateMs > worstMs) worstMs = lateMs;
    if (lateMs > stallMs)
      log.warn({ lateMs: Math.round(lateMs) }, 'the event loop stood still; all connections waited');
    expectedAt = performance.now() + periodMs;
  }, periodMs);
  timer.unref();
  return { worstMs: () => worstMs, close: () => clearInterval(timer) };
}
