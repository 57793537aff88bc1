import type { Finding } from './finding.ts';

/** Strictest first. `approve` denies until somebody can answer it. */
export type Action = 'deny' | 'approve' | 'redact' | 'warn' | 'allow';
export type Mode = 'enforce' | 'monitor';

/** The layers that admit traffic each on their own (PRODUCT.md section 3). */
export type Layer = 'http' | 'websocket' | 'grpc' | 'raw' | 'mcp' | 'llm';

/** The policy's answer. `action` is what is done; `judged` is what the rules said before monitor mode softened it. */
export interface Verdict {
  readonly action: Action;
  readonly judged: Action;
  /** Reason code, lower snake case, from core/errors.ts. */
  readonly reason: string;
  /** Ids of the rules that decided, strictest first. */
  readonly rules: readonly string[];
  /** `monitor` when a rule in monitor mode would have been stricter. */
  readonly mode: Mode;
  /** Coaching text for the agent from the deciding rule, if it has one. */
  readonly message: string | null;
  readonly findings: readonly Finding[];
}
