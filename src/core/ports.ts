import type { Agent, ConnectionFacts, Identification, ProxyCredentials } from './agent.ts';
import type { AuditEvent } from './exchange.ts';

/** Where finished tunnels and exchanges go. */
export interface AuditSink {
  /**
   * Writes one record. With `durable` the promise resolves when the record is on disk (fdatasync); without it, when it is queued.
   * @throws (rejects) AuditError `audit_unavailable` when the record cannot be kept: the caller fails closed
   */
  record(event: AuditEvent, durable: boolean): Promise<void>;
  /** False while records cannot be kept; new exchanges are then refused. */
  readonly isHealthy: boolean;
  close(): Promise<void>;
}

/** Who is calling. */
export interface AgentDirectory {
  /** Constant time in the credentials. Never rejects. */
  identify(facts: ConnectionFacts, credentials: ProxyCredentials | null): Promise<Identification>;
  /** True when this listener and source can only be identified by credentials: unauthenticated requests get 407. */
  readonly agents: readonly Agent[];
  /** Whether this directory would still say what `identify` said earlier, perhaps of an older directory: same agent, same labels, by the same unchanged means. */
  isCurrent(agent: Agent): boolean;
}

/** Operational log; the shape of pino's methods that we use. Never given header values, bodies, query strings or credentials. */
export interface Log {
  debug(facts: object, text: string): void;
  info(facts: object, text: string): void;
  warn(facts: object, text: string): void;
  error(facts: object, text: string): void;
}
