import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface TemporaryFolder {
  readonly path: string;
  close(): void;
}

/** A folder that `close` takes away with everything in it. */
export function temporaryFolder(): TemporaryFolder {
  const path = mkdtempSync(join(tmpdir(), 'subfloor-test-'));
  return { path, close: () => rmSync(path, { recursive: true, force: true }) };
}
