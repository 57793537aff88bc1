import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { ConfigError, causeOf } from '../core/errors.ts';
import type { Log } from '../core/ports.ts';
import type { ListenAddress } from '../core/settings.ts';

/** State of one thing that has to work before traffic may come. */
export interface Check {
  readonly name: string;
  readonly ok: boolean;
  readonly text: string;
}

export interface AdminActions {
  readonly version: string;
  readiness(): readonly Check[];
  reload(): Promise<{ readonly ok: boolean; readonly problems: readonly string[] }>;
}

interface Answer {
  readonly status: number;
  readonly body: unknown;
}

/**
 * The admin listener: health, readiness and reload, on its own port that agents are never sent to (the address guard refuses it).
 * `/healthz`, `/livez`: the process answers. `/readyz`: rules loaded, CA usable, audit writable, not draining; 503 with the reason otherwise.
 */
export class AdminServer {
  readonly #address: ListenAddress;
  readonly #actions: AdminActions;
  readonly #log: Log;
  readonly #server: Server;

  constructor(address: ListenAddress, actions: AdminActions, log: Log) {
    this.#address = address;
    this.#actions = actions;
    this.#log = log;
    this.#server = createServer(
      { maxHeaderSize: 8192, requestTimeout: 10_000, headersTimeout: 5000, connectionsCheckingInterval: 5000 },
      (request, response) => {
        this.#route(request).then(
          (answer) => send(request, response, answer),
          (error: unknown) => {
            this.#log.error({ cause: causeOf(error) }, 'an admin request failed');
            send(request, response, { status: 500, body: { error: 'internal_error' } });
          },
        );
      },
    );
    this.#server.maxConnections = 100;
    this.#server.on('error', (error) => this.#log.error({ cause: causeOf(error) }, 'the admin listener failed'));
    this.#server.on('clientError', (_error, socket) => socket.destroy());
  }

  /** @throws ConfigError when the address cannot be bound */
  listen(): Promise<{ host: string; port: number }> {
    return new Promise((resolve, reject) => {
      const { host, port } = this.#address;
      const onError = (error: Error): void => {
        reject(
          new ConfigError(
            `the admin listener cannot listen on ${host}:${port} (${causeOf(error)}); choose another address with listen.admin`,
          ),
        );
      };
      this.#server.once('error', onError);
      this.#server.listen(port, host, () => {
        this.#server.off('error', onError);
        const bound = this.#server.address() as AddressInfo;
        resolve({ host: bound.address, port: bound.port });
      });
    });
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #route(request: IncomingMessage): Promise<Answer> {
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/';
    const isRead = request.method === 'GET' || request.method === 'HEAD';
    switch (path) {
      case '/healthz':
      case '/livez':
        return isRead ? { status: 200, body: { status: 'ok' } } : METHOD_NOT_ALLOWED;
      case '/readyz': {
        if (!isRead) return METHOD_NOT_ALLOWED;
        const checks = this.#actions.readiness();
        const isReady = checks.every((check) => check.ok);
        return { status: isReady ? 200 : 503, body: { status: isReady ? 'ready' : 'not ready', checks } };
      }
      case '/version':
        return isRead
          ? { status: 200, body: { name: 'subfloor', version: this.#actions.version } }
          : METHOD_NOT_ALLOWED;
      case '/reload': {
        if (request.method !== 'POST') return METHOD_NOT_ALLOWED;
        // A web page can send a POST across origins, but not with this header.
        if (request.headers.origin !== undefined) return { status: 403, body: { error: 'not from a browser' } };
        const result = await this.#actions.reload();
        return { status: result.ok ? 200 : 422, body: result };
      }
      default:
        return {
          status: 404,
          body: { error: 'not found', paths: ['/healthz', '/livez', '/readyz', '/version', 'POST /reload'] },
        };
    }
  }
}

const METHOD_NOT_ALLOWED: Answer = { status: 405, body: { error: 'method not allowed' } };

function send(request: IncomingMessage, response: ServerResponse, answer: Answer): void {
  if (response.headersSent || response.destroyed) return;
  const body = `${JSON.stringify(answer.body)}\n`;
  response.writeHead(answer.status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
  });
  response.end(request.method === 'HEAD' ? undefined : body);
}
