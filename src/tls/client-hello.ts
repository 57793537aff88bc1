import { isIP } from 'node:net';

/** Why bytes are no acceptable ClientHello. Stable words for the log. */
export type ClientHelloProblem =
  | 'not_tls'
  | 'ssl2'
  | 'bad_record'
  | 'too_many_records'
  | 'not_client_hello'
  | 'too_large'
  | 'bad_structure'
  | 'trailing_bytes'
  | 'duplicate_extension'
  | 'bad_server_name'
  | 'server_name_is_address'
  | 'bad_alpn'
  | 'bad_versions';

/** What a client says first. Nothing here is proven yet; the handshake that follows must agree with it. */
export interface ClientHello {
  readonly kind: 'hello';
  /** Host name of the outer hello in lower case, or null when there is none. Never an address, never with a trailing dot. */
  readonly sni: string | null;
  /** Protocols in the client's order, GREASE values left out; empty when the extension is absent. */
  readonly alpn: readonly string[];
  /** Version numbers in the client's order without GREASE: 0x0304 is TLS 1.3, 0x0303 TLS 1.2. */
  readonly versions: readonly number[];
  /** Chrome sends this with random content as GREASE to every server: by itself it hides nothing. */
  readonly hasEncryptedClientHello: boolean;
}

export type ClientHelloResult =
  | ClientHello
  /** `need`: a complete hello takes at least so many bytes in all. */
  | { readonly kind: 'incomplete'; readonly need: number }
  | { readonly kind: 'invalid'; readonly reason: ClientHelloProblem };

/** Post-quantum key shares make hellos of a few KB; OpenSSL itself takes 128 KB. */
const MAX_HELLO_BYTES = 65_536;
/** Real clients use one or two records, clients that dodge filters a few. More make reading byte by byte quadratic. */
const MAX_RECORDS = 32;
const MAX_RECORD_BYTES = 16_384;

const HANDSHAKE_RECORD = 0x16;
const CLIENT_HELLO = 0x01;
const EXTENSION = {
  serverName: 0,
  alpn: 16,
  preSharedKey: 41,
  supportedVersions: 43,
  encryptedClientHello: 0xfe0d,
  encryptedServerName: 0xffce, // draft predecessor of ECH
} as const;

/**
 * Reads a ClientHello from the first bytes of a connection, sans-IO. It may be cut over TLS records and TCP segments in any way;
 * the same bytes give the same result however they arrive, and once the result is not `incomplete`, more bytes do not change it.
 * What follows the hello's last record (early data) is left alone. Strict where two readers could disagree: repeated extensions
 * or server names, lengths that do not add up, names that are not plain ASCII host names are all invalid.
 * @param bytes everything that has arrived, from the first byte; hellos up to 64 KB in up to 32 records
 * Source: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1; RFC 8701 (GREASE); RFC 9849 (ECH)
 */
export function readClientHello(bytes: Buffer): ClientHelloResult {
  const fragments: Buffer[] = [];
  let collected = 0;
  let at = 0;
  for (let records = 0; ; records += 1) {
    if (records === MAX_RECORDS) return invalid('too_many_records');
    const problem = recordProblem(bytes, at);
    if (problem !== null) return invalid(problem);
    if (bytes.length < at + 5) return { kind: 'incomplete', need: at + 5 };
    const length = bytes.readUInt16BE(at + 3);
    // An empty handshake fragment is forbidden (RFC 8446 section 5.1).
    if (length === 0 || length > MAX_RECORD_BYTES) return invalid('bad_record');
    const fragment = bytes.subarray(at + 5, at + 5 + length);
    fragments.push(fragment);
    collected += fragment.length;

    const header = fragments.length === 1 ? fragment : Buffer.concat(fragments, Math.min(collected, 4));
    if (header.length > 0 && header[0] !== CLIENT_HELLO) return invalid('not_client_hello');
    const total = header.length < 4 ? null : 4 + header.readUIntBE(1, 3);
    if (total !== null && total > MAX_HELLO_BYTES) return invalid('too_large');
    const recordEnd = collected - fragment.length + length;
    // Nothing may share a record with the end of the hello: keys change there (RFC 8446 section 5.1).
    if (total !== null && recordEnd > total) return invalid('trailing_bytes');
    if (fragment.length < length) return { kind: 'incomplete', need: at + 5 + length };
    if (total === collected) return parseHello(fragments.length === 1 ? fragment : Buffer.concat(fragments));
    at += 5 + length;
  }
}

function invalid(reason: ClientHelloProblem): ClientHelloResult {
  return { kind: 'invalid', reason };
}

/** Looks at as much of a record's head as is there. */
function recordProblem(bytes: Buffer, at: number): ClientHelloProblem | null {
  const type = bytes[at];
  if (type === undefined) return null;
  if (type !== HANDSHAKE_RECORD) {
    if (at > 0) return 'bad_record';
    // An SSLv2 hello has a two-byte length with the high bit set, then message type 1 (RFC 6101 appendix E).
    if (type < 0x80) return 'not_tls';
    return bytes.length < 3 ? null : bytes[2] === CLIENT_HELLO ? 'ssl2' : 'not_tls';
  }
  const major = bytes[at + 1];
  return major === undefined || major === 3 ? null : at > 0 ? 'bad_record' : 'not_tls';
}

/** Walks over bytes with lengths in front; `isOk()` turns false, for good, where a length does not fit. */
class Reader {
  #ok = true;
  #at = 0;
  readonly #bytes: Buffer;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** A method and not a property: the compiler would take a property to keep its value between two calls. */
  isOk(): boolean {
    return this.#ok;
  }

