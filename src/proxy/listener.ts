import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { readFileSync } from 'node:fs';
import { TLSSocket, createSecureContext } from 'node:tls';
import type { SecureContext } from 'node:tls';
import type { Agent, ConnectionFacts, Identification, ProxyCredentials } from '../core/agent.ts';
import { ConfigError, LimitError, ProtocolError, ProxyError, causeOf } from '../core/errors.ts';
import { headerValue, headerValues } from '../core/headers.ts';
import type { AgentDirectory } from '../core/ports.ts';
import type { ListenerSettings } from '../core/settings.ts';
import type { ClientStream } from '../core/stream.ts';
import type { Destination, Tunnel, Via } from '../core/tunnel.ts';
import { parseAbsoluteUrl, parseAuthority } from '../core/url.ts';
import { parseBasic } from '../agents/basic.ts';
import { ExchangeRun } from '../pipeline/exchange.ts';
import { connectAnswer } from '../pipeline/respond.ts';
import type { Refusal } from '../pipeline/respond.ts';
import type { Http1RequestHead } from '../protocols/http1.ts';
import { H1Connection } from './h1.ts';
import type { Expiring } from './limits.ts';
import { sniff } from './sniff.ts';
import { SocksConnection } from './socks-connection.ts';
import { Registry, Seat } from '../core/registry.ts';
import { subjectAltNames } from '../tls/subject-names.ts';
import { SOCKET_BUFFER_BYTES } from './connect-race.ts';
import { recordRefusedTunnel } from './tunnel-event.ts';
import { TunnelRun } from './tunnel.ts';
import type { TunnelContext } from './tunnel.ts';

export interface ListenerContext {
  readonly tunnels: TunnelContext;
  readonly agents: () => AgentDirectory;
}

/** The agent of traffic that nobody could be named for; only ever in records of refusals. */
const NOBODY: Agent = { id: 'unidentified', name: 'unidentified', labels: {}, identifiedBy: 'listener' };
const NOWHERE: Destination = { host: '', port: 0 };

/** Accepts connections, tells CONNECT, absolute-form requests and SOCKS5 apart by their first bytes, learns the agent, and opens tunnels. */
export class ProxyListener {
  readonly settings: ListenerSettings;
  readonly #context: ListenerContext;
  readonly #server: Server;
  readonly #secureContext: SecureContext | null;
  readonly #connections = new Registry<Seat<Connection>>();

  constructor(settings: ListenerSettings, context: ListenerContext) {
    this.settings = settings;
    this.#context = context;
    this.#secureContext = settings.tls === null ? null : listenerContext(settings.tls);
    this.#server = createServer(
      {
        allowHalfOpen: true,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: 60_000,
        pauseOnConnect: true,
        highWaterMark: SOCKET_BUFFER_BYTES,
      },
      (socket) => this.#accept(socket),
    );
    this.#server.on('error', (error) => {
      // EMFILE and the like: the connection that could not be accepted is lost, the listener is not.
      context.tunnels.log.error(
        { listener: settings.name, cause: causeOf(error) },
        'the listener could not accept a connection',
      );
    });
  }

  /** @throws ConfigError when the address cannot be bound */
  listen(): Promise<{ host: string; port: number }> {
    const { host, port, name } = this.settings;
    return new Promise((resolve, reject) => {
      const onError = (error: Error): void => {
        const code = causeOf(error);
        const remedy =
          code === 'EADDRINUSE' ? 'something else listens there; choose another port' : 'check the address';
        reject(new ConfigError(`listener ${name} cannot listen on ${host}:${port} (${code}); ${remedy}`));
      };
      this.#server.once('error', onError);
      this.#server.listen({ host, port, backlog: 1024 }, () => {
        this.#server.off('error', onError);
        const address = this.#server.address() as AddressInfo;
        resolve({ host: address.address, port: address.port });
      });
    });
  }

  get connections(): number {
    return this.#connections.size;
  }

  /** Stops accepting; idle client connections are closed. */
  drain(): void {
    this.#server.close();
    for (const { item } of this.#connections.snapshot()) item.drain();
  }

  close(): void {
    this.#server.close();
    for (const { item } of this.#connections.snapshot()) item.destroy();
  }

  #accept(socket: Socket): void {
    socket.on('error', () => undefined);
    const { tunnels } = this.#context;
    if (this.#connections.size >= tunnels.limits.connections) {
      tunnels.log.warn(
        { listener: this.settings.name, code: 'too_many_connections' },
        'a connection was refused at the limit',
      );
      socket.destroy();
      return;
    }
    const connection = new Connection(this.#context, this.settings, socket, this.#secureContext, () =>
      this.#connections.delete(seat),
    );
    const seat = new Seat(connection);
    this.#connections.add(seat);
    connection.start();
  }
}

