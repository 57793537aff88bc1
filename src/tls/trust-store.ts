import { createHmac, randomBytes, X509Certificate } from 'node:crypto';
import { rootCertificates } from 'node:tls';
import * as der from './der.ts';
import type { Der } from './der.ts';
import { toPem } from './certificate.ts';
import { systemRoots } from './node-compat.ts';

/**
 * What agents should trust where a setting replaces their store: the public roots of Node, those of the operating system, and our own CA last,
 * each once. A store with our CA alone would break every connection that is not intercepted.
 */
export function bundleWith(own: readonly X509Certificate[]): readonly X509Certificate[] {
  const found = new Map<string, X509Certificate>();
  for (const pem of [...rootCertificates, ...systemRoots()]) {
    const certificate = parsed(pem);
    if (certificate !== null) found.set(certificate.fingerprint256, certificate);
  }
  // An own certificate that the system trusts already moves to the end, where people look for it.
  for (const certificate of own) {
    found.delete(certificate.fingerprint256);
    found.set(certificate.fingerprint256, certificate);
  }
  return [...found.values()];
}

/** One that OpenSSL cannot read is of no use to clients either. */
function parsed(pem: string): X509Certificate | null {
  try {
    return new X509Certificate(pem);
  } catch {
    return null;
  }
}

/** A PEM file, each certificate under a comment line with its subject. ASCII only: Python reads such text as ASCII. */
export function pemBundle(certificates: readonly X509Certificate[]): string {
  return certificates.map((certificate) => `# ${printable(certificate.subject)}\n${toPem(certificate.raw)}`).join('\n');
}

function printable(subject: string): string {
  return subject.replaceAll('\n', ', ').replaceAll(/[^ -~]/g, '?');
}

const OID = {
  data: '1.2.840.113549.1.7.1',
  certBag: '1.2.840.113549.1.12.10.1.3',
  x509Certificate: '1.2.840.113549.1.9.22.1',
  friendlyName: '1.2.840.113549.1.9.20',
  /** Oracle's mark for "this is a trust anchor"; without it Java lists no entries. */
  trustedKeyUsage: '2.16.840.1.113894.746875.1.1',
  anyExtendedKeyUsage: '2.5.29.37.0',
  sha256: '2.16.840.1.101.3.4.2.1',
} as const;

/** What Java's own tools use for this MAC since JDK 16; older ones (8u301 and 11.0.12 on) read it. */
const MAC_ITERATIONS = 10_000;

/**
 * A PKCS#12 trust store as Java reads it (`javax.net.ssl.trustStore`). The certificates are public and stay unencrypted; the password only keys the
 * integrity check that Java insists on, so the conventional `changeit` loses nothing.
 * Source: RFC 7292 sections 4 and 4.2.3, appendix B
 */
export function javaTrustStore(certificates: readonly X509Certificate[], password: string): Buffer {
  const bags = certificates.map((certificate, index) => certificateBag(certificate, aliasOf(certificate, index)));
  const safe = der.encode(der.sequence(contentInfo(der.sequence(...bags))));
  const salt = randomBytes(20);
  const mac = createHmac('sha256', der.pkcs12MacKey(password, salt, MAC_ITERATIONS))
    .update(safe)
    .digest();
  return der.encode(
    der.sequence(
      der.unsignedInteger(3),
      contentInfo(safe),
      der.sequence(
        der.sequence(der.sequence(der.objectId(OID.sha256), der.nothing()), der.octets(mac)),
        der.octets(salt),
        der.unsignedInteger(MAC_ITERATIONS),
      ),
    ),
  );
}

function contentInfo(content: Buffer | Der): Der {
  return der.sequence(der.objectId(OID.data), der.explicit(0, der.octets(content)));
}

function certificateBag(certificate: X509Certificate, alias: string): Der {
  const wrapped = der.sequence(der.objectId(OID.x509Certificate), der.explicit(0, der.octets(certificate.raw)));
  return der.sequence(
    der.objectId(OID.certBag),
    der.explicit(0, wrapped),
    der.setOf(
      der.sequence(der.objectId(OID.friendlyName), der.setOf(der.bmp(alias))),
      der.sequence(der.objectId(OID.trustedKeyUsage), der.setOf(der.objectId(OID.anyExtendedKeyUsage))),
    ),
  );
}

/** Java knows entries by lower-case aliases, which must differ. */
function aliasOf(certificate: X509Certificate, index: number): string {
  const commonName = /^CN=(.*)$/m.exec(certificate.subject)?.[1] ?? 'root';
  const word = commonName
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, '-')
    .slice(0, 60);
  return `${word}-${index + 1}`;
}
