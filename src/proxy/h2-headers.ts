import type { OutgoingHttpHeaders } from 'node:http2';
import type { RawHeaders } from '../core/headers.ts';
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
/** Node allows these once only; the first line counts. */
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
 */
export function objectHeaders(headers: RawHeaders): OutgoingHttpHeaders {
  const object: Record<string, string | string[]> = {};
  for (let i = 0; i + 1 < headers.length; i += 2) {
    const name = (headers[i] ?? '').toLowerCase();
    const value = headers[i + 1] ?? '';
    if (FORBIDDEN.has(name) || name.charCodeAt(0) === 0x3a || !isSafeField(name, value)) continue;
    const before = Object.hasOwn(object, name) ? object[name] : undefined;
    if (before === undefined) object[name] = value;
    else if (SINGLE.has(name)) continue;
    else if (Array.isArray(before)) before.push(value);
    else object[name] = [before, value];
  }
  return object;
}
