// Builds src/ into dist/. Plain `tsc`: what runs is what was type-checked, and no bundler joins the supply chain.
import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, existsSync } from 'node:fs';
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const result = spawnSync(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', 'tsconfig.build.json'], {
  stdio: 'inherit',
});
if (result.status !== 0) process.exit(result.status ?? 1);
if (existsSync('dist/cli.js')) chmodSync('dist/cli.js', 0o755);
if (existsSync('src/assets')) cpSync('src/assets', 'dist/assets', { recursive: true });
