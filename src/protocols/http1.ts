import { ProtocolError, LimitError } from '../core/errors.ts';
import type { Code } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';

/**
 * HTTP/1 framing, sans-IO and strict: every message whose end two parsers could see in different places is refused, so the bytes
 * we judged are the message that the next hop reads. Stricter than RFC 9112 where it says MAY; the fuzz test holds it against llhttp:
 * what we accept, llhttp reads the same way.
 */

export interface Http1Limits {
  /** Bytes from the first byte of the start line to the empty line. */
  readonly headerBytes: number;
  /** Header lines; trailers count apart, with the same limit. */
  readonly headerCount: number;
  /** Bytes of the request target. */
  readonly targetBytes: number;
}

/** How the end of a body is found (RFC 9112 section 6.3). `close`: at the end of the connection, responses only. */
export type Framing =
  | { readonly kind: 'none' }
  | { readonly kind: 'length'; readonly length: number }
  | { readonly kind: 'chunked' }
  | { readonly kind: 'close' };

const NONE: Framing = { kind: 'none' };
const CHUNKED: Framing = { kind: 'chunked' };
const CLOSE: Framing = { kind: 'close' };

export interface Http1RequestHead {
  readonly method: string;
  /** As sent: origin-form, absolute-form, authority-form or `*`. */
  readonly target: string;
  readonly version: '1.0' | '1.1';
  readonly headers: RawHeaders;
  readonly framing: Framing;
  /** The client will read another answer on this connection. */
  readonly keepAlive: boolean;
  /** Values of all Host lines, in order. */
  readonly hosts: readonly string[];
  /** `Upgrade` tokens when `Connection: upgrade` was sent, lower case; empty otherwise. */
  readonly upgrade: readonly string[];
  /** Value of `Expect`, lower case, or null. */
  readonly expect: string | null;
  /** `TE` lists `trailers`. */
  readonly wantsTrailers: boolean;
}

export interface Http1ResponseHead {
  readonly status: number;
  readonly reason: string;
  readonly version: '1.0' | '1.1';
  readonly headers: RawHeaders;
  readonly framing: Framing;
  readonly keepAlive: boolean;
}

/** RFC 9110 section 5.6.2 token characters. */
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** Field content as latin1: visible, blank, tab, obs-text; no other control characters (RFC 9110 section 5.5). */
const FIELD_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
/** Request target: visible ASCII only. */
const TARGET = /^[\x21-\x7e]+$/;
const DIGITS = /^[0-9]{1,15}$/;
const STATUS_LINE = /^HTTP\/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?$/;

const CR = 13;
const LF = 10;
const HEAD_END = Buffer.from('\r\n\r\n');

/** Collects the bytes of one head. The same bytes give the same head however they are cut. */
export class HeadCollector {
  readonly #limit: number;
  readonly #tooLarge: Code;
  readonly #malformed: Code;
  #held: Buffer | null = null;

  /** @param malformed what a line that ends with LF alone is called */
  constructor(limit: number, tooLarge: Code = 'header_too_large', malformed: Code = 'bad_header') {
    this.#limit = limit;
    this.#tooLarge = tooLarge;
    this.#malformed = malformed;
  }

  /** True when some bytes of a head have arrived. */
  get isStarted(): boolean {
    return this.#held !== null;
  }

