import dns from 'node:dns';
import { syncBuiltinESMExports } from 'node:module';
import type { Closable } from './closing.ts';

export interface LookupWatch extends Closable {
  /** Every name that anybody in this process asked the system for. */
  readonly names: readonly string[];
}

/** Counts getaddrinfo calls of this process: the proof that a denied name was never resolved. */
export function watchLookups(): LookupWatch {
  const original = dns.lookup;
  const names: string[] = [];
  const watched = (...args: readonly unknown[]): void => {
    names.push(String(args[0]));
    Reflect.apply(original, dns, args);
  };
  Object.assign(watched, original);
  dns.lookup = watched as typeof dns.lookup;
  syncBuiltinESMExports();
  return {
    names,
    close: () => {
      dns.lookup = original;
      syncBuiltinESMExports();
    },
  };
}
