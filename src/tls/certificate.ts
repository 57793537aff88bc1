import { createHash, randomBytes, sign, type KeyObject } from 'node:crypto';
import { isIP, isIPv4 } from 'node:net';
import { CertificateError } from '../core/errors.ts';
import * as der from './der.ts';
import type { Der } from './der.ts';

const OID = {
  commonName: '2.5.4.3',
  organization: '2.5.4.10',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  serverAuth: '1.3.6.1.5.5.7.3.1',
  ecdsaSha256: '1.2.840.10045.4.3.2',
  ecdsaSha384: '1.2.840.10045.4.3.3',
  ecdsaSha512: '1.2.840.10045.4.3.4',
  rsaSha256: '1.2.840.113549.1.1.11',
} as const;

/** Longest common name (RFC 5280 appendix A.1, ub-common-name). A longer host stands in the SAN alone. */
const MAX_COMMON_NAME = 64;

/** Who signs: the key, its name as it stands in its own certificate, and its key identifier. */
export interface Issuer {
  readonly key: KeyObject;
  readonly name: Der;
  readonly keyId: Buffer;
}

/** From when and until when, in milliseconds since the epoch; whole seconds end up in the certificate. */
export interface Validity {
  readonly notBeforeMs: number;
  readonly notAfterMs: number;
}

/** How a key signs certificates: the hash that fits its size and the parameters that go with it. */
interface SignatureForm {
  readonly hash: string;
  readonly algorithm: Der;
}

/**
 * Hash by curve as CAs do it (RFC 5480 section 4, RFC 5758): P-256 with SHA-256, P-384 with SHA-384, P-521 with SHA-512; RSA with SHA-256.
 * @returns null for keys that widespread TLS clients do not accept in a chain: RSA-PSS keys, Ed25519, other curves, RSA below 2048 bits
 */
function signatureForm(key: KeyObject): SignatureForm | null {
  const details = key.asymmetricKeyDetails ?? {};
  if (key.asymmetricKeyType === 'rsa') {
    // The NULL is required here (RFC 4055 section 5) and forbidden for ECDSA (RFC 5758 section 3.2).
    const algorithm = der.sequence(der.objectId(OID.rsaSha256), der.nothing());
    return (details.modulusLength ?? 0) >= 2048 ? { hash: 'sha256', algorithm } : null;
  }
  if (key.asymmetricKeyType !== 'ec') return null;
  switch (details.namedCurve) {
    case 'prime256v1':
      return { hash: 'sha256', algorithm: der.sequence(der.objectId(OID.ecdsaSha256)) };
    case 'secp384r1':
      return { hash: 'sha384', algorithm: der.sequence(der.objectId(OID.ecdsaSha384)) };
    case 'secp521r1':
      return { hash: 'sha512', algorithm: der.sequence(der.objectId(OID.ecdsaSha512)) };
    default:
      return null;
  }
}

/** True for keys that this code can sign leaves with: EC P-256, P-384, P-521 and RSA from 2048 bits. */
export function canSignCertificates(key: KeyObject): boolean {
  return signatureForm(key) !== null;
}

/** Key identifier: SHA-256 over the SubjectPublicKeyInfo, cut to 160 bits (RFC 7093 section 2, methods 4 and 1). */
export function keyIdOf(publicKey: KeyObject): Buffer {
  return createHash('sha256').update(spkiOf(publicKey)).digest().subarray(0, 20);
}

function spkiOf(publicKey: KeyObject): Buffer {
  return publicKey.export({ type: 'spki', format: 'der' });
}

function attribute(oid: string, text: string): Der {
  return der.setOf(der.sequence(der.objectId(oid), der.utf8(text)));
}

function extension(oid: string, isCritical: boolean, value: Der): Der {
  const head = der.objectId(oid);
  // DEFAULT FALSE must not be written out in DER (X.690 11.5).
  return isCritical ? der.sequence(head, der.truth(), der.octets(value)) : der.sequence(head, der.octets(value));
}

/** 127 random bits: unpredictable, positive, never zero, within 20 bytes (RFC 5280 section 4.1.2.2). */
function serialNumber(): Der {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40;
  return der.unsignedInteger(bytes);
}

