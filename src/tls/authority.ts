import { createPrivateKey, generateKeyPair, X509Certificate, type KeyObject } from 'node:crypto';
import { promisify } from 'node:util';
import { CertificateError, ConfigError } from '../core/errors.ts';
import { caPaths, publishCaPair, readCaPair, type CaPair } from './ca-files.ts';
import { canSignCertificates, keyIdOf, leafTemplate, makeLeaf, makeRoot, readFacts, toPem } from './certificate.ts';
import type { Issuer, LeafTemplate } from './certificate.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** Everything is dated back so that a client whose clock is slow by less than this accepts it: containers wake up with old clocks. */
const BACKDATE_MS = DAY_MS;
/**
 * Ten years. What limits the harm of a stolen root is taking it out of the trust stores, which its end date does not do for us; what a short life does do
 * is to stop every agent at once on a day that nobody remembers. Verifiers set no limit for roots that were added by hand.
 */
const ROOT_LIFE_MS = 3652 * DAY_MS;
/** A week: clients ask for no revocation of ours, and caches renew early. Far below the 398 days that some verifiers allow. */
const LEAF_LIFE_MS = 7 * DAY_MS;

/** A certificate for one host, ready for `tls.createSecureContext`. */
export interface Leaf {
  /** Leaf first, then everything in ca.pem. */
  readonly certificateChainPem: string;
  /** The one leaf key of this process. Secret. */
  readonly keyPem: string;
  readonly notAfterMs: number;
}

export interface AuthorityOptions {
  /** Make a CA when the folder has none; true by default. */
  readonly create?: boolean;
  /** Name under O in a root that is made, 1 to 64 characters (RFC 5280 appendix A.1, ub-organization-name). */
  readonly organization?: string;
  readonly now?: () => number;
  /** How long to wait for a pair that another process is just writing. */
  readonly settleMs?: number;
}

/** The certification authority on disk, and what it signs. Keys stay inside: only `mintLeaf` hands one out, the leaf key. */
export class Authority {
  /** All of ca.pem in normal form: the signing certificate first, then the chain above it if the operator gave one. This is what clients trust. */
  readonly certificatePem: string;
  /** The same, parsed. Never empty. */
  readonly certificates: readonly [X509Certificate, ...X509Certificate[]];
  /** Of the signing certificate: SHA-256 of its DER, upper-case hex with colons, as openssl prints it. */
  readonly fingerprintSha256: string;
  /** The earliest end among the certificates of ca.pem. */
  readonly notAfter: Date;
  readonly #issuer: Issuer;
  readonly #template: LeafTemplate;
  readonly #leafKeyPem: string;
  readonly #notBeforeMs: number;
  readonly #now: () => number;

  private constructor(
    certificates: readonly [X509Certificate, ...X509Certificate[]],
    issuer: Issuer,
    leafKeys: { readonly privateKey: KeyObject; readonly publicKey: KeyObject },
    now: () => number,
  ) {
    this.certificates = certificates;
    this.certificatePem = certificates.map((certificate) => toPem(certificate.raw)).join('');
    this.fingerprintSha256 = certificates[0].fingerprint256;
    this.notAfter = new Date(Math.min(...certificates.map((certificate) => Date.parse(certificate.validTo))));
    this.#issuer = issuer;
    this.#template = leafTemplate(issuer, leafKeys.publicKey);
    // SEC1 loads a little faster into OpenSSL than PKCS#8, and it is loaded once per new host.
    this.#leafKeyPem = leafKeys.privateKey.export({ type: 'sec1', format: 'pem' }).toString();
    this.#notBeforeMs = Math.max(...certificates.map((certificate) => Date.parse(certificate.validFrom)));
    this.#now = now;
  }

  /**
   * Reads `ca.pem` and `ca.key` from the folder, or makes them (P-256, key mode 0600) when neither is there. Several processes may do so at once: one wins.
   * An operator's own CA may be EC (P-256, P-384, P-521) or RSA (from 2048 bits), with the chain above it behind it in ca.pem.
   * @throws ConfigError the pair is incomplete, open to others, malformed, does not fit together, is no CA, or is not valid now; file and remedy are named
   */
  static async open(
    folder: string,
    options: AuthorityOptions = {},
  ): Promise<{ authority: Authority; created: boolean }> {
    const { create = true, organization = 'Subfloor', now = Date.now, settleMs } = options;
    checkOrganization(organization);
    let created = false;
    let pair = await readCaPair(folder, settleMs);
    if (pair === null && create) {
      created = await publishCaPair(folder, await newPair(organization, now()));
      pair = await readCaPair(folder, settleMs);
    }
    if (pair === null) throw new ConfigError('There is no CA here. Run "subfloor ca init".', { file: folder });
    return { authority: await Authority.#load(folder, pair, now), created };
  }

  static async #load(folder: string, pair: CaPair, now: () => number): Promise<Authority> {
    const paths = caPaths(folder);
    const certificates = parseChain(pair.certificatePem, paths.pem);
    const key = parseKey(pair.keyPem, paths.key);
    if (!certificates[0].checkPrivateKey(key)) {
      throw new ConfigError(
        'The key does not belong to the first certificate of ca.pem. The signing certificate must come first, its issuers after it.',
        { file: paths.key },
      );
    }
    checkChain(certificates, paths.pem, now());
    const facts = readFacts(certificates[0].raw);
    const issuer: Issuer = {
      key,
      name: facts.subject,
      keyId: facts.subjectKeyId ?? keyIdOf(certificates[0].publicKey),
    };
    const authority = new Authority(certificates, issuer, await newKeyPair(), now);
    await authority.#tryOut(paths.pem);
    return authority;
  }

