import type { Agent } from '../core/agent.ts';
import type { RequestFacts } from '../core/facts.ts';
import type { RequestHead } from '../core/stream.ts';
import type { Layer } from '../core/verdict.ts';
import type { Target } from './target.ts';

/** Facts of one request. The header map is built on first use: most rules never read it. */
export class HttpFacts implements RequestFacts {
  readonly agent: Agent;
  readonly host: string;
  readonly port: number;
  readonly layer: Layer;
  readonly scheme: 'http' | 'https';
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly httpVersion: string;
  readonly grpc: { readonly service: string; readonly method: string } | null;
  readonly timeMs: number;
  readonly #head: RequestHead;
  #headers: Readonly<Record<string, string>> | null = null;

  constructor(
    agent: Agent,
    target: Target,
    head: RequestHead,
    layer: Layer,
    grpc: { service: string; method: string } | null,
    timeMs: number,
  ) {
    this.agent = agent;
    this.host = target.destination.host;
    this.port = target.destination.port;
    this.layer = layer;
    this.scheme = target.scheme;
    this.method = head.method;
    this.path = target.path;
    this.query = target.query;
    this.httpVersion = head.httpVersion;
    this.grpc = grpc;
    this.timeMs = timeMs;
    this.#head = head;
  }

  get headers(): Readonly<Record<string, string>> {
    if (this.#headers !== null) return this.#headers;
    const map = Object.create(null) as Record<string, string>;
    const raw = this.#head.headers;
    for (let i = 0; i + 1 < raw.length; i += 2) {
      const name = (raw[i] ?? '').toLowerCase();
      if (name === 'proxy-authorization') continue;
      const before = map[name];
      map[name] = before === undefined ? (raw[i + 1] ?? '') : `${before}, ${raw[i + 1] ?? ''}`;
    }
    return (this.#headers = map);
  }
}