/** Signs on libuv's thread pool, so that a burst of new hosts does not stop the event loop. */
function signOffThread(hash: string, data: Buffer, key: KeyObject): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    sign(hash, data, { key, dsaEncoding: 'der' }, (error, signature) => {
      if (error === null) resolve(signature);
      else reject(error);
    });
  });
}

async function certificate(
  issuer: Issuer,
  validity: Validity,
  subject: Der,
  subjectKeyInfo: Der,
  extensions: readonly Der[],
): Promise<Buffer> {
  const form = signatureForm(issuer.key);
  if (form === null)
    throw new CertificateError('certificate_failed', 'The CA key is of a kind that cannot sign leaves.');
  const body = der.sequence(
    der.explicit(0, der.unsignedInteger(2)),
    serialNumber(),
    form.algorithm,
    issuer.name,
    der.sequence(der.time(validity.notBeforeMs), der.time(validity.notAfterMs)),
    subject,
    subjectKeyInfo,
    der.explicit(3, der.sequence(...extensions)),
  );
  const signature = await signOffThread(form.hash, der.encode(body), issuer.key);
  return der.encode(der.sequence(body, form.algorithm, der.bits(signature)));
}

/**
 * A self-signed root in DER. Path length 0: it signs leaves and no further CA.
 * Critical basicConstraints and keyUsage and a key identifier, as strict verifiers ask (Python 3.13's default, Go, RFC 5280 section 4.2.1).
 */
export function makeRoot(
  keys: { readonly privateKey: KeyObject; readonly publicKey: KeyObject },
  validity: Validity,
  organization: string,
): Promise<Buffer> {
  const keyId = keyIdOf(keys.publicKey);
  // A piece of the key identifier in the name tells the roots of several machines apart in one trust store.
  const commonName = `Subfloor Root CA ${keyId.toString('hex').slice(0, 8)}`;
  const name = der.sequence(attribute(OID.organization, organization), attribute(OID.commonName, commonName));
  return certificate({ key: keys.privateKey, name, keyId }, validity, name, der.decode(spkiOf(keys.publicKey)), [
    extension(OID.basicConstraints, true, der.sequence(der.truth(), der.unsignedInteger(0))),
    extension(OID.keyUsage, true, der.bits(Buffer.of(0x06), 1)), // keyCertSign, cRLSign
    extension(OID.subjectKeyId, false, der.octets(keyId)),
    extension(OID.authorityKeyId, false, der.sequence(der.implicit(0, keyId))),
  ]);
}

/** What all leaves have in common: built once, since one key serves them all. */
export interface LeafTemplate {
  readonly subjectKeyInfo: Der;
  readonly fixed: readonly Der[];
}

export function leafTemplate(issuer: Issuer, publicKey: KeyObject): LeafTemplate {
  return {
    subjectKeyInfo: der.decode(spkiOf(publicKey)),
    fixed: [
      extension(OID.basicConstraints, true, der.sequence()),
      extension(OID.keyUsage, true, der.bits(Buffer.of(0x80), 7)), // digitalSignature: all that ECDHE suites use
      extension(OID.extendedKeyUsage, false, der.sequence(der.objectId(OID.serverAuth))),
      extension(OID.subjectKeyId, false, der.octets(keyIdOf(publicKey))),
      extension(OID.authorityKeyId, false, der.sequence(der.implicit(0, issuer.keyId))),
    ],
  };
}

/**
 * A server certificate in DER for one host, by name or by address (an address becomes an iPAddress entry, RFC 5280 section 4.2.1.6).
 * @param host lower-case A-label name without trailing dot, or an IP literal without brackets and zone
 * @throws CertificateError `certificate_failed` when the host is neither
 */
export async function makeLeaf(
  issuer: Issuer,
  template: LeafTemplate,
  host: string,
  validity: Validity,
): Promise<Buffer> {
  const altName = generalName(host);
  const isNamed = host.length <= MAX_COMMON_NAME;
  const subject = isNamed ? der.sequence(attribute(OID.commonName, host)) : der.sequence();
  return certificate(issuer, validity, subject, template.subjectKeyInfo, [
    ...template.fixed,
    // Critical only where the subject is empty (RFC 5280 section 4.2.1.6).
    extension(OID.subjectAltName, !isNamed, der.sequence(altName)),
  ]);
}

