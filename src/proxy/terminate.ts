import type { Socket } from 'node:net';
import { TLSSocket } from 'node:tls';
import type { SecureContext } from 'node:tls';
import { isIP } from 'node:net';
import type { ProxyError } from '../core/errors.ts';
import { ProtocolError } from '../core/errors.ts';
import type { Destination } from '../core/tunnel.ts';
import { canonicalHost } from '../core/url.ts';
import { SOCKET_BUFFER_BYTES } from './connect-race.ts';
import { handshakePace } from '../core/handshake-pace.ts';
import { readClientHello } from '../tls/client-hello.ts';
import type { TrustFailures } from '../tls/trust-failures.ts';

/** What interception needs of the TLS floor. */
export interface TlsTools {
  readonly leaves: { get(host: string): SecureContext | Promise<SecureContext> };
  readonly trustFailures: TrustFailures;
}

export type HelloVerdict =
  | { readonly kind: 'incomplete' }
  | {
      readonly kind: 'agreed';
      readonly sni: string | null;
      readonly isIpHost: boolean;
      /** Encrypted Client Hello, real or as GREASE: the server may read another name. */
      readonly hidesName: boolean;
    }
  | { readonly kind: 'refused'; readonly sni: string | null; readonly error: ProxyError };

/** Reads a ClientHello and holds its server name against the destination of the tunnel. A missing name contradicts nothing. */
export function readHello(bytes: Buffer, destination: Destination): HelloVerdict {
  const result = readClientHello(bytes);
  if (result.kind === 'incomplete') return result;
  if (result.kind === 'invalid')
    return { kind: 'refused', sni: null, error: new ProtocolError('bad_tls', result.reason) };
  const isIpHost = isIP(destination.host) !== 0;
  const hidesName = result.hasEncryptedClientHello;
  if (result.sni === null) return { kind: 'agreed', sni: null, isIpHost, hidesName };
  const named = canonicalHost(result.sni);
  if (named !== destination.host) return { kind: 'refused', sni: named, error: new ProtocolError('sni_mismatch') };
  return { kind: 'agreed', sni: named, isIpHost, hidesName };
}

/** TLS alerts that say "I do not trust your certificate" (RFC 8446 section 6.2), as OpenSSL names them when received. */
const DISTRUST =
  /ALERT_(UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_UNKNOWN|UNSUPPORTED_CERTIFICATE|ACCESS_DENIED)|alert (unknown ca|bad certificate|certificate unknown)/i;

/**
 * Ends TLS on the agent's socket with a leaf for `host`. Resolves when the handshake is done.
 * @param firstBytes what has been read already, the whole ClientHello
 * @throws (rejects) ProtocolError `client_rejected_ca`, `tls_handshake_failed` (detail `closed` when the client just went away); CertificateError
 */
export async function terminate(tools: TlsTools, socket: Socket, host: string, firstBytes: Buffer): Promise<TLSSocket> {
  const pending = tools.leaves.get(host);
  const secureContext = pending instanceof Promise ? await pending : pending;
  const turn = handshakePace.turn();
  if (turn !== null) await turn;
  if (socket.destroyed) throw new ProtocolError('tls_handshake_failed', 'closed');
  socket.unshift(firstBytes);
  const offersAlpn = hasAlpn(firstBytes);
  const secure = new TLSSocket(socket, {
    isServer: true,
    secureContext,
    ...(offersAlpn ? { ALPNProtocols: ['h2', 'http/1.1'] } : {}),
    highWaterMark: SOCKET_BUFFER_BYTES,
  } as ConstructorParameters<typeof TLSSocket>[1]);
  return new Promise((resolve, reject) => {
    const settle = (error: ProxyError | null): void => {
      secure.off('secure', onSecure);
      secure.off('_tlsError', onError);
      secure.off('close', onClose);
      secure.off('end', onClose);
      socket.off('close', onClose);
      if (error === null) resolve(secure);
      else {
        secure.destroy();
        reject(error);
      }
    };
    const onSecure = (): void => {
      // As tls.Server does: errors after the handshake go to 'error'.
      releaseControl(secure);
      // tls.Server does this for its sockets; node:http2 waits for it for ever on one made by hand.
      Reflect.set(secure, 'secureConnecting', false);
      settle(null);
    };
    const onError = (error: Error): void => {
      const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
      const isDistrust = DISTRUST.test(code) || DISTRUST.test(error.message);
      settle(new ProtocolError(isDistrust ? 'client_rejected_ca' : 'tls_handshake_failed', null, { cause: error }));
    };
    const onClose = (): void => settle(new ProtocolError('tls_handshake_failed', 'closed'));
    secure.on('error', () => undefined);
    secure.on('secure', onSecure);
    secure.on('_tlsError', onError);
    secure.on('close', onClose);
    // Node and Deno clients that distrust us only say goodbye: no error, and with half-open sockets no close either.
    secure.on('end', onClose);
    socket.on('close', onClose);
  });
}

function releaseControl(secure: TLSSocket): void {
  const release: unknown = Reflect.get(secure, '_releaseControl');
  if (typeof release === 'function') Reflect.apply(release, secure, []);
}

function hasAlpn(hello: Buffer): boolean {
  const result = readClientHello(hello);
  return result.kind === 'hello' && result.alpn.length > 0;
}

/** TLS alert descriptions. */
const ALERT: Partial<Record<string, number>> = { sni_mismatch: 112, sni_missing: 112, bad_tls: 47 };

/** Refuses a handshake that has not begun with a fatal alert, so that the client stops instead of waiting. */
export function refuseTls(socket: Socket, error: ProxyError): void {
  if (socket.destroyed) return;
  socket.end(Buffer.from([0x15, 0x03, 0x03, 0x00, 0x02, 0x02, ALERT[error.code] ?? 40]));
  socket.resume();
  setTimeout(() => socket.destroy(), 1000).unref();
}
