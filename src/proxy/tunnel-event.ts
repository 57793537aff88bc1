import { ProxyError, causeOf, codeFacts, isCode } from '../core/errors.ts';
import type { AuditEvent, OutcomeKind } from '../core/exchange.ts';
import type { Tunnel } from '../core/tunnel.ts';
import type { Verdict } from '../core/verdict.ts';
import type { PipelineContext } from '../pipeline/context.ts';
import { verdictOfCode } from '../pipeline/judge.ts';
import { refusalOf } from '../pipeline/respond.ts';
import type { Refusal } from '../pipeline/respond.ts';

/** What is known when a tunnel ends. */
export interface TunnelEnd {
  /** Status the client got for its CONNECT; null: that of the code, if CONNECT was how it came. */
  readonly status: number | null;
  readonly bytesOut: number;
  readonly bytesIn: number;
  readonly connectMs: number | null;
  readonly totalMs: number | null;
  readonly server: { readonly address: string; readonly port: number } | null;
  readonly policy: string;
}

export function tunnelEvent(
  tunnel: Tunnel,
  timeMs: number,
  verdict: Verdict,
  kind: OutcomeKind,
  error: ProxyError | null,
  end: TunnelEnd,
): AuditEvent {
  return {
    kind: 'tunnel',
    timeMs,
    startedAtMs: tunnel.openedAtMs,
    exchange: null,
    tunnel,
    httpVersion: null,
    method: tunnel.via === 'connect' ? 'CONNECT' : null,
    scheme: null,
    host: tunnel.destination.host,
    port: tunnel.destination.port,
    path: null,
    hasQuery: false,
    recognition: null,
    verdict,
    outcome: {
      kind,
      status: end.status ?? (tunnel.via === 'connect' ? statusOf(error?.code ?? verdict.reason) : null),
      error: error?.code ?? null,
      cause: error === null ? null : causeOf(error),
    },
    findings: verdict.findings,
    bytesOut: end.bytesOut,
    bytesIn: end.bytesIn,
    timings: { queue: null, inspect: null, upstreamConnect: end.connectMs, firstByte: null, total: end.totalMs },
    upstreamAddress: end.server?.address ?? null,
    upstreamPort: end.server?.port ?? null,
    upstreamAlpn: null,
    upstreamTls: null,
    policy: end.policy,
    messagesOut: 0,
    messagesIn: 0,
  };
}

/** Record of a tunnel that was refused before it could open: a malformed request, an unknown agent. Resolves to what to answer. */
export function recordRefusedTunnel(pipeline: PipelineContext, tunnel: Tunnel, error: ProxyError): Promise<Refusal> {
  const end: TunnelEnd = {
    status: null,
    bytesOut: 0,
    bytesIn: 0,
    connectMs: null,
    totalMs: null,
    server: null,
    policy: pipeline.policy().revision,
  };
  const event = tunnelEvent(tunnel, pipeline.wallClock(), verdictOfCode(error.code), 'denied', error, end);
  return pipeline.audit.record(event, true).then(
    () => refusalOf(error, tunnel.id),
    () => refusalOf(new ProxyError('audit_unavailable'), tunnel.id),
  );
}

function statusOf(reason: string): number | null {
  return isCode(reason) ? codeFacts(reason).status : null;
}
