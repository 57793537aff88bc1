import { domainToASCII } from 'node:url';
import type { Destination } from './tunnel.ts';

/**
 * The one normalizer for hosts, authorities, URLs and paths: what is matched, dialed and recorded has one spelling,
 * and what two servers could read in two ways is refused. Everything here is total: null for a refusal, never a throw.
 */

/** Longest name in presentation form without the trailing dot (RFC 1035 section 2.3.4: 255 octets on the wire). */
const MAX_NAME_LENGTH = 253;
/** Nothing longer is even looked at; IDNA may shorten a name, but not by much. */
const MAX_HOST_INPUT = 1024;

/** LDH plus underscore, which RFC 952 forbids and real names carry (`_dmarc`, `my_bucket.s3…`). */
const PLAIN_NAME = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/;
const DOTTED_QUAD = /^(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}$/;
/** WHATWG URL, "ends in a number checker": such a host is an IPv4 address or nothing. */
const NUMERIC_LAST_LABEL = /(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$/;
/** ASCII characters that may stand in a host before IDNA; all others (also space, %, @, controls, *) are refused. */
const FORBIDDEN_ASCII = /[\x00-\x2c\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]/;
const NON_ASCII = /[^\x00-\x7f]/;

/**
 * Brings a host name or IP literal to its one spelling: a lower-case A-label name without trailing dot, a dotted quad,
 * or a compressed IPv6 address without brackets. IPv4 in odd spellings (`0x7f.1`, `2130706433`, `127.1`) and IPv4-mapped
 * IPv6 become dotted quads. Idempotent.
 * @param text a name, an IPv4 address in any spelling, or an IPv6 address with or without brackets; Unicode allowed
 * @returns null for wildcards, zone ids, percent escapes, empty or overlong labels, and numeric names that are no address
 * Source: WHATWG URL section 3.5 (host parsing), UTS 46, RFC 5952, RFC 1035 section 2.3.4
 */
export function canonicalHost(text: string): string | null {
  if (text.length === 0 || text.length > MAX_HOST_INPUT) return null;
  if (text.includes(':')) return canonicalIpv6(text);
  const lower = text.toLowerCase();
  // A-labels (`xn--…`) are opaque here as they are in DNS; whether odd ones are valid, Node 20 and Node 24 disagree.
  if (PLAIN_NAME.test(lower) && !NUMERIC_LAST_LABEL.test(lower)) return hasGoodLengths(lower) ? lower : null;
  // domainToASCII parses a whole URL: it would cut at `/`, strip tabs and decode escapes. Hence the check before it.
  if (FORBIDDEN_ASCII.test(text)) return null;
  let ascii = domainToASCII(text).toLowerCase();
  if (ascii.endsWith('.')) ascii = ascii.slice(0, -1);
  if (!PLAIN_NAME.test(ascii)) return null;
  if (NUMERIC_LAST_LABEL.test(ascii)) return isDottedQuad(ascii) ? ascii : null;
  return hasGoodLengths(ascii) ? ascii : null;
}

/** True for the IP literals that `canonicalHost` returns; its names never look like one. */
export function isIpLiteral(canonical: string): boolean {
  return canonical.includes(':') || isDottedQuad(canonical);
}

function isDottedQuad(text: string): boolean {
  return DOTTED_QUAD.test(text) && text.split('.').every((part) => Number(part) <= 255);
}

function hasGoodLengths(name: string): boolean {
  if (name.length > MAX_NAME_LENGTH) return false;
  let start = 0;
  while (start < name.length) {
    const dot = name.indexOf('.', start);
    const end = dot === -1 ? name.length : dot;
    if (end - start > 63) return false;
    start = end + 1;
  }
  return true;
}

const IPV6_INSIDE = /^[0-9a-f:.]{2,45}$/i;
const IPV4_MAPPED = /^::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})$/;

