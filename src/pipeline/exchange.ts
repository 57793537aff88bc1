import { ProtocolError, ProxyError, UpstreamError, causeOf, codeFacts, asProxyError } from '../core/errors.ts';

import type { AuditEvent, Outcome, OutcomeKind, Recognition, Timings } from '../core/exchange.ts';
import type { Policy } from '../core/facts.ts';
import { endToEndHeaders, headerValues, joinCookies, listTokens } from '../core/headers.ts';
import type {
  BodySink,
  BodySource,
  ClientStream,
  RawDuplex,
  ResponseHead,
  UpstreamHandler,
  UpstreamStream,
} from '../core/stream.ts';
import type { Destination, Tunnel } from '../core/tunnel.ts';
import type { AcquireOptions, Lease, Origin } from '../core/upstream.ts';
import type { Layer, Verdict } from '../core/verdict.ts';
import { formatAuthority } from '../core/url.ts';
import { isGrpc, parseGrpcPath } from '../protocols/grpc.ts';
import type { PipelineContext } from './context.ts';
import { HttpFacts } from './facts.ts';
import { isRefusal, verdictOfCode } from './judge.ts';
import type { Agent } from '../core/agent.ts';
import type { OpenExchange } from './open-exchanges.ts';
import { HeldBody, LazySink, Pump } from './pump.ts';
import { grpcAnswer, httpAnswer, refusalOf, refusalOfVerdict } from './respond.ts';
import type { Refusal } from './respond.ts';
import { requestStage, responseStage } from './stages.ts';
import type { MessageStage, StageOwner } from './stages.ts';
import { checkHeadSize, readTarget } from './target.ts';
import type { Target } from './target.ts';
import { WebSocketBridge, upstreamHandshake } from './websocket.ts';

/** Response headers that would lead the agent around us: another protocol or port for its next requests. */
const DROPPED_RESPONSE_HEADERS: ReadonlySet<string> = new Set(['alt-svc']);
/** Repeating these does the same as doing them once (RFC 9110 section 9.2.2). */
const IDEMPOTENT: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE']);

/**
 * One request and its response, from head to record. The order is this file, top to bottom: open → agree on the target → recognize → judge → connect → send →
 * answer → conclude. Every way out passes `#conclude`, which writes exactly one record.
 */
