import { STATUS_CODES } from 'node:http';
import { ProxyError, codeFacts, isCode } from '../core/errors.ts';
import type { Code } from '../core/errors.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Verdict } from '../core/verdict.ts';

/** What the agent is told when something does not pass. Every answer that the proxy itself makes is made from one of these. */
export interface Refusal {
  readonly code: Code;
  /** Names the offending part, never payload (`ProxyError.detail`). */
  readonly detail: string | null;
  /** Coaching text of the deciding rule. */
  readonly message: string | null;
  /** Id of the deciding rule. */
  readonly rule: string | null;
  /** Exchange id, or the tunnel id where there is no exchange yet. */
  readonly exchange: string;
  /** Host that was asked for, to be named in the advice. */
  readonly host?: string | null;
}

/** A whole HTTP answer. Header names are lower case, fit for HTTP/1.1 and HTTP/2; there are no hop-by-hop headers. */
export interface HttpAnswer {
  readonly status: number;
  readonly reason: string;
  readonly headers: RawHeaders;
  readonly body: Buffer;
}

/** Largest text for the agent, in UTF-16 units: enough for a paragraph of coaching, small enough for a trailer. */
const MAX_TEXT = 1200;
const MAX_COACHING = 800;
const MAX_DETAIL = 200;
const MAX_NAME = 256;
/** Percent-encoding makes three of one; common servers and clients take 8 KiB of metadata. */
const MAX_GRPC_BYTES = 1500;
/** RFC 6455 section 5.5: a control frame holds 125 bytes, two of them are the code. */
const MAX_CLOSE_REASON_BYTES = 123;

/** Refusals for which the same request may succeed a little later. All others tell the SDKs that know `x-should-retry` to stop at once. */
const RETRYABLE: ReadonlySet<Code> = new Set<Code>([
  'too_many_connections',
  'too_many_tunnels',
  'too_many_streams',
  'head_timeout',
  'handshake_timeout',
  'idle_timeout',
  'slow_peer',
  'dns_failed',
  'dns_timeout',
  'connect_refused',
  'connect_timeout',
  'connect_failed',
  'upstream_proxy_failed',
  'upstream_reset',
  'upstream_timeout',
  'upstream_idle',
  'audit_unavailable',
  'draining',
]);

/** Seconds in `Retry-After`. Small on purpose: some SDKs sleep for as long as they are told. */
const RETRY_AFTER_SECONDS = 2;

/** Refusal for anything thrown. An error that is not ours tells the agent nothing but `internal_error`. */
export function refusalOf(error: unknown, exchange: string, host: string | null = null): Refusal {
  if (error instanceof ProxyError) {
    return { code: error.code, detail: error.detail, message: null, rule: null, exchange, host };
  }
  return { code: 'internal_error', detail: null, message: null, rule: null, exchange, host };
}

/** Refusal for a verdict that does not let something pass. A reason that is not in the table counts as `denied_by_rule`. */
export function refusalOfVerdict(verdict: Verdict, exchange: string, host: string | null = null): Refusal {
  const code = isCode(verdict.reason) && verdict.reason !== 'allowed' ? verdict.reason : 'denied_by_rule';
  return { code, detail: null, message: verdict.message, rule: verdict.rules[0] ?? null, exchange, host };
}

/**
 * The answer to a plain HTTP request, on any HTTP version (PRODUCT.md section 5).
 * @param options.headersOnly for HEAD: `content-length` stays, the body is empty
 */
export function httpAnswer(refusal: Refusal, options: { readonly headersOnly?: boolean } = {}): HttpAnswer {
  const status = statusOf(refusal.code);
  const body = jsonBody(refusal);
  const headers = [
    'content-type',
    'application/json',
    'content-length',
    String(body.length),
    'cache-control',
    'no-store',
    'x-subfloor-exchange',
    headerSafe(refusal.exchange),
    ...headersFor(refusal.code, status),
  ];
  return { status, reason: reasonPhrase(status), headers, body: options.headersOnly === true ? Buffer.alloc(0) : body };
}

/** The answer to a refused CONNECT: a whole HTTP/1.1 response, after which the connection is closed. */
export function connectAnswer(refusal: Refusal): Buffer {
  const { status, reason, headers, body } = httpAnswer(refusal);
  let head = `HTTP/1.1 ${status} ${reason}\r\n`;
  for (let i = 0; i + 1 < headers.length; i += 2) head += `${headers[i] ?? ''}: ${headers[i + 1] ?? ''}\r\n`;
  return Buffer.concat([Buffer.from(`${head}connection: close\r\n\r\n`, 'latin1'), body]);
}

/**
 * The answer to a gRPC call. `headers` are a complete trailers-only response: send them when nothing was sent yet and end the stream with
 * them. `trailers` end a response that is already under way. Never send both.
 * Source: gRPC over HTTP/2, "Responses".
 */
