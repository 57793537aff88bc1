import type { Policy } from '../core/facts.ts';
import type { AuditSink, Log } from '../core/ports.ts';
import type { Limits } from '../core/settings.ts';
import type { Upstreams } from '../core/upstream.ts';
import type { OpenExchanges } from './open-exchanges.ts';

/** What every exchange needs; one object for the life of the process. */
export interface PipelineContext {
  /** The snapshot in force; read once per tunnel and once per exchange. */
  readonly policy: () => Policy;
  readonly audit: AuditSink;
  readonly upstreams: Upstreams;
  readonly open: OpenExchanges;
  readonly limits: Limits;
  readonly newId: () => string;
  readonly log: Log;
  /** Monotonic milliseconds. */
  readonly now: () => number;
  /** Epoch milliseconds. */
  readonly wallClock: () => number;
}