function canonicalIpv6(text: string): string | null {
  const inside = text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text;
  // Zone ids (RFC 6874) fail here: they mean something only on the machine that made them.
  if (!IPV6_INSIDE.test(inside)) return null;
  const ascii = domainToASCII(`[${inside}]`);
  if (!ascii.startsWith('[')) return null;
  const compressed = ascii.slice(1, -1);
  const mapped = IPV4_MAPPED.exec(compressed);
  if (mapped === null) return compressed;
  const high = Number.parseInt(mapped[1] ?? '', 16);
  const low = Number.parseInt(mapped[2] ?? '', 16);
  return `${high >> 8}.${high & 255}.${low >> 8}.${low & 255}`;
}

const PORT = /^[1-9][0-9]{0,4}$/;

/**
 * Reads `host:port` as a CONNECT target, a Host header or an `:authority` has it (RFC 9110 section 7.2, RFC 3986 section 3.2
 * without userinfo). IPv6 needs its brackets. Wire text is ASCII: a Unicode host is refused here.
 * @param defaultPort port when none is given; null makes a port mandatory (CONNECT, RFC 9110 section 9.3.6)
 */
export function parseAuthority(text: string, defaultPort: number | null): Destination | null {
  if (NON_ASCII.test(text)) return null;
  const bracket = text.startsWith('[') ? text.indexOf(']') : -1;
  if (text.startsWith('[') && bracket === -1) return null;
  const colon = text.indexOf(':', bracket + 1);
  const hostText = colon === -1 ? text : text.slice(0, colon);
  if (bracket !== -1 && hostText.length !== bracket + 1) return null;
  const port = colon === -1 ? defaultPort : parsePort(text.slice(colon + 1));
  if (port === null) return null;
  const host = canonicalHost(hostText);
  return host === null ? null : { host, port };
}

function parsePort(text: string): number | null {
  if (!PORT.test(text)) return null;
  const port = Number(text);
  return port <= 65_535 ? port : null;
}

/** Writes `host:port` with brackets around IPv6; the port is left out when it is `defaultPort`. */
export function formatAuthority(destination: Destination, defaultPort?: number): string {
  const host = destination.host.includes(':') ? `[${destination.host}]` : destination.host;
  return destination.port === defaultPort ? host : `${host}:${destination.port}`;
}

/** A request target in absolute-form, taken apart. */
export interface AbsoluteUrl {
  readonly scheme: 'http' | 'https';
  readonly destination: Destination;
  /** Origin-form as sent, byte for byte; `/` when the URL has no path. */
  readonly target: string;
}