export function grpcAnswer(refusal: Refusal): {
  readonly status: 200;
  readonly headers: RawHeaders;
  readonly trailers: RawHeaders;
} {
  const rule = refusal.rule === null ? '' : `, rule ${clean(refusal.rule, MAX_NAME)}`;
  const text = `${cutUtf8(agentText(refusal), MAX_GRPC_BYTES)} (${refusal.code}${rule}, exchange ${clean(refusal.exchange, MAX_NAME)})`;
  const trailers = [
    'grpc-status',
    String(grpcStatus(refusal.code)),
    'grpc-message',
    percentEncode(text),
    'x-subfloor-exchange',
    headerSafe(refusal.exchange),
  ];
  return { status: 200, headers: ['content-type', 'application/grpc', ...trailers], trailers };
}

/** Close code and reason for an open WebSocket. The reason is at most 123 bytes of UTF-8 and starts with the code from the table. */
export function webSocketClose(refusal: Refusal): { readonly code: number; readonly reason: string } {
  const text = clean(refusal.message ?? codeFacts(refusal.code).text, MAX_COACHING).replace(/\s+/g, ' ');
  return { code: closeCode(refusal.code), reason: cutUtf8(`${refusal.code}: ${text}`, MAX_CLOSE_REASON_BYTES) };
}

/** What the agent reads: the coaching text of the rule if there is one, what happened, and what to do. At most 1200 UTF-16 units, no control characters but line feeds. */
export function agentText(refusal: Refusal): string {
  const parts: string[] = [];
  if (refusal.message !== null) parts.push(asSentence(clean(refusal.message, MAX_COACHING)));
  parts.push(codeFacts(refusal.code).text);
  if (refusal.detail !== null) parts.push(asSentence(clean(refusal.detail, MAX_DETAIL)));
  parts.push(advice(refusal));
  return clean(parts.filter((part) => part !== '').join(' '), MAX_TEXT);
}

function jsonBody(refusal: Refusal): Buffer {
  const error = {
    type: codeFacts(refusal.code).kind === 'policy' ? 'egress_denied' : 'egress_error',
    code: refusal.code,
    message: agentText(refusal),
    rule: refusal.rule === null ? null : clean(refusal.rule, MAX_NAME),
    exchange: clean(refusal.exchange, MAX_NAME),
  };
  return Buffer.from(JSON.stringify({ error }), 'utf8');
}

/** Codes without a status can only end here by way of a caller's mistake or a late discovery; then the kind chooses. */
function statusOf(code: Code): number {
  const { status, kind } = codeFacts(code);
  if (status !== null) return status;
  switch (kind) {
    case 'policy':
      return 403;
    case 'client':
      return 400;
    case 'limit':
      return 503;
    case 'upstream':
    case 'internal':
      return 502;
  }
}

function reasonPhrase(status: number): string {
  return STATUS_CODES[status] ?? 'Refused';
}

