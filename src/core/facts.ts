import type { Agent } from './agent.ts';
import type { Direction, Framing } from './message.ts';
import type { Layer, Verdict } from './verdict.ts';

/** What is known at the gate: a tunnel, before DNS and before any dial. */
export interface GateFacts {
  readonly agent: Agent;
  /** Canonical host (A-label or IP literal without brackets) and port. */
  readonly host: string;
  readonly port: number;
  /** Epoch milliseconds. Without it, rules that read the time count as undecided at the gate and as failed in raw and passthrough tunnels. */
  readonly timeMs?: number;
}

/** What is known of a request when it is judged. Strings are as sent unless said otherwise. */
export interface RequestFacts extends GateFacts {
  readonly layer: Layer;
  readonly scheme: 'http' | 'https';
  readonly method: string;
  /** Normalized path without query (core/url.ts); matches globs. */
  readonly path: string;
  /** Query without `?`, empty if none. */
  readonly query: string;
  /** Lower-cased names; repeated ones joined with `, `. Built on first use. `proxy-authorization` is never in it. */
  readonly headers: Readonly<Record<string, string>>;
  readonly httpVersion: string;
  /** gRPC service `package.Service` and method, for layer grpc. */
  readonly grpc: { readonly service: string; readonly method: string } | null;
  readonly timeMs: number;
}

/** One message of a stream. */
export interface MessageFacts {
  readonly direction: Direction;
  readonly framing: Framing;
  readonly size: number;
  /** Null when the message is not text. */
  readonly text: string | null;
}

/** Verdict on a tunnel. */
export interface GateVerdict {
  readonly verdict: Verdict;
  /** `intercept`: end TLS and judge each exchange; `passthrough`: an `intercept: false` rule admits the host untouched. */
  readonly mode: 'intercept' | 'passthrough';
}

/** The compiled rules; pure and synchronous. Every method is total: an expression that fails counts as STYLE.md says. */
export interface Policy {
  /** Short hash of everything that was compiled. */
  readonly revision: string;
  readonly ruleCount: number;
  /** Is there any way this host could be allowed for this agent? Deny rules that need nothing but agent, host and port deny here. */
  gate(facts: GateFacts): GateVerdict;
  /** Bytes that are neither TLS nor HTTP. */
  raw(facts: GateFacts): Verdict;
  request(facts: RequestFacts): Verdict;
  /** True when some rule may want to see single messages of this request: then bodies are cut into messages. */
  needsMessages(facts: RequestFacts): boolean;
  message(facts: RequestFacts, message: MessageFacts): Verdict;
}
