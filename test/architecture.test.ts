import { readFileSync, readdirSync } from 'node:fs';
import { dirname, join, relative, sep } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

/**
 * The floors of the house, from below. A part may import from floors below its own and from itself, nothing else: what two parts of one floor
 * share belongs a floor lower. Floor 5 is composition: its parts may know each other.
 */
const FLOORS: Readonly<Record<string, number>> = {
  core: 1,
  policy: 2,
  protocols: 2,
  detectors: 2,
  tls: 2,
  audit: 2,
  metrics: 2,
  approval: 2,
  config: 2,
  agents: 2,
  'log.ts': 2,
  pipeline: 3,
  proxy: 4,
  admin: 4,
  cli: 5,
  demo: 5,
};
const COMPOSITION = 5;

/** Known to composition alone; everybody else gets settings as data and meets these through `core/ports.ts`. */
const COMPOSED: ReadonlySet<string> = new Set(['config', 'audit', 'metrics', 'approval', 'log.ts']);

/** Packages behind a wrapper of ours, and the number of files that may import each. */
const WRAPPED: Readonly<Record<string, number>> = {
  minimatch: 1,
  'node-forge': 1,
  '@marcbachmann/cel-js': 1,
  pino: 1,
  yaml: 2, // settings, and rule files with their positions
};

/** Floors without sockets, disk, clock or environment. */
const PURE: ReadonlySet<string> = new Set(['policy', 'protocols', 'detectors']);
const IMPURE_MODULES =
  /^node:(fs|net|tls|dgram|dns|http|https|http2|child_process|cluster|worker_threads|os|process|timers|readline|repl)(\/|$)/;
const IMPURE_CALLS =
  /\b(Date\.now|performance\.now|Math\.random|setTimeout|setInterval|setImmediate)\(|\bprocess\.env\b|\bnew Date\(\)/;

/** Beyond this, look for the second subject. Only listed, not enforced. */
const LONG_FILE_LINES = 450;

interface SourceImport {
  readonly specifier: string;
  readonly isTypeOnly: boolean;
}

interface SourceFile {
  /** Path from `src/`, with slashes. */
  readonly path: string;
  readonly text: string;
  readonly imports: readonly SourceImport[];
}

const root = fileURLToPath(new URL('../src', import.meta.url));

function slashed(path: string): string {
  return path.split(sep).join('/');
}

function importsOf(path: string, text: string): SourceImport[] {
  const found: SourceImport[] = [];
  const add = (node: ts.Node | undefined, isTypeOnly: boolean): void => {
    if (node !== undefined && ts.isStringLiteralLike(node)) found.push({ specifier: node.text, isTypeOnly });
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node))
      add(node.moduleSpecifier, node.importClause?.phaseModifier === ts.SyntaxKind.TypeKeyword);
    else if (ts.isExportDeclaration(node)) add(node.moduleSpecifier, node.isTypeOnly);
    else if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      add(node.arguments[0], false);
    else if (ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)) add(node.argument.literal, true);
    ts.forEachChild(node, visit);
  };
  visit(ts.createSourceFile(path, text, ts.ScriptTarget.ES2023, false));
  return found;
}

