import grpc from '@grpc/grpc-js';
import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { grpcThrough } from '../support/grpc-client.ts';
import type { GrpcClient } from '../support/grpc-client.ts';
import { startGrpcOrigin } from '../support/grpc-server.ts';
import type { GrpcOrigin } from '../support/grpc-server.ts';
import { startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';

const { status } = grpc;

const RULES = `
version: 1
rules:
  - id: calls
    description: gRPC in the clear
    match: { host: plain.test, protocol: grpc }
    action: allow
  - id: no-cleartext
    description: one method must not travel in the clear
    match: { host: plain.test, scheme: http, grpc: { service: test.Echo, method: Fail } }
    action: deny
    message: Use TLS for this.
`;

const shared = closeAfterFile();
let plain: GrpcOrigin;
let proxy: TestProxy;

beforeAll(async () => {
  plain = shared(await startGrpcOrigin('plain.test', { tls: false }));
  proxy = shared(await startProxy({ rules: RULES, hosts: { 'plain.test': plain.port } }));
});

function open(target: string, options?: Parameters<typeof grpcThrough>[2]): GrpcClient {
  return closeAfterTest(grpcThrough(proxy, target, options));
}

describe('an insecure channel inside CONNECT', () => {
  it('reaches a server in the clear, with prior knowledge', async () => {
    const own = open('plain.test:80', { isSecure: false });
    const before = plain.calls.length;
    expect(await own.call('Chat', ['a', 'b'])).toMatchObject({
      code: status.OK,
      messages: [Buffer.from('a'), Buffer.from('b')],
    });
    expect(plain.calls.slice(before).map(({ method }) => method)).toEqual(['Chat']);
    expect(await proxy.waitForRecord((r) => r.host === 'plain.test' && r.operation === 'test.Echo/Chat')).toMatchObject(
      {
        protocol: 'grpc',
        port: 80,
        upstream_alpn: 'h2',
        verdict: 'allow',
      },
    );
  });

  it('is under the rules for its scheme', async () => {
    const own = open('plain.test:80', { isSecure: false });
    const before = plain.calls.length;
    const outcome = await own.call('Fail', ['x']);
    expect(outcome.code).toBe(status.PERMISSION_DENIED);
    expect(outcome.details).toContain('Use TLS for this.');
    expect(plain.calls.length).toBe(before);
  });
});
