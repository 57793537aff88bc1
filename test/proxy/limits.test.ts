import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { Deadlines, OpenCounter } from '../../src/proxy/limits.ts';
import type { Expiring } from '../../src/proxy/limits.ts';

describe('deadlines', () => {
  beforeEach(() => vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval', 'performance'] }));
  afterEach(() => vi.useRealTimers());

  test('are met once, late by at most a tick, never early', () => {
    const deadlines = new Deadlines(100);
    const met: number[] = [];
    deadlines.add({ slot: -1, deadlineMs: deadlines.now + 250, expire: (now) => met.push(now) });
    vi.advanceTimersByTime(200);
    expect(met).toEqual([]);
    vi.advanceTimersByTime(1000);
    expect(met).toHaveLength(1);
    deadlines.close();
  });

  test('can be moved by an assignment, and taken away', () => {
    const deadlines = new Deadlines(100);
    let count = 0;
    const entry = { slot: -1, deadlineMs: deadlines.now + 100, expire: () => count++ };
    deadlines.add(entry);
    entry.deadlineMs = deadlines.now + 500;
    vi.advanceTimersByTime(300);
    expect(count).toBe(0);
    deadlines.delete(entry);
    vi.advanceTimersByTime(1000);
    expect(count).toBe(0);
    deadlines.close();
  });

  test('that delete others while they are met do not disturb the rest', () => {
    const deadlines = new Deadlines(100);
    const met: string[] = [];
    const entry = (name: string, others: () => Expiring[]): Expiring => ({
      slot: -1,
      deadlineMs: deadlines.now,
      expire: () => {
        met.push(name);
        for (const other of others()) deadlines.delete(other);
      },
    });
    const first: Expiring = entry('first', () => [second]);
    const second: Expiring = entry('second', () => [first]);
    deadlines.add(first);
    deadlines.add(second);
    deadlines.add(entry('third', () => []));
    vi.advanceTimersByTime(100);
    // Whichever of the two comes first takes the other away.
    expect(met).toHaveLength(2);
    expect(met).toContain('third');
    deadlines.close();
  });
});

describe('a counter of what is open', () => {
  test('holds to the limit of all and to that of one agent', () => {
    const counter = new OpenCounter(3, 2);
    expect([counter.tryOpen('a'), counter.tryOpen('a'), counter.tryOpen('a')]).toEqual([true, true, false]);
    expect([counter.tryOpen('b'), counter.tryOpen('b')]).toEqual([true, false]);
    counter.close('a');
    expect(counter.tryOpen('b')).toBe(true);
    expect(counter.open).toBe(3);
  });

  test('does not go below zero', () => {
    const counter = new OpenCounter(1, 1);
    counter.close('nobody');
    expect(counter.open).toBe(0);
    expect(counter.tryOpen('a')).toBe(true);
  });
});
