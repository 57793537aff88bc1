import { createSecureContext } from 'node:tls';
import { expect, test } from 'vitest';
import { SessionCache } from '../../src/proxy/session-cache.ts';

const session = (text: string): Buffer => Buffer.from(text);

test('sessions of one context are never offered under another', () => {
  const cache = new SessionCache();
  const [before, after] = [createSecureContext(), createSecureContext()];
  cache.set(before, 'a', session('1'));
  expect(cache.get(before, 'a')).toEqual(session('1'));
  expect(cache.get(after, 'a')).toBeUndefined();
});

test('a deleted session is gone, and deleting an unknown one is harmless', () => {
  const cache = new SessionCache();
  const context = createSecureContext();
  cache.delete(context, 'a');
  cache.set(context, 'a', session('1'));
  cache.delete(context, 'a');
  expect(cache.get(context, 'a')).toBeUndefined();
});

test('the session that was renewed longest ago makes room when the cache is full', () => {
  const cache = new SessionCache();
  const context = createSecureContext();
  for (let i = 0; i < 1000; i++) cache.set(context, String(i), session('1'));
  cache.set(context, '0', session('2'));
  cache.set(context, 'new', session('3'));
  expect(cache.get(context, '0')).toEqual(session('2'));
  expect(cache.get(context, '1')).toBeUndefined();
  expect(cache.get(context, 'new')).toEqual(session('3'));
});
