import { Minimatch } from 'minimatch';
import type { MinimatchOptions } from 'minimatch';
import { canonicalHost, isIpLiteral, normalizePath } from '../core/url.ts';
import { bad, good } from './problem.ts';
import type { Compiled } from './problem.ts';

/**
 * The only place that knows minimatch. The grammar is `*` (inside one label or path segment) and, in paths, `**` as a whole segment.
 * Everything else that minimatch gives a meaning to is refused at load or switched off here, so that a pattern means what it looks like.
 * minimatch 11 matches with a state machine, not with a RegExp: no pattern backtracks.
 */
const OPTIONS: MinimatchOptions = {
  // Without it `/v1/**` skips `/v1/.git`.
  dot: true,
  nobrace: true,
  noext: true,
  nocomment: true,
  nonegate: true,
  nocase: false,
  // Without it `/v1/*` matches `/v1//admin`.
  preserveMultipleSlashes: true,
  // Levels above 0 rewrite `..` and repeated parts; what we match is normalized already.
  optimizationLevel: 0,
  platform: 'linux',
};

/** Longest glob, in characters. */
export const MAX_GLOB_LENGTH = 1024;
/** Most `**` in one path glob. */
const MAX_GLOBSTARS = 8;

/** A compiled host pattern. `exact` and `suffix` are looked up in maps; `glob` is filed under its literal tail. */
export type HostPattern =
  | { readonly kind: 'any'; readonly text: string }
  | { readonly kind: 'exact'; readonly text: string }
  /** `*.tail`: every name below `tail`, at any depth, and not `tail` itself. */
  | { readonly kind: 'suffix'; readonly text: string; readonly tail: string }
  | { readonly kind: 'glob'; readonly text: string; readonly tail: string; readonly test: (host: string) => boolean };

/** A compiled path or name pattern. */
export interface TextPattern {
  readonly text: string;
  readonly test: (value: string) => boolean;
}

const SPECIAL = /[?[\]{}\\]/;
const GLOB_LABEL = /^[a-z0-9_*-]+$/;

/**
 * Compiles a host pattern: a name, an IP literal, `*` (every host), `*.example.com` (every name below example.com, at any depth),
 * or stars inside labels (`api-*.example.com`), which do not cross dots. Upper case, Unicode and odd IP spellings are normalized.
 */
export function compileHost(input: string): Compiled<HostPattern> {
  if (input === '*') return good({ kind: 'any', text: '*' });
  if (input.length === 0) return bad('the host is empty');
  if (input.length > MAX_GLOB_LENGTH) return bad(`the host is longer than ${MAX_GLOB_LENGTH} characters`);
  const shape = refuseHostShape(input);
  if (shape !== null) return shape;
  if (!input.includes('*')) {
    const host = canonicalHost(input);
    return host === null
      ? bad(`${JSON.stringify(input)} is not a host name or IP address`)
      : good({ kind: 'exact', text: host });
  }
  return compileHostGlob(input);
}

