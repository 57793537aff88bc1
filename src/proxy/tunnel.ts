import type { Socket } from 'node:net';
import type { Agent, ConnectionFacts } from '../core/agent.ts';
import {
  LimitError,
  ProtocolError,
  ProxyError,
  UpstreamError,
  causeOf,
  codeFacts,
  asProxyError,
} from '../core/errors.ts';
import type { OutcomeKind } from '../core/exchange.ts';
import type { Policy } from '../core/facts.ts';
import type { Log } from '../core/ports.ts';
import { Seat } from '../core/registry.ts';
import type { Registry } from '../core/registry.ts';
import type { Limits } from '../core/settings.ts';
import type { ClientStream } from '../core/stream.ts';
import type { Destination, Tunnel, TunnelMode, Via } from '../core/tunnel.ts';
import type { Verdict } from '../core/verdict.ts';
import type { PipelineContext } from '../pipeline/context.ts';
import { ExchangeRun } from '../pipeline/exchange.ts';
import { connectAnswer, refusalOf, refusalOfVerdict } from '../pipeline/respond.ts';
import type { Refusal } from '../pipeline/respond.ts';
import { isRefusal, verdictOfCode } from '../pipeline/judge.ts';
import { H1Connection } from './h1.ts';
import { serveH2 } from './h2.ts';
import type { H2Server } from './h2.ts';
import type { Deadlines, Expiring, OpenCounter } from './limits.ts';
import type { PoolDialer } from './pool.ts';
import { readRaw } from './raw-check.ts';
import { sniff } from './sniff.ts';
import { Splice } from './splice.ts';
import { readHello, refuseTls, terminate } from './terminate.ts';
import type { TlsTools } from './terminate.ts';
import { tunnelEvent } from './tunnel-event.ts';

/** Tunnels of one proxy and what they need. */
export interface TunnelContext {
  readonly pipeline: PipelineContext;
  readonly dialer: PoolDialer;
  readonly tls: TlsTools;
  readonly limits: Limits;
  readonly deadlines: Deadlines;
  readonly counter: OpenCounter;
  readonly tunnels: Registry<Seat<TunnelRun>>;
  readonly log: Log;
  isDraining: boolean;
}

/** A connection that wants to go somewhere. */
export interface TunnelRequest {
  readonly socket: Socket;
  readonly facts: ConnectionFacts;
  readonly agent: Agent;
  readonly destination: Destination;
  readonly via: Via;
  /** Bytes that came after the request. */
  readonly firstBytes: Buffer;
  /** Tells the client that its tunnel is open. */
  established(): void;
  /** Tells the client why not, and closes. */
  refuse(refusal: Refusal): void;
}

/** A server that speaks first says nothing wrong; after this long without bytes from the agent a raw tunnel is dialed. */
const SERVER_FIRST_MS = 300;
/** Time for an answer to arrive before the connection below it is cut. */
const GOODBYE_MS = 1000;
/** The first bytes of a tunnel that are needed to tell what it is, without a ClientHello. */
const MAX_SNIFF_BYTES = 64 * 1024;

/** One tunnel from its request to its record. Gate → first bytes → intercept, plain HTTP, passthrough or raw. */
export class TunnelRun implements Tunnel, Expiring {
  readonly #seat: Seat<TunnelRun> = new Seat<TunnelRun>(this);
  slot = -1;
  readonly id: string;
  readonly agent: Agent;
  readonly destination: Destination;
  readonly via: Via;
  readonly sourceAddress: string;
  readonly sourcePort: number;
  readonly listener: string;
  readonly openedAtMs: number;
  mode: TunnelMode = 'undecided';
  sni: string | null = null;
  alpn: string | null = null;
  tlsVersion: string | null = null;
  deadlineMs = Infinity;
  readonly #context: TunnelContext;
  readonly #request: TunnelRequest;
  readonly #startedAt: number;
  #verdict: Verdict | null = null;
  #policyRevision: string;
  #http: H1Connection | H2Server | null = null;
  #splice: Splice | null = null;
  #server: Socket | null = null;
  #serverFacts: { address: string; port: number } | null = null;
  #held: Buffer;
  #isEstablished = false;
  #isConcluded = false;
  #isCounted = false;
  #hasWaited = false;
  #requests = 0;
  #connectMs: number | null = null;
  /** Ends a dial that nobody waits for any more. */
  #dialing: AbortController | null = null;
  /** Of a raw tunnel whose server has not spoken: takes the first bytes of the agent. */
  #stopReadingRaw: (() => void) | null = null;
  /** The agent kept silent until a raw tunnel was dialed, and then spoke something that we can look into. */
  #wasLate = false;

