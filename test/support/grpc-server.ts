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

/** All four call types, with bytes as messages: no protoc needed. */
export const ECHO_SERVICE = {
  Unary: method('Unary', false, false),
  Collect: method('Collect', true, false),
  Spread: method('Spread', false, true),
  Chat: method('Chat', true, true),
  Never: method('Never', false, false),
  Fail: method('Fail', false, false),
} as const;

export interface GrpcOrigin {
  readonly port: number;
  /** Metadata of every call. */
  readonly calls: readonly { readonly method: string; readonly metadata: Record<string, unknown> }[];
  readonly cancelled: readonly string[];
  close(): void;
}

/** A gRPC server for one name. */
export async function startGrpcOrigin(name: string): Promise<GrpcOrigin> {
  const ca = await testCa();
  const leaf = await ca.leaf(name);
  const calls: { method: string; metadata: Record<string, unknown> }[] = [];
  const cancelled: string[] = [];
  const note = (
    which: string,
    call: { metadata: grpc.Metadata; on(event: 'cancelled', done: () => void): unknown },
  ): void => {
    calls.push({ method: which, metadata: call.metadata.getMap() });
    call.on('cancelled', () => cancelled.push(which));
  };
  const server = new grpc.Server({ 'grpc.max_metadata_size': 256 * 1024 });
  server.addService(ECHO_SERVICE, {
    Unary: (call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) => {
      note('Unary', call);
      const head = new grpc.Metadata();
      head.set('x-answered-by', 'origin');
      const size = call.metadata.get('x-want-metadata')[0];
      if (typeof size === 'string') head.set('x-large', 'm'.repeat(Number(size)));
      call.sendMetadata(head);
      const trailer = new grpc.Metadata();
      trailer.set('x-trailer', 'at the end');
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
  });
  const credentials = grpc.ServerCredentials.createSsl(null, [
    { private_key: Buffer.from(leaf.key), cert_chain: Buffer.from(leaf.cert) },
  ]);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error === null ? resolve(bound) : reject(error)));
  });
  return { port, calls, cancelled, close: () => server.forceShutdown() };
}