function readSources(): SourceFile[] {
  return readdirSync(root, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .map((path) => {
      const text = readFileSync(join(root, path), 'utf8');
      return { path: slashed(path), text, imports: importsOf(path, text) };
    });
}

const sources = readSources();

/** The part a file belongs to: its folder, or the file itself when it lies in `src/`. */
function partOf(path: string): string {
  return path.split('/')[0] ?? path;
}

function floorOf(part: string): number | null {
  return FLOORS[part] ?? (part.endsWith('.ts') ? COMPOSITION : null);
}

/** Path from `src/` of a relative import, or null for packages and for JSON and the like. */
function targetOf(file: SourceFile, specifier: string): string | null {
  if (!specifier.startsWith('.') || !specifier.endsWith('.ts')) return null;
  return slashed(relative(root, join(root, dirname(file.path), specifier)));
}

function packageOf(specifier: string): string | null {
  if (specifier.startsWith('.') || specifier.startsWith('node:')) return null;
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

/** Every import between files of ours as `[from, to]`. */
function edges(kind: 'all' | 'runtime' = 'all'): [string, string][] {
  return sources.flatMap((file) =>
    file.imports.flatMap(({ specifier, isTypeOnly }): [string, string][] => {
      const target = kind === 'runtime' && isTypeOnly ? null : targetOf(file, specifier);
      return target === null ? [] : [[file.path, target]];
    }),
  );
}

describe('the floors', () => {
  it('hold every file of src', () => {
    expect(sources.length).toBeGreaterThan(20);
    const homeless = sources.map(({ path }) => path).filter((path) => floorOf(partOf(path)) === null);
    expect(homeless, 'give its folder a floor in this test and in the architecture page').toEqual([]);
  });

  it('are left downward only: no import goes up, and none stays inside src by another way', () => {
    const wrong = edges().filter(([from, to]) => {
      const [own, other] = [floorOf(partOf(from)), floorOf(partOf(to))];
      return own === null || other === null || to.startsWith('..') || other > own;
    });
    expect(wrong).toEqual([]);
  });

  it('have no imports between the parts of one floor, composition apart', () => {
    const wrong = edges().filter(([from, to]) => {
      const [own, other] = [partOf(from), partOf(to)];
      return own !== other && floorOf(own) === floorOf(other) && floorOf(own) !== COMPOSITION;
    });
    expect(wrong).toEqual([]);
  });

  it('meet settings, log, audit, approval and metrics only as data and ports', () => {
    const wrong = edges().filter(([from, to]) => {
      const [own, other] = [partOf(from), partOf(to)];
      return own !== other && COMPOSED.has(other) && floorOf(own) !== COMPOSITION;
    });
    expect(wrong).toEqual([]);
  });

  it('have no import cycle', () => {
    const next = new Map<string, string[]>();
    for (const [from, to] of edges('runtime')) next.set(from, [...(next.get(from) ?? []), to]);
    const done = new Set<string>();
    const walk = (path: string, trail: readonly string[]): string[] | null => {
      if (trail.includes(path)) return [...trail.slice(trail.indexOf(path)), path];
      if (done.has(path)) return null;
      for (const target of next.get(path) ?? []) {
        const cycle = walk(target, [...trail, path]);
        if (cycle !== null) return cycle;
      }
      done.add(path);
      return null;
    };
    const cycles = sources.map(({ path }) => walk(path, [])).filter((cycle) => cycle !== null);
    expect(cycles).toEqual([]);
  });
});

describe('packages', () => {
  it.each(Object.entries(WRAPPED))('%s is imported by at most %i of our files', (name, limit) => {
    const importers = sources
      .filter(({ imports }) => imports.some(({ specifier }) => packageOf(specifier) === name))
      .map(({ path }) => path);
    expect(importers.length, importers.join(', ')).toBeLessThanOrEqual(limit);
  });

  it('are all listed as dependencies of the product', () => {
    const manifest = JSON.parse(readFileSync(join(root, '..', 'package.json'), 'utf8')) as {
      dependencies: Record<string, string>;
    };
    const unlisted = sources.flatMap(({ path, imports }) =>
      imports
        .filter(({ isTypeOnly }) => !isTypeOnly)
        .map(({ specifier }) => packageOf(specifier))
        .filter((name) => name !== null && !(name in manifest.dependencies))
        .map((name) => `${path}: ${name ?? ''}`),
    );
    expect(unlisted).toEqual([]);
  });

  it('for the command line stay on the floor of the command line', () => {
    const wrong = sources.filter(
      ({ path, imports }) =>
        floorOf(partOf(path)) !== COMPOSITION && imports.some(({ specifier }) => packageOf(specifier) === 'commander'),
    );
    expect(wrong.map(({ path }) => path)).toEqual([]);
  });
});

describe('pure parts', () => {
  const pure = sources.filter(({ path }) => PURE.has(partOf(path)));

  it('import no module that reaches sockets, disk, processes or clocks', () => {
    const wrong = pure.flatMap(({ path, imports }) =>
      imports
        .filter((one) => !one.isTypeOnly && IMPURE_MODULES.test(one.specifier))
        .map((one) => `${path}: ${one.specifier}`),
    );
    expect(wrong).toEqual([]);
  });

  it('read neither clock nor environment', () => {
    const wrong = pure.flatMap(({ path, text }) =>
      text
        .split('\n')
        .map((line, i) => ({ line, at: `${path}:${i + 1}` }))
        .filter(({ line }) => !/^\s*(\/\/|\*|\/\*)/.test(line) && IMPURE_CALLS.test(line))
        .map(({ at }) => at),
    );
    expect(wrong).toEqual([]);
  });
});

describe('files', () => {
  it('use relative imports with their extension, and node: for what Node brings', () => {
    const wrong = sources.flatMap(({ path, imports }) =>
      imports
        .filter(({ specifier }) => specifier.startsWith('.') && !/\.(ts|json)$/.test(specifier))
        .map(({ specifier }) => `${path}: ${specifier}`),
    );
    expect(wrong).toEqual([]);
  });

  it('are short; those that are not are listed', () => {
    const long = sources
      .map(({ path, text }) => ({ path, lines: text.split('\n').length }))
      .filter(({ lines }) => lines > LONG_FILE_LINES)
      .map(({ path, lines }) => `${path} (${lines})`);
    if (long.length > 0) console.warn(`look for a second subject in: ${long.join(', ')}`);
    expect(long.length).toBeLessThan(sources.length / 4);
  });
});
