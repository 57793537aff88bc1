import type { OutgoingHttpHeaders } from 'node:http2';
import { ProtocolError } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Limits } from '../core/settings.ts';
import { isSafeField } from '../protocols/http1.ts';

/** Connection-specific headers, which HTTP/2 forbids (RFC 9113 section 8.2.2); `te` is sent apart. */
const FORBIDDEN: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'transfer-encoding',
  'upgrade',
  'host',
  'http2-settings',
  'te',
]);
/** `node:http2` sends these once only. */
const SINGLE: ReadonlySet<string> = new Set([
  'content-length',
  'content-type',
  'location',
  'etag',
  'last-modified',
  'age',
  'authorization',
  'from',
  'max-forwards',
  'referer',
  'retry-after',
  'user-agent',
  'date',
  'server',
  'expires',
  'content-location',
  'content-range',
  'content-md5',
  'content-encoding',
  'content-language',
  'if-modified-since',
  'if-unmodified-since',
  'if-match',
  'if-none-match',
  'if-range',
  'proxy-authorization',
  'range',
  'tk',
  'dnt',
  'upgrade-insecure-requests',
  'x-content-type-options',
  'access-control-allow-credentials',
  'access-control-max-age',
  'access-control-request-method',
]);

/**
 * Raw headers as the object that `node:http2` takes: lower case, repeated names as arrays in their order. Headers that HTTP/2 forbids are left out, and those
 * that could not be a header line.
 * @param repeated what to do with a second line of a header that Node sends once only, when it says something else. `refuse` for requests: what was judged must
 *   be what is sent. `first` for answers, where servers do repeat `Server` or `Date`, and where we, too, read the first line only.
 * @throws ProtocolError `bad_header` with `refuse`
 */
export function objectHeaders(headers: RawHeaders, repeated: 'refuse' | 'first'): OutgoingHttpHeaders {
  // No prototype: `__proto__` is a fine name for a header.
  const object = Object.create(null) as Record<string, string | string[]>;
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = (headers[i] ?? '').toLowerCase();
    const value = headers[i + 1] ?? '';
    if (FORBIDDEN.has(name) || name.charCodeAt(0) === 0x3a || !isSafeField(name, value)) continue;
    const before = object[name];
    if (before === undefined) object[name] = value;
    else if (SINGLE.has(name)) {
      if (repeated === 'refuse' && before !== value)
        throw new ProtocolError('bad_header', `${name} is repeated with another value.`);
    } else if (Array.isArray(before)) before.push(value);
    else object[name] = [before, value];
  }
  return object;
}

/** Raw headers as Node gives them, without pseudo headers. */
export function plainHeaders(raw: RawHeaders): string[] {
  const headers: string[] = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    const name = raw[i] ?? '';
    if (name.charCodeAt(0) !== 0x3a) headers.push(name, raw[i + 1] ?? '');
  }
  return headers;
}

/**
 * Node enforces the limits it is told by resetting the stream without an event, so that nobody would learn why and no record would be left. It is told wider
 * ones; within these a header section is refused by us, with a code.
 */
export function sessionHeaderLimits(limits: Limits): { listBytes: number; listPairs: number; sendBytes: number } {
  return {
    listBytes: limits.headerBytes * 4,
    listPairs: limits.headerCount * 2 + 16,
    // nghttp2's own default of 64 KiB would not let the largest sections pass that we accept.
    sendBytes: limits.headerBytes * 2 + 65_536,
  };
}