function listenerContext(tls: NonNullable<ListenerSettings['tls']>): SecureContext {
  try {
    return createSecureContext({
      cert: readFileSync(tls.cert),
      key: readFileSync(tls.key),
      ...(tls.clientCa === null ? { ca: [] } : { ca: readFileSync(tls.clientCa) }),
      minVersion: 'TLSv1.2',
    });
  } catch (error) {
    throw new ConfigError(
      `the certificate of a TLS listener cannot be used (${causeOf(error)}); check listen.proxy tls cert, key and client_ca`,
      {
        file: tls.cert,
      },
    );
  }
}

/** One accepted connection until it becomes a tunnel. */
class Connection implements Expiring {
  slot = -1;
  deadlineMs: number;
  readonly #context: ListenerContext;
  readonly #settings: ListenerSettings;
  readonly #raw: Socket;
  readonly #secureContext: SecureContext | null;
  readonly #onClose: () => void;
  #socket: Socket;
  #facts: ConnectionFacts;
  #held: Buffer = EMPTY;
  #http: H1Connection | null = null;

  constructor(
    context: ListenerContext,
    settings: ListenerSettings,
    socket: Socket,
    secureContext: SecureContext | null,
    onClose: () => void,
  ) {
    this.#context = context;
    this.#settings = settings;
    this.#raw = socket;
    this.#socket = socket;
    this.#secureContext = secureContext;
    this.#onClose = onClose;
    const address = socket.remoteAddress ?? '';
    this.#facts = {
      sourceAddress:
        address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address.replace(/%.*$/, ''),
      sourcePort: socket.remotePort ?? 0,
      listener: settings.name,
    };
    const { deadlines, limits } = context.tunnels;
    this.deadlineMs = deadlines.now + limits.handshakeMs;
  }

  start(): void {
    this.#raw.on('close', () => {
      this.#context.tunnels.deadlines.delete(this);
      this.#onClose();
    });
    this.#context.tunnels.deadlines.add(this);
    if (this.#secureContext === null) this.#read();
    else this.#secure(this.#secureContext);
  }

  expire(): void {
    this.destroy();
  }

  drain(): void {
    if (this.#http !== null) this.#http.drain();
    else if (this.#held.length === 0 && this.deadlineMs !== Infinity) this.destroy();
  }

  destroy(): void {
    this.#raw.destroy();
  }

  /** `https://` proxy: TLS with our own certificate, perhaps with one of the client's. */
  #secure(secureContext: SecureContext): void {
    const wantsCertificate = this.#settings.tls?.clientCa !== null;
    const secure = new TLSSocket(this.#raw, {
      isServer: true,
      secureContext,
      requestCert: wantsCertificate,
      rejectUnauthorized: false,
      ALPNProtocols: ['http/1.1'],
    });
    this.#socket = secure;
    const onError = (): void => this.destroy();
    secure.on('error', onError);
    secure.on('_tlsError', onError);
    secure.once('secure', () => {
      const certificate = wantsCertificate ? secure.getPeerCertificate() : null;
      const hasCertificate = certificate !== null && Object.keys(certificate).length > 0;
      const error: unknown = hasCertificate ? verifyErrorOf(secure) : null;
      if ((this.#settings.tls?.requireClientCertificate === true && !hasCertificate) || error !== null) {
        this.#context.tunnels.log.warn(
          { listener: this.#settings.name, source: this.#facts.sourceAddress },
          hasCertificate ? 'a client certificate did not verify' : 'a client showed no certificate',
        );
        this.destroy();
        return;
      }
      if (hasCertificate) {
        const commonName: unknown = certificate.subject.CN;
        const names = typeof commonName === 'string' ? [commonName] : [];
        names.push(...subjectAltNames(certificate.subjectaltname ?? ''));
        this.#facts = {
          ...this.#facts,
          clientCertificateSha256: certificate.fingerprint256.replaceAll(':', '').toLowerCase(),
          clientCertificateNames: names,
        };
      }
      this.#read();
    });
  }

  #read(): void {
    this.#socket.on('data', this.#onData);
    this.#socket.on('end', this.#onEnd);
    this.#socket.resume();
  }

  readonly #onEnd = (): void => this.destroy();

  readonly #onData = (chunk: Buffer): void => {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    const kind = sniff(this.#held);
    if (kind === 'incomplete') return;
    const bytes = this.#held;
    this.#held = EMPTY;
    this.#socket.off('data', this.#onData);
    this.#socket.off('end', this.#onEnd);
    this.#context.tunnels.deadlines.delete(this);
    this.deadlineMs = Infinity;
    switch (kind) {
      case 'http1':
        this.#serveHttp(bytes);
        break;
      case 'socks5':
        this.#serveSocks(bytes);
        break;
      default:
        this.#context.tunnels.log.info(
          { listener: this.#settings.name, source: this.#facts.sourceAddress, kind, code: 'protocol_unknown' },
          kind === 'tls'
            ? 'a client speaks TLS to the plain proxy port; its proxy URL should begin with http://'
            : 'the first bytes of a connection are neither HTTP nor SOCKS5',
        );
        this.destroy();
    }
  };

  #serveHttp(firstBytes: Buffer): void {
    const { tunnels } = this.#context;
    this.#http = new H1Connection(
      {
        socket: this.#socket,
        scheme: 'http',
        limits: tunnels.limits,
        deadlines: tunnels.deadlines,
        handlers: {
          request: (stream) => this.#absoluteForm(stream),
          connect: (head, rest) => this.#connect(head, rest),
          malformed: (error) =>
            ExchangeRun.malformed(tunnels.pipeline, this.#pseudoTunnel(NOBODY, NOWHERE, 'absolute_form'), error).then(
              connectAnswer,
            ),
          closed: () => undefined,
        },
      },
      firstBytes,
    );
  }

  #identify(headers: readonly string[]): Promise<Identification> {
    const lines = headerValues(headers, 'proxy-authorization');
    let credentials: ProxyCredentials | null = null;
    if (lines.length > 0) {
      credentials = lines.length === 1 ? parseBasic(lines[0] ?? '') : null;
      // Credentials we cannot read are wrong credentials, never no credentials.
      if (credentials === null) return Promise.resolve({ kind: 'rejected', username: '' });
    }
    return this.#context.agents().identify(this.#facts, credentials);
  }

  #connect(head: Http1RequestHead, rest: Buffer): void {
    this.#http = null;
    const socket = this.#socket;
    socket.pause();
    const destination = connectTarget(head);
    const answer = (refusal: Refusal): void => endWith(socket, connectAnswer(refusal));
    if (destination === null) {
      void this.#recordRefusal(new ProtocolError('bad_connect'), NOBODY, NOWHERE, 'connect').then(answer);
      return;
    }
    this.#identify(head.headers).then(
      (identified) => {
        if (identified.kind !== 'agent') {
          void this.#recordRefusal(identityError(identified), NOBODY, destination, 'connect').then(answer);
          return;
        }
        new TunnelRun(this.#context.tunnels, {
          socket,
          facts: this.#facts,
          agent: identified.agent,
          destination,
          via: 'connect',
          firstBytes: rest,
          established: () => socket.write('HTTP/1.1 200 Connection established\r\n\r\n', 'latin1'),
          refuse: answer,
        }).open();
      },
      () => this.destroy(),
    );
  }

  #serveSocks(firstBytes: Buffer): void {
    const { tunnels } = this.#context;
    new SocksConnection(this.#socket, firstBytes, {
      limits: tunnels.limits,
      deadlines: tunnels.deadlines,
      identify: (credentials) => this.#context.agents().identify(this.#facts, credentials),
      refused: (error, agent, destination) =>
        this.#recordRefusal(error, agent ?? NOBODY, destination ?? NOWHERE, 'socks5'),
      open: (agent, destination, rest, established, refuse) => {
        new TunnelRun(tunnels, {
          socket: this.#socket,
          facts: this.#facts,
          agent,
          destination,
          via: 'socks5',
          firstBytes: rest,
          established,
          refuse,
        }).open();
      },
    });
  }

  /** `GET http://host/… HTTP/1.1` on the proxy port. The client's identity comes with every request. */
  #absoluteForm(stream: ClientStream): void {
    const { tunnels } = this.#context;
    const url = parseAbsoluteUrl(stream.request.target);
    let isGone = false;
    stream.onClose = () => {
      isGone = true;
    };
    this.#identify(stream.request.headers).then(
      (identified) => {
        const agent = identified.kind === 'agent' ? identified.agent : NOBODY;
        const tunnel = this.#pseudoTunnel(agent, url?.destination ?? NOWHERE, 'absolute_form');
        if (isGone) ExchangeRun.abandoned(tunnels.pipeline, tunnel, stream);
        else if (identified.kind !== 'agent') {
          ExchangeRun.refused(tunnels.pipeline, tunnel, stream, identityError(identified));
        } else if (url?.scheme === 'https') {
          // The agent asks us to speak TLS for it over a clear connection: what it sends is not confidential, and no client does this by mistake.
          ExchangeRun.refused(
            tunnels.pipeline,
            tunnel,
            stream,
            new ProtocolError('bad_target', 'https needs CONNECT.'),
          );
        } else if (tunnels.isDraining) {
          ExchangeRun.refused(tunnels.pipeline, tunnel, stream, new ProxyError('draining'));
        } else new ExchangeRun(tunnels.pipeline, tunnel, stream, null).run();
      },
      () => stream.abort(new ProxyError('internal_error')),
    );
  }

  /** A tunnel that never opened: its record, then the answer. */
  #recordRefusal(error: ProxyError, agent: Agent, destination: Destination, via: Via): Promise<Refusal> {
    return recordRefusedTunnel(this.#context.tunnels.pipeline, this.#pseudoTunnel(agent, destination, via), error);
  }

  #pseudoTunnel(agent: Agent, destination: Destination, via: Via): Tunnel {
    const { pipeline } = this.#context.tunnels;
    return {
      id: pipeline.newId(),
      agent,
      destination,
      via,
      sourceAddress: this.#facts.sourceAddress,
      sourcePort: this.#facts.sourcePort,
      listener: this.#facts.listener,
      openedAtMs: pipeline.wallClock(),
      mode: 'plain',
      sni: null,
      alpn: null,
      tlsVersion: null,
    };
  }
}

