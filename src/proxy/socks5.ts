import type { ProxyCredentials } from '../core/agent.ts';
import { ProtocolError, type Code } from '../core/errors.ts';
import type { Destination } from '../core/tunnel.ts';
import { canonicalHost } from '../core/url.ts';

/**
 * What the parser saw. `send` goes to the client before anything else happens. `credentials` and `request` wait for an answer: the parser
 * takes bytes but gives no event until `accept`, `reject` or the end of the connection.
 */
export type Socks5Event =
  | { readonly kind: 'send'; readonly bytes: Buffer }
  /** The client chose username and password, or nothing (null): say who it is, then call `accept` or `reject`. */
  | { readonly kind: 'credentials'; readonly credentials: ProxyCredentials | null }
  /** CONNECT. Answer with `socksReply`. `rest`: bytes that came after it. The parser is done. */
  | { readonly kind: 'request'; readonly destination: Destination; readonly rest: Buffer }
  /** Send `reply` and close. The parser is done. */
  | { readonly kind: 'failed'; readonly reply: Buffer; readonly error: ProtocolError };

/** Reply codes of RFC 1928 section 6. */
const REPLY = {
  succeeded: 0x00,
  generalFailure: 0x01,
  notAllowed: 0x02,
  networkUnreachable: 0x03,
  hostUnreachable: 0x04,
  refused: 0x05,
  ttlExpired: 0x06,
  commandNotSupported: 0x07,
  addressTypeNotSupported: 0x08,
} as const;

const VERSION = 0x05;
/** Version of the username/password sub-negotiation, RFC 1929 section 2. */
const AUTH_VERSION = 0x01;
const NO_AUTH = 0x00;
const USER_PASSWORD = 0x02;
const NO_ACCEPTABLE_METHOD = 0xff;
const CONNECT = 0x01;
const BIND = 0x02;
const UDP_ASSOCIATE = 0x03;
const IPV4 = 0x01;
const DOMAIN = 0x03;
const IPV6 = 0x04;

/**
 * Most that is kept while the client waits for one of our answers: a whole handshake sent ahead (257 + 513 + 262) and some first bytes of
 * the tunnel. A client that sends more before it was answered is refused.
 */
const MAX_HELD_BYTES = 64 * 1024;
const EMPTY: Buffer = Buffer.alloc(0);

type State = 'greeting' | 'password' | 'answer' | 'request' | 'done';

/**
 * The server's side of a SOCKS5 handshake, sans-IO: the same bytes give the same events however they are chunked, and bytes that a
 * client sends ahead are kept. CONNECT only; UDP and BIND are refused because nothing could inspect them.
 *
 * When a client offers both methods, username and password are chosen: they may identify the agent, and a client that has none does not
 * offer them.
 * Source: RFC 1928, RFC 1929
 */
export class Socks5Parser {
  readonly #requireAuth: boolean;
  #state: State = 'greeting';
  #held: Buffer = EMPTY;
  #usesPassword = false;

  /** @param options.requireAuth refuse clients that do not offer username and password */
  constructor(options: { readonly requireAuth: boolean }) {
    this.#requireAuth = options.requireAuth;
  }

