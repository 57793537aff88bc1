// Runs the test suite under another Node version: `npm run test:node -- 24`. The npm package `node` carries the binaries, so nothing but the registry is needed.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join, resolve } from 'node:path';

const [version, ...rest] = process.argv.slice(2);
if (version === undefined || !/^\d+(\.\d+){0,2}$/.test(version)) {
  console.error('usage: npm run test:node -- VERSION [vitest options], for example: npm run test:node -- 24');
  process.exit(2);
}
const folder = resolve('.scratch', `node-${version}`);
const binary = join(folder, 'node_modules', 'node', 'bin', process.platform === 'win32' ? 'node.exe' : 'node');

if (!existsSync(binary)) {
  console.error(`installing node@${version} into .scratch/`);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'package.json'), '{"private":true}\n');
  // The package's own install script links the platform package; where scripts are not run, the binary is taken from there.
  const install = spawnSync('npm', ['install', '--no-audit', '--no-fund', '--no-save', `node@${version}`], {
    cwd: folder,
    stdio: 'inherit',
  });
  if (install.status !== 0) process.exit(install.status ?? 1);
}
const candidates = [
  binary,
  join(folder, 'node_modules', `node-bin-${process.platform}-${process.arch}`, 'bin', 'node'),
  join(folder, 'node_modules', `node-${process.platform}-${process.arch}`, 'bin', 'node'),
];
const node = candidates.find((path) => existsSync(path));
if (node === undefined) {
  console.error(`node@${version} was installed, but no binary was found for ${process.platform}-${process.arch}`);
  process.exit(1);
}
const shown = spawnSync(node, ['--version'], { encoding: 'utf8' });
console.error(`testing under Node ${shown.stdout.trim()}`);
// Child processes of the tests take `node` from PATH, so they run under the same version.
const env = { ...process.env, PATH: `${dirname(node)}${delimiter}${process.env.PATH ?? ''}` };
const build = spawnSync(node, ['scripts/build.mjs'], { stdio: 'inherit', env });
if (build.status !== 0) process.exit(build.status ?? 1);
const run = spawnSync(node, ['node_modules/vitest/vitest.mjs', 'run', ...rest], { stdio: 'inherit', env });
process.exit(run.status ?? 1);
