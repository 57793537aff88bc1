/**
 * Every reason and error code, with what the agent is told. Codes are stable: never renamed, never reused.
 * `docs/errors.md` is kept in step by test/core/errors.test.ts.
 * `status` is the HTTP answer; null where no HTTP answer is possible. `kind` says who has to act:
 * policy (a rule or guard said no), client (the agent's bytes), upstream (the server or the way to it), limit, internal.
 */
export interface CodeFacts {
  readonly status: number | null;
  readonly kind: 'policy' | 'client' | 'upstream' | 'limit' | 'internal';
  /** One sentence for the agent and the operator; no payload in it. */
  readonly text: string;
}

export const CODES = {
  // policy
  allowed: { status: null, kind: 'policy', text: 'A rule allows this.' },
  host_not_allowed: { status: 403, kind: 'policy', text: 'No rule allows this host.' },
  request_not_allowed: { status: 403, kind: 'policy', text: 'The host is known, but no rule allows this request.' },
  denied_by_rule: { status: 403, kind: 'policy', text: 'A rule denies this.' },
  approval_required: {
    status: 403,
    kind: 'policy',
    text: 'A person has to approve this, and nobody can be asked yet.',
  },
  raw_not_allowed: {
    status: null,
    kind: 'policy',
    text: 'The bytes in this tunnel are neither TLS nor HTTP, and no rule allows this host and port as raw.',
  },
  websocket_not_allowed: { status: 403, kind: 'policy', text: 'No rule allows WebSocket to this host.' },
  grpc_not_allowed: { status: 403, kind: 'policy', text: 'No rule allows this gRPC call.' },
  message_denied: { status: 403, kind: 'policy', text: 'A rule denies a message in this stream.' },
  policy_changed: {
    status: 403,
    kind: 'policy',
    text: 'The rules changed while this was open, and the new ones deny it.',
  },
  rule_error: {
    status: 403,
    kind: 'policy',
    text: 'A rule could not be evaluated on this traffic; doubt ends in deny.',
  },
  address_denied: {
    status: 403,
    kind: 'policy',
    text: 'The host resolves to an address that is not allowed (private, reserved or our own).',
  },
  inspection_incomplete: {
    status: 403,
    kind: 'policy',
    text: 'This could not be inspected completely; doubt ends in deny.',
  },
  method_not_supported: { status: 405, kind: 'policy', text: 'The proxy does not forward this method.' },
  // identity
  proxy_auth_required: { status: 407, kind: 'client', text: 'The proxy needs credentials.' },
  proxy_auth_rejected: { status: 407, kind: 'client', text: 'The proxy credentials are wrong.' },
  // agreement of names
  sni_missing: { status: null, kind: 'client', text: 'The TLS ClientHello names no server.' },
  sni_mismatch: { status: null, kind: 'client', text: 'The TLS server name is not the host of the tunnel.' },
  host_mismatch: { status: 421, kind: 'client', text: 'The Host header or :authority is not the host of the tunnel.' },
  ech_not_supported: { status: null, kind: 'client', text: 'The ClientHello hides its server name.' },
  // the client's bytes
  bad_request: { status: 400, kind: 'client', text: 'The request is not well-formed HTTP.' },
  bad_request_line: { status: 400, kind: 'client', text: 'The request line is malformed.' },
  bad_header: { status: 400, kind: 'client', text: 'A header line is malformed.' },
  bad_framing: { status: 400, kind: 'client', text: 'The length of the body is ambiguous or malformed.' },
  bad_chunk: { status: 400, kind: 'client', text: 'A chunk of the body is malformed.' },
  bad_host: { status: 400, kind: 'client', text: 'The Host header is missing, repeated or malformed.' },
  bad_target: { status: 400, kind: 'client', text: 'The request target is malformed or ambiguous.' },
  bad_connect: { status: 400, kind: 'client', text: 'The CONNECT request is malformed.' },
  bad_socks: { status: null, kind: 'client', text: 'The SOCKS request is malformed.' },
  socks_command: { status: null, kind: 'client', text: 'Only the SOCKS command CONNECT is supported.' },
  bad_tls: { status: null, kind: 'client', text: 'The TLS handshake is malformed.' },
  tls_handshake_failed: { status: null, kind: 'client', text: 'The TLS handshake with the agent failed.' },
  client_rejected_ca: { status: null, kind: 'client', text: 'The agent does not trust the root CA of the proxy.' },
  protocol_unknown: {
    status: null,
    kind: 'client',
    text: 'The first bytes are none of the protocols that the proxy speaks.',
  },
  bad_websocket: { status: 400, kind: 'client', text: 'The WebSocket handshake or a frame is malformed.' },
  bad_grpc: { status: 400, kind: 'client', text: 'The gRPC framing is malformed.' },
  bad_encoding: { status: 415, kind: 'client', text: 'The content encoding is unknown or broken.' },
  upgrade_not_supported: { status: 501, kind: 'client', text: 'The proxy does not know this upgrade protocol.' },
  expectation_failed: { status: 417, kind: 'client', text: 'The Expect header asks for something unknown.' },
  http_version: { status: 505, kind: 'client', text: 'The HTTP version is not supported.' },
  self_request: { status: 404, kind: 'client', text: 'This is a proxy: send CONNECT or a full URL.' },
  loop_detected: { status: 508, kind: 'client', text: 'The request leads back to this proxy.' },
  client_aborted: { status: null, kind: 'client', text: 'The agent went away before the exchange was complete.' },
  // limits
  header_too_large: { status: 431, kind: 'limit', text: 'The header section is larger than the limit.' },
  too_many_headers: { status: 431, kind: 'limit', text: 'The header section has more lines than the limit.' },
  target_too_long: { status: 414, kind: 'limit', text: 'The request target is longer than the limit.' },
  body_too_large: { status: 413, kind: 'limit', text: 'The body is larger than the limit.' },
  message_too_large: { status: 413, kind: 'limit', text: 'A message in the stream is larger than the limit.' },
  too_many_connections: { status: 503, kind: 'limit', text: 'Too many connections are open.' },
  too_many_tunnels: { status: 503, kind: 'limit', text: 'Too many tunnels are open.' },
  too_many_streams: { status: 503, kind: 'limit', text: 'Too many exchanges are open.' },
  head_timeout: { status: 408, kind: 'limit', text: 'The request head did not arrive in time.' },
  handshake_timeout: { status: 408, kind: 'limit', text: 'The handshake did not end in time.' },
  idle_timeout: { status: 408, kind: 'limit', text: 'Nothing moved for too long.' },
  slow_peer: { status: 408, kind: 'limit', text: 'The peer reads or writes too slowly.' },
  h2_flood: { status: null, kind: 'limit', text: 'The client opens and resets streams faster than the limit.' },
  // upstream
  dns_failed: { status: 502, kind: 'upstream', text: 'The host name could not be resolved.' },
  dns_timeout: { status: 504, kind: 'upstream', text: 'Resolving the host name took too long.' },
  connect_refused: { status: 502, kind: 'upstream', text: 'The server refused the connection.' },
  connect_timeout: { status: 504, kind: 'upstream', text: 'Connecting to the server took too long.' },
  connect_failed: { status: 502, kind: 'upstream', text: 'The server could not be reached.' },
  upstream_tls_untrusted: { status: 502, kind: 'upstream', text: "The server's certificate is not trusted." },
  upstream_tls_name: { status: 502, kind: 'upstream', text: "The server's certificate is for another name." },
  upstream_tls_failed: { status: 502, kind: 'upstream', text: 'The TLS handshake with the server failed.' },
  upstream_proxy_failed: { status: 502, kind: 'upstream', text: 'The upstream proxy refused or failed.' },
  upstream_reset: {
    status: 502,
    kind: 'upstream',
    text: 'The server closed the connection before its answer was complete.',
  },
  upstream_timeout: { status: 504, kind: 'upstream', text: 'The server did not answer in time.' },
  upstream_idle: { status: 504, kind: 'upstream', text: 'The server stopped sending.' },
  upstream_protocol: { status: 502, kind: 'upstream', text: 'The answer of the server is malformed.' },
  upstream_header_too_large: {
    status: 502,
    kind: 'upstream',
    text: 'The header section of the answer is larger than the limit.',
  },
  upstream_upgrade_failed: { status: 502, kind: 'upstream', text: 'The server answered the upgrade wrongly.' },
  // us
  audit_unavailable: {
    status: 503,
    kind: 'internal',
    text: 'The audit record cannot be written; nothing passes without one.',
  },
  draining: { status: 503, kind: 'internal', text: 'The proxy is shutting down and takes nothing new.' },
  certificate_failed: { status: 502, kind: 'internal', text: 'A certificate for this host could not be made.' },
  internal_error: {
    status: 500,
    kind: 'internal',
    text: 'Something unexpected happened in the proxy; the exchange was refused.',
  },
} as const satisfies Record<string, CodeFacts>;

