import { randomBytes } from 'node:crypto';
import type { ProxyError } from '../core/errors.ts';
import { ProtocolError, UpstreamError } from '../core/errors.ts';
import type { Policy, RequestFacts } from '../core/facts.ts';
import { headerValue, headerValues, withoutHeaders } from '../core/headers.ts';
import type { RawHeaders } from '../core/headers.ts';
import type { Direction } from '../core/message.ts';
import type { Limits } from '../core/settings.ts';
import type { BodySink, RawDuplex, RequestHead, ResponseHead } from '../core/stream.ts';
import type { Verdict } from '../core/verdict.ts';
import { WebSocketReader, acceptOf, encodeClose, isKey } from '../protocols/websocket-message.ts';
import type { WsEvent } from '../protocols/websocket-message.ts';
import { isRefusal, verdictOfCode } from './judge.ts';
import { Pump } from './pump.ts';
import type { Stage } from './pump.ts';
import { refusalOf, refusalOfVerdict, webSocketClose } from './respond.ts';

const HANDSHAKE_ONLY: ReadonlySet<string> = new Set([
  'sec-websocket-extensions',
  'sec-websocket-key',
  'sec-websocket-version',
]);
const ACCEPT_ONLY: ReadonlySet<string> = new Set(['sec-websocket-accept', 'sec-websocket-extensions']);

/**
 * Headers of the upgrade request to the server. Extensions are not offered: a compressed message would have to be inflated to be judged, and inflating what
 * an attacker sends is a way to be bombed. Over h2 (RFC 8441) there is no key; one is made.
 * @throws ProtocolError `bad_websocket`
 */
export function upstreamHandshake(request: RequestHead, headers: RawHeaders): { headers: string[]; accept: string } {
  // It would have to be told from the frames behind it, by us and by the server in the same way.
  if (hasBody(request.headers)) throw new ProtocolError('bad_websocket', 'The upgrade request has a body.');
  const kept = withoutHeaders(headers, HANDSHAKE_ONLY);
  let key: string;
  if (request.httpVersion === '2') key = randomBytes(16).toString('base64');
  else {
    if (request.method !== 'GET') throw new ProtocolError('bad_websocket', 'The upgrade request is not a GET.');
    const keys = headerValues(headers, 'sec-websocket-key');
    key = keys[0] ?? '';
    if (keys.length !== 1 || !isKey(key))
      throw new ProtocolError('bad_websocket', 'Sec-WebSocket-Key is missing or malformed.');
    if (headerValue(headers, 'sec-websocket-version')?.trim() !== '13')
      throw new ProtocolError('bad_websocket', 'Sec-WebSocket-Version is not 13.');
  }
  kept.push('Sec-WebSocket-Version', '13', 'Sec-WebSocket-Key', key);
  return { headers: kept, accept: acceptOf(key) };
}

function hasBody(headers: RawHeaders): boolean {
  return (
    headerValues(headers, 'transfer-encoding').length > 0 ||
    headerValues(headers, 'content-length').some((value) => Number(value) !== 0)
  );
}

export interface WebSocketBridgeOptions {
  /** The policy in force now; read for each message. */
  policy(): Policy;
  readonly facts: RequestFacts;
  readonly limits: Limits;
  readonly request: RequestHead;
  /** The server's 101, end-to-end headers only. */
  readonly response: ResponseHead;
  readonly expectedAccept: string | null;
  readonly server: RawDuplex;
  /** Sends the agent its 101 or 200. */
  acceptClient(head: ResponseHead): RawDuplex;
  ended(): void;
  failed(error: ProxyError): void;
  denied(verdict: Verdict): Promise<void>;
}

/** Both directions of an open WebSocket, message by message. */
export class WebSocketBridge {
  readonly #options: WebSocketBridgeOptions;
  readonly #client: RawDuplex;
  readonly #out: Side;
  readonly #in: Side;
  #isOver = false;
  #open = 2;

  /** @throws UpstreamError `upstream_upgrade_failed` when the server's answer does not fit; nothing has been sent to the agent then */
  constructor(options: WebSocketBridgeOptions) {
    this.#options = options;
    const { response, request, expectedAccept } = options;
    const accepts = headerValues(response.headers, 'sec-websocket-accept');
    if (accepts.length !== 1 || accepts[0]?.trim() !== expectedAccept) {
      throw new UpstreamError('upstream_upgrade_failed', 'Sec-WebSocket-Accept is wrong.');
    }
    if (headerValues(response.headers, 'sec-websocket-extensions').some((value) => value.trim() !== '')) {
      throw new UpstreamError('upstream_upgrade_failed', 'The server chose an extension that was not offered.');
    }
    checkSubprotocol(request.headers, response.headers);
    const headers = withoutHeaders(response.headers, ACCEPT_ONLY);
    const key = headerValue(request.headers, 'sec-websocket-key');
    if (request.httpVersion !== '2' && key !== undefined) headers.push('Sec-WebSocket-Accept', acceptOf(key));
    this.#client = options.acceptClient({ ...response, headers });
    this.#out = this.#side('request', this.#client, options.server.sink);
    this.#in = this.#side('response', options.server, this.#client.sink);
    this.#out.pump.start();
    this.#in.pump.start();
  }

  get bytesOut(): number {
    return this.#out.pump.bytes;
  }

