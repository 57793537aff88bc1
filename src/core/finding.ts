export type Severity = 'info' | 'low' | 'medium' | 'high' | 'critical';

/** What a detector saw, where. Never the secret itself: `hash` is a keyed fingerprint, `masked` shows the ends only. */
export interface Finding {
  readonly detector: string;
  readonly kind: string;
  readonly severity: Severity;
  /** 0 to 1. */
  readonly confidence: number;
  /** JSON pointer, header name or URL part. */
  readonly field: string;
  readonly hash: string | null;
  readonly masked: string | null;
}
