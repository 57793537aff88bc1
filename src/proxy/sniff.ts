/** What the first bytes of a connection, or of a tunnel, are the start of. */
export type Sniffed = 'tls' | 'http1' | 'h2' | 'socks5' | 'socks4' | 'unknown' | 'incomplete';

/** RFC 9113 section 3.4. The first line alone decides: no HTTP/1 server knows a version 2.0. */
const H2_PREFACE = Buffer.from('PRI * HTTP/2.0\r\n', 'latin1');
/** Longer than every registered method (the longest, UPDATEREDIRECTREF, has 17); not the limit of methods that rules allow. */
const MAX_METHOD_BYTES = 32;
/** Enough bytes for any answer: the longest method and its space. */
export const MAX_SNIFF_BYTES = 64;

const TLS_HANDSHAKE = 0x16;
const CLIENT_HELLO = 0x01;
const SP = 0x20;
const CR = 0x0d;
const LF = 0x0a;

/** tchar of RFC 9110 section 5.6.2, as a table. */
const IS_TCHAR: readonly boolean[] = Array.from({ length: 256 }, (_, byte) =>
  /^[!#$%&'*+\-.^_`|~0-9A-Za-z]$/.test(String.fromCharCode(byte)),
);

/**
 * Tells by its first bytes what a connection speaks. Pure, and monotone: an answer other than `incomplete` stays the same whatever
 * bytes follow, and `MAX_SNIFF_BYTES` bytes always get one. `http1` means only that a method and a space are there; the parser
 * judges the rest. One or more empty lines before the request line are taken for HTTP (RFC 9112 section 2.2 lets clients send one).
 * Source: RFC 8446 section 5.1, RFC 9113 section 3.4, RFC 9112 section 3, RFC 1928 section 3
 */
export function sniff(bytes: Buffer): Sniffed {
  const first = bytes[0];
  if (first === undefined) return 'incomplete';
  if (first === TLS_HANDSHAKE) return sniffTls(bytes);
  if (first === 0x05) return sniffSocks5(bytes);
  if (first === 0x04) return sniffSocks4(bytes);
  if (first === CR) return bytes.length < 2 ? 'incomplete' : bytes[1] === LF ? 'http1' : 'unknown';
  return sniffHttp(bytes);
}

/** A handshake record of TLS 1.0 to 1.3 (0x0301 to 0x0303 on the record; 0x0304 is tolerated) that opens with a ClientHello. */
function sniffTls(bytes: Buffer): Sniffed {
  const [, major, minor, lengthHigh, lengthLow, type] = bytes;
  if (major === undefined) return 'incomplete';
  if (major !== 0x03) return 'unknown';
  if (minor === undefined) return 'incomplete';
  if (minor > 0x04) return 'unknown';
  if (lengthHigh === undefined || lengthLow === undefined) return 'incomplete';
  const length = lengthHigh * 256 + lengthLow;
  // RFC 8446 section 5.1: no empty handshake fragments, at most 2^14 bytes.
  if (length === 0 || length > 16_384) return 'unknown';
  if (type === undefined) return 'incomplete';
  return type === CLIENT_HELLO ? 'tls' : 'unknown';
}

/** Version 5 and a non-empty list of methods; the parser waits for the list. */
function sniffSocks5(bytes: Buffer): Sniffed {
  const methods = bytes[1];
  if (methods === undefined) return 'incomplete';
  return methods === 0 ? 'unknown' : 'socks5';
}

/** SOCKS4 is named only to be refused by name. */
function sniffSocks4(bytes: Buffer): Sniffed {
  const command = bytes[1];
  if (command === undefined) return 'incomplete';
  return command === 1 || command === 2 ? 'socks4' : 'unknown';
}

function sniffHttp(bytes: Buffer): Sniffed {
  const shared = Math.min(bytes.length, H2_PREFACE.length);
  if (bytes.subarray(0, shared).equals(H2_PREFACE.subarray(0, shared))) {
    return shared === H2_PREFACE.length ? 'h2' : 'incomplete';
  }
  const end = Math.min(bytes.length, MAX_METHOD_BYTES + 1);
  for (let i = 0; i < end; i++) {
    const byte = bytes[i] ?? 0;
    if (byte === SP) return i === 0 ? 'unknown' : 'http1';
    if (IS_TCHAR[byte] !== true) return 'unknown';
  }
  return bytes.length > MAX_METHOD_BYTES ? 'unknown' : 'incomplete';
}
