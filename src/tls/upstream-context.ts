import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { createSecureContext, rootCertificates, type SecureContext, type SecureContextOptions } from 'node:tls';
import { ConfigError, type Code } from '../core/errors.ts';
import { systemRoots } from './node-compat.ts';

export interface ClientCertificate {
  /** A host name, or `*.suffix` for every name below it at any depth. */
  readonly host: string;
  /** PEM files: the certificate with its chain, and its key. */
  readonly cert: string;
  readonly key: string;
}

export interface UpstreamContextsOptions {
  /** PEM files with further roots. */
  readonly ca: readonly string[];
  readonly clientCertificates: readonly ClientCertificate[];
}

const MAX_FILE_BYTES = 8 * 1024 * 1024;

/**
 * TLS contexts towards servers, read once and shared by all connections: building one takes about 20 ms.
 *
 * Trusted are the public roots that come with Node, what the operating system trusts, and the files in `ca`; a certificate in `ca` is trusted even
 * if it is no root. The environment has no say: SSL_CERT_FILE and NODE_EXTRA_CA_CERTS are what `subfloor env` points at our own CA for agents, and
 * NODE_TLS_REJECT_UNAUTHORIZED has no effect as long as connections are made with `rejectUnauthorized: true`, which the caller must write out.
 */
export class UpstreamContexts {
  readonly #plain: SecureContext;
  readonly #exact = new Map<string, SecureContext>();
  /** Longest suffix first, so that the nearer entry wins. */
  readonly #suffixes: readonly { readonly suffix: string; readonly context: SecureContext }[];

  /** @throws ConfigError a file cannot be read, holds no PEM certificate or key, or a key and its certificate do not fit */
  constructor(options: UpstreamContextsOptions) {
    const ca = uniquePem([...rootCertificates, ...systemRoots(), ...options.ca.flatMap(readCertificates)]);
    this.#plain = contextWith({ ca });
    const suffixes: { suffix: string; context: SecureContext }[] = [];
    for (const entry of options.clientCertificates) {
      const host = entry.host.toLowerCase();
      if (!isPattern(host)) {
        throw new ConfigError(
          `"${entry.host}" is neither a host nor "*." and a host; client certificates take no other patterns.`,
        );
      }
      const context = contextWith({ ca, ...readIdentity(entry) });
      if (host.startsWith('*.')) suffixes.push({ suffix: host.slice(1), context });
      else if (!this.#exact.has(host)) this.#exact.set(host, context);
      else throw new ConfigError(`There are two client certificates for "${entry.host}".`);
    }
    this.#suffixes = suffixes.sort((a, b) => b.suffix.length - a.suffix.length);
  }

  /** @param host lower-case name or IP literal. A client certificate is used only where the configuration names the host. */
  contextFor(host: string): SecureContext {
    return this.#exact.get(host) ?? this.#suffixes.find(({ suffix }) => host.endsWith(suffix))?.context ?? this.#plain;
  }
}

/** `*` alone, or inside a name, would send a client certificate to hosts nobody thought of. */
function isPattern(host: string): boolean {
  return /^(\*\.)?[a-z0-9_:-][a-z0-9_.:-]*$/.test(host);
}

function contextWith(options: SecureContextOptions): SecureContext {
  return createSecureContext({
    ...options,
    minVersion: 'TLSv1.2',
    // Operators often have only the issuing CA of their company at hand; what they list is meant to be trusted.
    allowPartialTrustChain: true,
  });
}

function uniquePem(blocks: readonly string[]): string[] {
  const found = new Map<string, string>();
  // Base64 without its line breaks: the same certificate is wrapped differently by different sources.
  for (const block of blocks) found.set(block.replace(/\s/g, ''), block);
  return [...found.values()];
}

function readCertificates(file: string): readonly string[] {
  const blocks = readPem(file).match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) throw new ConfigError('There is no PEM certificate in this file.', { file });
  for (const [index, block] of blocks.entries()) {
    try {
      new X509Certificate(block);
    } catch {
      throw new ConfigError(`Certificate number ${index + 1} is malformed.`, { file });
    }
  }
  return blocks;
}

function readIdentity(entry: ClientCertificate): { readonly cert: string; readonly key: string } {
  const chain = readCertificates(entry.cert);
  const key = readPem(entry.key);
  let isFitting: boolean;
  try {
    isFitting = new X509Certificate(chain[0] ?? '').checkPrivateKey(createPrivateKey(key));
  } catch {
    // OpenSSL's message may quote the file.
    throw new ConfigError('This is not an unencrypted private key in PEM form.', { file: entry.key });
  }
  if (!isFitting)
    throw new ConfigError(`The key does not belong to the certificate in ${entry.cert}.`, { file: entry.key });
  return { cert: chain.join('\n'), key };
}

function readPem(file: string): string {
  try {
    if (statSync(file).size <= MAX_FILE_BYTES) return readFileSync(file, 'latin1');
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    throw new ConfigError(`The file cannot be read (${code}).`, { file });
  }
  throw new ConfigError('This is too large to be a PEM file.', { file });
}

/**
 * X.509 verdicts as Node names them (X509_V_ERR_… of OpenSSL without the prefix): the chain does not lead to a root we trust, or something in it is not
 * valid now. Node says UNSPECIFIED for those that it has no name for.
 */
const UNTRUSTED: ReadonlySet<string> = new Set([
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_DECRYPT_CERT_SIGNATURE',
  'UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY',
  'UNABLE_TO_GET_CRL',
  'UNABLE_TO_DECRYPT_CRL_SIGNATURE',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'CERT_SIGNATURE_FAILURE',
  'CRL_SIGNATURE_FAILURE',
  'CERT_NOT_YET_VALID',
  'CERT_HAS_EXPIRED',
  'CRL_NOT_YET_VALID',
  'CRL_HAS_EXPIRED',
  'ERROR_IN_CERT_NOT_BEFORE_FIELD',
  'ERROR_IN_CERT_NOT_AFTER_FIELD',
  'ERROR_IN_CRL_LAST_UPDATE_FIELD',
  'ERROR_IN_CRL_NEXT_UPDATE_FIELD',
  'CERT_CHAIN_TOO_LONG',
  'CERT_REVOKED',
  'INVALID_CA',
  'PATH_LENGTH_EXCEEDED',
  'INVALID_PURPOSE',
  'CERT_UNTRUSTED',
  'CERT_REJECTED',
  'UNSPECIFIED',
]);

const WRONG_NAME: ReadonlySet<string> = new Set([
  'HOSTNAME_MISMATCH',
  'ERR_TLS_CERT_ALTNAME_INVALID',
  'ERR_TLS_CERT_ALTNAME_FORMAT',
]);

/** What went wrong in a TLS handshake with a server. Anything unknown is `upstream_tls_failed`: the connection is not used either way. */
export function classifyUpstreamTlsError(error: unknown): Code {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  if (typeof code !== 'string') return 'upstream_tls_failed';
  if (UNTRUSTED.has(code)) return 'upstream_tls_untrusted';
  return WRONG_NAME.has(code) ? 'upstream_tls_name' : 'upstream_tls_failed';
}
