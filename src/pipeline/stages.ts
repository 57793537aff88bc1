import { ProxyError } from '../core/errors.ts';
import type { Policy, RequestFacts } from '../core/facts.ts';
import { headerValue } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';
import type { Limits } from '../core/settings.ts';
import type { RequestHead, ResponseHead } from '../core/stream.ts';
import type { Verdict } from '../core/verdict.ts';
import { GrpcCodec, isGrpc } from '../protocols/grpc.ts';
import { SseCodec } from '../protocols/sse.ts';
import { WholeBodyCodec } from '../protocols/whole-body.ts';
import { isRefusal } from './judge.ts';
import type { Stage } from './pump.ts';

/** Cuts a body into messages and asks the policy about each before its bytes go on. */
export class MessageStage implements Stage {
  messages = 0;
  /** Everything is held to the end: nothing has been promised to the other side before the verdict. */
  readonly holdsAll: boolean;
  readonly #codec: MessageCodec;
  readonly #policy: Policy;
  readonly #facts: RequestFacts;

  constructor(codec: MessageCodec, policy: Policy, facts: RequestFacts) {
    this.#codec = codec;
    this.#policy = policy;
    this.#facts = facts;
    this.holdsAll = codec instanceof WholeBodyCodec;
  }

  push(chunk: Buffer, out: (bytes: Buffer) => void): Verdict | null {
    return this.#each(this.#codec.push(chunk), out);
  }

  end(out: (bytes: Buffer) => void): Verdict | null {
    return this.#each(this.#codec.end(), out);
  }

  #each(messages: readonly Message[], out: (bytes: Buffer) => void): Verdict | null {
    for (const message of messages) {
      this.messages++;
      const verdict = this.#policy.message(this.#facts, message);
      if (isRefusal(verdict)) return verdict;
      for (const bytes of message.bytes) out(bytes);
    }
    return null;
  }
}

/** Stage for the request body, or null when nothing looks into it. @throws ProxyError when a rule must see a body that we cannot read */
export function requestStage(
  policy: Policy,
  facts: RequestFacts,
  head: RequestHead,
  limits: Limits,
): MessageStage | null {
  return stage(policy, facts, head.headers, 'request', limits);
}

/** Stage for the response body, or null. @throws ProxyError as above */
export function responseStage(
  policy: Policy,
  facts: RequestFacts,
  head: ResponseHead,
  limits: Limits,
): MessageStage | null {
  return stage(policy, facts, head.headers, 'response', limits);
}

function stage(
  policy: Policy,
  facts: RequestFacts,
  headers: RawHeaders,
  direction: Direction,
  limits: Limits,
): MessageStage | null {
  const contentType = headerValue(headers, 'content-type');
  // gRPC is recognized traffic: what does not parse does not pass, whether or not a rule looks at it. A gRPC answer may be plain HTTP (a proxy error page).
  if (facts.layer === 'grpc' && (direction === 'request' || isGrpc(contentType))) {
    return new MessageStage(new GrpcCodec({ direction, maxMessageBytes: limits.messageBytes }), policy, facts);
  }
  if (!policy.needsMessages(facts)) return null;
  const encoding = headerValue(headers, 'content-encoding');
  if (encoding !== undefined && encoding.trim().toLowerCase() !== 'identity') {
    throw new ProxyError(
      'inspection_incomplete',
      'A rule reads this body, and its content encoding cannot be read yet.',
    );
  }
  const isEvents = contentType?.split(';', 1)[0]?.trim().toLowerCase() === 'text/event-stream';
  const codec = isEvents
    ? new SseCodec(direction, limits.messageBytes)
    : new WholeBodyCodec(direction, limits.messageBytes);
  return new MessageStage(codec, policy, facts);
}
