import { createServer } from 'node:http';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import type { AddressInfo } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import fc from 'fast-check';
import { ProxyError } from '../../src/core/errors.ts';
import { BodyDecoder } from '../../src/protocols/http1-body.ts';
import { HeadCollector, parseRequestHead } from '../../src/protocols/http1.ts';

/**
 * What our parser accepts, llhttp must read the same way: same method, target, headers and body. (The other direction does not hold: we refuse more.)
 */
const LIMITS = { headerBytes: 16384, headerCount: 100, targetBytes: 8192 };

interface Read {
  readonly method: string;
  readonly target: string;
  readonly headers: readonly string[];
  readonly body: string;
}

let server: Server;
let seen: Read[] = [];

beforeAll(async () => {
  server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      seen.push({
        method: request.method ?? '',
        target: request.url ?? '',
        headers: request.rawHeaders,
        body: Buffer.concat(chunks).toString('latin1'),
      });
      response.setHeader('connection', 'close');
      response.end();
    });
    request.on('error', () => undefined);
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
});

afterAll(() => {
  server.closeAllConnections();
  server.close();
});

function readByOurs(bytes: Buffer): Read | null {
  try {
    const found = new HeadCollector(LIMITS.headerBytes).push(bytes);
    if (found === null) return null;
    const head = parseRequestHead(found.head, LIMITS);
    // These never reach a server as they are; Node's server treats them apart, too.
    if (head.method === 'CONNECT' || head.upgrade.length > 0 || head.expect !== null) return null;
    const decoder = new BodyDecoder(head.framing, LIMITS, 'bad_chunk');
    const body: Buffer[] = [];
    let isDone = decoder.isDone;
    if (!isDone) {
      decoder.push(found.rest, {
        data: (chunk) => void body.push(chunk),
        end: () => {
          isDone = true;
        },
      });
    }
    return isDone
      ? {
          method: head.method,
          target: head.target,
          headers: [...head.headers],
          body: Buffer.concat(body).toString('latin1'),
        }
      : null;
  } catch (error) {
    if (error instanceof ProxyError) return null;
    throw error;
  }
}

function readByNode(bytes: Buffer): Promise<Read | null> {
  seen = [];
  return new Promise((resolve) => {
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.on('close', () => resolve(seen[0] ?? null));
    socket.resume();
    socket.end(bytes);
  });
}

const METHODS = fc.constantFrom('GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH');
const TARGET = fc.constantFrom('/', '/a?b=c', '/%2e%2e/x', 'http://h/x', '*', '/a;b', "/!$&'()*+,;=:@");
const NAME = fc.constantFrom(
  'Host',
  'host',
  'X-A',
  'x_a',
  'Content-Length',
  'Transfer-Encoding',
  'Connection',
  'Content-Type',
  'Content_Length',
  'TE',
  'X-A ',
  'Trailer',
);
const VALUE = fc.constantFrom(
  'a',
  '',
  ' a ',
  '5',
  '0',
  '+5',
  '5, 5',
  'chunked',
  'Chunked',
  'identity',
  'gzip, chunked',
  'a\tb',
  'caf\xe9',
  'close',
  'keep-alive',
  '\x0b',
  'a\0',
  'a\nb: c',
  'a\r\n b',
);
const EOL = fc.constantFrom('\r\n', '\r\n', '\r\n', '\r\n', '\n', '\r');
const BODY = fc.constantFrom(
  '',
  'hello',
  '5\r\nhello\r\n0\r\n\r\n',
  '5;x=1\r\nhello\r\n0\r\nA: b\r\n\r\n',
  '5\nhello\r\n0\r\n\r\n',
  '05\r\nhello\r\n000\r\n\r\n',
  '5\r\nhello0\r\n\r\n',
  'GET /smuggled HTTP/1.1\r\n\r\n',
);

test('what we accept, llhttp reads the same way', { timeout: 60_000 }, async () => {
  let accepted = 0;
  await fc.assert(
    fc.asyncProperty(
      METHODS,
      TARGET,
      fc.array(fc.tuple(NAME, VALUE, EOL), { maxLength: 5 }),
      EOL,
      BODY,
      async (method, target, headers, eol, body) => {
        const text = `${method} ${target} HTTP/1.1${eol}Host: a${eol}${headers.map(([name, value, end]) => `${name}: ${value}${end}`).join('')}\r\n${body}`;
        const bytes = Buffer.from(text, 'latin1');
        const ours = readByOurs(bytes);
        if (ours === null) return;
        accepted++;
        const theirs = await readByNode(bytes);
        // A body where llhttp wants none, or a method it does not know, is refused by it: stricter than we is safe.
        if (theirs === null) return;
        expect(theirs).toEqual(ours);
      },
    ),
    { numRuns: 1500 },
  );
  expect(accepted).toBeGreaterThan(20);
});
