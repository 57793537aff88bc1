import { randomBytes } from 'node:crypto';
import { mkdir, open, readFile, rename, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { ConfigError, causeOf } from '../core/errors.ts';
import { parseCertificates } from '../tls/authority.ts';
import { caPaths } from '../tls/ca-files.ts';
import { bundleWith, javaTrustStore, pemBundle } from '../tls/trust-store.ts';
import type { ClientFiles } from './client-variables.ts';

/** Java's conventional password; the store holds public certificates only. */
const TRUST_STORE_PASSWORD = 'changeit';

/** Names of the generated files in a folder. */
export function clientFilePaths(certs: string, folder: string): ClientFiles {
  return {
    ca: caPaths(certs).pem,
    bundle: join(folder, 'bundle.pem'),
    wgetrc: join(folder, 'wgetrc'),
    aptConf: join(folder, 'apt.conf'),
    php: join(folder, 'php'),
    javaTrustStore: join(folder, 'truststore.p12'),
  };
}

/**
 * Makes the files that variables point at: the combined bundle, Java's trust store, and settings of wget, apt and PHP. Each is written beside its place
 * and renamed, so that a client that reads at the same time gets a whole one; a file that is right already is left alone.
 * @throws ConfigError there is no CA yet, or the folder cannot be written
 */
export async function writeClientFiles(
  files: ClientFiles,
  env: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  const pem = await readFile(files.ca, 'latin1').catch((error: unknown) => {
    throw new ConfigError(
      `there is no CA to trust (${causeOf(error)}); start the proxy once, or run "subfloor ca init"`,
      { file: files.ca },
    );
  });
  const certificates = bundleWith(parseCertificates(pem, files.ca));
  const bundle = pemBundle(certificates);
  const isNew = await write(files.bundle, bundle);
  // A trust store has a random salt: it is made anew only when the certificates changed.
  if (files.javaTrustStore !== null && (isNew || !(await exists(files.javaTrustStore)))) {
    await write(files.javaTrustStore, javaTrustStore(certificates, TRUST_STORE_PASSWORD));
  }
  await write(files.wgetrc, `ca_certificate = ${oneLine(files.bundle)}\n`);
  await write(files.aptConf, aptConf(files, env['APT_CONFIG']));
  const ini = `curl.cainfo = "${oneLine(files.bundle)}"\nopenssl.cafile = "${oneLine(files.bundle)}"\n`;
  await write(join(files.php, 'subfloor.ini'), ini);
}

function aptConf(files: ClientFiles, existing: string | undefined): string {
  const own = existing === undefined || existing === '' || existing === files.aptConf ? null : existing;
  const include = own === null ? '' : `#include "${oneLine(own)}";\n`;
  return `${include}Acquire::https::CAInfo "${oneLine(files.bundle)}";\n`;
}

/** None of these formats can hold a quote or line break in a path. */
function oneLine(path: string): string {
  if (/["\r\n]/.test(path)) {
    throw new ConfigError('this path has a quote or line break, which wget, apt and PHP cannot read', { file: path });
  }
  return path;
}

async function exists(path: string): Promise<boolean> {
  return readFile(path).then(
    () => true,
    () => false,
  );
}

/** @returns whether the contents are new */
async function write(path: string, content: string | Buffer): Promise<boolean> {
  const bytes = Buffer.from(content);
  const before = await readFile(path).catch(() => null);
  if (before !== null && before.equals(bytes)) return false;
  const draft = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`;
  try {
    await mkdir(dirname(path), { recursive: true });
    const file = await open(draft, 'wx', 0o644);
    try {
      await file.writeFile(bytes);
    } finally {
      await file.close();
    }
    await rename(draft, path);
  } catch (error) {
    await unlink(draft).catch(() => undefined);
    throw new ConfigError(`this cannot be written (${causeOf(error)}); choose another folder with --dir`, {
      file: path,
    });
  }
  return true;
}
