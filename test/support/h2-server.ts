import { createHash } from 'node:crypto';
import { constants, createSecureServer } from 'node:http2';
import type { IncomingHttpHeaders, ServerHttp2Session, ServerHttp2Stream } from 'node:http2';
import type { Socket } from 'node:net';
import { testCa } from './ca.ts';
import { closeServers, listen } from './https-server.ts';

export interface H2OriginRequest {
  readonly headers: IncomingHttpHeaders;
  readonly rawHeaders: readonly string[];
  readonly session: number;
  bodyBytes: number;
  bodySha256: string | null;
  trailers: IncomingHttpHeaders | null;
  /** RST code that the client sent, 0 for none. */
  resetCode: number | null;
}

/** An HTTP/2-only TLS server that plays every name. */
export interface H2Origin {
  readonly port: number;
  readonly requests: H2OriginRequest[];
  readonly sessions: readonly ServerHttp2Session[];
  readonly openSessions: number;
  close(): Promise<void>;
}

export interface H2OriginOptions {
  /** Answers instead of the usual routes; returns false to leave it to them. */
  readonly answer?: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => boolean;
  readonly enableConnectProtocol?: boolean;
}

const MEGABYTE = Buffer.alloc(1024 * 1024, 'subfloor');

export async function startH2Origin(options: H2OriginOptions = {}): Promise<H2Origin> {
  const ca = await testCa();
  const requests: H2OriginRequest[] = [];
  const sessions: ServerHttp2Session[] = [];
  const sockets = new Set<Socket>();
  const server = createSecureServer({
    ...(await ca.leaf('localhost')),
    SNICallback: (
      name: string,
      done: (error: Error | null, context?: Awaited<ReturnType<typeof ca.context>>) => void,
    ) => {
      ca.context(name).then(
        (context) => done(null, context),
        (error: unknown) => done(error instanceof Error ? error : new Error('no certificate')),
      );
    },
    settings: { enableConnectProtocol: options.enableConnectProtocol ?? true, maxHeaderListSize: 256 * 1024 },
    maxHeaderListPairs: 2000,
  });
  server.on('connection', (socket: Socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
  });
  server.on('sessionError', () => undefined);
  server.on('session', (session) => {
    session.on('error', () => undefined);
    sessions.push(session);
  });
  server.on('stream', (stream, headers, _flags, ...rest: unknown[]) => {
    stream.on('error', () => undefined);
    const raw: unknown = rest[0];
    const record: H2OriginRequest = {
      headers,
      rawHeaders: Array.isArray(raw) ? raw.map(String) : [],
      session: stream.session === undefined ? -1 : sessions.indexOf(stream.session as ServerHttp2Session),
      bodyBytes: 0,
      bodySha256: null,
      trailers: null,
      resetCode: null,
    };
    requests.push(record);
    stream.on('close', () => {
      record.resetCode = stream.rstCode;
    });
    stream.on('trailers', (trailers) => {
      record.trailers = trailers;
    });
    if (options.answer?.(stream, headers) === true) return;
    const hash = createHash('sha256');
    stream.on('data', (chunk: Buffer) => {
      record.bodyBytes += chunk.length;
      hash.update(chunk);
    });
    stream.on('end', () => {
      record.bodySha256 = hash.digest('hex');
    });
    route(stream, headers, record);
  });
  const port = await listen(server);
  return {
    port,
    requests,
    sessions,
    get openSessions() {
      return sessions.filter((session) => !session.destroyed && !session.closed).length;
    },
    close: () => closeServers([server], sockets),
  };
}

function route(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, record: H2OriginRequest): void {
  const url = new URL(headers[':path'] ?? '/', 'https://origin.test');
  switch (url.pathname) {
    case '/trailers':
      stream.respond({ ':status': 200, 'content-type': 'text/plain' }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'x-checksum': 'abc' }));
      stream.end('body');
      return;
    case '/reset':
      stream.respond({ ':status': 200 });
      stream.write('partial');
      // `close(code)` would end the body cleanly first; destroying sends RST_STREAM alone.
      setTimeout(() => stream.destroy(new Error('on purpose')), 20);
      return;
    case '/refused':
      stream.close(constants.NGHTTP2_REFUSED_STREAM);
      return;
    case '/never':
      return;
    case '/early-hints':
      stream.additionalHeaders({ ':status': 103, link: '</style.css>; rel=preload' });
      stream.respond({ ':status': 200 });
      stream.end('after hints');
      return;
    case '/cookies':
      stream.respond({ ':status': 200, 'set-cookie': ['a=1; Path=/', 'b=2; Path=/'], 'alt-svc': 'h3=":443"' });
      stream.end('ok');
      return;
    case '/big': {
      let left = Number(url.searchParams.get('mb') ?? 1);
      stream.respond({ ':status': 200 });
      const more = (): void => {
        while (left > 0) {
          left--;
          if (!stream.write(MEGABYTE)) {
            stream.once('drain', more);
            return;
          }
        }
        stream.end();
      };
      more();
      return;
    }
    case '/sse': {
      stream.respond({ ':status': 200, 'content-type': 'text/event-stream' });
      let sent = 0;
      const next = (): void => {
        if (stream.destroyed) return;
        stream.write(`data: event ${sent}\n\n`);
        if (++sent < 3) setTimeout(next, 100);
        else stream.end();
      };
      next();
      return;
    }
    default:
      stream.on('end', () => {
        stream.respond({ ':status': 200, 'content-type': 'application/json' });
        stream.end(
          JSON.stringify({
            method: headers[':method'],
            url: headers[':path'],
            authority: headers[':authority'],
            headers,
            bodyBytes: record.bodyBytes,
            sha256: record.bodySha256,
          }),
        );
      });
  }
}