function headersFor(code: Code, status: number): string[] {
  const headers: string[] = [];
  // RFC 9110 section 15.5.6: a 405 must say what would be allowed.
  if (status === 405) headers.push('allow', 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS');
  // RFC 9110 section 15.5.8: a 407 must carry a challenge.
  if (status === 407) headers.push('proxy-authenticate', 'Basic realm="subfloor"');
  if (status === 503) headers.push('retry-after', String(RETRY_AFTER_SECONDS));
  if (!RETRYABLE.has(code)) headers.push('x-should-retry', 'false');
  return headers;
}

function advice(refusal: Refusal): string {
  const { code } = refusal;
  const host = refusal.host == null ? null : clean(refusal.host, MAX_NAME);
  switch (code) {
    case 'denied_by_rule':
    case 'message_denied':
      return refusal.message === null
        ? 'Do not send it again unchanged; ask the operator if it should be allowed.'
        : 'Do not send it again unchanged.';
    case 'address_denied':
      return `Do not retry; ask the operator whether ${host ?? 'this host'} may be reached.`;
    case 'method_not_supported':
      return 'Use another method.';
    case 'inspection_incomplete':
    case 'rule_error':
    case 'approval_required':
      return 'Do not retry; tell the operator.';
    case 'proxy_auth_required':
    case 'proxy_auth_rejected':
      return 'Put the credentials that the operator gave you into the proxy URL.';
    case 'header_too_large':
    case 'too_many_headers':
    case 'target_too_long':
    case 'body_too_large':
    case 'message_too_large':
      return 'Send something smaller, or ask the operator for a larger limit.';
    case 'self_request':
    case 'client_aborted':
      return '';
    default:
      return kindAdvice(code, host);
  }
}

function kindAdvice(code: Code, host: string | null): string {
  switch (codeFacts(code).kind) {
    case 'policy':
      return `Do not retry; ask the operator to add a rule for ${host ?? 'it'} if it should be allowed.`;
    case 'client':
      return 'Correct the request before sending it again.';
    case 'limit':
      return 'Try again later, with less at once.';
    case 'upstream':
      return RETRYABLE.has(code)
        ? 'No rule is the reason; trying again later may help.'
        : 'No rule is the reason, and trying again will not help; tell the operator.';
    case 'internal':
      return 'Tell the operator.';
  }
}

/** Status codes of gRPC. Clients commonly retry 14 alone, so it is kept for what may heal. */
function grpcStatus(code: Code): number {
  switch (code) {
    case 'proxy_auth_required':
    case 'proxy_auth_rejected':
      return 16; // UNAUTHENTICATED
    case 'client_aborted':
      return 1; // CANCELLED
    case 'upgrade_not_supported':
    case 'http_version':
    case 'bad_encoding':
      return 12; // UNIMPLEMENTED
    case 'header_too_large':
    case 'too_many_headers':
    case 'target_too_long':
    case 'body_too_large':
    case 'message_too_large':
    case 'upstream_header_too_large':
      return 8; // RESOURCE_EXHAUSTED
    case 'head_timeout':
    case 'handshake_timeout':
    case 'idle_timeout':
    case 'slow_peer':
      return 4; // DEADLINE_EXCEEDED
    case 'audit_unavailable':
    case 'draining':
      return 14; // UNAVAILABLE
    case 'upstream_protocol':
    case 'upstream_tls_untrusted':
    case 'upstream_tls_name':
      return 13; // INTERNAL
    default:
      return grpcStatusOfKind(code);
  }
}

function grpcStatusOfKind(code: Code): number {
  switch (codeFacts(code).kind) {
    case 'policy':
      return 7; // PERMISSION_DENIED
    case 'client':
      return 3; // INVALID_ARGUMENT
    case 'limit':
    case 'upstream':
      return 14; // UNAVAILABLE
    case 'internal':
      return 13; // INTERNAL
  }
}

/** Close codes of RFC 6455 section 7.4.1 and the IANA registry (1012 to 1014). */
function closeCode(code: Code): number {
  switch (code) {
    case 'message_too_large':
    case 'body_too_large':
      return 1009;
    case 'draining':
    case 'idle_timeout':
      return 1001;
    case 'too_many_connections':
    case 'too_many_tunnels':
    case 'too_many_streams':
    case 'audit_unavailable':
      return 1013;
    case 'slow_peer':
      return 1008;
    default:
      return closeCodeOfKind(code);
  }
}

function closeCodeOfKind(code: Code): number {
  switch (codeFacts(code).kind) {
    case 'policy':
      return 1008;
    case 'client':
      return 1002;
    case 'upstream':
      return 1014;
    case 'limit':
    case 'internal':
      return 1011;
  }
}

/**
 * Text that may stand in JSON, a console or a chat: no control characters but line feed, no marks that turn the reading direction,
 * no half of a surrogate pair, at most `max` UTF-16 units with an ellipsis where it was cut.
 */
function clean(text: string, max: number): string {
  const cut = text.length > max ? `${text.slice(0, max - 1)}…` : text;
  return cut
    .replace(/\r\n?/g, '\n')
    .replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, ' ')
    .replace(/\p{Surrogate}/gu, '\ufffd')
    .trim();
}

function asSentence(text: string): string {
  return text === '' || /[.!?…:;]$/.test(text) ? text : `${text}.`;
}

/** Visible ASCII only: nothing that could end a header line. */
function headerSafe(value: string): string {
  return value.slice(0, MAX_NAME).replace(/[^\x21-\x7e]/g, '');
}

/** gRPC over HTTP/2, "Status-Message": bytes outside of 0x20 to 0x7e, and `%`, become `%XX`. */
function percentEncode(text: string): string {
  let encoded = '';
  for (const byte of Buffer.from(text, 'utf8')) {
    const isPlain = byte >= 0x20 && byte <= 0x7e && byte !== 0x25;
    encoded += isPlain ? String.fromCharCode(byte) : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return encoded;
}

/** The longest start of `text` that has at most `maxBytes` bytes of UTF-8 and ends at a whole character. */
function cutUtf8(text: string, maxBytes: number): string {
  const bytes = Buffer.from(text, 'utf8');
  if (bytes.length <= maxBytes) return text;
  let end = maxBytes - 3; // room for the ellipsis
  while (end > 0 && ((bytes[end] ?? 0) & 0xc0) === 0x80) end--;
  return `${bytes.toString('utf8', 0, end)}…`;
}