const EMPTY: Buffer = Buffer.alloc(0);

function identityError(identified: Exclude<Identification, { kind: 'agent' }>): ProxyError {
  return identified.kind === 'challenge'
    ? new ProtocolError('proxy_auth_required')
    : new ProtocolError('proxy_auth_rejected');
}

/** The destination of a CONNECT request. A Host header that names another one is a lie; a missing one is HTTP/1.0. */
function connectTarget(head: Http1RequestHead): Destination | null {
  const destination = parseAuthority(head.target, null);
  if (destination === null || head.hosts.length > 1) return null;
  const host = headerValue(head.headers, 'host');
  if (host === undefined || host === head.target) return destination;
  // Some clients send the host without the port; the name must be the same.
  const named = parseAuthority(host, destination.port);
  return named?.host === destination.host && named.port === destination.port ? destination : null;
}

function verifyErrorOf(secure: TLSSocket): unknown {
  if (secure.authorized) return null;
  const handle: unknown = Reflect.get(secure, '_handle');
  const verify: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'verifyError') : null;
  // A server-side TLSSocket made by hand does not fill `authorized`: ask the handle, and take silence for a failure.
  if (typeof verify !== 'function') return new LimitError('bad_tls');
  const error: unknown = Reflect.apply(verify, handle, []);
  return error ?? null;
}

function endWith(socket: Socket, bytes: Buffer): void {
  socket.end(bytes);
  socket.resume();
  setTimeout(() => socket.destroy(), 2000).unref();
}
