import { execFile, spawnSync } from 'node:child_process';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import type { AddressInfo, Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { leafTemplate, makeLeaf, makeRoot, readFacts, toPem, type Validity } from '../../src/tls/certificate.ts';

const HOUR_MS = 3_600_000;

/** A folder that goes away with the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'subfloor-tls-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Whether a program can be started here at all. */
export function hasProgram(name: string, ...args: readonly string[]): boolean {
  return spawnSync(name, [...args], { stdio: 'ignore' }).error === undefined;
}

export interface Ran {
  readonly code: number;
  readonly output: string;
}

/** Runs a program to its end without stopping the event loop, so that servers in this process can answer it. */
export function run(program: string, args: readonly string[], input = ''): Promise<Ran> {
  return new Promise((resolve) => {
    const child = execFile(program, [...args], { timeout: 15_000 }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 1;
      resolve({ code, output: stdout + stderr });
    });
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(input);
  });
}

/** Listens on loopback until the test ends; answers the port. */
export async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.close();
  });
  return portOf(server);
}

function portOf(server: Server): number {
  return (server.address() as AddressInfo).port;
}

export interface TestCa {
  readonly pem: string;
  readonly key: KeyObject;
  readonly keyPem: string;
  issue(host: string, validity?: Partial<Validity>): Promise<{ readonly cert: string; readonly key: string }>;
}

/** A root of its own, beside the code under test only in that it shares the encoder. */
export async function testCa(
  kind: 'p256' | 'p384' | 'rsa' = 'p256',
  validity: Partial<Validity> = {},
): Promise<TestCa> {
  const keys =
    kind === 'rsa'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: kind === 'p256' ? 'P-256' : 'P-384' });
  const usual = { notBeforeMs: Date.now() - HOUR_MS, notAfterMs: Date.now() + 24 * HOUR_MS };
  const root = await makeRoot(keys, { ...usual, ...validity }, 'Test');
  const facts = readFacts(root);
  const leafKeys = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return {
    pem: toPem(root),
    key: keys.privateKey,
    keyPem: keys.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    async issue(host, leafValidity = {}) {
      const issuer = { key: keys.privateKey, name: facts.subject, keyId: facts.subjectKeyId ?? Buffer.alloc(20) };
      const template = leafTemplate(issuer, leafKeys.publicKey);
      const leaf = await makeLeaf(issuer, template, host, { ...usual, ...leafValidity });
      return { cert: toPem(leaf), key: leafKeys.privateKey.export({ type: 'sec1', format: 'pem' }).toString() };
    },
  };
}
