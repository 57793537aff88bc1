import type { ProxyCredentials } from '../core/agent.ts';

/** Longer than any user and password of ours; anything longer is refused unread. */
const MAX_HEADER = 4096;
/** Canonical base64: groups of four, padded, nothing after the padding. */
const BASIC = /^basic +((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)$/i;

/**
 * Reads `Proxy-Authorization: Basic …`. The first colon ends the user name; the password may hold more of them.
 * @returns null for other schemes, base64 that is not canonical, bytes that are not UTF-8, control characters, and a missing colon or user
 * Source: RFC 7617 section 2, RFC 4648 section 3.5
 */
export function parseBasic(headerValue: string): ProxyCredentials | null {
  if (headerValue.length > MAX_HEADER) return null;
  const encoded = BASIC.exec(headerValue.trim())?.[1];
  if (encoded === undefined || encoded === '') return null;
  const bytes = Buffer.from(encoded, 'base64');
  // The last character may carry bits that decoding drops: two spellings of one password.
  if (bytes.toString('base64') !== encoded) return null;
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
  const colon = text.indexOf(':');
  if (colon < 1 || /[\x00-\x1f\x7f]/.test(text)) return null;
  return { username: text.slice(0, colon), password: text.slice(colon + 1) };
}
