import type { Socket } from 'node:net';
import { ProxyError, UpstreamError } from '../core/errors.ts';
import type { Destination } from '../core/tunnel.ts';
import { formatAuthority } from '../core/url.ts';

/** Largest head of a proxy's answer to CONNECT. */
const MAX_HEAD_BYTES = 16 * 1024;
const END_OF_HEAD = Buffer.from('\r\n\r\n', 'latin1');
const STATUS_LINE = /^HTTP\/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\r\n/;

/** What the upstream proxy did, short enough for a record; `causeOf` shows the code. */
class UpstreamProxyFailure extends Error {
  readonly code: string;

  constructor(code: string) {
    super(code);
    this.name = 'UpstreamProxyFailure';
    this.code = code;
  }
}

/**
 * Asks an HTTP proxy for a tunnel. Bytes that follow its answer stay in the socket, to be read by the next reader.
 * @param socket connected to the proxy, with an 'error' listener; destroyed on failure
 * @param credentials `user:password` for Basic, or null
 * @throws UpstreamError `upstream_proxy_failed`, its cause `PROXY_<status>`, `PROXY_MALFORMED`, `PROXY_CLOSED` or `PROXY_TIMEOUT`; ProxyError
 *   `client_aborted` when `signal` fires
 * Source: RFC 9110 section 9.3.6, RFC 7617
 */
export function requestTunnel(
  socket: Socket,
  destination: Destination,
  credentials: string | null,
  deadlineMs: number,
  signal?: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    let head: Buffer = Buffer.alloc(0);

    const settle = (error: ProxyError | null): void => {
      clearTimeout(deadline);
      signal?.removeEventListener('abort', onAbort);
      socket.off('readable', onReadable);
      socket.off('end', onClosed);
      socket.off('close', onClosed);
      // Node takes the stream out of its 'readable' mode on the next tick; an owner that listens for 'data' before would wait for ever.
      if (error === null) process.nextTick(resolve);
      else {
        socket.destroy();
        reject(error);
      }
    };
    const fail = (code: string): void =>
      settle(new UpstreamError('upstream_proxy_failed', null, { cause: new UpstreamProxyFailure(code) }));
    const onAbort = (): void => settle(new ProxyError('client_aborted'));
    const onClosed = (): void => fail('PROXY_CLOSED');
    const deadline = setTimeout(() => fail('PROXY_TIMEOUT'), deadlineMs);

    const onReadable = (): void => {
      const chunk: unknown = socket.read();
      if (!Buffer.isBuffer(chunk)) return;
      head = Buffer.concat([head, chunk]);
      const end = head.indexOf(END_OF_HEAD);
      if (end === -1) {
        if (head.length > MAX_HEAD_BYTES) fail('PROXY_MALFORMED');
        return;
      }
      const status = STATUS_LINE.exec(head.toString('latin1', 0, Math.min(end + 2, MAX_HEAD_BYTES)))?.[1];
      if (status === undefined || end > MAX_HEAD_BYTES) fail('PROXY_MALFORMED');
      // Any 2xx opens the tunnel, whatever framing headers say (RFC 9110 section 9.3.6).
      else if (!status.startsWith('2')) fail(`PROXY_${status}`);
      else {
        const rest = head.subarray(end + END_OF_HEAD.length);
        if (rest.length > 0) socket.unshift(rest);
        settle(null);
      }
    };

    if (signal?.aborted === true) {
      onAbort();
      return;
    }
    if (socket.destroyed) {
      onClosed();
      return;
    }
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.on('readable', onReadable);
    socket.on('end', onClosed);
    socket.on('close', onClosed);
    socket.write(connectRequest(destination, credentials), 'latin1');
  });
}

function connectRequest(destination: Destination, credentials: string | null): string {
  const authority = formatAuthority(destination);
  const authorization =
    credentials === null ? '' : `Proxy-Authorization: Basic ${Buffer.from(credentials, 'utf8').toString('base64')}\r\n`;
  return `CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n${authorization}\r\n`;
}
