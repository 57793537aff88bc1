import { describe, expect, it } from 'vitest';
import { TrustFailures, type TrustFailureForm } from '../../src/tls/trust-failures.ts';

const MINUTE_MS = 60_000;

function fixture(max?: number) {
  const clock = { nowMs: 1_000_000 };
  const failures = new TrustFailures({ now: () => clock.nowMs, ...(max === undefined ? {} : { max }) });
  return { clock, failures };
}

describe('TrustFailures', () => {
  it('counts each host and agent on its own', () => {
    const { failures } = fixture();
    expect(failures.note('a.example', 'one', 'alert').count).toBe(1);
    expect(failures.note('a.example', 'one', 'closed_before_finish').count).toBe(2);
    expect(failures.note('a.example', 'two', 'alert').count).toBe(1);
    expect(failures.note('b.example', 'one', 'alert').count).toBe(1);
  });

  it.each<[TrustFailureForm, readonly boolean[]]>([
    ['alert', [true, false, false, false]],
    ['closed_before_finish', [true, false, false, false]],
    // A spare connection looks the same, so one of them says nothing yet.
    ['closed_without_request', [false, false, true, false]],
  ])('explains %s once it means something, and then is quiet', (form, expected) => {
    const { failures } = fixture();
    expect(expected.map(() => failures.note('a.example', 'one', form).shouldExplain)).toEqual(expected);
  });

  it('explains again after ten minutes', () => {
    const { clock, failures } = fixture();
    failures.note('a.example', 'one', 'alert');
    clock.nowMs += 10 * MINUTE_MS - 1;
    expect(failures.note('a.example', 'one', 'alert').shouldExplain).toBe(false);
    clock.nowMs += 1;
    expect(failures.note('a.example', 'one', 'alert').shouldExplain).toBe(true);
  });

  it('explains a few of many hosts per minute, and the others in the minutes after', () => {
    const { clock, failures } = fixture();
    const round = (): number =>
      Array.from({ length: 100 }, (_, index) => failures.note(`h${index}.example`, 'one', 'alert')).filter(
        ({ shouldExplain }) => shouldExplain,
      ).length;
    expect(round()).toBe(6);
    clock.nowMs += MINUTE_MS;
    expect(round()).toBe(6);
  });

  it('names agent, host and remedy', () => {
    const { failures } = fixture();
    const { explanation } = failures.note('a.example', 'builder', 'alert');
    for (const part of ['"builder"', 'a.example', 'TLS alert', 'subfloor env', 'ca.pem'])
      expect(explanation).toContain(part);
    expect(explanation).not.toContain('intercept');
    expect(failures.note('a.example', 'builder', 'alert').explanation).toContain('(2 times)');
  });

  it('calls a close without a request what it may be: a spare connection', () => {
    expect(fixture().failures.note('a.example', 'one', 'closed_without_request').explanation).toContain(
      'spare connection',
    );
  });

  it('suggests a rule, and takes none by itself, when the same agent trusts us elsewhere', () => {
    const { failures } = fixture();
    failures.noteSuccess('b.example', 'one');
    expect(failures.note('a.example', 'one', 'alert').explanation).toContain('intercept: false');
    expect(failures.note('a.example', 'two', 'alert').explanation).not.toContain('intercept: false');
  });

  it('starts from zero after a request came through', () => {
    const { failures } = fixture();
    failures.note('a.example', 'one', 'closed_without_request');
    failures.note('a.example', 'one', 'closed_without_request');
    failures.noteSuccess('a.example', 'one');
    const report = failures.note('a.example', 'one', 'closed_without_request');
    expect([report.count, report.shouldExplain]).toEqual([1, false]);
  });

  it('remembers only so many, the latest ones', () => {
    const { failures } = fixture(3);
    for (const host of ['a', 'b', 'c', 'a', 'd']) failures.note(host, 'one', 'alert');
    expect(failures.size).toBe(3);
    expect(failures.note('a', 'one', 'alert').count).toBe(3);
    expect(failures.note('b', 'one', 'alert').count).toBe(1);
  });
});
