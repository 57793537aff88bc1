import { once } from 'node:events';
import grpc from '@grpc/grpc-js';
import type { CallOptions, ChannelOptions, Metadata, StatusObject } from '@grpc/grpc-js';
import { ECHO_SERVICE } from './grpc-server.ts';
import type { TestProxy } from './proxy.ts';
import { within } from './waiting.ts';

export type EchoMethod = keyof typeof ECHO_SERVICE;

/** How a call ended, and all that came before. */
export interface GrpcOutcome {
  readonly code: grpc.status;
  readonly details: string;
  readonly messages: readonly Buffer[];
  /** Initial metadata; null when there was none (trailers only). */
  readonly head: Metadata | null;
  readonly trailer: Metadata;
}

export interface GrpcCall {
  readonly stream: grpc.ClientDuplexStream<Buffer, Buffer>;
  readonly messages: readonly Buffer[];
  /** Resolves when the call is over and its messages are read, with whatever status. */
  readonly outcome: Promise<GrpcOutcome>;
}

export interface GrpcClient {
  readonly client: grpc.Client;
  /** Any call at all: on the wire all four types are streams. */
  open(
    method: EchoMethod | `/${string}`,
    metadata?: Readonly<Record<string, string | Buffer>>,
    options?: CallOptions,
  ): GrpcCall;
  /** Sends these messages, ends the request, waits for the end. */
  call(
    method: EchoMethod | `/${string}`,
    messages: readonly (string | Buffer)[],
    metadata?: Readonly<Record<string, string | Buffer>>,
    options?: CallOptions,
  ): Promise<GrpcOutcome>;
  close(): void;
}

/**
 * A channel of the official client, which finds the proxy in its environment variable. The variable is there only while the channel is made.
 * @param target `host:port`; insecure, with prior knowledge, when `isSecure` is false
 */
export function grpcThrough(
  proxy: Pick<TestProxy, 'port' | 'ca'>,
  target: string,
  options: { readonly isSecure?: boolean; readonly channel?: ChannelOptions } = {},
): GrpcClient {
  const before = { grpc_proxy: process.env['grpc_proxy'], no_grpc_proxy: process.env['no_grpc_proxy'] };
  Object.assign(process.env, { grpc_proxy: `http://127.0.0.1:${proxy.port}`, no_grpc_proxy: 'nothing.invalid' });
  const credentials =
    options.isSecure === false ? grpc.credentials.createInsecure() : grpc.credentials.createSsl(Buffer.from(proxy.ca));
  let client: grpc.Client;
  try {
    client = new grpc.Client(target, credentials, {
      // Channels of one target would share their connection, those of the test before included.
      'grpc.use_local_subchannel_pool': 1,
      'grpc.max_metadata_size': 256 * 1024,
      'grpc.enable_retries': 0,
      ...options.channel,
    });
  } finally {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
    }
  }
  const open: GrpcClient['open'] = (method, metadata = {}, callOptions = {}) => {
    const path = method.startsWith('/') ? method : ECHO_SERVICE[method as EchoMethod].path;
    const sent = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata)) sent.add(key, value);
    const stream = client.makeBidiStreamRequest(path, identity, identity, sent, callOptions);
    const messages: Buffer[] = [];
    let head: Metadata | null = null;
    stream.on('metadata', (received: Metadata) => (head = received));
    stream.on('data', (message: Buffer) => messages.push(message));
    // The status says the same.
    stream.on('error', () => undefined);
    const status = new Promise<StatusObject>((resolve) => stream.on('status', resolve));
    const outcome = status.then(async ({ code, details, metadata: trailer }) => {
      if (code === grpc.status.OK && !stream.readableEnded) await once(stream, 'end');
      return { code, details, messages, head, trailer };
    });
    return { stream, messages, outcome };
  };
  return {
    client,
    open,
    call: (method, messages, metadata, callOptions) => {
      const { stream, outcome } = open(method, metadata, callOptions);
      for (const message of messages) stream.write(Buffer.from(message));
      stream.end();
      return within(`the end of ${method}`, outcome);
    },
    close: () => client.close(),
  };
}

const identity = (bytes: Buffer): Buffer => bytes;
