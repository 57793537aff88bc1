/** Longest first line that is waited for. */
const MAX_LINE_BYTES = 8 * 1024;
const LF = 0x0a;
/** TLS record types: change_cipher_spec, alert, handshake, application_data, heartbeat (RFC 8446 section 5.1, RFC 6520). */
const FIRST_RECORD_TYPE = 0x14;
const LAST_RECORD_TYPE = 0x18;

/** A request line of any HTTP version; HTTP/0.9 has only GET and no version. */
const REQUEST_LINE = /^(?:[^\s]+[ \t]+[^\s].*[ \t]HTTP\/[0-9]|GET[ \t])/i;
/** What cannot be a method any more: a character that is no token character, before the first blank. */
const NO_METHOD = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]*[^!#$%&'*+\-.^_`|~0-9A-Za-z \t]/;

/**
 * Whether the first bytes of an agent in a raw tunnel are opaque, as they must be, or something that we can look into. `sniff` knows what the standards
 * allow; this knows what servers put up with: empty lines and blanks before a request, records of unknown versions, alerts before a ClientHello, hellos in
 * the form of SSL 2. Without it a rule that allows raw bytes to a host would carry unseen HTTP and TLS to it. Pure, and monotone as `sniff` is.
 */
export function readRaw(bytes: Buffer): 'opaque' | 'readable' | 'incomplete' {
  const [type, major, third, fourth] = bytes;
  if (type === undefined) return 'incomplete';
  if (type >= FIRST_RECORD_TYPE && type <= LAST_RECORD_TYPE) {
    return major === undefined ? 'incomplete' : major === 0x03 ? 'readable' : 'opaque';
  }
  if (type >= 0x80) {
    // Two bytes of length with the high bit set, message type 1, version 3 (RFC 5246 appendix E.2).
    if (third === undefined) return 'incomplete';
    if (third !== 0x01) return 'opaque';
    return fourth === undefined ? 'incomplete' : fourth === 0x03 ? 'readable' : 'opaque';
  }
  let start = 0;
  while (start < bytes.length && isBlank(bytes[start] ?? 0)) start++;
  const end = bytes.indexOf(LF, start);
  const line = bytes.toString('latin1', start, end === -1 ? Math.min(bytes.length, start + MAX_LINE_BYTES) : end);
  if (NO_METHOD.test(line)) return 'opaque';
  if (REQUEST_LINE.test(line)) return 'readable';
  if (end !== -1) return 'opaque';
  return bytes.length > MAX_LINE_BYTES ? 'readable' : 'incomplete';
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}
