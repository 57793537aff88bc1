import type { Agent } from '../core/agent.ts';
import type { GateFacts, MessageFacts, RequestFacts } from '../core/facts.ts';

/**
 * Facts in the shape that expressions see. One view is filled and read again and again: decisions are synchronous and never nest.
 * A fact that is not known at a station is `undefined`, and an expression that reads it fails there.
 */
export class FactsView {
  #gate: GateFacts | null = null;
  #request: RequestFacts | null = null;
  #message: MessageFacts | null = null;
  #timeMs: number | undefined;
  #path: string | undefined;
  #protocol: string | undefined;

  /** For the gate and for raw tunnels. */
  fillGate(facts: GateFacts, protocol: string | undefined): this {
    this.#gate = facts;
    this.#request = null;
    this.#message = null;
    this.#timeMs = facts.timeMs;
    this.#path = undefined;
    this.#protocol = protocol;
    return this;
  }

  /** `path` is one reading of the path of the request. */
  fillRequest(facts: RequestFacts, message: MessageFacts | null, path: string): this {
    this.#gate = facts;
    this.#request = facts;
    this.#message = message;
    this.#timeMs = facts.timeMs;
    this.#path = path;
    this.#protocol = facts.layer;
    return this;
  }

  get agent(): AgentView | undefined {
    return this.#gate === null ? undefined : agentView(this.#gate.agent);
  }

  get host(): string | undefined {
    return this.#gate?.host;
  }

  get port(): bigint | undefined {
    return this.#gate === null ? undefined : BigInt(this.#gate.port);
  }

  get now(): Date | undefined {
    return this.#timeMs === undefined ? undefined : new Date(this.#timeMs);
  }

  get protocol(): string | undefined {
    return this.#protocol;
  }

  get scheme(): string | undefined {
    return this.#request?.scheme;
  }

  get method(): string | undefined {
    return this.#request === null ? undefined : methodOf(this.#request);
  }

  get path(): string | undefined {
    return this.#path;
  }

  get query(): string | undefined {
    return this.#request?.query;
  }

  get headers(): StringMap | undefined {
    return this.#request === null ? undefined : mapOf(this.#request.headers);
  }

  get http_version(): string | undefined {
    return this.#request?.httpVersion;
  }

  get grpc(): GrpcView | undefined {
    const grpc = this.#request?.grpc ?? null;
    return grpc === null ? undefined : new GrpcView(grpc.service, grpc.method);
  }

  get message(): MessageView | undefined {
    return this.#message === null ? undefined : new MessageView(this.#message);
  }
}

/** Method as rules see it: the CONNECT of a WebSocket over HTTP/2 (RFC 8441) is the GET of one over HTTP/1.1. */
export function methodOf(facts: RequestFacts): string {
  return facts.layer === 'websocket' ? 'GET' : facts.method;
}

type StringMap = Readonly<Record<string, string>> | ReadonlyMap<string, string>;

/** The library tells maps by their `constructor`, which is a fine name for a header: then a real Map has to stand in. */
function mapOf(record: Readonly<Record<string, string>>): StringMap {
  return Object.hasOwn(record, 'constructor') ? new Map(Object.entries(record)) : record;
}

export class AgentView {
  readonly id: string;
  readonly name: string;
  readonly labels: StringMap;
  readonly identified_by: string;

  constructor(agent: Agent) {
    this.id = agent.id;
    this.name = agent.name;
    this.labels = mapOf(agent.labels);
    this.identified_by = agent.identifiedBy;
  }
}

const agentViews = new WeakMap<Agent, AgentView>();

function agentView(agent: Agent): AgentView {
  const known = agentViews.get(agent);
  if (known !== undefined) return known;
  const view = new AgentView(agent);
  agentViews.set(agent, view);
  return view;
}

export class GrpcView {
  readonly service: string;
  readonly method: string;

  constructor(service: string, method: string) {
    this.service = service;
    this.method = method;
  }
}

/** Longest text of a message that expressions may read, in UTF-16 units; a longer one fails them. */
export const MAX_TEXT_LENGTH = 4 * 1024 * 1024;

/** `text` is left out when the message is not text or is too long: reading it fails, `has(message.text)` tells. */
export class MessageView {
  readonly direction: string;
  readonly kind: string;
  readonly size: bigint;
  readonly text: string | undefined;

  constructor(message: MessageFacts) {
    this.direction = message.direction;
    this.kind = message.framing;
    this.size = BigInt(message.size);
    this.text = message.text === null || message.text.length > MAX_TEXT_LENGTH ? undefined : message.text;
  }
}