  constructor(context: TunnelContext, request: TunnelRequest) {
    this.#context = context;
    this.#request = request;
    this.id = context.pipeline.newId();
    this.agent = request.agent;
    this.destination = request.destination;
    this.via = request.via;
    this.sourceAddress = request.facts.sourceAddress;
    this.sourcePort = request.facts.sourcePort;
    this.listener = request.facts.listener;
    this.openedAtMs = context.pipeline.wallClock();
    this.#startedAt = context.pipeline.now();
    this.#held = request.firstBytes;
    this.#policyRevision = context.pipeline.policy().revision;
  }

  /** Asks the gate and goes on. Never throws. */
  open(): void {
    const { socket } = this.#request;
    const { pipeline, counter, tunnels } = this.#context;
    socket.on('close', this.#onEarlyClose);
    socket.on('end', this.#onEarlyEnd);
    if (socket.destroyed) {
      // Gone while its credentials were looked at: 'close' does not come again.
      void this.#conclude('aborted', verdictOfCode('client_aborted'), new ProxyError('client_aborted'), false);
      return;
    }
    if (this.#context.isDraining) {
      this.#refuse(new ProxyError('draining'));
      return;
    }
    if (!counter.tryOpen(this.agent.id)) {
      this.#refuse(new LimitError('too_many_tunnels'));
      return;
    }
    this.#isCounted = true;
    tunnels.add(this.#seat);
    const policy = pipeline.policy();
    const { host, port } = this.destination;
    const gate = policy.gate({ agent: this.agent, host, port, timeMs: this.openedAtMs });
    this.#verdict = gate.verdict;
    if (isRefusal(gate.verdict)) {
      this.#refuseVerdict(gate.verdict);
      return;
    }
    if (!pipeline.audit.isHealthy) {
      this.#refuse(new ProxyError('audit_unavailable'));
      return;
    }
    if (gate.mode === 'passthrough') {
      this.mode = 'passthrough';
      this.#passthrough();
      return;
    }
    this.#establish();
    this.#readFirstBytes();
  }

  /** New rules: goes on, or is cut. */
  rejudge(policy: Policy): void {
    if (this.#isConcluded || this.#verdict === null) return;
    const { host, port } = this.destination;
    const facts = { agent: this.agent, host, port, timeMs: this.#context.pipeline.wallClock() };
    const gate = policy.gate(facts);
    let verdict = gate.verdict;
    if (!isRefusal(verdict) && this.mode === 'raw') verdict = policy.raw(facts);
    // A tunnel that nobody looked into has to be looked into now: it starts anew.
    const mustInspect = this.mode === 'passthrough' && gate.mode !== 'passthrough';
    if (!isRefusal(verdict) && !mustInspect) return;
    this.#verdict = { ...verdict, action: 'deny', judged: 'deny', reason: 'policy_changed' };
    this.#end(new ProxyError('policy_changed'));
  }

  /** Takes nothing new; open exchanges end on their own. */
  drain(): void {
    if (this.#http !== null) this.#http.drain();
    else if (this.#splice === null) this.#end(new ProxyError('draining'));
  }

  destroy(error: ProxyError): void {
    this.#end(error);
  }

  expire(nowMs: number): void {
    if (
      this.mode === 'undecided' &&
      !this.#wasLate &&
      this.#rawIsAllowed() &&
      (this.#held.length === 0 || sniff(this.#held) === 'incomplete')
    ) {
      this.#raw();
      return;
    }
    const fullMs = this.#context.limits.handshakeMs - SERVER_FIRST_MS;
    if (this.mode === 'undecided' && !this.#wasLate && !this.#hasWaited && fullMs > 0 && this.#rawIsAllowed()) {
      // A ClientHello that comes in pieces: not raw, only slow.
      this.#hasWaited = true;
      this.deadlineMs = nowMs + fullMs;
      return;
    }
    this.#end(new LimitError('handshake_timeout'));
  }

  #rawIsAllowed(): boolean {
    const { host, port } = this.destination;
    return !isRefusal(
      this.#context.pipeline
        .policy()
        .raw({ agent: this.agent, host, port, timeMs: this.#context.pipeline.wallClock() }),
    );
  }

  #establish(): void {
    if (this.#isEstablished) return;
    this.#isEstablished = true;
    this.#request.established();
  }

  #readFirstBytes(): void {
    const { socket } = this.#request;
    const { deadlines, limits } = this.#context;
    this.deadlineMs = deadlines.now + (!this.#wasLate && this.#rawIsAllowed() ? SERVER_FIRST_MS : limits.handshakeMs);
    deadlines.add(this);
    if (this.#held.length > 0 && this.#classify()) return;
    socket.on('data', this.#onFirstBytes);
    socket.resume();
  }

  readonly #onFirstBytes = (chunk: Buffer): void => {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    if (this.#classify()) this.#request.socket.off('data', this.#onFirstBytes);
  };

  readonly #onEarlyClose = (): void => {
    this.#end(this.#isConcluded ? null : new ProxyError('client_aborted'));
  };

  readonly #onEarlyEnd = (): void => {
    // Nothing can be answered to a client that leaves before it has said what it wants, and no TLS handshake comes of half a connection.
    if (this.mode !== 'raw') this.#end(new ProxyError('client_aborted'));
  };

  /** @returns true when enough bytes were there to decide */
  #classify(): boolean {
    const kind = sniff(this.#held);
    switch (kind) {
      case 'incomplete':
        return false;
      case 'tls':
        return this.#readHello();
      case 'http1':
      case 'h2':
        this.mode = 'plain';
        this.#serve(this.#request.socket, 'http', kind === 'h2', this.#takeHeld());
        return true;
      case 'socks5':
      case 'socks4':
      case 'unknown':
        this.#raw();
        return true;
    }
  }

  #takeHeld(): Buffer {
    const bytes = this.#held;
    this.#held = EMPTY;
    this.deadlineMs = Infinity;
    this.#context.deadlines.delete(this);
    this.#request.socket.off('data', this.#onFirstBytes);
    return bytes;
  }

  #readHello(): boolean {
    const result = readHello(this.#held, this.destination);
    if (result.kind === 'incomplete') {
      if (this.#held.length > MAX_SNIFF_BYTES) this.#refuseTls(new ProtocolError('bad_tls'));
      return this.#isConcluded;
    }
    this.sni = result.sni;
    if (result.kind === 'refused') {
      this.#refuseTls(result.error);
      return true;
    }
    this.mode = 'intercept';
    this.#intercept(this.#takeHeld());
    return true;
  }

  #intercept(firstBytes: Buffer): void {
    const { socket } = this.#request;
    const { deadlines, limits, tls } = this.#context;
    socket.pause();
    this.deadlineMs = deadlines.now + limits.handshakeMs;
    deadlines.add(this);
    terminate(tls, socket, this.destination.host, firstBytes).then(
      (secure) => {
        deadlines.delete(this);
        if (this.#isConcluded) {
          secure.destroy();
          return;
        }
        this.alpn = typeof secure.alpnProtocol === 'string' ? secure.alpnProtocol : null;
        this.tlsVersion = secure.getProtocol();
        this.#serve(secure, 'https', this.alpn === 'h2', EMPTY);
      },
      (error: unknown) => {
        deadlines.delete(this);
        const failure =
          error instanceof ProxyError ? error : new ProxyError('certificate_failed', null, { cause: error });
        if (failure.code === 'client_rejected_ca' || failure.code === 'tls_handshake_failed')
          this.#noteTrustFailure(failure);
        this.#end(failure);
      },
    );
  }

  #noteTrustFailure(error: ProxyError): void {
    const form = error.code === 'client_rejected_ca' ? 'alert' : 'closed_before_finish';
    if (error.code === 'tls_handshake_failed' && error.detail !== 'closed') return;
    this.#explain(form);
  }

  #explain(form: 'alert' | 'closed_before_finish' | 'closed_without_request'): void {
    const note = this.#context.tls.trustFailures.note(this.destination.host, this.agent.id, form);
    if (!note.shouldExplain) return;
    this.#context.log.warn(
      { host: this.destination.host, agent: this.agent.id, form, count: note.count },
      note.explanation,
    );
  }

  /** Clear bytes from here on: HTTP/1 or HTTP/2, each exchange judged on its own. */
  #serve(socket: Socket, scheme: 'http' | 'https', isH2: boolean, firstBytes: Buffer): void {
    const { pipeline, limits, deadlines } = this.#context;
    const raw = this.#request.socket;
    raw.off('close', this.#onEarlyClose);
    raw.off('end', this.#onEarlyEnd);
    const onRequest = (stream: ClientStream): void => {
      if (this.#requests++ === 0 && scheme === 'https')
        this.#context.tls.trustFailures.noteSuccess(this.destination.host, this.agent.id);
      new ExchangeRun(pipeline, this, stream, this.destination).run();
    };
    const onClosed = (error: ProxyError | null): void => {
      if (scheme === 'https' && this.#requests === 0 && error === null) this.#explain('closed_without_request');
      this.#end(null);
    };
    if (isH2) {
      // What is put back is read in a later turn; a flowing socket would give it to nobody before that.
      socket.pause();
      if (firstBytes.length > 0) socket.unshift(firstBytes);
      let failure: ProxyError | null = null;
      this.#http = serveH2(socket, {
        limits,
        scheme,
        deadlines,
        onStream: onRequest,
        onError: (error) => {
          failure = error;
        },
        onClose: () => {
          if (failure === null) onClosed(null);
          else this.#end(failure);
        },
      });
      return;
    }
    this.#http = new H1Connection(
      {
        socket,
        scheme,
        limits,
        deadlines,
        handlers: {
          request: onRequest,
          connect: () => {
            this.#requests++;
            void ExchangeRun.malformed(
              pipeline,
              this,
              new ProtocolError('method_not_supported', 'CONNECT inside a tunnel.'),
            ).then((refusal) => {
              socket.end(connectAnswer(refusal));
              // Nobody reads this connection any more, so nobody would see its end.
              setTimeout(() => raw.destroy(), GOODBYE_MS).unref();
              this.#end(null);
            });
          },
          malformed: (error) => {
            this.#requests++;
            return ExchangeRun.malformed(pipeline, this, error).then((refusal) => connectAnswer(refusal));
          },
          closed: onClosed,
        },
      },
      firstBytes,
    );
    if (socket === raw) socket.resume();
  }

  /** `intercept: false`: judged by CONNECT and SNI alone. The server is dialed first, so that a failure has an answer. */
  #passthrough(): void {
    const { socket } = this.#request;
    // A paused socket does not show that the agent has left.
    const onData = (chunk: Buffer): void => {
      this.#held = Buffer.concat([this.#held, chunk]);
      if (this.#held.length > MAX_SNIFF_BYTES) socket.pause();
    };
    socket.on('data', onData);
    socket.resume();
    this.#dial(
      (server) => {
        socket.off('data', onData);
        socket.pause();
        server.on('error', () => undefined);
        this.#establish();
        this.#readPassthroughHello();
      },
      (error) => this.#refuse(error),
    );
  }

  /** Connects to the destination for bytes that pass unseen. Given up when the tunnel ends first. */
  #dial(onServer: (server: Socket) => void, onError: (error: unknown) => void): void {
    const startedAt = this.#context.pipeline.now();
    this.#dialing = new AbortController();
    this.#context.dialer.dialTcp(this.destination, this.#dialing.signal).then((dialed) => {
      this.#dialing = null;
      this.#connectMs = this.#context.pipeline.now() - startedAt;
      this.#server = dialed.socket;
      this.#serverFacts = dialed;
      if (this.#isConcluded) dialed.socket.destroy();
      else onServer(dialed.socket);
    }, onError);
  }

  #readPassthroughHello(): void {
    const { socket } = this.#request;
    const { deadlines, limits } = this.#context;
    this.deadlineMs = deadlines.now + limits.handshakeMs;
    deadlines.add(this);
    const check = (): boolean => {
      const kind = sniff(this.#held);
      if (kind === 'incomplete') return false;
      if (kind !== 'tls') {
        // Passthrough is for pinned TLS; anything else would be an unseen channel that nobody allowed.
        this.#refuseVerdictSilently(verdictOfCode('raw_not_allowed'));
        return true;
      }
      const result = readHello(this.#held, this.destination);
      if (result.kind === 'incomplete') {
        if (this.#held.length > MAX_SNIFF_BYTES) this.#refuseTls(new ProtocolError('bad_tls'));
        return this.#isConcluded;
      }
      this.sni = result.sni;
      if (result.kind === 'refused') this.#refuseTls(result.error);
      else if (result.sni === null && !result.isIpHost) this.#refuseTls(new ProtocolError('sni_missing'));
      // The name that we read may be a cover for another one, and passthrough is judged by nothing else.
      else if (result.hidesName) this.#refuseTls(new ProtocolError('ech_not_supported'));
      else this.#join(this.#takeHeld());
      return true;
    };
    if (this.#held.length > 0 && check()) return;
    const onData = (chunk: Buffer): void => {
      this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
      if (!check()) return;
      socket.off('data', onData);
    };
    socket.on('data', onData);
    socket.resume();
  }

  /** Neither TLS nor HTTP: only where a rule says so. */
  #raw(): void {
    const { host, port } = this.destination;
    const held = this.#takeHeld();
    const gateVerdict = this.#verdict;
    const policy = this.#context.pipeline.policy();
    const verdict = policy.raw({ agent: this.agent, host, port, timeMs: this.#context.pipeline.wallClock() });
    this.#verdict = verdict;
    this.#policyRevision = policy.revision;
    this.mode = 'raw';
    if (isRefusal(verdict)) {
      this.#refuseVerdictSilently(verdict);
      return;
    }
    if (readRaw(held) === 'readable') {
      this.#refuseVerdictSilently(verdictOfCode('inspection_incomplete'));
      return;
    }
    const { socket } = this.#request;
    socket.pause();
    this.#dial(
      (server) => {
        if (readRaw(held) === 'opaque') this.#join(held);
        else this.#awaitFirstWord(server, held, gateVerdict);
      },
      (error) => this.#end(asProxyError(error)),
    );
  }

  /**
   * Nobody has said anything yet. A server that speaks first speaks neither TLS nor HTTP, and the tunnel is opened; else the first bytes of the agent are held until
   * they are sure to be opaque. What we can look into is looked into as if the agent had not taken its time.
   */
  #awaitFirstWord(server: Socket, first: Buffer, gateVerdict: Verdict | null): void {
    const { socket } = this.#request;
    const { deadlines, limits } = this.#context;
    let held = first;
    const stop = (): void => {
      this.#stopReadingRaw = null;
      deadlines.delete(this);
      socket.off('data', onAgent);
      socket.off('end', onAgentEnd);
      server.off('data', onServer);
      server.off('end', onServerEnd);
      server.off('close', onServerEnd);
    };
    const join = (): void => {
      stop();
      this.#join(held);
    };
    const onServer = (chunk: Buffer): void => {
      server.pause();
      server.unshift(chunk);
      join();
    };
    const onServerEnd = (): void => {
      if (held.length === 0) join();
      else this.#end(new UpstreamError('upstream_reset'));
    };
    const onAgentEnd = (): void => {
      if (held.length === 0) join();
      else this.#end(new ProxyError('client_aborted'));
    };
    const onAgent = (chunk: Buffer): void => {
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      this.deadlineMs = Math.min(this.deadlineMs, deadlines.now + limits.handshakeMs);
      const kind = readRaw(held);
      if (kind === 'incomplete') return;
      if (kind === 'opaque') {
        join();
        return;
      }
      stop();
      server.destroy();
      this.#server = null;
      this.#serverFacts = null;
      this.#verdict = gateVerdict;
      this.mode = 'undecided';
      this.#wasLate = true;
      this.#held = held;
      this.#readFirstBytes();
    };
    this.#stopReadingRaw = stop;
    this.deadlineMs = deadlines.now + (held.length === 0 ? limits.idleMs : limits.handshakeMs);
    deadlines.add(this);
    socket.on('data', onAgent);
    socket.on('end', onAgentEnd);
    server.on('data', onServer);
    server.on('end', onServerEnd);
    server.on('close', onServerEnd);
    socket.resume();
  }

  #join(firstBytes: Buffer): void {
    const { socket } = this.#request;
    const server = this.#server;
    if (server === null) return;
    socket.off('close', this.#onEarlyClose);
    socket.off('end', this.#onEarlyEnd);
    socket.pause();
    if (firstBytes.length > 0) server.write(firstBytes);
    this.#splice = new Splice(socket, server, this.#context.limits, this.#context.deadlines, (error) =>
      this.#end(error),
    );
  }

  #refuse(error: unknown): void {
    const failure = asProxyError(error);
    const kind = codeFacts(failure.code).kind;
    const verdict = kind === 'upstream' && this.#verdict !== null ? this.#verdict : verdictOfCode(failure.code);
    this.#release(refusalOf(failure, this.id, this.destination.host), verdict, failure);
  }

  #refuseVerdict(verdict: Verdict): void {
    this.#release(refusalOfVerdict(verdict, this.id, this.destination.host), verdict, null);
  }

  /** Record on disk, then the answer. */
  #release(refusal: Refusal, verdict: Verdict, error: ProxyError | null): void {
    this.#verdict = verdict;
    const { socket } = this.#request;
    const kind: OutcomeKind = isRefusal(verdict) ? 'denied' : 'failed';
    this.#conclude(kind, verdict, error, true).then(
      () => (this.#isEstablished ? socket.destroy() : this.#request.refuse(refusal)),
      () => socket.destroy(),
    );
  }