/** A reason or error code from the table. */
export type Code = keyof typeof CODES;

/** Facts of a code. */
export function codeFacts(code: Code): CodeFacts {
  return CODES[code];
}

/** Base of every error that can end an exchange. `message` is for the log; the agent is told `codeFacts(code).text` and, if set, `detail`. */
export class ProxyError extends Error {
  readonly code: Code;
  /** Safe to show to the agent: names the offending part, never payload. */
  readonly detail: string | null;

  constructor(code: Code, detail: string | null = null, options?: { cause?: unknown }) {
    super(detail === null ? CODES[code].text : `${CODES[code].text} ${detail}`, options);
    this.name = new.target.name;
    this.code = code;
    this.detail = detail;
  }

  /** Status for an HTTP answer; 502 where the table has none. */
  get status(): number {
    return CODES[this.code].status ?? 502;
  }
}

/** Malformed traffic. */
export class ProtocolError extends ProxyError {}
/** Something over a limit or deadline. */
export class LimitError extends ProxyError {}
/** The server, or the way to it. */
export class UpstreamError extends ProxyError {
  /** The server said that it has not begun to process the request: it may be sent again. */
  readonly isRetrySafe: boolean;

  constructor(code: Code, detail: string | null = null, options: { cause?: unknown; isRetrySafe?: boolean } = {}) {
    super(code, detail, options.cause === undefined ? undefined : { cause: options.cause });
    this.isRetrySafe = options.isRetrySafe ?? false;
  }
}
/** A certificate could not be made or read. */
export class CertificateError extends ProxyError {}
/** The audit trail cannot take a record. */
export class AuditError extends ProxyError {}