  /** Never throws: malformed bytes give a `failed` event. After the last event bytes are ignored. */
  push(bytes: Buffer): readonly Socks5Event[] {
    if (this.#state === 'done') return [];
    this.#held = this.#held.length === 0 ? bytes : Buffer.concat([this.#held, bytes]);
    const events = this.#drain();
    // In every other state what is held is the part of one message, 515 bytes at most.
    if (this.#state !== 'answer' || this.#held.length <= MAX_HELD_BYTES) return events;
    return [...events, this.#fail('bad_socks', 'Too many bytes before an answer.')];
  }

  /** The credentials, or their absence, are good. Events of bytes that came in the meantime follow. */
  accept(): readonly Socks5Event[] {
    if (this.#state !== 'answer') return [];
    this.#state = 'request';
    const answer: Socks5Event = {
      kind: 'send',
      bytes: this.#usesPassword ? Buffer.from([AUTH_VERSION, 0]) : Buffer.from([VERSION, NO_AUTH]),
    };
    return [answer, ...this.#drain()];
  }

  /**
   * The credentials are wrong, or there are none and some are needed. Ends the handshake.
   * @returns what is to be sent before the close (RFC 1928 section 3, RFC 1929 section 2)
   */
  reject(): Buffer {
    this.#state = 'done';
    this.#held = EMPTY;
    return this.#usesPassword ? Buffer.from([AUTH_VERSION, 1]) : Buffer.from([VERSION, NO_ACCEPTABLE_METHOD]);
  }

  #drain(): readonly Socks5Event[] {
    const events: Socks5Event[] = [];
    for (;;) {
      const before = this.#state;
      if (before === 'greeting') events.push(...this.#greeting());
      else if (before === 'password') events.push(...this.#password());
      else if (before === 'request') events.push(...this.#request());
      if (this.#state === before) return events;
    }
  }

  #take(length: number): Buffer {
    const taken = this.#held.subarray(0, length);
    this.#held = this.#held.subarray(length);
    return taken;
  }

  /** VER NMETHODS METHODS… */
  #greeting(): readonly Socks5Event[] {
    const [version, count] = this.#held;
    if (version === undefined) return [];
    if (version !== VERSION) return [this.#fail('bad_socks', 'Not version 5.')];
    if (count === undefined) return [];
    if (count === 0) return [this.#fail('bad_socks', 'No authentication methods are offered.')];
    if (this.#held.length < 2 + count) return [];
    const methods = this.#take(2 + count).subarray(2);
    if (methods.includes(USER_PASSWORD)) {
      this.#usesPassword = true;
      this.#state = 'password';
      return [{ kind: 'send', bytes: Buffer.from([VERSION, USER_PASSWORD]) }];
    }
    if (!methods.includes(NO_AUTH) || this.#requireAuth) {
      const reply = Buffer.from([VERSION, NO_ACCEPTABLE_METHOD]);
      return [this.#fail(this.#requireAuth ? 'proxy_auth_required' : 'bad_socks', null, reply)];
    }
    this.#state = 'answer';
    return [{ kind: 'credentials', credentials: null }];
  }

  /** VER ULEN UNAME PLEN PASSWD. RFC 1929 wants lengths from 1; empty passwords exist in practice (`user:@proxy`) and are read. */
  #password(): readonly Socks5Event[] {
    const [version, nameLength] = this.#held;
    if (version === undefined) return [];
    if (version !== AUTH_VERSION) return [this.#fail('bad_socks', 'Unknown version of the sub-negotiation.')];
    if (nameLength === undefined) return [];
    const passwordLength = this.#held[2 + nameLength];
    if (passwordLength === undefined) return [];
    const end = 3 + nameLength + passwordLength;
    if (this.#held.length < end) return [];
    const message = this.#take(end);
    this.#state = 'answer';
    const username = message.toString('utf8', 2, 2 + nameLength);
    return [{ kind: 'credentials', credentials: { username, password: message.toString('utf8', 3 + nameLength) } }];
  }

  /** VER CMD RSV ATYP DST.ADDR DST.PORT */
  #request(): readonly Socks5Event[] {
    const [version, command, reserved, addressType, domainLength] = this.#held;
    if (version === undefined) return [];
    if (version !== VERSION) return [this.#fail('bad_socks', 'Not version 5.')];
    if (command === undefined) return [];
    if (command === BIND || command === UDP_ASSOCIATE) {
      return [this.#fail('socks_command', null, replyOf(REPLY.commandNotSupported))];
    }
    if (command !== CONNECT)
      return [this.#fail('socks_command', 'Unknown command.', replyOf(REPLY.commandNotSupported))];
    if (reserved === undefined) return [];
    if (reserved !== 0) return [this.#fail('bad_socks', 'The reserved byte is not zero.')];
    if (addressType === undefined) return [];
    if (addressType !== IPV4 && addressType !== DOMAIN && addressType !== IPV6) {
      return [this.#fail('bad_socks', 'Unknown address type.', replyOf(REPLY.addressTypeNotSupported))];
    }
    if (domainLength === undefined) return [];
    const addressStart = addressType === DOMAIN ? 5 : 4;
    const addressLength = addressType === IPV4 ? 4 : addressType === IPV6 ? 16 : domainLength;
    const end = addressStart + addressLength + 2;
    if (this.#held.length < end) return [];
    const message = this.#take(end);
    const address = message.subarray(addressStart, end - 2);
    const host = addressType === DOMAIN ? domainHost(address) : literalHost(address);
    const port = message.readUInt16BE(end - 2);
    if (host === null) return [this.#fail('bad_socks', 'The address is not a host name.')];
    if (port === 0) return [this.#fail('bad_socks', 'Port 0.')];
    const rest = this.#held;
    this.#state = 'done';
    this.#held = EMPTY;
    return [{ kind: 'request', destination: { host, port }, rest }];
  }

  #fail(code: Code, detail: string | null, reply: Buffer = this.#failureReply()): Socks5Event {
    this.#state = 'done';
    this.#held = EMPTY;
    return { kind: 'failed', reply, error: new ProtocolError(code, detail) };
  }

  /** The answer that the client waits for at this point. */
  #failureReply(): Buffer {
    if (this.#state === 'greeting') return Buffer.from([VERSION, NO_ACCEPTABLE_METHOD]);
    if (this.#state === 'password') return Buffer.from([AUTH_VERSION, 1]);
    return replyOf(REPLY.generalFailure);
  }
}

/** Some clients put IP literals, also odd ones, into the domain form: they become what they mean. Wire names are ASCII. */
function domainHost(bytes: Buffer): string | null {
  return bytes.every((byte) => byte < 0x80) ? canonicalHost(bytes.toString('latin1')) : null;
}

function literalHost(bytes: Buffer): string | null {
  if (bytes.length === 4) return bytes.join('.');
  const groups = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2).toString(16));
  return canonicalHost(groups.join(':'));
}

/** Reply bytes for a reply code. BND.ADDR and BND.PORT are zero: our own addresses are nobody's business. */
function replyOf(reply: number): Buffer {
  return Buffer.from([VERSION, reply, 0, IPV4, 0, 0, 0, 0, 0, 0]);
}

/**
 * The reply to a CONNECT request.
 * @param code `allowed`, or why it failed, from core/errors.ts
 */
export function socksReply(code: Code): Buffer {
  return replyOf(replyCode(code));
}

function replyCode(code: Code): number {
  switch (code) {
    case 'allowed':
      return REPLY.succeeded;
    case 'host_not_allowed':
    case 'request_not_allowed':
    case 'denied_by_rule':
    case 'approval_required':
    case 'raw_not_allowed':
    case 'policy_changed':
    case 'rule_error':
    case 'address_denied':
    case 'loop_detected':
    case 'proxy_auth_required':
    case 'proxy_auth_rejected':
      return REPLY.notAllowed;
    case 'dns_failed':
    case 'dns_timeout':
      return REPLY.hostUnreachable;
    case 'connect_refused':
      return REPLY.refused;
    case 'connect_timeout':
      return REPLY.ttlExpired;
    case 'connect_failed':
      return REPLY.networkUnreachable;
    case 'socks_command':
      return REPLY.commandNotSupported;
    default:
      return REPLY.generalFailure;
  }
}