  /** The tunnel is open and its bytes are not ours to answer: record, then close. */
  #refuseVerdictSilently(verdict: Verdict): void {
    this.#takeHeld();
    this.#server?.destroy();
    this.#release(refusalOfVerdict(verdict, this.id, this.destination.host), verdict, null);
  }

  #refuseTls(error: ProxyError): void {
    this.#takeHeld();
    const { socket } = this.#request;
    this.#server?.destroy();
    const verdict = verdictOfCode(error.code);
    this.#verdict = verdict;
    this.#conclude('denied', verdict, error, true).then(
      () => refuseTls(socket, error),
      () => socket.destroy(),
    );
  }

  /** The end of an admitted tunnel, whatever the reason. */
  #end(error: ProxyError | null): void {
    if (this.#isConcluded) return;
    const verdict = this.#verdict ?? verdictOfCode(error?.code ?? 'internal_error');
    const isDenied = isRefusal(verdict);
    const kind: OutcomeKind = isDenied
      ? 'denied'
      : error === null
        ? 'forwarded'
        : error.code === 'client_aborted'
          ? 'aborted'
          : 'failed';
    const destroy = (): void => {
      if (this.#http !== null && error !== null) {
        if (error.code === 'policy_changed') this.#http.destroy(error);
        else this.#http.drain();
      }
      this.#splice?.destroy(error ?? new ProxyError('client_aborted'));
      this.#server?.destroy();
      if (this.#http === null || error !== null) this.#request.socket.destroy();
    };
    this.#conclude(kind, verdict, error, isDenied).then(destroy, destroy);
  }

  #conclude(kind: OutcomeKind, verdict: Verdict, error: ProxyError | null, durable: boolean): Promise<void> {
    if (this.#isConcluded) return Promise.resolve();
    this.#isConcluded = true;
    this.#stopReadingRaw?.();
    this.#dialing?.abort();
    const { pipeline, counter, tunnels, deadlines } = this.#context;
    deadlines.delete(this);
    tunnels.delete(this.#seat);
    if (this.#isCounted) counter.close(this.agent.id);
    const { socket } = this.#request;
    const event = tunnelEvent(this, pipeline.wallClock(), verdict, kind, error, {
      status: this.via === 'connect' && this.#isEstablished ? 200 : null,
      bytesOut: socket.bytesRead,
      bytesIn: socket.bytesWritten,
      connectMs: this.#connectMs,
      totalMs: pipeline.now() - this.#startedAt,
      server: this.#serverFacts,
      policy: this.#policyRevision,
    });
    const written = pipeline.audit.record(event, durable);
    written.catch((failure: unknown) => {
      this.#context.log.error({ tunnel: this.id, cause: causeOf(failure) }, 'an audit record could not be written');
    });
    return written;
  }
}

const EMPTY = Buffer.alloc(0);
