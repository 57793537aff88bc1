import { dirname } from 'node:path';
import { nearest, quoted } from '../core/located.ts';
import type { Located, LocatedScalar, Place, Problems } from '../core/located.ts';
import { readYaml } from '../core/yaml.ts';
import { KEYS, OTHER_VARIABLES, environmentName } from './schema.ts';
import { unknownKey } from './values.ts';

/** Where an effective value comes from. */
export type Origin =
  | { readonly kind: 'default' }
  | { readonly kind: 'file'; readonly file: string; readonly line: number; readonly column: number }
  | { readonly kind: 'environment'; readonly name: string }
  | { readonly kind: 'flag'; readonly name: string };

/** A value that somebody wrote for a key. */
export interface Written {
  readonly value: Located;
  readonly origin: Origin;
  /** Folder that relative paths start from. */
  readonly base: string;
}

/** What was written, by key path. */
export type Layer = ReadonlyMap<string, Written>;

const PATHS: ReadonlySet<string> = new Set(KEYS.map((key) => key.path));
/** Keys that hold other keys: `listen`, `limits`, `upstream`, … */
const SECTIONS: ReadonlySet<string> = new Set(
  KEYS.flatMap((key) => (key.path.includes('.') ? [key.path.slice(0, key.path.indexOf('.'))] : [])),
);

/** Reads the text of a settings file. Relative paths in it start from its own folder. */
export function fileLayer(text: string, file: string, problems: Problems): Layer {
  const layer = new Map<string, Written>();
  const root = readYaml(text, file, problems);
  if (root === null) return layer;
  const base = dirname(file);
  const put = (path: string, value: Located, at: Place): void => {
    layer.set(path, {
      value,
      origin: { kind: 'file', file, line: at.line ?? 1, column: at.column ?? 1 },
      base,
    });
  };
  if (root.type !== 'map') {
    problems.add(root.at, `a mapping of settings expected here (${topLevel().join(', ')})`);
    return layer;
  }
  for (const { key, keyAt, value } of root.entries) {
    if (PATHS.has(key)) put(key, value, keyAt);
    else if (!SECTIONS.has(key)) problems.add(keyAt, unknownWithPlace(key, topLevel()));
    else if (value.type === 'map') {
      const known = childrenOf(key);
      for (const child of value.entries) {
        const path = `${key}.${child.key}`;
        if (!known.includes(child.key)) problems.add(child.keyAt, unknownWithPlace(child.key, known));
        else if (path === 'upstream.proxy' && child.value.type === 'map') proxyFields(child.value);
        else put(path, child.value, child.keyAt);
      }
    } else if (value.type === 'list' || value.value !== null) {
      // An empty section, with all its lines commented out, is fine.
      problems.add(value.at, `a mapping expected here (${childrenOf(key).join(', ')})`);
    }
  }
  return layer;

  function proxyFields(map: Extract<Located, { type: 'map' }>): void {
    for (const { key, keyAt, value } of map.entries) {
      if (key === 'url') put('upstream.proxy', value, keyAt);
      else if (key === 'credentials_file') put('upstream.proxy.credentials_file', value, keyAt);
      else problems.add(keyAt, unknownKey(key, ['url', 'credentials_file']));
    }
  }
}

function topLevel(): readonly string[] {
  return [...new Set(KEYS.map((key) => key.path.split('.', 1)[0] ?? ''))];
}

function childrenOf(section: string): readonly string[] {
  const paths = KEYS.filter((key) => key.path.startsWith(`${section}.`));
  return [...new Set(paths.map((key) => key.path.split('.')[1] ?? ''))];
}

/** A key that stands one level too high or too deep is told where it belongs. */
function unknownWithPlace(key: string, known: readonly string[]): string {
  if (nearest(key, known) === null) {
    const elsewhere = KEYS.find((entry) => entry.path.endsWith(`.${key}`) || entry.path === key);
    if (elsewhere !== undefined) return `unknown key ${quoted(key)} here; it belongs at ${quoted(elsewhere.path)}`;
  }
  return unknownKey(key, known);
}

const BY_VARIABLE: ReadonlyMap<string, string> = new Map(KEYS.map((key) => [environmentName(key.path), key.path]));

/**
 * What Kubernetes and Docker links put into the environment of every container beside a service named `subfloor`
 * (kubernetes.io, "Discovering services: environment variables"). They are nobody's settings.
 */
const SERVICE_LINK =
  /^SUBFLOOR_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:ADDR|PORT|PROTO))?)$/;
const SERVICE_LINK_URL = /^(?:tcp|udp|sctp):\/\//;

/**
 * Reads `SUBFLOOR_*`. An empty variable counts as not set, because `${NAME:-}` in a compose file makes such; `[]` is an empty list.
 * Any other name that starts so is a typing mistake, and refused.
 */
