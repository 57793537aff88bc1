import { LimitError, ProtocolError } from '../core/errors.ts';
import type { Direction, Message, MessageCodec } from '../core/message.ts';
import { HeldBytes } from './held-bytes.ts';

/** Whether a `Content-Type` is gRPC over HTTP/2. gRPC-Web has other framing and is plain HTTP to us. */
export function isGrpc(contentType: string | undefined): boolean {
  if (contentType === undefined) return false;
  const type = contentType.split(';', 1)[0]?.trim().toLowerCase() ?? '';
  return type === 'application/grpc' || type.startsWith('application/grpc+');
}

/** Service and method of `/package.Service/Method`, or null when the path has another shape. */
export function parseGrpcPath(path: string): { readonly service: string; readonly method: string } | null {
  const match = /^\/([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\/([A-Za-z_]\w*)$/.exec(path);
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
 * Compressed messages pass as they are: whoever must read them asks for `text`, which is null.
 * Source: gRPC over HTTP/2, "Length-Prefixed-Message"
 */
export class GrpcCodec implements MessageCodec {
  readonly #options: GrpcCodecOptions;
  readonly #held = new HeldBytes();
  readonly #prefix = Buffer.alloc(PREFIX_BYTES);
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
      const held = this.#held.length;
      if (held === 0 && bytes.length >= PREFIX_BYTES) {
        // The usual case: the whole message is in this chunk.
        const needed = this.#neededBy(bytes);
        this.#needed = needed;
        if (bytes.length >= needed) {
          messages.push(this.#message([bytes.subarray(0, needed)], needed));
          bytes = bytes.subarray(needed);
          continue;
        }
      }
      const take = Math.min(bytes.length, (this.#needed ?? PREFIX_BYTES) - held);
      if (this.#needed === null) bytes.copy(this.#prefix, held, 0, take);
      this.#held.push(bytes.subarray(0, take));
      bytes = bytes.subarray(take);
      if (this.#needed === null && this.#held.length === PREFIX_BYTES) this.#needed = this.#neededBy(this.#prefix);
      if (this.#needed === this.#held.length) messages.push(this.#message(this.#held.take(), this.#needed));
    }
    return messages;
  }

  /** @throws ProtocolError `bad_grpc` when the stream ended inside a message */
  end(): Message[] {
    if (this.#held.length > 0) throw new ProtocolError('bad_grpc', 'The stream ended inside a message.');
    return [];
  }

  #neededBy(prefix: Buffer): number {
    if ((prefix[0] ?? 0) > 1) throw new ProtocolError('bad_grpc', 'The compressed flag is neither 0 nor 1.');
    const length = prefix.readUInt32BE(1);
    if (length > this.#options.maxMessageBytes) throw new LimitError('message_too_large');
    return PREFIX_BYTES + length;
  }

  #message(bytes: readonly Buffer[], needed: number): Message {
    this.#needed = null;
    const size = needed - PREFIX_BYTES;
    return { direction: this.#options.direction, seq: this.#seq++, framing: 'grpc', text: null, size, bytes };
  }
}