/** A bad file, flag or variable; `line` and `column` count from 1. */
export class ConfigError extends Error {
  readonly file: string | null;
  readonly line: number | null;
  readonly column: number | null;

  constructor(text: string, position: { file?: string | null; line?: number | null; column?: number | null } = {}) {
    const { file = null, line = null, column = null } = position;
    const where = file === null ? '' : line === null ? `${file}: ` : `${file}:${line}:${column ?? 1}: `;
    super(`${where}${text}`);
    this.name = 'ConfigError';
    this.file = file;
    this.line = line;
    this.column = column;
  }
}

/** Short cause of any error for logs and records: code if there is one, else its class. Never the message of a foreign error, which may hold payload. */
export function causeOf(error: unknown): string {
  if (error instanceof ProxyError)
    return error.cause === undefined ? error.code : `${error.code}: ${causeOf(error.cause)}`;
  if (error instanceof Error) {
    const code: unknown = 'code' in error ? error.code : undefined;
    return typeof code === 'string' ? code : error.name;
  }
  return typeof error;
}

/** Whether a reason is a code of the table. */
export function isCode(text: string): text is Code {
  return Object.hasOwn(CODES, text);
}

/** What was thrown, if it is ours; anything else is a fault of our own, `internal_error`. */
export function asProxyError(error: unknown): ProxyError {
  return error instanceof ProxyError ? error : new ProxyError('internal_error', null, { cause: error });
}