/** Visible ASCII without `#` and `\`; the authority ends at the first `/` or `?`. */
const ABSOLUTE_URL = /^(https?):\/\/([^/?#\\]+)([/?][!"$-[\]-~]*)?$/i;
const NON_VISIBLE = /[^\x21-\x7e]/;

/**
 * Takes an absolute-form request target apart (RFC 9112 section 3.2.2). Refuses userinfo, fragments, backslashes, white space,
 * control and non-ASCII characters, and every scheme but http and https.
 */
export function parseAbsoluteUrl(text: string): AbsoluteUrl | null {
  if (NON_VISIBLE.test(text)) return null;
  const match = ABSOLUTE_URL.exec(text);
  if (match === null) return null;
  const scheme = (match[1] ?? '').toLowerCase() === 'https' ? 'https' : 'http';
  const destination = parseAuthority(match[2] ?? '', scheme === 'https' ? 443 : 80);
  if (destination === null) return null;
  const rest = match[3] ?? '';
  return { scheme, destination, target: rest.startsWith('/') ? rest : `/${rest}` };
}

/** A request target for matching. */
export interface NormalizedPath {
  /** Starts with `/`, or is `*` (OPTIONS). Escapes left in it are upper case and stand for themselves. */
  readonly path: string;
  /** What follows `?`, as sent; empty without one. */
  readonly query: string;
}

/** A target with nothing to normalize, provided that it has no `/.`; most are. The query is never interpreted. */
const SIMPLE_TARGET = /^\/[A-Za-z0-9\-._~!$&'()*+,=:@;/]*(?:\?[!"$-~]*)?$/;
const VISIBLE_QUERY = /^[!"$-~]*$/;
/** Raw characters that a path may hold: visible ASCII without `#`, `?` and `\`. `%` must start an escape. */
const GOOD_PATH = /^\/(?:[!"$&->@-[\]-~]|%[0-9A-Fa-f]{2})*$/;
/** Escaped control characters (also NUL). */
const CONTROL_ESCAPE = /%(?:[01][0-9A-F]|7F)/;
/** Overlong UTF-8 (RFC 3629 section 3): lenient decoders read `%C0%AE` as a dot. */
const OVERLONG_ESCAPE = /%C[01]%[89AB]|%E0%[89]|%F0%8/;
/** Escapes and raw characters whose one spelling is not the one they came in. */
const TO_RESPELL = /%[0-9A-Fa-f]{2}|["<>[\]^`{|}]/g;
/** pchar of RFC 3986 section 3.3 but `;`, which starts parameters when raw and not when escaped. */
const DECODED = /^[A-Za-z0-9\-._~!$&'()*+,=:@]$/;
const SEPARATOR = /\/|%2F|%5C/;
/** A dot segment, also with parameters: Java servers read `/..;x/` as `/../`. */
const DOT_SEGMENT = /^\.\.?(?:$|;|%3B)/;

/**
 * Normalizes a request target in origin-form for matching; what is sent upstream stays as it came. Two targets that servers agree
 * to read alike give one path; a target that servers read in different ways gives null.
 *
 * Refused: dot segments, raw or escaped, next to `/`, `%2F` or `%5C`, with or without `;` parameters; backslashes; control
 * characters raw or escaped; broken escapes; overlong UTF-8; fragments; non-ASCII bytes; every form but `/…` and `*`.
 * Kept: `%2F` and `%5C` as opaque text, because GitLab and npm have them inside one segment (see `pathReadings`); `//`; `;`;
 * double escapes (`%252e` stays).
 * Respelled: escaped pchars are decoded, since servers decode a segment before they look at it (`/v1/m%3Arun` is `/v1/m:run`);
 * other escapes are upper case; raw characters that no URI may hold (`{`, `|`, `"`) are escaped.
 * Source: RFC 3986 sections 3.3 and 6.2.2
 */
export function normalizePath(target: string): NormalizedPath | null {
  const question = target.indexOf('?');
  if (SIMPLE_TARGET.test(target) && !target.includes('/.')) {
    return question === -1
      ? { path: target, query: '' }
      : { path: target.slice(0, question), query: target.slice(question + 1) };
  }
  if (target === '*') return { path: '*', query: '' };
  const raw = question === -1 ? target : target.slice(0, question);
  const query = question === -1 ? '' : target.slice(question + 1);
  if (!VISIBLE_QUERY.test(query) || !GOOD_PATH.test(raw)) return null;
  const path = raw.replace(TO_RESPELL, respell);
  if (CONTROL_ESCAPE.test(path) || OVERLONG_ESCAPE.test(path)) return null;
  if (path.split(SEPARATOR).some((segment) => DOT_SEGMENT.test(segment))) return null;
  return { path, query };
}

function respell(piece: string): string {
  if (piece.length === 1) return escapeByte(piece.charCodeAt(0));
  const byte = Number.parseInt(piece.slice(1), 16);
  const character = String.fromCharCode(byte);
  return DECODED.test(character) ? character : escapeByte(byte);
}

function escapeByte(byte: number): string {
  return `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
}

/**
 * Every way in which a server may read a normalized path: as it is, and, when it holds `%2F` or `%5C`, with those as separators
 * (Go's ServeMux and IIS route on the decoded path). A deny or a recognizer must look at all of them, an allow at the first only.
 */
export function pathReadings(path: string): readonly string[] {
  return path.includes('%2F') || path.includes('%5C') ? [path, path.replace(/%2F|%5C/g, '/')] : [path];
}
