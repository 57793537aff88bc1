import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createSecureContext } from 'node:tls';
import type { SecureContext } from 'node:tls';
import { Authority } from '../../src/tls/authority.ts';

/** The CA of the test's "internet": another one than the proxy's own. */
export interface TestCa {
  readonly pem: string;
  /** PEM file, for `upstream.ca` and for clients. */
  readonly file: string;
  leaf(host: string): Promise<{ readonly key: string; readonly cert: string }>;
  /** For servers that play many names. */
  context(host: string): Promise<SecureContext>;
  close(): Promise<void>;
}

/** @param now the clock of the CA: one in the past makes leaves that have expired */
export async function makeTestCa(now: () => number = Date.now): Promise<TestCa> {
  const folder = await mkdtemp(join(tmpdir(), 'subfloor-test-ca-'));
  const { authority } = await Authority.open(join(folder, 'ca'), { organization: 'Test internet', now });
  const file = join(folder, 'ca.pem');
  await writeFile(file, authority.certificatePem);
  const contexts = new Map<string, Promise<SecureContext>>();
  const leaf = async (host: string): Promise<{ key: string; cert: string }> => {
    const { keyPem, certificateChainPem } = await authority.mintLeaf(host);
    return { key: keyPem, cert: certificateChainPem };
  };
  return {
    pem: authority.certificatePem,
    file,
    leaf,
    context: (host) => {
      let context = contexts.get(host);
      if (context === undefined) {
        context = leaf(host).then((pair) => createSecureContext(pair));
        contexts.set(host, context);
      }
      return context;
    },
    close: () => rm(folder, { recursive: true, force: true }),
  };
}

let shared: Promise<TestCa> | null = null;

/** One CA for all peers of a test process; made on first use. Its folder goes with the process. */
export function testCa(): Promise<TestCa> {
  if (shared === null) {
    shared = makeTestCa();
    void shared.then((ca) => {
      process.once('beforeExit', () => void ca.close());
    });
  }
  return shared;
}
