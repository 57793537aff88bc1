import { ProxyError } from '../core/errors.ts';
import type { Policy, RequestFacts } from '../core/facts.ts';
import { headerValue, listTokens } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';
import type { Limits } from '../core/settings.ts';
import type { RequestHead, ResponseHead } from '../core/stream.ts';
import type { Verdict } from '../core/verdict.ts';
import { GrpcCodec, isGrpc } from '../protocols/grpc.ts';
import { HeldBytes } from '../protocols/held-bytes.ts';
import { SseCodec } from '../protocols/sse.ts';
import { WholeBodyCodec } from '../protocols/whole-body.ts';
import { isRefusal } from './judge.ts';
import type { Stage } from './pump.ts';

/** What a stage needs of its exchange. */
export interface StageOwner {
  /** The policy in force now, read for each message: a stream may live through many. */
  policy(): Policy;
  /** Says that so many more bytes are held until the body ends. @throws LimitError when too much is held already */
  hold(bytes: number): void;
}

/** Pieces are put together up to this size before a whole body keeps them: sent one byte at a time, a body would cost a hundred times its size. */
const GATHER_BYTES = 64 * 1024;

/** Cuts a body into messages and asks the policy about each before its bytes go on. */
export class MessageStage implements Stage {
  messages = 0;
  readonly refusesTrailers: boolean;
  /** Everything is held to the end: nothing has been promised to the other side before the verdict. */
  readonly holdsAll: boolean;
  readonly #codec: MessageCodec;
  readonly #owner: StageOwner;
  readonly #facts: RequestFacts;
  readonly #gathered = new HeldBytes();

  /** @param refusesTrailers no rule can see trailers: a body that rules read may not have any */
  constructor(codec: MessageCodec, owner: StageOwner, facts: RequestFacts, refusesTrailers: boolean) {
    this.#codec = codec;
    this.#owner = owner;
    this.#facts = facts;
    this.refusesTrailers = refusesTrailers;
    this.holdsAll = codec instanceof WholeBodyCodec;
  }

  push(chunk: Buffer, out: (bytes: Buffer) => void): Verdict | null {
    if (!this.holdsAll) return this.#each(this.#codec.push(chunk), out);
    this.#owner.hold(chunk.length);
    this.#gathered.push(chunk);
    return this.#gathered.length < GATHER_BYTES ? null : this.#release(out);
  }

  end(out: (bytes: Buffer) => void): Verdict | null {
    return this.#release(out) ?? this.#each(this.#codec.end(), out);
  }

  #release(out: (bytes: Buffer) => void): Verdict | null {
    for (const piece of this.#gathered.take()) {
      const verdict = this.#each(this.#codec.push(piece), out);
      if (verdict !== null) return verdict;
    }
    return null;
  }

  #each(messages: readonly Message[], out: (bytes: Buffer) => void): Verdict | null {
    for (const message of messages) {
      this.messages++;
      const verdict = this.#owner.policy().message(this.#facts, message);
      if (isRefusal(verdict)) return verdict;
      for (const bytes of message.bytes) out(bytes);
    }
    return null;
  }
}

/** Stage for the request body, or null when nothing looks into it. @throws ProxyError when a rule must see a body that we cannot read */
export function requestStage(
  owner: StageOwner,
  facts: RequestFacts,
  head: RequestHead,
  limits: Limits,
): MessageStage | null {
  return stage(owner, facts, head.headers, 'request', limits);
}

/** Stage for the response body, or null. @throws ProxyError as above */
export function responseStage(
  owner: StageOwner,
  facts: RequestFacts,
  head: ResponseHead,
  limits: Limits,
): MessageStage | null {
  return stage(owner, facts, head.headers, 'response', limits);
}

function stage(
  owner: StageOwner,
  facts: RequestFacts,
  headers: RawHeaders,
  direction: Direction,
  limits: Limits,
): MessageStage | null {
  const contentType = headerValue(headers, 'content-type');
  const isRead = owner.policy().needsMessages(facts);
  const refusesTrailers = isRead && direction === 'request';
  // gRPC is recognized traffic: what does not parse does not pass, whether or not a rule looks at it. A gRPC answer may be plain HTTP (a proxy error page).
  if (facts.layer === 'grpc' && (direction === 'request' || isGrpc(contentType))) {
    const codec = new GrpcCodec({ direction, maxMessageBytes: limits.messageBytes });
    return new MessageStage(codec, owner, facts, refusesTrailers);
  }
  if (!isRead) return null;
  // All lines of the header: behind `identity` there may be another one.
  if (listTokens(headers, 'content-encoding').some((encoding) => encoding !== 'identity')) {
    throw new ProxyError(
      'inspection_incomplete',
      'A rule reads this body, and its content encoding cannot be read yet.',
    );
  }
  // Only answers are streams of events. A request that calls itself one is a body like others: held whole, and bounded.
  const isEvents =
    direction === 'response' && contentType?.split(';', 1)[0]?.trim().toLowerCase() === 'text/event-stream';
  const codec = isEvents
    ? new SseCodec(direction, limits.messageBytes)
    : new WholeBodyCodec(direction, limits.messageBytes);
  return new MessageStage(codec, owner, facts, refusesTrailers);
}
