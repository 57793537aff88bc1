import type { ProxyError } from './errors.ts';
import type { RawHeaders } from './headers.ts';

/**
 * The two ends of an exchange as the pipeline sees them, the same for HTTP/1.1 and HTTP/2. Plain callbacks instead of Node streams:
 * a body crosses the proxy in one call per chunk, and back-pressure is the return value of `write`.
 */

/** Takes a body. After `end` or `fail` nothing more is called. `data` is never called with an empty chunk. */
export interface BodyConsumer {
  data(chunk: Buffer): void;
  /** A clean end. */
  end(trailers: RawHeaders): void;
  /** The sender died, lied about its length or broke the framing: what came so far is not a whole message. */
  fail(error: ProxyError): void;
}

/** Gives a body. Nothing flows before `start`; chunks that are already here may be delivered synchronously from within `start` or `resume`. */
export interface BodySource {
  /** Announced length in bytes; null when unknown (chunked, h2 without content-length, close-delimited). 0 means no body. */
  readonly length: number | null;
  /** Names in the `Trailer` header do not matter: trailers come with `end`. Called once. */
  start(consumer: BodyConsumer): void;
  pause(): void;
  resume(): void;
  /** The reader lost interest; the consumer is not called again. What follows on the wire is discarded or the stream reset. */
  cancel(): void;
}

/** Where a body goes. */
export interface BodySink {
  /** Returns false when the peer is slower than we are: wait for `onDrain`. Never throws; a dead peer shows through the owner's close event. */
  write(chunk: Buffer): boolean;
  /** A clean end. Trailers are sent where the protocol has room for them. */
  end(trailers: RawHeaders): void;
  /** Cuts the body so that the peer cannot take it for a clean end. */
  abort(error: ProxyError): void;
  onDrain: (() => void) | null;
}

export type HttpVersion = '1.0' | '1.1' | '2';

/**
 * A request head. `method`, `scheme`, `authority` and `path` are what will be judged and sent.
 * For h2, pseudo headers are taken out of `headers`. `host` lines stay in `headers` for h1.
 */
export interface RequestHead {
  readonly httpVersion: HttpVersion;
  readonly method: string;
  readonly scheme: 'http' | 'https';
  /** Raw `Host` value or `:authority`, as sent; null if absent. */
  readonly authority: string | null;
  /** Origin-form path with query as sent, or `*`. */
  readonly target: string;
  readonly headers: RawHeaders;
  /** `:protocol` of an RFC 8441 extended CONNECT, or the `Upgrade` token of an h1 request that asks `Connection: upgrade`; lower case. */
  readonly upgrade: string | null;
  /** h1: `Expect: 100-continue` was sent and nobody has answered it yet. */
  readonly expectsContinue: boolean;
}

/** A response head; for h2 the `:status` is in `status` and `reason` is empty. */
export interface ResponseHead {
  readonly httpVersion: HttpVersion;
  readonly status: number;
  readonly reason: string;
  readonly headers: RawHeaders;
}

/** Both directions of a connection after an upgrade (101, or 200 to an extended CONNECT). */
export interface RawDuplex {
  readonly source: BodySource;
  readonly sink: BodySink;
}

/** The agent's side of one exchange; made by `proxy/h1.ts` and `proxy/h2.ts`. */
export interface ClientStream {
  readonly request: RequestHead;
  readonly body: BodySource;
  /** Sends a 1xx head other than 101. Ignored where the client cannot take it (HTTP/1.0). */
  inform(head: ResponseHead): void;
  /**
   * Sends the final head. `length`: body length if known, 0 for no body, null if not known (chunked, or close-delimited for HTTP/1.0).
   * Framing headers in `head.headers` (content-length, transfer-encoding) are ignored but for HEAD and 304, where Content-Length stays as it is.
   */
  respond(head: ResponseHead, length: number | null): BodySink;
  /** Accepts an upgrade: h1 sends `head` with status 101, h2 sends 200. Only when `request.upgrade` is set. */
  upgrade(head: ResponseHead): RawDuplex;
  /** Cuts the exchange without an answer (h1: the connection is destroyed; h2: RST_STREAM with a code that fits the error). */
  abort(error: ProxyError): void;
  /** Called at most once when the agent goes away before its answer was finished. Attach it before the first await. */
  onClose: ((error: ProxyError) => void) | null;
}

/** What an upstream stream reports. `fail` may come at any time before the response body has ended; after it nothing else comes. */
export interface UpstreamHandler {
  informational(head: ResponseHead): void;
  response(head: ResponseHead, body: BodySource): void;
  /** 101 Switching Protocols, or 2xx to an extended CONNECT. */
  upgraded(head: ResponseHead, duplex: RawDuplex): void;
  fail(error: ProxyError): void;
}

/** What is sent upstream. `headers` are end-to-end headers without Host and framing; the connection adds those. */
export interface UpstreamRequest {
  readonly method: string;
  readonly scheme: 'http' | 'https';
  /** `host` or `host:port` as the origin expects it. */
  readonly authority: string;
  readonly target: string;
  readonly headers: RawHeaders;
  /** Body length: 0 for no body, null when unknown. */
  readonly length: number | null;
  readonly upgrade: string | null;
  /** Whether the agent waits for 100 Continue: the `Expect` header is passed on. */
  readonly expectsContinue: boolean;
  /** `te: trailers` was sent by the agent (gRPC needs it to reach h2 servers). */
  readonly wantsTrailers: boolean;
}

/** One running request on an upstream connection. */
export interface UpstreamStream {
  readonly body: BodySink;
  /** Gives up: h1 destroys the connection, h2 resets the stream. No more handler calls. */
  abort(): void;
  /** True when the connection had served other requests before: a failure before the first response byte may be a stale connection. */
  readonly reused: boolean;
  /** True when bytes of the answer have arrived: sending the request again could do it twice. */
  sawBytes(): boolean;
}
