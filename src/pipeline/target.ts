import { LimitError, ProtocolError } from '../core/errors.ts';
import { headerValues, sectionExcess } from '../core/headers.ts';
import type { Limits } from '../core/settings.ts';
import type { RequestHead } from '../core/stream.ts';
import type { Destination } from '../core/tunnel.ts';
import { normalizePath, parseAbsoluteUrl, parseAuthority } from '../core/url.ts';

/** Where a request really goes, in one spelling. */
export interface Target {
  readonly scheme: 'http' | 'https';
  readonly destination: Destination;
  /** Origin-form as it will be sent, or `*`. */
  readonly target: string;
  /** Normalized path for rules. */
  readonly path: string;
  readonly query: string;
}

const DEFAULT_PORT = { http: 80, https: 443 } as const;

/**
 * Makes the names of a request agree, or refuses it: inside a tunnel the CONNECT target, the Host header or `:authority`, and an absolute request target all
 * name the same host and port. Everything after this uses the one result.
 * @param expected destination of the tunnel; null for an absolute-form request on the proxy port itself
 * @throws ProtocolError `bad_host`, `host_mismatch`, `bad_target`, `self_request`, `method_not_supported`
 */
export function readTarget(head: RequestHead, expected: Destination | null): Target {
  const { method } = head;
  if (method === 'CONNECT' && head.upgrade === null)
    throw new ProtocolError('method_not_supported', 'CONNECT inside a tunnel.');
  // TRACE answers with the request as the server got it, credentials included.
  if (method === 'TRACE' || method === 'TRACK') throw new ProtocolError('method_not_supported');

  let { scheme, target } = head;
  let absolute: Destination | null = null;
  if (target !== '*' && target.charCodeAt(0) !== 0x2f) {
    const url = parseAbsoluteUrl(target);
    if (url === null) throw new ProtocolError('bad_target');
    if (expected !== null && url.scheme !== scheme)
      throw new ProtocolError('host_mismatch', 'The scheme of the target is not that of the tunnel.');
    scheme = url.scheme;
    target = url.target;
    absolute = url.destination;
  } else if (expected === null) throw new ProtocolError('self_request');
  if (target === '*' && method !== 'OPTIONS') throw new ProtocolError('bad_target');

  const destination = absolute ?? expected;
  if (destination === null) throw new ProtocolError('self_request');
  if (expected !== null && absolute !== null && !isSame(expected, absolute)) throw new ProtocolError('host_mismatch');

  const hostLines = headerValues(head.headers, 'host');
  if (hostLines.length > 1) throw new ProtocolError('bad_host', 'Host is repeated.');
  if (head.httpVersion === '2') {
    if (head.authority !== null) agree(head.authority, destination, scheme);
    else if (hostLines.length === 0) throw new ProtocolError('bad_host', ':authority is missing.');
  } else if (hostLines.length === 0 && head.httpVersion === '1.1')
    throw new ProtocolError('bad_host', 'Host is missing.');
  const host = hostLines[0];
  if (host !== undefined) agree(host, destination, scheme);

  const normalized = normalizePath(target);
  if (normalized === null) throw new ProtocolError('bad_target', 'The path can be read in two ways.');
  return { scheme, destination, target, path: normalized.path, query: normalized.query };
}

/**
 * HTTP/2 only advises a limit on header lists; here it holds. HTTP/1 heads are held to it as they are read.
 * @throws LimitError `header_too_large`, `too_many_headers`, `target_too_long`
 */
export function checkHeadSize(head: RequestHead, limits: Limits): void {
  if (head.target.length > limits.targetBytes) throw new LimitError('target_too_long');
  const excess = sectionExcess(head.headers, limits);
  if (excess !== null) throw new LimitError(excess);
}

function agree(authority: string, destination: Destination, scheme: 'http' | 'https'): void {
  // The common case is the very same spelling.
  if (authority === destination.host && destination.port === DEFAULT_PORT[scheme]) return;
  const named = parseAuthority(authority, DEFAULT_PORT[scheme]);
  if (named === null) throw new ProtocolError('bad_host');
  if (!isSame(named, destination)) throw new ProtocolError('host_mismatch');
}

function isSame(a: Destination, b: Destination): boolean {
  return a.host === b.host && a.port === b.port;
}
