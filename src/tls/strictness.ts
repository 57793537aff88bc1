import { createHash, type X509Certificate } from 'node:crypto';
import { readFacts } from './certificate.ts';

/** md5, sha1 with RSA, DSA and ECDSA. */
const WEAK_SIGNATURES: ReadonlySet<string> = new Set([
  '1.2.840.113549.1.1.4',
  '1.2.840.113549.1.1.5',
  '1.2.840.10040.4.3',
  '1.2.840.10045.4.1',
]);

/**
 * Why strict verifiers would refuse a CA certificate; empty when none would. Python 3.13 and later are strict by default, Go and Java partly.
 * A root that fails here works with lenient clients, so this warns and `Authority.open` does not refuse.
 * Source: RFC 5280 sections 4.2.1.2, 4.2.1.3, 4.2.1.9 and 4.1.2.2; OpenSSL's X509_V_FLAG_X509_STRICT
 */
export function strictProblems(certificate: X509Certificate): readonly string[] {
  const facts = readFacts(certificate.raw);
  const problems: string[] = [];
  if (facts.basicConstraints?.isCritical !== true) problems.push('basicConstraints is not critical');
  if (facts.keyUsage === null) problems.push('keyUsage is missing');
  else if (!facts.keyUsage.isCritical) problems.push('keyUsage is not critical');
  if (facts.subjectKeyId === null) problems.push('subjectKeyIdentifier is missing');
  const isSelfIssued = certificate.subject === certificate.issuer;
  if (!isSelfIssued && !facts.hasAuthorityKeyId) problems.push('authorityKeyIdentifier is missing');
  // 20 bytes at most, written as hex.
  if (certificate.serialNumber.length > 40) problems.push('the serial number is longer than 20 bytes');
  if (WEAK_SIGNATURES.has(facts.signatureAlgorithm)) problems.push('it is signed with SHA-1 or MD5');
  return problems;
}

/**
 * SHA-256 of the public key in base64: what Chromium's `--ignore-certificate-errors-spki-list` takes. Our chain carries the CA, so the CA's hash covers
 * every host.
 */
export function spkiSha256(certificate: X509Certificate): string {
  return createHash('sha256')
    .update(certificate.publicKey.export({ type: 'spki', format: 'der' }))
    .digest('base64');
}
