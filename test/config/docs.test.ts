import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { KEYS, environmentName } from '../../src/config/schema.ts';

const TEXT = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
/** Rows of the tables of keys, cell by cell, however they are padded. */
const ROWS = TEXT.split('\n')
  .filter((line) => /^\| `[a-z]/.test(line))
  .map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );

describe('docs/configuration.md', () => {
  it('has a row for every key of the schema, in its order, and none for others', () => {
    expect(ROWS.map((row) => row[0])).toEqual(KEYS.map((key) => `\`${key.path}\``));
  });

  it.each(KEYS.map((key) => [key.path, key] as const))('says of %s what the schema says', (path, key) => {
    expect(ROWS.find((row) => row[0] === `\`${path}\``)).toEqual([
      `\`${path}\``,
      key.type,
      key.fallback,
      `\`${environmentName(path)}\``,
      key.meaning,
      key.codes.map((code) => `\`${code}\``).join(', '),
    ]);
  });
});
