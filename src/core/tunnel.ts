import type { Agent } from './agent.ts';

/** How a connection told us where it wants to go. */
export type Via = 'connect' | 'absolute_form' | 'socks5' | 'transparent';

/** Where to. `host` is a lower-case A-label name without trailing dot, or a canonical IP literal without brackets. */
export interface Destination {
  readonly host: string;
  readonly port: number;
}

/** What became of a tunnel after the gate. */
export type TunnelMode = 'intercept' | 'plain' | 'passthrough' | 'raw' | 'undecided';

/** One client connection to one destination (for absolute-form requests: one client connection). */
export interface Tunnel {
  readonly id: string;
  readonly agent: Agent;
  readonly destination: Destination;
  readonly via: Via;
  readonly sourceAddress: string;
  readonly sourcePort: number;
  readonly listener: string;
  readonly openedAtMs: number;
  readonly mode: TunnelMode;
  readonly sni: string | null;
  /** Protocol agreed with the agent: `h2`, `http/1.1`, or null when the client offered none or there is no TLS. */
  readonly alpn: string | null;
  readonly tlsVersion: string | null;
}
