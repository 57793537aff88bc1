import { createHash } from 'node:crypto';
import grpc from '@grpc/grpc-js';
import type {
  ServerDuplexStream,
  ServerReadableStream,
  ServerUnaryCall,
  ServerWritableStream,
  sendUnaryData,
} from '@grpc/grpc-js';
import { testCa } from './ca.ts';

const identity = (bytes: Buffer): Buffer => bytes;

function method(name: string, requestStream: boolean, responseStream: boolean) {
  return {
    path: `/test.Echo/${name}`,
    requestStream,
    responseStream,
    requestSerialize: identity,
    requestDeserialize: identity,
    responseSerialize: identity,
    responseDeserialize: identity,
  };
}

/** All call types, with bytes as messages: no protoc needed. */
export const ECHO_SERVICE = {
  Unary: method('Unary', false, false),
  Collect: method('Collect', true, false),
  Spread: method('Spread', false, true),
  Chat: method('Chat', true, true),
  Never: method('Never', false, false),
  Fail: method('Fail', false, false),
  Bulk: method('Bulk', false, true),
  Count: method('Count', true, false),
} as const;

/** Size of the messages of `Bulk`. */
export const BULK_MESSAGE_BYTES = 64 * 1024;

export interface GrpcOrigin {
  readonly port: number;
  /** Metadata of every call. */
  readonly calls: readonly { readonly method: string; readonly metadata: Record<string, unknown> }[];
  readonly cancelled: readonly string[];
  /** Messages that `Bulk` has handed to its stream so far. */
  readonly bulkWritten: number;
  /** Lets `Count` calls read that came with `x-hold`. */
  release(): void;
  close(): void;
}

/** A gRPC server for one name; without TLS it expects HTTP/2 with prior knowledge. */
export async function startGrpcOrigin(
  name: string,
  options: { readonly tls?: boolean; readonly server?: grpc.ServerOptions } = {},
): Promise<GrpcOrigin> {
  const calls: { method: string; metadata: Record<string, unknown> }[] = [];
  const cancelled: string[] = [];
  const held = new Set<() => void>();
  let bulkWritten = 0;
  const note = (
    which: string,
    call: { metadata: grpc.Metadata; on(event: 'cancelled', done: () => void): unknown },
  ): void => {
    calls.push({ method: which, metadata: call.metadata.getMap() });
    call.on('cancelled', () => cancelled.push(which));
  };
  const server = new grpc.Server({ 'grpc.max_metadata_size': 256 * 1024, ...options.server });
  server.addService(ECHO_SERVICE, {
    Unary: (call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
      note('Unary', call);
      const head = new grpc.Metadata();
      head.set('x-answered-by', 'origin');
      const size = call.metadata.get('x-want-metadata')[0];
      if (typeof size === 'string') head.set('x-large', 'm'.repeat(Number(size)));
      const trailer = new grpc.Metadata();
      trailer.set('x-trailer', 'at the end');
      for (const key of Object.keys(call.metadata.getMap()).filter((each) => each.startsWith('x-echo'))) {
        for (const value of call.metadata.get(key)) {
          head.add(key, value);
          trailer.add(key, value);
        }
      }
      call.sendMetadata(head);
      done(null, call.request, trailer);
    },
    Collect: (call: ServerReadableStream<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
      note('Collect', call);
      const parts: Buffer[] = [];
      call.on('data', (part: Buffer) => parts.push(part));
      call.on('error', () => undefined);
      call.on('end', () => done(null, Buffer.concat(parts)));
    },
    Spread: (call: ServerWritableStream<Buffer, Buffer>) => {
      note('Spread', call);
      call.on('error', () => undefined);
      for (const character of call.request.toString()) call.write(Buffer.from(character));
      call.end();
    },
    Chat: (call: ServerDuplexStream<Buffer, Buffer>) => {
      note('Chat', call);
      call.on('error', () => undefined);
      call.on('data', (part: Buffer) => call.write(part));
      call.on('end', () => call.end());
    },
    Never: (call: ServerUnaryCall<Buffer, Buffer>) => {
      note('Never', call);
    },
    Fail: (call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
      note('Fail', call);
      done({ code: grpc.status.FAILED_PRECONDITION, details: 'not like this: 100 % sure' });
    },
    Bulk: (call: ServerWritableStream<Buffer, Buffer>) => {
      note('Bulk', call);
      call.on('error', () => undefined);
      const count = Number(call.request.toString());
      let at = 0;
      const more = (): void => {
        while (at < count) {
          const isKeepingUp = call.write(Buffer.alloc(BULK_MESSAGE_BYTES, at++));
          bulkWritten++;
          if (isKeepingUp) continue;
          call.once('drain', more);
          return;
        }
        call.end();
      };
      more();
    },
    Count: (call: ServerReadableStream<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
      note('Count', call);
      const hash = createHash('sha256');
      let bytes = 0;
      call.on('error', () => undefined);
      const read = (): void => {
        call.on('data', (part: Buffer) => {
          bytes += part.length;
          hash.update(part);
        });
        call.on('end', () => done(null, Buffer.from(`${bytes} ${hash.digest('hex')}`)));
      };
      if (call.metadata.get('x-hold').length === 0) read();
      else held.add(read);
    },
  });
  const credentials = options.tls === false ? grpc.ServerCredentials.createInsecure() : await serverCredentials(name);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error === null ? resolve(bound) : reject(error)));
  });
  return {
    port,
    calls,
    cancelled,
    get bulkWritten() {
      return bulkWritten;
    },
    release: () => {
      for (const read of held) read();
      held.clear();
    },
    close: () => server.forceShutdown(),
  };
}

async function serverCredentials(name: string): Promise<grpc.ServerCredentials> {
  const ca = await testCa();
  const leaf = await ca.leaf(name);
  return grpc.ServerCredentials.createSsl(null, [
    { private_key: Buffer.from(leaf.key), cert_chain: Buffer.from(leaf.cert) },
  ]);
}
