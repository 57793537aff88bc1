/**
 * A header section as it was on the wire: `[name, value, name, value, …]`, order, case and duplicates kept.
 * The flat form is Node's `rawHeaders`. Values are latin1 strings: one code unit is one byte.
 */
export type RawHeaders = readonly string[];

/** Every value of a header, in wire order. `name` must be lower case. */
export function headerValues(headers: RawHeaders, name: string): string[] {
  const values: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const key = headers[i];
    if (key?.length === name.length && key.toLowerCase() === name) values.push(headers[i + 1] ?? '');
  }
  return values;
}

/** First value of a header, or undefined. `name` must be lower case. */
export function headerValue(headers: RawHeaders, name: string): string | undefined {
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const key = headers[i];
    if (key?.length === name.length && key.toLowerCase() === name) return headers[i + 1];
  }
  return undefined;
}

/** Whether the header is present. `name` must be lower case. */
export function hasHeader(headers: RawHeaders, name: string): boolean {
  return headerValue(headers, name) !== undefined;
}

/** Which limit a header section exceeds, or null. Its size is counted as HTTP/1.1 writes it, `name: value` and a line end, so that one limit means one thing. */
export function sectionExcess(
  headers: RawHeaders,
  limits: { readonly headerBytes: number; readonly headerCount: number },
): 'too_many_headers' | 'header_too_large' | null {
  if (headers.length > limits.headerCount * 2) return 'too_many_headers';
  let size = headers.length * 2;
  for (const part of headers) size += part.length;
  return size > limits.headerBytes ? 'header_too_large' : null;
}

/** The headers without those whose lower-cased name is in `names`. */
export function withoutHeaders(headers: RawHeaders, names: ReadonlySet<string>): string[] {
  const kept: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const key = headers[i] ?? '';
    if (!names.has(key.toLowerCase())) kept.push(key, headers[i + 1] ?? '');
  }
  return kept;
}

/** Lower-cased tokens of a comma-separated list header over all its lines; empty elements are skipped (RFC 9110 section 5.6.1). */
export function listTokens(headers: RawHeaders, name: string): string[] {
  const tokens: string[] = [];
  for (const value of headerValues(headers, name)) {
    for (const part of value.split(',')) {
      const token = part.trim().toLowerCase();
      if (token !== '') tokens.push(token);
    }
  }
  return tokens;
}

/** Headers that belong to one connection (RFC 9110 section 7.6.1) or to the proxy itself. */
const HOP_BY_HOP: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-authentication-info',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
]);

/**
 * What may travel on to the next connection: without hop-by-hop headers and those that `Connection` names.
 * `Content-Length` and `Host` stay: framing code owns them, and `Connection: content-length` must not remove them.
 * `extra` names more headers to drop, lower case.
 */
export function endToEndHeaders(headers: RawHeaders, extra?: ReadonlySet<string>): string[] {
  let named: Set<string> | null = null;
  for (const token of listTokens(headers, 'connection')) {
    if (token === 'close' || token === 'keep-alive' || PROTECTED.has(token)) continue;
    (named ??= new Set()).add(token);
  }
  const kept: string[] = [];
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const key = headers[i] ?? '';
    const lower = key.toLowerCase();
    if (HOP_BY_HOP.has(lower) || named?.has(lower) === true || extra?.has(lower) === true) continue;
    kept.push(key, headers[i + 1] ?? '');
  }
  return kept;
}

/**
 * HTTP/2 may send a cookie in pieces; HTTP/1 wants one line (RFC 9113 section 8.2.3). The one line stands where the first piece was.
 */
export function joinCookies(headers: RawHeaders): string[] {
  const joined: string[] = [];
  let at = -1;
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = headers[i] ?? '';
    const value = headers[i + 1] ?? '';
    if (name.length !== 6 || name.toLowerCase() !== 'cookie') joined.push(name, value);
    else if (at < 0) {
      at = joined.length + 1;
      joined.push(name, value);
    } else joined[at] = `${joined[at] ?? ''}; ${value}`;
  }
  return joined;
}

/** Naming these in `Connection` is an attack on the next hop, not a request to strip them. */
const PROTECTED: ReadonlySet<string> = new Set(['host', 'content-length', 'content-type', 'authorization', 'cookie']);
