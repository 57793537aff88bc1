import { LimitError, ProtocolError } from '../core/errors.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';

/** Whether a `Content-Type` is gRPC over HTTP/2. gRPC-Web has other framing and is plain HTTP to us. */
export function isGrpc(contentType: string | undefined): boolean {
  if (contentType === undefined) return false;
  const type = contentType.split(';', 1)[0]?.trim().toLowerCase() ?? '';
  return type === 'application/grpc' || type.startsWith('application/grpc+');
}

/** Service and method of `/package.Service/Method`, or null when the path has another shape. */
export function parseGrpcPath(path: string): { readonly service: string; readonly method: string } | null {
  const match = /^\/([A-Za-z_][\w.]*)\/([A-Za-z_]\w*)$/.exec(path);
  const service = match?.[1];
  const method = match?.[2];
  return service === undefined || method === undefined ? null : { service, method };
}

export interface GrpcCodecOptions {
  readonly direction: Direction;
  /** Largest message as it is on the wire. */
  readonly maxMessageBytes: number;
}

const PREFIX_BYTES = 5;

/**
 * Cuts a body into length-prefixed messages. A message is held until it is whole and given out with its prefix, byte for byte.
 * Source: gRPC over HTTP/2, "Length-Prefixed-Message"
 */
export class GrpcCodec implements MessageCodec {
  readonly #options: GrpcCodecOptions;
  #chunks: Buffer[] = [];
  #held = 0;
  /** Bytes of the running message with its prefix; null until the prefix is there. */
  #needed: number | null = null;
  #seq = 0;

  constructor(options: GrpcCodecOptions) {
    this.#options = options;
  }

  /** @throws ProtocolError `bad_grpc`; LimitError `message_too_large` */
  push(chunk: Buffer): Message[] {
    const messages: Message[] = [];
    let bytes = chunk;
    while (bytes.length > 0) {
      const want = (this.#needed ?? PREFIX_BYTES) - this.#held;
      const take = bytes.length <= want ? bytes : bytes.subarray(0, want);
      bytes = bytes.subarray(take.length);
      this.#chunks.push(take);
      this.#held += take.length;
      if (take.length < want) break;
      if (this.#needed === null) this.#readPrefix();
      if (this.#needed === this.#held) messages.push(this.#message());
    }
    return messages;
  }

  /** @throws ProtocolError `bad_grpc` when the stream ended inside a message */
  end(): Message[] {
    if (this.#held > 0) throw new ProtocolError('bad_grpc', 'The stream ended inside a message.');
    return [];
  }

  #readPrefix(): void {
    const prefix =
      this.#chunks.length === 1 && this.#chunks[0] !== undefined ? this.#chunks[0] : Buffer.concat(this.#chunks);
    if ((prefix[0] ?? 0) > 1) throw new ProtocolError('bad_grpc', 'The compressed flag is neither 0 nor 1.');
    const length = prefix.readUInt32BE(1);
    if (length > this.#options.maxMessageBytes) throw new LimitError('message_too_large');
    this.#chunks = [prefix];
    this.#needed = PREFIX_BYTES + length;
  }

  #message(): Message {
    const bytes = this.#chunks;
    const size = this.#held - PREFIX_BYTES;
    this.#chunks = [];
    this.#held = 0;
    this.#needed = null;
    return { direction: this.#options.direction, seq: this.#seq++, framing: 'grpc', text: null, size, bytes };
  }
}
