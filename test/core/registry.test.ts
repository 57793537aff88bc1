import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Registry, Seat } from '../../src/core/registry.ts';

describe('a registry', () => {
  test('holds what was added and not deleted, like a set', () => {
    const steps = fc.array(fc.tuple(fc.boolean(), fc.nat(20)), { maxLength: 200 });
    fc.assert(
      fc.property(steps, (all) => {
        const items = Array.from({ length: 21 }, (_unused, i) => new Seat(i));
        const registry = new Registry<Seat<number>>();
        const model = new Set<number>();
        for (const [isAdd, i] of all) {
          const item = items[i] ?? new Seat(-1);
          if (!isAdd) expect(registry.delete(item)).toBe(model.delete(i));
          else if (!model.has(i)) {
            registry.add(item);
            model.add(i);
          }
          expect(registry.size).toBe(model.size);
        }
        const held = [...registry].map((seat) => seat.item).sort((a, b) => a - b);
        expect(held).toEqual([...model].sort((a, b) => a - b));
        expect(new Set(registry.snapshot())).toEqual(new Set(registry));
      }),
    );
  });

  test('does not delete what another registry holds at the same place', () => {
    const one = new Registry<Seat<string>>();
    const other = new Registry<Seat<string>>();
    const mine = new Seat('mine');
    one.add(mine);
    other.add(new Seat('theirs'));
    expect(other.delete(mine)).toBe(false);
    expect([one.size, other.size]).toEqual([1, 1]);
  });

  test('lets an item remove itself in a walk', () => {
    const registry = new Registry<Seat<number>>();
    for (let i = 0; i < 5; i++) registry.add(new Seat(i));
    const seen: number[] = [];
    for (const seat of registry) {
      seen.push(seat.item);
      registry.delete(seat);
    }
    expect(seen.sort()).toEqual([0, 1, 2, 3, 4]);
    expect(registry.size).toBe(0);
  });

  test('is empty after clear, and takes its items again', () => {
    const registry = new Registry<Seat<number>>();
    const seat = new Seat(1);
    registry.add(seat);
    registry.clear();
    expect(registry.size).toBe(0);
    registry.add(seat);
    expect(registry.snapshot()).toEqual([seat]);
  });
});