  isAtEnd(): boolean {
    return !this.#ok || this.#at === this.#bytes.length;
  }

  take(count: number): Buffer {
    if (!this.#ok || this.#at + count > this.#bytes.length) {
      this.#ok = false;
      return Buffer.alloc(0);
    }
    this.#at += count;
    return this.#bytes.subarray(this.#at - count, this.#at);
  }

  number(width: 1 | 2): number {
    const taken = this.take(width);
    return this.#ok ? taken.readUIntBE(0, width) : 0;
  }

  /** A vector: its length in `width` bytes, then so many bytes. */
  vector(width: 1 | 2): Buffer {
    return this.take(this.number(width));
  }
}

function parseHello(message: Buffer): ClientHelloResult {
  const reader = new Reader(message);
  reader.take(4);
  const legacyVersion = reader.number(2);
  reader.take(32);
  const sessionId = reader.vector(1);
  const cipherSuites = reader.vector(2);
  const compressions = reader.vector(1);
  if (!reader.isOk() || sessionId.length > 32 || cipherSuites.length < 2 || cipherSuites.length % 2 !== 0) {
    return invalid('bad_structure');
  }
  if (compressions.length === 0) return invalid('bad_structure');
  // TLS 1.2 allows a hello without any extensions (RFC 5246 section 7.4.1.2).
  const extensions = reader.isAtEnd() ? new Map<number, Buffer>() : readExtensions(reader.vector(2));
  if (!reader.isOk() || extensions === 'bad_structure') return invalid('bad_structure');
  if (extensions === 'duplicate_extension') return invalid(extensions);
  if (!reader.isAtEnd()) return invalid('bad_structure');

  const sni = readServerName(extensions.get(EXTENSION.serverName));
  if (sni.problem !== null) return invalid(sni.problem);
  const alpn = readAlpn(extensions.get(EXTENSION.alpn));
  if (alpn === null) return invalid('bad_alpn');
  const versions = readVersions(extensions.get(EXTENSION.supportedVersions), legacyVersion);
  if (versions === null) return invalid('bad_versions');
  return {
    kind: 'hello',
    sni: sni.name,
    alpn,
    versions,
    hasEncryptedClientHello:
      extensions.has(EXTENSION.encryptedClientHello) || extensions.has(EXTENSION.encryptedServerName),
  };
}

function readExtensions(list: Buffer): Map<number, Buffer> | 'bad_structure' | 'duplicate_extension' {
  const reader = new Reader(list);
  const found = new Map<number, Buffer>();
  while (!reader.isAtEnd()) {
    // Must be the last one (RFC 8446 section 4.2.11).
    if (found.has(EXTENSION.preSharedKey)) return 'bad_structure';
    const type = reader.number(2);
    const content = reader.vector(2);
    if (!reader.isOk()) break;
    if (found.has(type)) return 'duplicate_extension';
    found.set(type, content);
  }
  return reader.isOk() ? found : 'bad_structure';
}

type ServerName =
  | { readonly name: string | null; readonly problem: null }
  | { readonly name: null; readonly problem: 'bad_server_name' | 'server_name_is_address' };

/** Host names as they are sent by clients: ASCII letters, digits, hyphens, underscores; dots between labels only. */
const HOST_NAME = /^[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*$/;

function readServerName(content: Buffer | undefined): ServerName {
  if (content === undefined) return { name: null, problem: null };
  const outer = new Reader(content);
  const reader = new Reader(outer.vector(2));
  const type = reader.number(1);
  const raw = reader.vector(2);
  // One name of type host_name: a list of more, or of other types, was never defined (RFC 6066 section 3, RFC 8446 section 4.2).
  const isWhole = outer.isOk() && outer.isAtEnd() && reader.isOk() && reader.isAtEnd() && type === 0;
  const name = raw.toString('latin1').toLowerCase();
  if (isWhole && isIP(name) !== 0) return { name: null, problem: 'server_name_is_address' };
  if (!isWhole || name.length > 253 || !HOST_NAME.test(name)) return { name: null, problem: 'bad_server_name' };
  return { name, problem: null };
}

function readAlpn(content: Buffer | undefined): readonly string[] | null {
  if (content === undefined) return [];
  const outer = new Reader(content);
  const reader = new Reader(outer.vector(2));
  const protocols: string[] = [];
  if (reader.isAtEnd()) return null;
  while (!reader.isAtEnd()) {
    const protocol = reader.vector(1);
    if (!reader.isOk() || protocol.length === 0) return null;
    if (!isGrease(protocol)) protocols.push(protocol.toString('latin1'));
  }
  return outer.isOk() && outer.isAtEnd() ? protocols : null;
}

function readVersions(content: Buffer | undefined, legacyVersion: number): readonly number[] | null {
  if (content === undefined) return legacyVersion >> 8 === 3 ? [legacyVersion] : null;
  const outer = new Reader(content);
  const list = outer.vector(1);
  if (!outer.isOk() || !outer.isAtEnd() || list.length < 2 || list.length % 2 !== 0) return null;
  const versions: number[] = [];
  for (let at = 0; at < list.length; at += 2) {
    if (!isGrease(list.subarray(at, at + 2))) versions.push(list.readUInt16BE(at));
  }
  return versions;
}

/** Values that clients send so that servers learn to ignore what they do not know: 0x0a0a, 0x1a1a … 0xfafa (RFC 8701). */
function isGrease(value: Buffer): boolean {
  const [first = 0, second] = value;
  return value.length === 2 && first === second && (first & 0x0f) === 0x0a;
}
