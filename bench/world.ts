import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Authority } from '../src/tls/authority.ts';

/** Certificates and folders of one run. Everything lives in one temporary folder. */
export interface World {
  readonly folder: string;
  readonly upstreamCaFile: string;
  readonly upstreamCa: string;
  remove(): void;
}

/** The name that the product is asked for; other proxies are asked for `localhost`. */
export const HOST = 'bench.test';

/** Every name the upstream has a certificate for; `nN` are the hosts that nobody has seen before. */
export const NAMES: readonly string[] = [
  HOST,
  'localhost',
  `h2.${HOST}`,
  `raw.${HOST}`,
  ...Array.from({ length: 200 }, (_all, i) => `n${i}.${HOST}`),
];

export async function makeWorld(): Promise<World> {
  const folder = mkdtempSync(join(tmpdir(), 'subfloor-bench-'));
  const { authority } = await Authority.open(join(folder, 'upstream-ca'));
  const upstreamCaFile = join(folder, 'upstream-ca.pem');
  writeFileSync(upstreamCaFile, authority.certificatePem);
  return {
    folder,
    upstreamCaFile,
    upstreamCa: authority.certificatePem,
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