  get bytesIn(): number {
    return this.#in.pump.bytes;
  }

  get messagesOut(): number {
    return this.#out.stage.messages;
  }

  get messagesIn(): number {
    return this.#in.stage.messages;
  }

  /** Ends both sides with a close code that fits the verdict; the record is on disk before. */
  deny(verdict: Verdict): void {
    if (this.#isOver) return;
    this.#stop();
    const { code, reason } = webSocketClose(refusalOfVerdict(verdict, ''));
    const close = (): void => this.#close(code, reason);
    this.#options.denied(verdict).then(close, close);
  }

  /** Ends both sides because something broke. The owner has concluded. */
  fail(error: ProxyError): void {
    if (this.#isOver) return;
    this.#stop();
    const { code, reason } = webSocketClose(refusalOf(error, ''));
    this.#close(code, reason);
  }

  #stop(): void {
    this.#isOver = true;
    this.#out.pump.stop();
    this.#in.pump.stop();
  }

  #close(code: number, reason: string): void {
    const { server } = this.#options;
    if (this.#in.stage.mayClose) this.#client.sink.write(encodeClose(code, reason, null));
    this.#client.sink.end([]);
    if (this.#out.stage.mayClose) server.sink.write(encodeClose(code === 1009 ? 1001 : code, '', randomBytes(4)));
    server.sink.end([]);
  }

  #side(direction: Direction, from: RawDuplex, to: BodySink): Side {
    const { limits, facts } = this.#options;
    const stage = new WebSocketStage(direction, facts, () => this.#options.policy(), limits.websocketMessageBytes);
    const pump = new Pump(from.source, to, stage, {
      ended: () => {
        this.#open--;
        if (this.#open > 0 || this.#isOver) return;
        this.#isOver = true;
        this.#options.ended();
      },
      failed: (error) => {
        if (this.#isOver) return;
        this.#options.failed(error);
      },
      denied: (verdict) => this.deny(verdict),
    });
    return { pump, stage };
  }
}

interface Side {
  readonly pump: Pump;
  readonly stage: WebSocketStage;
}

class WebSocketStage implements Stage {
  messages = 0;
  /** Bytes of an unfinished message or frame have been passed on. */
  #isMidFrame = false;
  /** A close frame has been passed on. */
  #isClosed = false;
  readonly #direction: Direction;
  readonly #facts: RequestFacts;
  readonly #policy: () => Policy;
  readonly #reader: WebSocketReader;
  /** The policy that `inspect` was asked of: rules that read messages may come with a reload. */
  #needsOf: Policy;

  constructor(direction: Direction, facts: RequestFacts, policy: () => Policy, maxMessageBytes: number) {
    this.#direction = direction;
    this.#facts = facts;
    this.#policy = policy;
    this.#needsOf = policy();
    this.#reader = new WebSocketReader({
      role: direction === 'request' ? 'client' : 'server',
      maxMessageBytes,
      inspect: this.#needsOf.needsMessages(facts),
    });
  }

  /** A close frame of ours can follow: behind half a message it would be read as payload, and nothing follows a close frame. */
  get mayClose(): boolean {
    return !this.#isMidFrame && !this.#isClosed;
  }

  push(chunk: Buffer, out: (bytes: Buffer) => void): Verdict | null {
    const policy = this.#policy();
    if (policy !== this.#needsOf) {
      this.#needsOf = policy;
      this.#reader.inspect = policy.needsMessages(this.#facts);
      // A rule that came now reads messages: the rest of this one cannot be judged without its beginning.
      if (this.#reader.inspect && this.#reader.isPassing) return POLICY_CHANGED;
    }
    for (const event of this.#reader.push(chunk)) {
      const verdict = this.#judge(event);
      if (verdict !== null) return verdict;
      if (event.kind === 'message') for (const bytes of event.bytes) out(bytes);
      else out(event.bytes);
    }
    return null;
  }

  end(): Verdict | null {
    if (this.#reader.isInside && !this.#reader.isClosed)
      throw new ProtocolError('bad_websocket', 'The stream ended inside a message.');
    return null;
  }

  #judge(event: WsEvent): Verdict | null {
    if (event.kind === 'part') {
      this.#isMidFrame = !event.ends;
      if (event.ends) this.messages++;
      return null;
    }
    if (event.kind === 'close') this.#isClosed = true;
    if (event.kind !== 'message') return null;
    this.messages++;
    const verdict = this.#policy().message(this.#facts, {
      direction: this.#direction,
      framing: event.isText ? 'websocket_text' : 'websocket_binary',
      size: event.size,
      text: event.text,
    });
    return isRefusal(verdict) ? verdict : null;
  }
}

const POLICY_CHANGED = verdictOfCode('policy_changed');

/** The server may choose one of the offered subprotocols, or none (RFC 6455 section 4.1). */
function checkSubprotocol(request: RawHeaders, response: RawHeaders): void {
  const chosen = headerValues(response, 'sec-websocket-protocol');
  if (chosen.length === 0) return;
  const offered = headerValues(request, 'sec-websocket-protocol').flatMap((value) =>
    value.split(',').map((token) => token.trim()),
  );
  const name = chosen[0]?.trim() ?? '';
  if (chosen.length > 1 || !offered.includes(name))
    throw new UpstreamError('upstream_upgrade_failed', 'The server chose a subprotocol that was not offered.');
}
