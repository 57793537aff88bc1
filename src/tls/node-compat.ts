import { readFileSync, statSync } from 'node:fs';
import * as tls from 'node:tls';

/*
 * Everything in this folder that depends on the version of Node.
 */

/** Where Linux distributions and BSDs keep all trusted roots in one file; the first one found is read. */
const BUNDLE_FILES = [
  '/etc/ssl/certs/ca-certificates.crt', // Debian, Ubuntu, Alpine, Arch
  '/etc/pki/tls/certs/ca-bundle.crt', // Fedora, RHEL, Amazon Linux
  '/etc/ssl/ca-bundle.pem', // openSUSE
  '/etc/ssl/cert.pem', // macOS (no administrator's additions), OpenBSD, FreeBSD
];
const MAX_BUNDLE_BYTES = 8 * 1024 * 1024;

/**
 * PEM certificates that the operating system trusts; empty when there is no way to learn them.
 * Node 22.15 and 24 ask the system (Keychain, Windows store, OpenSSL's files); Node 20 cannot, so there the usual bundle files are read, which
 * on Windows means none.
 */
export function systemRoots(): readonly string[] {
  const fromFile = readBundle();
  // Asking Node on Linux means asking OpenSSL, which follows SSL_CERT_FILE; `subfloor env` points that at a bundle with our own CA. The file is
  // plain. macOS has a bundle file, too, but without what an administrator added.
  if (fromFile.length > 0 && process.platform !== 'darwin') return fromFile;
  const ask: unknown = Reflect.get(tls, 'getCACertificates');
  if (typeof ask !== 'function') return fromFile;
  const answer: unknown = Reflect.apply(ask, tls, ['system']);
  return Array.isArray(answer) ? answer.filter((item) => typeof item === 'string') : fromFile;
}

function readBundle(): readonly string[] {
  for (const file of BUNDLE_FILES) {
    try {
      if (statSync(file).size > MAX_BUNDLE_BYTES) continue;
      const blocks = readFileSync(file, 'latin1').match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g);
      if (blocks !== null) return blocks;
    } catch {
      // Not this distribution.
    }
  }
  return [];
}
