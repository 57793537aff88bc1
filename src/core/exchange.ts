import type { Finding } from './finding.ts';
import type { Tunnel } from './tunnel.ts';
import type { Layer, Verdict } from './verdict.ts';

/** How an exchange or tunnel ended. */
export type OutcomeKind = 'forwarded' | 'redacted' | 'denied' | 'failed' | 'aborted';

export interface Outcome {
  readonly kind: OutcomeKind;
  /** Status code the agent got, or null if it got none. */
  readonly status: number | null;
  /** Error code from core/errors.ts, or null. */
  readonly error: string | null;
  /** Cause for the log and the record: an operating-system or TLS error code or a short text without payload. */
  readonly cause: string | null;
}

/** Milliseconds, fractional, null when the station was not reached. */
export interface Timings {
  queue: number | null;
  inspect: number | null;
  upstreamConnect: number | null;
  firstByte: number | null;
  total: number | null;
}

/** What the traffic is. */
export interface Recognition {
  readonly protocol: Layer;
  /** Method; gRPC `package.Service/Method`; MCP method; LLM operation. */
  readonly operation: string;
  /** Tool, model, resource. */
  readonly subject: string | null;
  /** MCP server or LLM provider. */
  readonly server: string | null;
  readonly basis: 'declared' | 'inferred';
}

/** Facts of one finished tunnel or exchange, flat; `audit/` turns it into OCSF. Never holds query strings, header values or bodies. */
export interface AuditEvent {
  readonly kind: 'tunnel' | 'exchange';
  /** Epoch milliseconds at the end. */
  readonly timeMs: number;
  readonly startedAtMs: number;
  readonly exchange: string | null;
  readonly tunnel: Tunnel;
  /** Version agreed with the agent, e.g. `1.1` or `2`; null for tunnels. */
  readonly httpVersion: string | null;
  readonly method: string | null;
  readonly scheme: string | null;
  readonly host: string;
  readonly port: number;
  /** Path without query. */
  readonly path: string | null;
  /** True when a query string was present (it is not recorded). */
  readonly hasQuery: boolean;
  readonly recognition: Recognition | null;
  readonly verdict: Verdict;
  readonly outcome: Outcome;
  readonly findings: readonly Finding[];
  /** Body or tunnel payload bytes: out = agent to server, in = server to agent. */
  readonly bytesOut: number;
  readonly bytesIn: number;
  readonly timings: Readonly<Timings>;
  /** Address that was dialed, `ip:port` apart. */
  readonly upstreamAddress: string | null;
  readonly upstreamPort: number | null;
  /** Protocol to the server: `h2`, `http/1.1`, or null. */
  readonly upstreamAlpn: string | null;
  readonly upstreamTls: string | null;
  /** Revision hash of the snapshot that judged it. */
  readonly policy: string;
  /** Messages judged in each direction (WebSocket, gRPC). */
  readonly messagesOut: number;
  readonly messagesIn: number;
}
