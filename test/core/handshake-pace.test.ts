import { setImmediate as nextTurn } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { HandshakePace } from '../../src/core/handshake-pace.ts';

test('a handshake alone begins at once, those that come together one in a turn, in their order', async () => {
  const pace = new HandshakePace();
  expect(pace.turn()).toBeNull();
  await nextTurn();
  await nextTurn();
  expect(pace.turn()).toBeNull();
  const begun: number[] = [];
  for (let i = 0; i < 5; i++) void pace.turn()?.then(() => begun.push(i));
  expect(pace.waiting).toBe(5);
  for (let i = 0; i < 5; i++) {
    const before = begun.length;
    await nextTurn();
    expect(begun.length - before).toBeLessThanOrEqual(1);
  }
  await nextTurn();
  expect(begun).toEqual([0, 1, 2, 3, 4]);
  expect(pace.waiting).toBe(0);
  await nextTurn();
  expect(pace.turn()).toBeNull();
});