  /** A CA that cannot sign, or signs what does not verify, must show now and not at the first request. */
  async #tryOut(file: string): Promise<void> {
    const chain = await this.mintLeaf('check.invalid');
    const leaf = new X509Certificate(chain.certificateChainPem);
    const [ca] = this.certificates;
    if (!leaf.checkIssued(ca) || !leaf.verify(ca.publicKey)) {
      throw new ConfigError('A leaf signed with this CA does not verify against it.', { file });
    }
  }

  /**
   * Signs a certificate for one host. Signing runs on the thread pool; about 0.1 ms of the event loop are used.
   * @param host lower-case A-label name without trailing dot, or a canonical IP literal without brackets
   * @throws CertificateError `certificate_failed`: not a host, the CA has expired, or signing failed
   */
  async mintLeaf(host: string): Promise<Leaf> {
    const nowMs = this.#now();
    const validity = {
      notBeforeMs: Math.max(nowMs - BACKDATE_MS, this.#notBeforeMs),
      // A leaf that outlives its issuer is refused by some verifiers and surprises the rest.
      notAfterMs: Math.min(nowMs + LEAF_LIFE_MS, this.notAfter.getTime()),
    };
    if (validity.notAfterMs <= nowMs)
      throw new CertificateError('certificate_failed', 'The root CA of the proxy has expired.');
    const leaf = await makeLeaf(this.#issuer, this.#template, host, validity).catch((cause: unknown) => {
      throw cause instanceof CertificateError ? cause : new CertificateError('certificate_failed', null, { cause });
    });
    return {
      certificateChainPem: toPem(leaf) + this.certificatePem,
      keyPem: this.#leafKeyPem,
      notAfterMs: validity.notAfterMs,
    };
  }
}

const generateKeys = promisify(generateKeyPair);

function newKeyPair(): Promise<{ privateKey: KeyObject; publicKey: KeyObject }> {
  return generateKeys('ec', { namedCurve: 'P-256' });
}

/** @throws ConfigError when a certificate has no room for this name */
export function checkOrganization(organization: string): void {
  if (/^[^\p{Cc}]{1,64}$/u.test(organization)) return;
  throw new ConfigError('The organization in a CA has 1 to 64 characters and no control characters.');
}

async function newPair(organization: string, nowMs: number): Promise<CaPair> {
  const keys = await newKeyPair();
  const validity = { notBeforeMs: nowMs - BACKDATE_MS, notAfterMs: nowMs + ROOT_LIFE_MS };
  return {
    certificatePem: toPem(await makeRoot(keys, validity, organization)),
    keyPem: keys.privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  };
}

const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g;

/** Certificates of a PEM text in their order; text around them is ignored (RFC 7468 section 2). @throws ConfigError */
export function parseCertificates(pem: string, file: string): readonly X509Certificate[] {
  return (pem.match(PEM_CERTIFICATE) ?? []).map((block, index) => {
    try {
      return new X509Certificate(block);
    } catch {
      throw new ConfigError(`Certificate number ${index + 1} is malformed.`, { file });
    }
  });
}

function parseChain(pem: string, file: string): readonly [X509Certificate, ...X509Certificate[]] {
  const [first, ...rest] = parseCertificates(pem, file);
  if (first === undefined) throw new ConfigError('There is no PEM certificate in this file.', { file });
  return [first, ...rest];
}

function parseKey(pem: string, file: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (error) {
    // OpenSSL's words could quote the file; only the one case with a remedy of its own is told apart.
    const isEncrypted = error instanceof Error && 'code' in error && error.code === 'ERR_MISSING_PASSPHRASE';
    const text = isEncrypted
      ? 'The CA key is encrypted. Store it decrypted with mode 0600 (openssl pkey -in … -out ca.key).'
      : 'This is not a private key in PEM form.';
    throw new ConfigError(text, { file });
  }
  if (canSignCertificates(key)) return key;
  throw new ConfigError(
    'The CA key must be EC (P-256, P-384 or P-521) or RSA of at least 2048 bits: clients accept no other.',
    {
      file,
    },
  );
}

/** Each certificate is a CA, valid now, and signed by the next one. The last may be a root or may hang below one that only clients have. */
function checkChain(certificates: readonly X509Certificate[], file: string, nowMs: number): void {
  for (const [index, certificate] of certificates.entries()) {
    const which = index === 0 ? 'The CA certificate' : `Certificate number ${index + 1}`;
    const facts = readFacts(certificate.raw);
    if (!certificate.ca || facts.basicConstraints?.isCa !== true) {
      throw new ConfigError(`${which} is not a CA certificate (basicConstraints does not say CA:TRUE).`, { file });
    }
    if (facts.keyUsage !== null && (facts.keyUsage.firstByte & 0x04) === 0) {
      throw new ConfigError(`${which} may not sign certificates (keyUsage lacks keyCertSign).`, { file });
    }
    if (Date.parse(certificate.validTo) <= nowMs) {
      const remedy = 'Renew it, or make a new CA with "subfloor ca init --force" and let the agents trust that one.';
      throw new ConfigError(`${which} expired on ${certificate.validTo}. ${remedy}`, { file });
    }
    if (Date.parse(certificate.validFrom) > nowMs) {
      throw new ConfigError(`${which} is not valid before ${certificate.validFrom}. Check the clock.`, { file });
    }
    const next = certificates[index + 1];
    if (next !== undefined && !(certificate.checkIssued(next) && certificate.verify(next.publicKey))) {
      throw new ConfigError(
        `Certificate number ${index + 2} did not sign the one before it. Order them from the signing CA upward.`,
        {
          file,
        },
      );
    }
  }
}
