import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadSettings } from '../../src/config/load.ts';
import { emptyFolder } from '../cli/command.ts';

const TEXT = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8');
const EXAMPLES = [...TEXT.matchAll(/```yaml\n([\s\S]*?)```/g)].map((match) => match[1] ?? '');

describe('examples in docs/configuration.md', () => {
  it.each(EXAMPLES.filter((text) => text.startsWith('listen:')))('loads: %s', async (text) => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'subfloor.yaml'), text);
    writeFileSync(join(cwd, 'proxy-credentials'), ['user', 'word'].join(':'));
    await expect(loadSettings({ cwd, env: {}, flags: {} })).resolves.toMatchObject({ warnings: [] });
  });
});