/** Letters of a host name as DNS and RFC 1123 have them, and the underscore that real hosts carry. No `*`: leaves are for one host each. */
const LABEL = /^(?!-)[a-z0-9_-]{1,63}(?<!-)$/;

function generalName(host: string): Der {
  if (isIP(host) !== 0 && !host.includes('%')) return der.implicit(7, addressBytes(host));
  if (host.length > 253 || !host.split('.').every((label) => LABEL.test(label))) {
    throw new CertificateError('certificate_failed', 'The host is neither a DNS name nor an IP address.');
  }
  return der.implicit(2, Buffer.from(host, 'latin1'));
}

/** 4 or 16 bytes in network order. @param address checked by `net.isIP`, without zone */
export function addressBytes(address: string): Buffer {
  if (isIPv4(address)) return Buffer.from(address.split('.').map(Number));
  const bytes = Buffer.alloc(16);
  const [head = '', tail] = address.split('::');
  const left = groupBytes(head);
  const right = groupBytes(tail ?? '');
  left.copy(bytes, 0);
  right.copy(bytes, 16 - right.length);
  return bytes;
}

function groupBytes(groups: string): Buffer {
  if (groups === '') return Buffer.alloc(0);
  return Buffer.concat(
    groups
      .split(':')
      .map((group) => (group.includes('.') ? addressBytes(group) : Buffer.from(group.padStart(4, '0'), 'hex'))),
  );
}

/** PEM with lines of 64 characters (RFC 7468 section 2). */
export function toPem(certificateDer: Buffer): string {
  const lines = certificateDer.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`;
}

/** What X.509 says about a certificate beyond what `X509Certificate` of Node 20 tells. */
export interface CertificateFacts {
  readonly subject: Der;
  readonly subjectKeyId: Buffer | null;
  readonly basicConstraints: { readonly isCritical: boolean; readonly isCa: boolean } | null;
  /** Bits as in RFC 5280 section 4.2.1.3, the first one highest: keyCertSign is 0x04 of the first byte. */
  readonly keyUsage: { readonly isCritical: boolean; readonly firstByte: number } | null;
  readonly hasAuthorityKeyId: boolean;
  /** Dotted object identifier of the signature algorithm. */
  readonly signatureAlgorithm: string;
}

/** @throws Error when the bytes are no certificate */
export function readFacts(certificateDer: Buffer): CertificateFacts {
  const fields = [...der.members(der.members(der.decode(certificateDer))[0])];
  // The version is optional; with it in front all other fields move by one.
  if (der.isTagged(fields[0], 0)) fields.shift();
  const subject = fields[4];
  if (subject === undefined) throw new Error('not a certificate');
  const wrapped = fields.slice(6).find((field) => der.isTagged(field, 3));
  const found = new Map<string, { isCritical: boolean; value: Buffer }>();
  for (const item of der.members(der.members(wrapped)[0])) {
    const parts = der.members(item);
    const isCritical = der.isUniversal(parts[1], 'boolean') && der.content(parts[1])[0] === 0xff;
    found.set(der.dotted(parts[0]), { isCritical, value: der.content(parts.at(-1)) });
  }
  const keyId = found.get(OID.subjectKeyId);
  const constraints = found.get(OID.basicConstraints);
  const usage = found.get(OID.keyUsage);
  return {
    subject,
    subjectKeyId: keyId === undefined ? null : der.content(der.decode(keyId.value)),
    basicConstraints:
      constraints === undefined
        ? null
        : { isCritical: constraints.isCritical, isCa: isCaFlag(der.members(der.decode(constraints.value))[0]) },
    keyUsage:
      usage === undefined
        ? null
        : { isCritical: usage.isCritical, firstByte: der.content(der.decode(usage.value))[1] ?? 0 },
    hasAuthorityKeyId: found.has(OID.authorityKeyId),
    signatureAlgorithm: der.dotted(der.members(fields[1])[0]),
  };
}

function isCaFlag(value: Der | undefined): boolean {
  return der.isUniversal(value, 'boolean') && der.content(value)[0] === 0xff;
}
