import type { Log } from './core/ports.ts';

/**
 * Reports stalls of the event loop: while it stands, every connection stands. Measured as the lateness of a timer, so one stall gives one line. A stall that
 * begins between two ticks is measured up to one period too short, never too long.
 * @param stallMs lateness from which on a stall is reported
 * @param now milliseconds that only grow
 */
export function watchEventLoop(
  stallMs: number,
  log: Log,
  now: () => number = () => performance.now(),
): { readonly worstMs: () => number; close(): void } {
  const periodMs = Math.max(20, Math.min(100, stallMs / 2));
  let expectedAt = now() + periodMs;
  let worstMs = 0;
  const timer = setInterval(() => {
    const lateMs = now() - expectedAt;
    if (lateMs > worstMs) worstMs = lateMs;
    if (lateMs > stallMs)
      log.warn({ lateMs: Math.round(lateMs) }, 'the event loop stood still; all connections waited');
    expectedAt = now() + periodMs;
  }, periodMs);
  timer.unref();
  return { worstMs: () => worstMs, close: () => clearInterval(timer) };
}