function refuseHostShape(input: string): Compiled<never> | null {
  const shown = JSON.stringify(input);
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(input)) {
    return bad(`${shown} is a URL`, 'write the host only; use scheme, port and path for the rest');
  }
  if (/[/?#@]/.test(input))
    return bad(`${shown} has more than a host in it`, 'write the host only; use path for the rest');
  if (/^[^:]*:[0-9]*$/.test(input) || /^\[.*\]:[0-9]+$/.test(input)) {
    return bad(
      `${shown} has a port in it`,
      `write the port as port: ${input.slice(input.lastIndexOf(':') + 1) || '443'}`,
    );
  }
  if (input.includes('*') && /[\s{}[\]\\!()|+^$%]/.test(input)) {
    return bad(
      `${shown} has characters that a host glob cannot have`,
      'only * is special; write alternatives as a list',
    );
  }
  if (input.includes('**')) return bad(`${shown} has ** in it`, '*.example.com already covers every depth');
  if (input.includes('*') && input.includes(':'))
    return bad(`${shown} is an address with *`, 'write addresses in full');
  return null;
}

function compileHostGlob(input: string): Compiled<HostPattern> {
  const shown = JSON.stringify(input);
  const labels = input.toLowerCase().replace(/\.$/, '').split('.');
  let firstLiteral = labels.length;
  while (firstLiteral > 0 && labels[firstLiteral - 1]?.includes('*') === false) firstLiteral--;
  if (firstLiteral === labels.length) {
    return bad(
      `${shown} leaves the end of the name open`,
      'anyone can register such a name; the last label must be plain',
    );
  }
  const tail = canonicalHost(labels.slice(firstLiteral).join('.'));
  if (tail === null) return bad(`${shown} is not a host pattern`);
  if (isIpLiteral(tail)) return bad(`${shown} is an address with *`, 'write addresses in full');
  if (firstLiteral === 1 && labels[0] === '*') return good({ kind: 'suffix', text: `*.${tail}`, tail });
  const head = labels.slice(0, firstLiteral);
  if (!head.every((label) => GLOB_LABEL.test(label)))
    return bad(`${shown} is not a host pattern`, 'write Unicode labels next to * as xn--…');
  // Labels become path segments, so that stars stay inside them; a leading `*` stands for one label or more.
  const segments = [...(head[0] === '*' ? ['**', ...head] : head), ...tail.split('.')];
  const glob = new Minimatch(segments.join('/'), OPTIONS);
  return good({
    kind: 'glob',
    text: `${head.join('.')}.${tail}`,
    tail,
    test: (host) => !host.includes(':') && glob.match(host.replaceAll('.', '/')),
  });
}

/** Whether a pattern matches a canonical host. The rule index does not need this; explanations and hints do. */
export function hostMatches(pattern: HostPattern, host: string): boolean {
  switch (pattern.kind) {
    case 'any':
      return true;
    case 'exact':
      return pattern.text === host;
    case 'suffix':
      return (
        host.length > pattern.tail.length + 1 &&
        host.endsWith(pattern.tail) &&
        host.at(-pattern.tail.length - 1) === '.'
      );
    case 'glob':
      return pattern.test(host);
  }
}

/**
 * Compiles a path pattern, matched against the normalized path without query. `*` matches one or more characters of one segment when it
 * stands alone, none or more beside text; `**` matches any rest. `/v1/*` matches neither `/v1/`, `/v1//x` nor `/v1/a/b`; `/v1/**` does not match `/v1`.
 * `*` and `**` alone match every path. Case matters, and so does a trailing slash.
 */
export function compilePath(input: string): Compiled<TextPattern> {
  const shown = JSON.stringify(input);
  if (input === '*' || input === '**' || input === '/**')
    return good({ text: input, test: input === '/**' ? isOriginForm : () => true });
  if (input.length > MAX_GLOB_LENGTH) return bad(`the path is longer than ${MAX_GLOB_LENGTH} characters`);
  if (input.includes('?'))
    return bad(`${shown} has a ? in it`, "paths have no query; use if: 'query.contains(…)', and * instead of ?");
  if (input.includes('#')) return bad(`${shown} has a # in it`, 'fragments are never sent to a server');
  if (SPECIAL.test(input))
    return bad(
      `${shown} has brackets, braces or a backslash in it`,
      'only * and ** are special; write alternatives as a list',
    );
  if (!input.startsWith('/') && !input.startsWith('**/'))
    return bad(`the path ${shown} starts with neither / nor *`, `write ${JSON.stringify(`/${input}`)}`);
  const rooted = input.startsWith('/') ? input : `/${input}`;
  const normalized = normalizePath(rooted);
  if (normalized === null)
    return bad(
      `${shown} is no path that a request can have`,
      'dot segments, broken escapes and non-ASCII characters are refused in requests too',
    );
  const { path } = normalized;
  const segments = path.split('/');
  if (segments.some((segment) => segment.includes('**') && segment !== '**')) {
    return bad(`${shown} has ** beside other characters`, '** must stand alone between slashes');
  }
  if (segments.filter((segment) => segment === '**').length > MAX_GLOBSTARS)
    return bad(`${shown} has more than ${MAX_GLOBSTARS} **`);
  return good({ text: path, test: pathTest(path, segments) });
}

function isOriginForm(path: string): boolean {
  return path.startsWith('/');
}

function pathTest(path: string, segments: readonly string[]): (value: string) => boolean {
  if (!path.includes('*')) return (value) => value === path;
  const head = path.slice(0, path.lastIndexOf('/') + 1);
  const last = segments.at(-1);
  if (!head.includes('*')) {
    if (last === '**') return (value) => value.startsWith(head);
    if (last === '*')
      return (value) => value.length > head.length && value.startsWith(head) && !value.includes('/', head.length);
  }
  const glob = new Minimatch(path, OPTIONS);
  // minimatch takes `/a` for a match of `/a/`; servers need not.
  if (last === '**' || last === '') return (value) => glob.match(value);
  return (value) => !value.endsWith('/') && glob.match(value);
}

/** Compiles a name pattern (agent, gRPC service or method): `*` matches any characters, also none. Case matters. */
export function compileName(input: string, what: string): Compiled<TextPattern> {
  const shown = JSON.stringify(input);
  if (input.length === 0) return bad(`the ${what} is empty`);
  if (input.length > MAX_GLOB_LENGTH) return bad(`the ${what} is longer than ${MAX_GLOB_LENGTH} characters`);
  if (SPECIAL.test(input) || /[!()#]/.test(input)) {
    return bad(`${shown} has characters that a glob cannot have`, 'only * is special; write alternatives as a list');
  }
  if (input.includes('**')) return bad(`${shown} has ** in it`, 'write one *');
  if (!input.includes('*')) return good({ text: input, test: (value) => value === input });
  if (input === '*') return good({ text: input, test: () => true });
  const inner = input.slice(0, -1);
  if (input.endsWith('*') && !inner.includes('*'))
    return good({ text: input, test: (value) => value.startsWith(inner) });
  // A slash in a name is an ordinary character here.
  const glob = new Minimatch(input.replaceAll('/', '\u0000'), OPTIONS);
  return good({ text: input, test: (value) => glob.match(value.replaceAll('/', '\u0000')) });
}

const ODD_READING = /%2F|%5C|\/\/|;|%3B|.\/$/;

/**
 * Every way in which a server may read a normalized path: as it is; with `%2F` and `%5C` as separators; with runs of slashes as one; without `;` parameters;
 * without a trailing slash. A rule that restricts is matched against all of them, a rule that admits against the first only, so that `/admin` denied is
 * also `//admin`, `/admin/` and `/admin;x` denied.
 */
export function readingsOf(path: string): readonly string[] {
  if (!ODD_READING.test(path)) return [path];
  const readings = new Set([path]);
  const steps: ((text: string) => string)[] = [
    (text) => text.replace(/%2F|%5C/g, '/'),
    (text) => text.replace(/(?:;|%3B)[^/]*/g, ''),
    (text) => text.replace(/\/{2,}/g, '/'),
    (text) => (text.length > 1 && text.endsWith('/') ? text.slice(0, -1) : text),
  ];
  // Each step applied or not, in this order: at most 16 readings.
  for (const step of steps) for (const reading of [...readings]) readings.add(step(reading));
  return [...readings];
}
