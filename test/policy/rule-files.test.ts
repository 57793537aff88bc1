import { chmod, mkdir, mkdtemp, rm, symlink, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { readRuleFiles, readSingleRuleFiles } from '../../src/config/rule-files.ts';
import { ConfigError } from '../../src/core/errors.ts';

let folder = '';

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rule-files-'));
});

afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

describe('reading rule files', () => {
  it('takes the YAML files of a folder in order, without tests, hidden files and subfolders', async () => {
    for (const name of ['20-b.yaml', '10-a.yml', 'a.test.yaml', 'b.test.yml', '.hidden.yaml', 'notes.md'])
      await writeFile(join(folder, name), name);
    await mkdir(join(folder, 'examples.yaml'));
    await writeFile(join(folder, 'examples.yaml', 'x.yaml'), 'x');
    const files = await readRuleFiles([folder]);
    expect(files.filter((file) => file.kind === 'rules')).toEqual([
      { name: join(folder, '10-a.yml'), text: '10-a.yml', kind: 'rules' },
      { name: join(folder, '20-b.yaml'), text: '20-b.yaml', kind: 'rules' },
    ]);
  });

  it('follows links, as ConfigMaps are mounted', async () => {
    await mkdir(join(folder, '..data'));
    await writeFile(join(folder, '..data', 'a.yaml'), 'a');
    await symlink(join('..data', 'a.yaml'), join(folder, 'a.yaml'));
    const files = await readRuleFiles([folder]);
    expect(files.filter((file) => file.kind === 'rules').map((file) => file.text)).toEqual(['a']);
  });

  it('brings the shipped packs, and prefers those of the folder', async () => {
    await mkdir(join(folder, 'packs'));
    await writeFile(join(folder, 'packs', 'npm.yaml'), 'mine');
    await writeFile(join(folder, 'a.yaml'), 'a');
    for (const files of [await readRuleFiles([folder]), await readSingleRuleFiles([join(folder, 'a.yaml')])]) {
      const packs = files.filter((file) => file.kind === 'pack');
      expect(packs.filter((pack) => pack.name.endsWith('npm.yaml')).map((pack) => pack.text)).toEqual(['mine']);
      expect(packs.some((pack) => pack.name.endsWith('pypi.yaml'))).toBe(true);
    }
  });

  it('a folder without rule files is no mistake', async () => {
    const files = await readRuleFiles([folder]);
    expect(files.filter((file) => file.kind === 'rules')).toEqual([]);
  });

  it('a missing folder names its remedy', async () => {
    await expect(readRuleFiles([join(folder, 'none')])).rejects.toThrow(
      /none: the rules folder does not exist; create it/,
    );
    await expect(readRuleFiles([join(folder, 'none')])).rejects.toThrow(ConfigError);
  });

  it('a file in place of a folder, a huge file and bytes that are no UTF-8 are refused', async () => {
    const file = join(folder, 'a.yaml');
    await writeFile(file, 'version: 1');
    await expect(readRuleFiles([file])).rejects.toThrow(/a folder is wanted/);
    await writeFile(file, Buffer.from([0x61, 0xff]));
    await expect(readRuleFiles([folder])).rejects.toThrow(/not UTF-8/);
    await truncate(file, 4 * 1024 * 1024 + 1);
    await expect(readRuleFiles([folder])).rejects.toThrow(/larger than 4 MiB/);
  });

  it('a file that leads nowhere, or that we may not read, is refused', async () => {
    await symlink('nowhere.yaml', join(folder, 'a.yaml'));
    await expect(readRuleFiles([folder])).rejects.toThrow(/a\.yaml: the file does not exist/);
  });

  // Root reads everything.
  it.skipIf(process.getuid?.() === 0)('a file without read permission is refused', async () => {
    await writeFile(join(folder, 'a.yaml'), 'version: 1');
    await chmod(join(folder, 'a.yaml'), 0o000);
    await expect(readRuleFiles([folder])).rejects.toThrow(/cannot be read \(EACCES\)/);
  });
});
