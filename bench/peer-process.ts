/** Another proxy, in a process of its own. argv: JSON {kind, folder, upstreamCa}. Prints one JSON line {port, ca}. */
import { readFileSync } from 'node:fs';
import { Agent } from 'node:https';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

const { kind, folder, upstreamCa } = JSON.parse(process.argv[2] ?? '{}') as {
  kind: string;
  folder: string;
  upstreamCa: string;
};
const require = createRequire(import.meta.url);
process.on('uncaughtException', () => undefined);
process.on('unhandledRejection', () => undefined);
// Some peers talk on stdout; ours is the first line.
const say = process.stdout.write.bind(process.stdout);
console.log = () => undefined;
console.error = () => undefined;
console.warn = () => undefined;

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

const port = await freePort();
let ca = '';
if (kind === 'hmp' || kind === 'hmp-ka') {
  const { Proxy } = require('http-mitm-proxy') as {
    Proxy: new () => {
      onError(handler: () => void): void;
      listen(options: object, done: (error?: Error) => void): void;
    };
  };
  const proxy = new Proxy();
  proxy.onError(() => undefined);
  const agent = new Agent({ keepAlive: kind === 'hmp-ka', ca: upstreamCa, maxSockets: Infinity });
  await new Promise<void>((resolve, reject) => {
    proxy.listen({ host: '127.0.0.1', port, sslCaDir: folder, keepAlive: true, httpsAgent: agent }, (error) =>
      error === undefined ? resolve() : reject(error),
    );
  });
  ca = readFileSync(join(folder, 'certs', 'ca.pem'), 'utf8');
} else if (kind === 'mockttp') {
  const { getLocal, generateCACertificate } = await import('mockttp');
  const authority = await generateCACertificate();
  const server = getLocal({ https: authority, http2: true, recordTraffic: false });
  await server.start(port);
  await server.forAnyRequest().thenPassThrough({ additionalTrustedCAs: [{ cert: upstreamCa }] });
  ca = authority.cert;
} else if (kind === 'proxy-chain') {
  const { Server } = require('proxy-chain') as { Server: new (options: object) => { listen(): Promise<void> } };
  await new Server({ port, host: '127.0.0.1', verbose: false }).listen();
}
say(`${JSON.stringify({ port, ca })}\n`);
