export type Direction = 'request' | 'response';

/** What a message is made of on the wire. */
export type Framing = 'chunk' | 'body' | 'sse_event' | 'grpc' | 'websocket_text' | 'websocket_binary' | 'json_rpc';

/** Smallest unit we can judge and rewrite. Codecs cut byte streams into these; the pipeline judges and enacts. */
export interface Message {
  readonly direction: Direction;
  /** Position in its direction of its exchange, from 0. */
  readonly seq: number;
  readonly framing: Framing;
  /** Payload as text when it is text, else null. Decoded at most once. */
  readonly text: string | null;
  /** Payload size in bytes after decoding (decompressed). */
  readonly size: number;
  /** The bytes to forward when nothing is changed, in order. Empty for a message held back. */
  readonly bytes: readonly Buffer[];
}

/** Bytes ↔ messages, sans-IO: no sockets, no clock. The same bytes give the same messages however they are cut. */
export interface MessageCodec {
  /** @throws ProtocolError malformed bytes; LimitError a message over its limit */
  push(chunk: Buffer): Message[];
  /** The stream ended cleanly. @throws ProtocolError when it ended inside a message */
  end(): Message[];
}