export class ExchangeRun implements OpenExchange, UpstreamHandler {
  slot = -1;
  readonly id: string;
  readonly agent: Agent;
  readonly #context: PipelineContext;
  readonly #tunnel: Tunnel;
  readonly #client: ClientStream;
  readonly #expected: Destination | null;
  readonly #startedAt: number;
  readonly #startedAtWall: number;
  readonly #timings: Timings = { queue: null, inspect: null, upstreamConnect: null, firstByte: null, total: null };
  #policy: Policy;
  #body: BodySource;
  #messagesOut = 0;
  #target: Target | null = null;
  #facts: HttpFacts | null = null;
  #recognition: Recognition | null = null;
  #verdict: Verdict | null = null;
  #lease: Lease | null = null;
  #upstream: UpstreamStream | null = null;
  #outbound: Pump | null = null;
  #inbound: Pump | null = null;
  #bridge: WebSocketBridge | null = null;
  #status: number | null = null;
  #hasRetried = false;
  #isRequestSent = false;
  #isAnswered = false;
  #answerSink: BodySink | null = null;
  #isConcluded = false;
  #expectedAccept: string | null = null;
  /** Ends the wait for an upstream connection. */
  #waiting: AbortController | null = null;
  readonly #stageOwner: StageOwner = {
    policy: () => this.#policy,
    hold: (bytes) => this.#context.open.hold(this, bytes),
  };

  constructor(context: PipelineContext, tunnel: Tunnel, client: ClientStream, expected: Destination | null) {
    this.#context = context;
    this.#tunnel = tunnel;
    this.#client = client;
    this.#body = client.body;
    this.#expected = expected;
    this.agent = tunnel.agent;
    this.id = context.newId();
    this.#startedAt = context.now();
    this.#startedAtWall = context.wallClock();
    this.#policy = context.policy();
  }

  /** Runs the exchange. Never throws. */
  run(): void {
    this.#client.onClose = (error) => this.#gone(error);
    if (!this.#context.open.add(this)) {
      this.#refuse(refusalOf(new ProxyError('too_many_streams'), this.id), verdictOfCode('too_many_streams'), null);
      return;
    }
    try {
      this.#judge();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** For heads that could not be parsed: leaves the record, resolves to the refusal to answer with. */
  static malformed(context: PipelineContext, tunnel: Tunnel, error: ProxyError): Promise<Refusal> {
    const run = new ExchangeRun(context, tunnel, NO_CLIENT, tunnel.destination);
    const refusal = refusalOf(error, run.id);
    run.#status = codeFacts(error.code).status;
    return run.#conclude('denied', verdictOfCode(error.code), error, true).then(
      () => refusal,
      () => refusalOf(new ProxyError('audit_unavailable'), run.id),
    );
  }

  /** Refuses a well-formed request before the rules are asked: unknown agent, draining. */
  static refused(context: PipelineContext, tunnel: Tunnel, client: ClientStream, error: ProxyError): void {
    const run = new ExchangeRun(context, tunnel, client, tunnel.destination);
    run.#refuse(refusalOf(error, run.id), verdictOfCode(error.code), error);
  }

  /** The agent went away before anybody knew who it was: there is only the record to leave. */
  static abandoned(context: PipelineContext, tunnel: Tunnel, client: ClientStream): void {
    const run = new ExchangeRun(context, tunnel, client, tunnel.destination);
    void run.#conclude('aborted', verdictOfCode('client_aborted'), new ProxyError('client_aborted'), false);
  }

  rejudge(policy: Policy): void {
    if (this.#facts === null || this.#isConcluded || this.#verdict === null) return;
    const verdict = policy.request(this.#facts);
    this.#policy = policy;
    if (isRefusal(verdict)) this.#cutByPolicy({ ...verdict, reason: 'policy_changed' });
    else if (this.#isUnread() && policy.needsMessages(this.#facts)) {
      // A rule that came now reads what has been passing unread: the rest of it cannot be judged without its beginning.
      this.#cutByPolicy(verdictOfCode('policy_changed'));
    }
  }

  /** A body is under way that nobody looks into. */
  #isUnread(): boolean {
    return [this.#outbound, this.#inbound].some((pump) => pump !== null && !pump.isOver && pump.stage === null);
  }

  cut(error: ProxyError): void {
    this.#fail(error);
  }

  #judge(): void {
    const { request } = this.#client;
    if (request.httpVersion === '2') checkHeadSize(request, this.#context.limits);
    const target = readTarget(request, this.#expected);
    this.#target = target;
    if (this.#expected === null) {
      // Without a tunnel nobody has asked the gate about the host yet.
      const gate = this.#policy.gate({ agent: this.#tunnel.agent, ...target.destination, timeMs: this.#startedAtWall });
      if (isRefusal(gate.verdict)) {
        this.#recognition = {
          protocol: 'http',
          operation: request.method,
          subject: null,
          server: null,
          basis: 'inferred',
        };
        this.#refuse(refusalOfVerdict(gate.verdict, this.id, this.#hostName()), gate.verdict, null);
        return;
      }
    }
    const types = headerValues(request.headers, 'content-type');
    // Servers take the first, the last, or any that they know.
    if (types.length > 1) throw new ProtocolError('bad_header', 'Content-Type is repeated.');
    const saysGrpc = isGrpc(types[0]);
    const grpc = saysGrpc ? parseGrpcPath(target.path) : null;
    if (saysGrpc && grpc === null) throw new ProtocolError('bad_grpc', 'The path is not /package.Service/Method.');
    const layer: Layer = request.upgrade === 'websocket' ? 'websocket' : grpc === null ? 'http' : 'grpc';
    const operation = grpc === null ? request.method : `${grpc.service}/${grpc.method}`;
    this.#recognition = { protocol: layer, operation, subject: null, server: null, basis: 'inferred' };
    if (request.upgrade !== null && layer !== 'websocket') throw new ProtocolError('upgrade_not_supported');

    const facts = new HttpFacts(this.#tunnel.agent, target, request, layer, grpc, this.#startedAtWall);
    this.#facts = facts;
    const verdict = this.#policy.request(facts);
    this.#timings.inspect = this.#context.now() - this.#startedAt;
    this.#verdict = verdict;
    if (isRefusal(verdict)) {
      this.#refuse(refusalOfVerdict(verdict, this.id, this.#hostName()), verdict, null);
      return;
    }
    if (!this.#context.audit.isHealthy) {
      this.#refuse(refusalOf(new ProxyError('audit_unavailable'), this.id), verdictOfCode('audit_unavailable'), null);
      return;
    }
    if (layer === 'http' && this.#body.length !== 0) {
      const stage = requestStage(this.#stageOwner, facts, request, this.#context.limits);
      if (stage !== null) {
        this.#readWhole(stage);
        return;
      }
    }
    this.#connect(false);
  }

  /** A rule reads the request body: it is judged whole before anything is dialed. */
  #readWhole(stage: MessageStage): void {
    const held = new HeldBody();
    const { request } = this.#client;
    this.#outbound = new Pump(this.#body, held.sink, stage, {
      ended: () => {
        this.#body = held;
        this.#outbound = null;
        this.#messagesOut = stage.messages;
        this.#connect(false);
      },
      failed: (error) => this.#fail(error),
      denied: (verdict) => this.#deny(verdict),
    });
    if (request.expectsContinue)
      this.#client.inform({ httpVersion: '1.1', status: 100, reason: 'Continue', headers: [] });
    this.#outbound.start();
  }

  #connect(fresh: boolean): void {
    const target = this.#target;
    if (target === null || this.#recognition === null) return;
    const { request } = this.#client;
    const layer = this.#recognition.protocol;
    const origin: Origin = {
      agentId: this.agent.id,
      scheme: target.scheme,
      host: target.destination.host,
      port: target.destination.port,
    };
    const isH2 = request.httpVersion === '2';
    const options: AcquireOptions =
      layer === 'websocket'
        ? { prefer: 'http/1.1', only: true, fresh }
        : layer === 'grpc'
          ? { prefer: 'h2', only: true, fresh }
          : { prefer: isH2 && target.scheme === 'https' ? 'h2' : 'http/1.1', only: false, fresh };
    const ready = this.#context.upstreams.tryAcquire(origin, options);
    if (ready !== null) {
      this.#send(ready);
      return;
    }
    const startedAt = this.#context.now();
    this.#waiting = new AbortController();
    this.#context.upstreams.acquire(origin, options, this.#waiting.signal).then(
      (lease) => {
        this.#waiting = null;
        this.#timings.upstreamConnect = this.#context.now() - startedAt;
        if (this.#isConcluded) lease.release();
        else this.#send(lease);
      },
      (error: unknown) => {
        this.#timings.upstreamConnect = this.#context.now() - startedAt;
        this.#fail(error);
      },
    );
  }

  #send(lease: Lease): void {
    const target = this.#target;
    if (target === null) return;
    this.#lease = lease;
    const { request } = this.#client;
    const body = this.#body;
    const isHeld = body instanceof HeldBody;
    try {
      const isUpgrade = request.upgrade !== null;
      let headers = endToEndHeaders(request.headers);
      if (request.httpVersion === '2' && lease.facts.alpn === 'http/1.1') headers = joinCookies(headers);
      if (isUpgrade) {
        const handshake = upstreamHandshake(request, headers);
        headers = handshake.headers;
        this.#expectedAccept = handshake.accept;
      }
      this.#upstream = lease.request(
        {
          method: isUpgrade ? 'GET' : request.method,
          scheme: target.scheme,
          authority: formatAuthority(target.destination, target.scheme === 'https' ? 443 : 80),
          target: target.target,
          headers,
          length: isUpgrade ? 0 : body.length,
          upgrade: request.upgrade,
          expectsContinue: request.expectsContinue && !isHeld,
          wantsTrailers: listTokens(request.headers, 'te').includes('trailers'),
        },
        this,
      );
      if (isUpgrade || body.length === 0) {
        this.#isRequestSent = true;
        this.#upstream.body.end([]);
        return;
      }
    } catch (error) {
      lease.release();
      this.#fail(error);
      return;
    }
    const stage =
      this.#facts === null || isHeld
        ? null
        : requestStage(this.#stageOwner, this.#facts, request, this.#context.limits);
    this.#outbound = new Pump(body, this.#upstream.body, stage, {
      ended: () => {
        this.#isRequestSent = true;
      },
      failed: (error) => this.#fail(error),
      denied: (verdict) => this.#deny(verdict),
    });
    this.#outbound.start();
  }

  // UpstreamHandler

  informational(head: ResponseHead): void {
    if (this.#isConcluded || this.#isAnswered) return;
    this.#client.inform({ ...head, headers: endToEndHeaders(head.headers, DROPPED_RESPONSE_HEADERS) });
  }

  response(head: ResponseHead, body: BodySource): void {
    if (this.#isConcluded) {
      body.cancel();
      return;
    }
    this.#timings.firstByte = this.#context.now() - this.#startedAt;
    this.#status = head.status;
    const out: ResponseHead = { ...head, headers: endToEndHeaders(head.headers, DROPPED_RESPONSE_HEADERS) };
    let stage;
    try {
      stage = this.#facts === null ? null : responseStage(this.#stageOwner, this.#facts, out, this.#context.limits);
    } catch (error) {
      body.cancel();
      this.#fail(error);
      return;
    }
    const open = (): BodySink => {
      this.#isAnswered = true;
      return (this.#answerSink = this.#client.respond(out, body.length));
    };
    // While a rule still reads the whole answer, a denial can take its place: the head waits.
    const sink = stage?.holdsAll === true ? new LazySink(open) : open();
    this.#inbound = new Pump(body, sink, stage, {
      ended: () => this.#finished(),
      failed: (error) => this.#fail(error),
      denied: (verdict) => this.#deny(verdict),
    });
    this.#inbound.start();
  }

  upgraded(head: ResponseHead, duplex: RawDuplex): void {
    if (this.#isConcluded || this.#facts === null) {
      duplex.sink.abort(new ProxyError('client_aborted'));
      return;
    }
    this.#timings.firstByte = this.#context.now() - this.#startedAt;
    try {
      const headers = endToEndHeaders(head.headers, DROPPED_RESPONSE_HEADERS);
      this.#bridge = new WebSocketBridge({
        policy: () => this.#policy,
        facts: this.#facts,
        limits: this.#context.limits,
        request: this.#client.request,
        response: { ...head, headers },
        expectedAccept: this.#expectedAccept,
        server: duplex,
        acceptClient: (accepted) => {
          this.#isAnswered = true;
          this.#status = this.#client.request.httpVersion === '2' ? 200 : 101;
          return this.#client.upgrade(accepted);
        },
        ended: () => this.#finished(),
        failed: (error) => this.#fail(error),
        denied: (verdict) => {
          this.#verdict = verdict;
          return this.#conclude('denied', verdict, null, true);
        },
      });
    } catch (error) {
      duplex.sink.abort(error instanceof ProxyError ? error : new ProxyError('internal_error'));
      this.#fail(error);
    }
  }

  /** From upstream: the answer will not be completed. */
  fail(error: ProxyError): void {
    if (!this.#isAnswered && !this.#isConcluded && this.#mayRetry(error)) {
      this.#hasRetried = true;
      this.#connect(true);
      return;
    }
    this.#fail(error);
  }

  /** A pooled connection may have died of old age at the very moment we used it. Only what cannot have been acted on, or may be repeated, is sent again. */
  #mayRetry(error: ProxyError): boolean {
    if (this.#hasRetried || this.#upstream === null) return false;
    const isUntouched = this.#body.length === 0;
    if (error instanceof UpstreamError && error.isRetrySafe) return isUntouched;
    return (
      this.#upstream.reused &&
      !this.#upstream.sawBytes() &&
      isUntouched &&
      error.code === 'upstream_reset' &&
      IDEMPOTENT.has(this.#client.request.method)
    );
  }

  #finished(): void {
    if (!this.#isRequestSent) {
      // The answer came before the end of the request; nobody needs the rest.
      this.#outbound?.stop();
      this.#upstream?.abort();
    }
    const verdict = this.#verdict ?? verdictOfCode('internal_error');
    void this.#conclude('forwarded', verdict, null, false);
  }

  /** The agent went away. */
  #gone(error: ProxyError): void {
    if (this.#isConcluded) return;
    this.#stop();
    void this.#conclude('aborted', this.#verdict ?? verdictOfCode(error.code), error, false);
  }

  /** A message of the stream was denied. */
  #deny(verdict: Verdict): void {
    if (this.#isConcluded) return;
    this.#verdict = verdict;
    this.#stop();
    if (!this.#isAnswered) this.#refuse(refusalOfVerdict(verdict, this.id, this.#hostName()), verdict, null);
    else this.#cutClient(new ProxyError('message_denied'), verdict);
  }

  #cutByPolicy(verdict: Verdict): void {
    if (this.#bridge !== null) this.#bridge.deny(verdict);
    else this.#deny(verdict);
  }

  /** Something failed: answered with its code if no answer has begun, else the stream is cut so that it cannot look complete. */
  #fail(cause: unknown): void {
    if (this.#isConcluded) return;
    const error = asProxyError(cause);
    if (error.code === 'internal_error') {
      this.#context.log.error(
        { exchange: this.id, cause: causeOf(error.cause), stack: stackOf(error.cause) },
        'an exchange failed unexpectedly',
      );
    }
    this.#stop();
    if (this.#bridge !== null) {
      this.#bridge.fail(error);
      void this.#conclude('failed', this.#verdict ?? verdictOfCode(error.code), error, false);
      return;
    }
    const kind = codeFacts(error.code).kind;
    const isPolicy = kind === 'policy' || kind === 'client' || (kind === 'limit' && this.#lease === null);
    const verdict = isPolicy || this.#verdict === null ? verdictOfCode(error.code) : this.#verdict;
    if (this.#isAnswered) {
      void this.#conclude(isPolicy ? 'denied' : 'failed', verdict, error, isPolicy);
      this.#client.abort(error);
    } else this.#refuse(refusalOf(error, this.id, this.#hostName()), verdict, error);
  }

  #cutClient(error: ProxyError, verdict: Verdict): void {
    const sink = this.#answerSink;
    const cut = (): void => {
      // A gRPC call ends with its status, also when messages have been delivered: the client learns why.
      if (sink !== null && this.#recognition?.protocol === 'grpc')
        sink.end(grpcAnswer(refusalOfVerdict(verdict, this.id, this.#hostName())).trailers);
      else this.#client.abort(error);
    };
    this.#conclude('denied', verdict, null, true).then(cut, cut);
  }

  /** Stops both directions upstream. */
  #stop(): void {
    this.#waiting?.abort();
    this.#outbound?.stop();
    this.#inbound?.stop();
    this.#upstream?.abort();
  }

  /** Record first, on disk; then the answer. */
  #refuse(refusal: Refusal, verdict: Verdict, error: ProxyError | null): void {
    const isGrpcCall = this.#recognition?.protocol === 'grpc';
    const answer = isGrpcCall ? grpcAnswer(refusal) : httpAnswer(refusal);
    this.#isAnswered = true;
    this.#status = answer.status;
    const kind: OutcomeKind = isRefusal(verdict) ? 'denied' : 'failed';
    this.#conclude(kind, verdict, error, true).then(
      () => this.#answer(refusal),
      () => this.#answer(refusalOf(new ProxyError('audit_unavailable'), this.id)),
    );
  }

  #answer(refusal: Refusal): void {
    const { request, body } = this.#client;
    try {
      body.cancel();
      if (this.#recognition?.protocol === 'grpc') {
        const answer = grpcAnswer(refusal);
        this.#client
          .respond({ httpVersion: '2', status: answer.status, reason: 'OK', headers: answer.headers }, 0)
          .end([]);
        return;
      }
      const answer = httpAnswer(refusal);
      const head: ResponseHead = {
        httpVersion: '1.1',
        status: answer.status,
        reason: answer.reason,
        headers: answer.headers,
      };
      const sink = this.#client.respond(head, answer.body.length);
      if (request.method !== 'HEAD') sink.write(answer.body);
      sink.end([]);
    } catch (error) {
      this.#context.log.error({ exchange: this.id, cause: causeOf(error) }, 'a refusal could not be delivered');
      this.#client.abort(new ProxyError('internal_error'));
    }
  }

  /** Exactly one record. With `durable` the promise resolves when it is on disk. */
  #conclude(kind: OutcomeKind, verdict: Verdict, error: ProxyError | null, durable: boolean): Promise<void> {
    if (this.#isConcluded) return Promise.resolve();
    this.#isConcluded = true;
    this.#context.open.delete(this);
    if (!durable || kind !== 'denied') this.#client.onClose = null;
    else this.#client.onClose = IGNORE;
    this.#timings.total = this.#context.now() - this.#startedAt;
    const outcome: Outcome = {
      kind,
      status: this.#status,
      error: error === null ? null : error.code,
      cause: error === null ? null : causeOf(error),
    };
    const written = this.#context.audit.record(this.#event(verdict, outcome), durable);
    written.catch((failure: unknown) => {
      this.#context.log.error({ exchange: this.id, cause: causeOf(failure) }, 'an audit record could not be written');
    });
    return written;
  }

  #hostName(): string {
    return (this.#target?.destination ?? this.#tunnel.destination).host;
  }

  #event(verdict: Verdict, outcome: Outcome): AuditEvent {
    const target = this.#target;
    const destination = target?.destination ?? this.#expected ?? this.#tunnel.destination;
    const facts = this.#lease?.facts;
    const { request } = this.#client;
    return {
      kind: 'exchange',
      timeMs: this.#context.wallClock(),
      startedAtMs: this.#startedAtWall,
      exchange: this.id,
      tunnel: this.#tunnel,
      httpVersion: request.httpVersion,
      method: request.method,
      scheme: target?.scheme ?? request.scheme,
      host: destination.host,
      port: destination.port,
      path: target?.path ?? null,
      hasQuery: target !== null && target.query !== '',
      recognition: this.#recognition,
      verdict,
      outcome,
      findings: verdict.findings,
      bytesOut: this.#bridge?.bytesOut ?? this.#outbound?.bytes ?? 0,
      bytesIn: this.#bridge?.bytesIn ?? this.#inbound?.bytes ?? 0,
      timings: this.#timings,
      upstreamAddress: facts?.address ?? null,
      upstreamPort: facts?.port ?? null,
      upstreamAlpn: facts?.alpn ?? null,
      upstreamTls: facts?.tls ?? null,
      policy: this.#policy.revision,
      messagesOut: this.#bridge?.messagesOut ?? this.#outbound?.stage?.messages ?? this.#messagesOut,
      messagesIn: this.#bridge?.messagesIn ?? this.#inbound?.stage?.messages ?? 0,
    };
  }
}

/** Stands in where there is a record to leave but no stream to answer on. */
const NO_CLIENT: ClientStream = {
  request: {
    httpVersion: '1.1',
    method: '-',
    scheme: 'http',
    authority: null,
    target: '-',
    headers: [],
    upgrade: null,
    expectsContinue: false,
  },
  body: { length: 0, start: () => undefined, pause: () => undefined, resume: () => undefined, cancel: () => undefined },
  inform: () => undefined,
  respond: () => {
    throw new ProxyError('internal_error');
  },
  upgrade: () => {
    throw new ProxyError('internal_error');
  },
  abort: () => undefined,
  onClose: null,
};

const IGNORE = (): void => undefined;

function stackOf(error: unknown): string | undefined {
  return error instanceof Error ? error.stack : undefined;
}
