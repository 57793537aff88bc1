import { connect, type Socket } from 'node:net';
import { ProxyError, UpstreamError } from '../core/errors.ts';

/** A literal address and port to dial. */
export interface Target {
  readonly address: string;
  readonly port: number;
}

/** RFC 8305 section 5, "Connection Attempt Delay". */
export const ATTEMPT_DELAY_MS = 250;
/** Addresses tried for one name; the rest is ignored. */
export const MAX_ATTEMPTS = 8;
/** Doubles bulk throughput against Node's default. It sizes the buffers of the stream; libuv reads 64 KiB at a time regardless. */
export const SOCKET_BUFFER_BYTES = 256 * 1024;
/** Idle time before the first TCP keep-alive probe. */
const KEEP_ALIVE_MS = 60_000;

/** Keeps a process alive when a socket fails while nobody listens; its owner learns of it by 'close' and `destroyed`. */
export function ignoreError(): void {
  // Deliberately empty.
}

/** Order of attempts: families alternate, beginning with the one the resolver prefers (RFC 8305 section 4). */
export function interleave<T extends Target>(targets: readonly T[]): readonly T[] {
  const isFirstFamily = (target: T): boolean => target.address.includes(':') === targets[0]?.address.includes(':');
  const preferred = targets.filter(isFirstFamily);
  const others = targets.filter((target) => !isFirstFamily(target));
  const mixed: T[] = [];
  for (let i = 0; i < Math.max(preferred.length, others.length); i++) {
    mixed.push(...preferred.slice(i, i + 1), ...others.slice(i, i + 1));
  }
  return mixed;
}

/**
 * Dials literal addresses, each a little after the one before or as soon as that has failed; the first that connects wins and the
 * others are destroyed. No name is ever looked up here: the addresses dialed are the addresses that were checked.
 *
 * The socket has `noDelay`, keep-alive, a no-op 'error' listener that may stay, and `allowHalfOpen`: its owner answers 'end'.
 * @param targets 1 to any number; `MAX_ATTEMPTS` of them are tried
 * @param deadlineMs for all attempts together
 * @throws UpstreamError `connect_refused`, `connect_timeout`, `connect_failed` with the first failure as cause; ProxyError
 *   `client_aborted` when `signal` fires
 * Source: RFC 8305
 */
export function connectFirst(
  targets: readonly Target[],
  deadlineMs: number,
  signal?: AbortSignal,
): Promise<{ readonly socket: Socket; readonly target: Target }> {
  return new Promise((resolve, reject) => {
    const queue = interleave(targets).slice(0, MAX_ATTEMPTS);
    const open = new Set<Socket>();
    const failures: Error[] = [];
    let isSettled = false;
    let stagger: NodeJS.Timeout | undefined;

    const settle = (winner: Socket | null): boolean => {
      if (isSettled) return false;
      isSettled = true;
      clearTimeout(stagger);
      clearTimeout(deadline);
      signal?.removeEventListener('abort', onAbort);
      for (const socket of open) if (socket !== winner) socket.destroy();
      return true;
    };
    const fail = (error: ProxyError): void => {
      if (settle(null)) reject(error);
    };
    const onAbort = (): void => fail(new ProxyError('client_aborted'));
    const deadline = setTimeout(
      () => fail(new UpstreamError('connect_timeout', null, { cause: failures[0] })),
      deadlineMs,
    );

    const next = (): void => {
      clearTimeout(stagger);
      const target = queue.shift();
      if (target === undefined) {
        if (open.size === 0) fail(connectError(failures));
        return;
      }
      if (queue.length > 0) stagger = setTimeout(next, ATTEMPT_DELAY_MS);
      // A constant, because @types/node does not know that connect takes highWaterMark.
      const options = {
        host: target.address,
        port: target.port,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEP_ALIVE_MS,
        allowHalfOpen: true,
        highWaterMark: SOCKET_BUFFER_BYTES,
      };
      const socket = connect(options);
      open.add(socket);
      const onFailure = (error: Error): void => {
        failures.push(error);
        open.delete(socket);
        socket.destroy();
        if (!isSettled) next();
      };
      socket.on('error', ignoreError);
      socket.once('error', onFailure);
      socket.once('connect', () => {
        socket.off('error', onFailure);
        if (settle(socket)) resolve({ socket, target });
        else socket.destroy();
      });
    };

    if (signal?.aborted === true) onAbort();
    else {
      signal?.addEventListener('abort', onAbort, { once: true });
      next();
    }
  });
}

function connectError(failures: readonly Error[]): UpstreamError {
  const cause = failures[0];
  const codes = failures.map((failure) => ('code' in failure ? failure.code : undefined));
  if (codes.every((code) => code === 'ECONNREFUSED')) return new UpstreamError('connect_refused', null, { cause });
  if (codes.some((code) => code === 'ETIMEDOUT')) return new UpstreamError('connect_timeout', null, { cause });
  return new UpstreamError('connect_failed', null, { cause });
}