  /**
   * Adds bytes. Returns the head as latin1 without the final empty line, and what follows it; null while it is incomplete.
   * @throws LimitError when the head is larger than the limit; ProtocolError `bad_header` as soon as a bare LF or CR shows
   */
  push(chunk: Buffer): { readonly head: string; readonly rest: Buffer } | null {
    let bytes = chunk;
    let from = 0;
    if (this.#held !== null) {
      from = Math.max(0, this.#held.length - 3);
      bytes = Buffer.concat([this.#held, chunk]);
      this.#held = null;
    }
    const end = bytes.indexOf(HEAD_END, from);
    if (end >= 0) {
      if (end + 4 > this.#limit) throw new LimitError(this.#tooLarge);
      return { head: bytes.toString('latin1', 0, end), rest: bytes.subarray(end + 4) };
    }
    // A client that ends its lines with LF alone would otherwise wait for its answer until the deadline.
    for (let at = bytes.indexOf(LF, from === 0 ? 0 : from); at >= 0; at = bytes.indexOf(LF, at + 1)) {
      if (at === 0 || bytes[at - 1] !== CR) throw new ProtocolError(this.#malformed, 'A line ends with LF alone.');
    }
    if (bytes.length > this.#limit) throw new LimitError(this.#tooLarge);
    if (bytes.length > 0) this.#held = bytes;
    return null;
  }
}

/** Name/value lines after the start line. */
export function parseFields(head: string, start: number, maxCount: number, tooMany: Code): string[] {
  const headers: string[] = [];
  let at = start;
  const size = head.length;
  while (at < size) {
    let end = head.indexOf('\r\n', at);
    if (end < 0) end = size;
    const colon = head.indexOf(':', at);
    if (colon < 0 || colon >= end) throw new ProtocolError('bad_header', 'A header line has no colon.');
    const name = head.slice(at, colon);
    // Also refuses obs-fold (leading blank) and blanks before the colon (RFC 9112 sections 5.1 and 5.2).
    if (!TOKEN.test(name)) throw new ProtocolError('bad_header', 'A header name is malformed.');
    let from = colon + 1;
    let to = end;
    while (from < to && isBlank(head.charCodeAt(from))) from++;
    while (to > from && isBlank(head.charCodeAt(to - 1))) to--;
    const value = head.slice(from, to);
    if (!FIELD_VALUE.test(value))
      throw new ProtocolError('bad_header', `The value of ${name.slice(0, 64)} has control characters.`);
    headers.push(name, value);
    if (headers.length > maxCount * 2) throw new LimitError(tooMany);
    at = end + 2;
  }
  return headers;
}

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09;
}

interface FieldFacts {
  contentLength: string | null;
  contentLengths: number;
  transferEncoding: string | null;
  transferEncodings: number;
  connection: string | null;
  upgrade: string | null;
  expect: string | null;
  te: string | null;
  hosts: string[];
}

/** One pass over the headers that framing depends on; the length check makes the common header cost one comparison. */
function factsOf(headers: readonly string[]): FieldFacts {
  const facts: FieldFacts = {
    contentLength: null,
    contentLengths: 0,
    transferEncoding: null,
    transferEncodings: 0,
    connection: null,
    upgrade: null,
    expect: null,
    te: null,
    hosts: [],
  };
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i] ?? '';
    const value = headers[i + 1] ?? '';
    switch (name.length) {
      case 2:
        if (name.toLowerCase() === 'te') facts.te = facts.te === null ? value : `${facts.te},${value}`;
        break;
      case 4:
        if (name.toLowerCase() === 'host') facts.hosts.push(value);
        break;
      case 6:
        if (name.toLowerCase() === 'expect') facts.expect = facts.expect === null ? value : `${facts.expect},${value}`;
        break;
      case 7:
        if (name.toLowerCase() === 'upgrade')
          facts.upgrade = facts.upgrade === null ? value : `${facts.upgrade},${value}`;
        break;
      case 10:
        if (name.toLowerCase() === 'connection') {
          facts.connection = facts.connection === null ? value : `${facts.connection},${value}`;
        }
        break;
      case 14:
        if (name.toLowerCase() === 'content-length') {
          facts.contentLength = value;
          facts.contentLengths++;
        } else if (name.toLowerCase() === 'content_length') throw lookalike(name);
        break;
      case 17:
        if (name.toLowerCase() === 'transfer-encoding') {
          facts.transferEncoding = value;
          facts.transferEncodings++;
        } else if (name.toLowerCase() === 'transfer_encoding') throw lookalike(name);
        break;
      default:
        break;
    }
  }
  return facts;
}

/** CGI and WSGI servers read `_` as `-`: to them this is a framing header, to everybody before them it is not. */
function lookalike(name: string): ProtocolError {
  return new ProtocolError('bad_framing', `The header ${name} imitates a framing header.`);
}

/** Content-Length and Transfer-Encoding, or a refusal. Two lengths are refused even when they agree. */
function framingOf(facts: FieldFacts, version: '1.0' | '1.1', code: Code): Framing | null {
  if (facts.transferEncodings > 0) {
    if (facts.contentLengths > 0) throw new ProtocolError(code, 'Content-Length and Transfer-Encoding stand together.');
    if (version === '1.0') throw new ProtocolError(code, 'Transfer-Encoding in HTTP/1.0.');
    if (facts.transferEncodings > 1 || facts.transferEncoding?.toLowerCase() !== 'chunked') {
      throw new ProtocolError(code, 'Transfer-Encoding is not "chunked".');
    }
    return CHUNKED;
  }
  if (facts.contentLengths === 0) return null;
  if (facts.contentLengths > 1) throw new ProtocolError(code, 'Content-Length is repeated.');
  if (facts.contentLength === null || !DIGITS.test(facts.contentLength)) {
    throw new ProtocolError(code, 'Content-Length is not a plain number.');
  }
  const length = Number(facts.contentLength);
  return length === 0 ? NONE : { kind: 'length', length };
}

function connectionTokens(value: string | null): readonly string[] {
  if (value === null) return [];
  return value
    .toLowerCase()
    .split(',')
    .map((token) => token.trim());
}

/**
 * Parses a request head (latin1, without the final empty line).
 * @throws ProtocolError `bad_request_line`, `bad_header`, `bad_framing`, `http_version`; LimitError `target_too_long`, `too_many_headers`
 */
export function parseRequestHead(head: string, limits: Http1Limits): Http1RequestHead {
  let end = head.indexOf('\r\n');
  if (end < 0) end = head.length;
  const first = head.indexOf(' ');
  const last = head.lastIndexOf(' ', end - 1);
  if (first <= 0 || first >= end || last <= first) throw new ProtocolError('bad_request_line');
  const method = head.slice(0, first);
  const target = head.slice(first + 1, last);
  const versionText = head.slice(last + 1, end);
  if (!TOKEN.test(method) || method.length > 32)
    throw new ProtocolError('bad_request_line', 'The method is malformed.');
  if (versionText !== 'HTTP/1.1' && versionText !== 'HTTP/1.0') {
    throw new ProtocolError(/^HTTP\/[0-9]\.[0-9]$/.test(versionText) ? 'http_version' : 'bad_request_line');
  }
  if (target.length > limits.targetBytes) throw new LimitError('target_too_long');
  if (!TARGET.test(target))
    throw new ProtocolError('bad_request_line', 'The request target has blanks or control characters.');
  const version = versionText === 'HTTP/1.1' ? '1.1' : '1.0';
  const headers = end >= head.length ? [] : parseFields(head, end + 2, limits.headerCount, 'too_many_headers');
  const facts = factsOf(headers);
  const framing = framingOf(facts, version, 'bad_framing') ?? NONE;
  const connection = connectionTokens(facts.connection);
  const keepAlive =
    version === '1.1'
      ? !connection.includes('close')
      : connection.includes('keep-alive') && !connection.includes('close');
  const upgrade =
    facts.upgrade !== null && version === '1.1' && connection.includes('upgrade')
      ? facts.upgrade
          .toLowerCase()
          .split(',')
          .map((token) => token.trim())
      : [];
  return {
    method,
    target,
    version,
    headers,
    framing,
    keepAlive,
    hosts: facts.hosts,
    upgrade,
    expect: facts.expect === null ? null : facts.expect.toLowerCase(),
    wantsTrailers: facts.te?.toLowerCase().includes('trailers') ?? false,
  };
}

/**
 * Parses a response head. `method` is that of the request it answers: HEAD and CONNECT change where the body ends.
 * @throws ProtocolError `upstream_protocol`; LimitError `upstream_header_too_large`
 */
export function parseResponseHead(head: string, method: string, limits: Http1Limits): Http1ResponseHead {
  try {
    let end = head.indexOf('\r\n');
    if (end < 0) end = head.length;
    const line = STATUS_LINE.exec(head.slice(0, end));
    if (line === null) throw new ProtocolError('upstream_protocol', 'The status line is malformed.');
    const version = line[1] === '1' ? '1.1' : '1.0';
    const status = Number(line[2]);
    const headers =
      end >= head.length ? [] : parseFields(head, end + 2, limits.headerCount, 'upstream_header_too_large');
    const facts = factsOf(headers);
    const declared = framingOf(facts, version, 'upstream_protocol');
    const isBodiless = method === 'HEAD' || status < 200 || status === 204 || status === 304;
    const connection = connectionTokens(facts.connection);
    const persistent =
      version === '1.1'
        ? !connection.includes('close')
        : connection.includes('keep-alive') && !connection.includes('close');
    const framing = isBodiless ? NONE : (declared ?? CLOSE);
    return {
      status,
      reason: line[3] ?? '',
      version,
      headers,
      framing,
      keepAlive: persistent && framing.kind !== 'close',
    };
  } catch (error) {
    // What is the client's fault in a request is the server's in a response.
    if (error instanceof ProtocolError && error.code !== 'upstream_protocol') {
      throw new ProtocolError('upstream_protocol', error.detail, { cause: error });
    }
    throw error;
  }
}

/** Values that came over h2 or from a rule are checked again before they become HTTP/1 lines: CR and LF would split the message. */
export function isSafeField(name: string, value: string): boolean {
  return TOKEN.test(name) && FIELD_VALUE.test(value);
}

/** Method and target of a request line that came from another protocol. */
export function isSafeRequestLine(method: string, target: string): boolean {
  return TOKEN.test(method) && method.length <= 32 && TARGET.test(target);
}