export function environmentLayer(
  env: Readonly<Record<string, string | undefined>>,
  cwd: string,
  problems: Problems,
): Layer {
  const layer = new Map<string, Written>();
  for (const [name, text] of Object.entries(env)) {
    if (!name.startsWith('SUBFLOOR_') || text === undefined || text === '') continue;
    const path = BY_VARIABLE.get(name);
    if (path !== undefined) {
      const value = readPlainText(path, text, name, problems);
      if (value !== null) layer.set(path, { value, origin: { kind: 'environment', name }, base: cwd });
    } else if (!Object.hasOwn(OTHER_VARIABLES, name) && !isServiceLink(name, text)) {
      const near = nearest(name, [...BY_VARIABLE.keys(), ...Object.keys(OTHER_VARIABLES)]);
      const hint = near === null ? 'docs/configuration.md lists them' : `did you mean ${near}?`;
      problems.add({ source: name, line: null, column: null }, `unknown variable; ${hint}`);
    }
  }
  return layer;
}

function isServiceLink(name: string, text: string): boolean {
  return SERVICE_LINK.test(name) || (name.endsWith('_PORT') && SERVICE_LINK_URL.test(text));
}

/** Short flags, for messages; all others are `--set path=value`. */
const SHORT_FLAGS: Readonly<Record<string, string>> = {
  'listen.proxy': '--listen',
  'listen.admin': '--admin',
  rules: '--rules',
  certs: '--certs',
  'audit.file': '--audit',
};

/** Reads flags, given by key path. */
export function flagLayer(flags: Readonly<Record<string, string>>, cwd: string, problems: Problems): Layer {
  const layer = new Map<string, Written>();
  for (const [path, text] of Object.entries(flags)) {
    const name = Object.hasOwn(SHORT_FLAGS, path) ? (SHORT_FLAGS[path] ?? path) : `--set ${path}`;
    const at: Place = { source: name, line: null, column: null };
    if (!PATHS.has(path)) {
      const near = nearest(path, PATHS);
      const hint = near === null ? 'docs/configuration.md lists them' : `did you mean ${near}?`;
      problems.add(at, `unknown setting; ${hint}`);
    } else if (text === '') {
      problems.add(at, 'needs a value; write [] for an empty list and null for none');
    } else {
      const value = readPlainText(path, text, name, problems);
      if (value !== null) layer.set(path, { value, origin: { kind: 'flag', name }, base: cwd });
    }
  }
  return layer;
}

/** Lists that a variable gives with commas between the items. */
const COMMA_LISTS: ReadonlySet<string> = new Set(['rules', 'upstream.ca', 'addresses.allow']);
const STRUCTURED: ReadonlySet<string> = new Set([
  'listen.proxy',
  'upstream.hosts',
  'upstream.client_certificates',
  'upstream.proxy',
  ...COMMA_LISTS,
]);
const NULLABLE: ReadonlySet<string> = new Set(['agents', 'audit.rotate_bytes', 'upstream.proxy']);

/** The value of a variable or flag: plain text, a comma list, `name=address,…`, or YAML in one line where it starts with a bracket. */
function readPlainText(path: string, text: string, name: string, problems: Problems): Located | null {
  const at: Place = { source: name, line: null, column: null };
  const scalar = (value: string): LocatedScalar => ({ type: 'scalar', at, value, text: value });
  if (NULLABLE.has(path) && (text === 'null' || text === 'none')) return { type: 'scalar', at, value: null, text };
  // `[::1]:8080` is an address, not a list.
  const isYaml = STRUCTURED.has(path) && (/^\s*\{/.test(text) || /^\s*\[(?!.*\]:\d+\s*$)/.test(text));
  if (isYaml) return unplaced(readYaml(text, name, problems), at);
  if (COMMA_LISTS.has(path)) {
    const items = text.split(',').map((item) => item.trim());
    return { type: 'list', at, items: items.filter((item) => item !== '').map(scalar) };
  }
  if (path === 'upstream.hosts') {
    const pairs = text.split(',').map((pair) => pair.trim());
    const entries = pairs
      .filter((pair) => pair !== '')
      .map((pair) => {
        const equals = pair.indexOf('=');
        const key = equals === -1 ? pair : pair.slice(0, equals).trim();
        return { key, keyAt: at, value: scalar(equals === -1 ? '' : pair.slice(equals + 1).trim()) };
      });
    return { type: 'map', at, entries };
  }
  return scalar(text);
}

/** Lines and columns inside a variable help nobody. */
function unplaced(value: Located | null, at: Place): Located | null {
  if (value === null || value.type === 'scalar') return value === null ? null : { ...value, at };
  if (value.type === 'list') {
    return { ...value, at, items: value.items.map((item) => unplaced(item, at)).filter((item) => item !== null) };
  }
  const entries = value.entries.map((entry) => ({
    ...entry,
    keyAt: at,
    value: unplaced(entry.value, at) ?? entry.value,
  }));
  return { ...value, at, entries };
}
