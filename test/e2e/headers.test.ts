import { beforeAll, describe, expect, it } from 'vitest';
import { closeAfterFile, closeAfterTest } from '../support/closing.ts';
import { h2Through } from '../support/h2-client.ts';
import { startH2Origin } from '../support/h2-server.ts';
import type { H2Origin } from '../support/h2-server.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy } from '../support/proxy.ts';
import { basicLine, proxyClient, secureClient } from '../support/raw-client.ts';
import type { RawClient } from '../support/raw-client.ts';
import { answering, startRawServer } from '../support/raw-server.ts';
import type { RawServer } from '../support/raw-server.ts';
import { valuesOf } from '../support/wire-reader.ts';
import type { WireResponse } from '../support/wire-reader.ts';

const shared = closeAfterFile();
let origin: Origin;
let h2: H2Origin;
let raw: RawServer;
let proxy: TestProxy;
/** What the scripted server answers. */
let script = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';

beforeAll(async () => {
  origin = shared(await startOrigin());
  h2 = shared(await startH2Origin());
  raw = shared(
    await startRawServer({
      script: async (connection) => {
        for (;;) {
          await connection.reader.request(60_000);
          connection.send(script);
        }
      },
    }),
  );
  proxy = shared(
    await startProxy({
      rules: ALLOW_ALL_TEST_HOSTS,
      hosts: { 'h1.test': origin.port, 'plain.test': origin.plainPort, 'h2.test': h2.port, 'raw.test': raw.port },
    }),
  );
});

async function client(host = 'h1.test'): Promise<RawClient> {
  return closeAfterTest(await secureClient(proxy.port, host, { ca: proxy.ca }));
}

/** All that ever came to the scripted server, one character a byte. */
function arrived(): string {
  return Buffer.concat(raw.received).toString('latin1');
}

/** One request to the scripted server: exactly what arrived there. */
async function sent(lines: string): Promise<string> {
  const before = arrived().length;
  script = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
  const response = await (await client('raw.test')).ask(`GET / HTTP/1.1\r\nHost: raw.test\r\n${lines}\r\n`);
  expect(response.status).toBe(200);
  return arrived().slice(before);
}

/** What the agent gets when the server answers like this. */
async function got(response: string, method = 'GET'): Promise<WireResponse> {
  script = response;
  return (await client('raw.test')).ask(`${method} / HTTP/1.1\r\nHost: raw.test\r\n\r\n`, method);
}

describe('request headers', () => {
  it('keep their order, case and duplicates', async () => {
    const response = await (
      await client()
    ).ask(
      'GET /order HTTP/1.1\r\nX-b: 1\r\nhost: h1.test\r\nx-A: 2\r\nX-B: 3\r\nACCEPT: */*\r\nX-b: 4\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n',
    );
    expect(response.status).toBe(200);
    const { rawHeaders } = origin.only('/order');
    const pairs: string[] = [];
    for (let i = 0; i + 1 < rawHeaders.length; i += 2) {
      if (!/^(host|connection)$/i.test(rawHeaders[i] ?? ''))
        pairs.push(`${rawHeaders[i] ?? ''}=${rawHeaders[i + 1] ?? ''}`);
    }
    expect(pairs).toEqual(['X-b=1', 'x-A=2', 'X-B=3', 'ACCEPT=*/*', 'X-b=4', 'Cookie=a=1', 'Cookie=b=2']);
  });

  it.each([
    ['Proxy-Authorization', basicLine('user:word')],
    ['Proxy-Connection', 'Proxy-Connection: keep-alive\r\n'],
    ['Keep-Alive', 'Keep-Alive: timeout=5\r\n'],
    ['TE', 'TE: gzip\r\n'],
    ['HTTP2-Settings', 'Connection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n'],
    ['X-Hop', 'Connection: close, X-Hop\r\nX-Hop: 1\r\n'],
    ['X-Hop', 'Connection: X-Other\r\nConnection: x-hOP\r\nX-Hop: 1\r\n'],
  ])('%s stays on its own connection', async (name, lines) => {
    expect(await sent(lines)).not.toMatch(new RegExp(`^${name}:`, 'im'));
  });

  it('never lets Proxy-Authorization through, wherever it is sent', async () => {
    await (await client()).ask(`GET /auth-inside HTTP/1.1\r\nHost: h1.test\r\n${basicLine('user:word')}\r\n`);
    expect(valuesOf(origin.only('/auth-inside').rawHeaders, 'proxy-authorization')).toEqual([]);
    const plain = closeAfterTest(await proxyClient(proxy.port));
    await plain.ask(
      `GET http://plain.test/auth-absolute HTTP/1.1\r\nHost: plain.test\r\n${basicLine('user:word')}\r\n`,
    );
    expect(valuesOf(origin.only('/auth-absolute').rawHeaders, 'proxy-authorization')).toEqual([]);
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    await over2.ask({ ':path': '/auth-h2', 'proxy-authorization': 'Basic dTp3' });
    expect(h2.requests.find((r) => r.headers[':path'] === '/auth-h2')?.headers['proxy-authorization']).toBeUndefined();
  });

  it('are not stripped of what Connection may not name', async () => {
    const text = await sent(
      'Connection: Host, Content-Length, Authorization, Cookie\r\nAuthorization: x\r\nCookie: a=b\r\n',
    );
    expect(text).toMatch(/^Authorization: x\r$/m);
    expect(text).toMatch(/^Cookie: a=b\r$/m);
    expect(text.match(/^Host:/gim)).toHaveLength(1);
  });

  it('of 20 KB reach the server', async () => {
    const value = 'v'.repeat(20_480);
    const response = await (await client()).ask(`GET /large HTTP/1.1\r\nHost: h1.test\r\nX-Large: ${value}\r\n\r\n`);
    expect(response.status).toBe(200);
    expect(valuesOf(origin.only('/large').rawHeaders, 'x-large')).toEqual([value]);
  });

  it('of 20 KB reach the server over HTTP/2', async () => {
    const value = 'v'.repeat(20_480);
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/large-h2', 'x-large': value });
    expect(answer.status).toBe(200);
    expect(h2.requests.find((r) => r.headers[':path'] === '/large-h2')?.headers['x-large']).toBe(value);
  });

  it('over the limit are refused with 431 and a record', async () => {
    const response = await (
      await client()
    ).ask(`GET / HTTP/1.1\r\nHost: h1.test\r\nX-Large: ${'v'.repeat(70_000)}\r\n\r\n`);
    expect(response.status).toBe(431);
    expect(response.body.toString()).toContain('header_too_large');
    await proxy.waitForRecord((record) => record.kind === 'exchange' && record.reason === 'header_too_large');
  });

  it('that are too many are refused with 431', async () => {
    const response = await (await client()).ask(`GET / HTTP/1.1\r\nHost: h1.test\r\n${'X: y\r\n'.repeat(300)}\r\n`);
    expect(response.status).toBe(431);
    expect(response.body.toString()).toContain('too_many_headers');
  });

  it('with a target that is too long are refused with 414', async () => {
    const response = await (await client()).ask(`GET /${'a'.repeat(20_000)} HTTP/1.1\r\nHost: h1.test\r\n\r\n`);
    expect(response.status).toBe(414);
  });

  it('keep bytes beyond ASCII as they are', async () => {
    expect(await sent('X-Latin: caf\xe9\r\n')).toContain('X-Latin: caf\xe9\r\n');
  });

  it('reveal nothing of the proxy or of the agent to the server', async () => {
    expect(await sent('')).not.toMatch(/^(via|x-forwarded|forwarded|x-subfloor)/im);
  });

  it('carry the same target that was judged, byte for byte', async () => {
    const text = await (async () => {
      const before = arrived().length;
      script = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
      await (await client('raw.test')).ask('GET /A%2fb//c;d=1?q=%7e&x=[1] HTTP/1.1\r\nHost: raw.test\r\n\r\n');
      return arrived().slice(before);
    })();
    expect(text).toMatch(/^GET \/A%2fb\/\/c;d=1\?q=%7e&x=\[1\] HTTP\/1\.1\r\n/);
  });
});

describe('response headers', () => {
  it('keep their order, case and duplicates; several Set-Cookie stay apart', async () => {
    const response = await (await client()).ask('GET /cookies HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    const pairs: string[] = [];
    for (let i = 0; i + 1 < response.rawHeaders.length; i += 2) {
      if (!/^(connection|keep-alive|content-length|date)$/i.test(response.rawHeaders[i] ?? '')) {
        pairs.push(`${response.rawHeaders[i] ?? ''}=${response.rawHeaders[i + 1] ?? ''}`);
      }
    }
    expect(pairs).toEqual([
      'X-First=one',
      'Set-Cookie=a=1; Path=/',
      'x-MiXeD-cAsE=kept',
      'Set-Cookie=b=2; Path=/',
      'X-First=two',
    ]);
  });

  it.each([
    ['Alt-Svc', 'Alt-Svc: h3=":443"; ma=86400\r\n'],
    ['Proxy-Authenticate', 'Proxy-Authenticate: Basic realm="x"\r\n'],
    ['Keep-Alive', 'Keep-Alive: timeout=5\r\n'],
    ['X-Hop', 'Connection: X-Hop\r\nX-Hop: 1\r\n'],
    ['Upgrade', 'Upgrade: h2c\r\n'],
  ])('%s is not for the agent', async (name, lines) => {
    const response = await got(`HTTP/1.1 200 OK\r\n${lines}Content-Length: 2\r\n\r\nok`);
    expect(valuesOf(response.rawHeaders, name)).toEqual([]);
    expect(response.body.toString()).toBe('ok');
  });

  it('lose Alt-Svc over HTTP/2 too, and keep two Set-Cookie', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/cookies' });
    expect(answer.headers['alt-svc']).toBeUndefined();
    expect(answer.headers['set-cookie']).toEqual(['a=1; Path=/', 'b=2; Path=/']);
  });

  it('of 20 KB reach the agent', async () => {
    const response = await (await client()).ask('GET /large-headers HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(valuesOf(response.rawHeaders, 'x-large')[0]).toHaveLength(20_480);
  });

  it('over the limit become a 502 that says so', async () => {
    const response = await (await client()).ask('GET /large-headers?bytes=70000 HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(response.status).toBe(502);
    expect(response.body.toString()).toContain('upstream_header_too_large');
  });

  it('keep the reason phrase, an empty one too', async () => {
    expect((await got('HTTP/1.1 299 Quite Unusual\r\nContent-Length: 0\r\n\r\n')).reason).toBe('Quite Unusual');
    expect((await got('HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n')).status).toBe(200);
  });

  it('of HEAD keep Content-Length, and the connection can be used again', async () => {
    const over1 = await client();
    const head = await over1.ask('HEAD /head HTTP/1.1\r\nHost: h1.test\r\n\r\n', 'HEAD');
    expect(valuesOf(head.rawHeaders, 'content-length')).toEqual(['5']);
    const next = await over1.ask('GET /head HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(next.body.toString()).toBe('hello');
  });

  it('of 304 keep Content-Length as sent and carry no body', async () => {
    const over1 = await client();
    const first = await over1.ask('GET /304 HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(first.status).toBe(304);
    expect(valuesOf(first.rawHeaders, 'content-length')).toEqual(['1234']);
    expect(valuesOf(first.rawHeaders, 'transfer-encoding')).toEqual([]);
    expect((await over1.ask('GET /head HTTP/1.1\r\nHost: h1.test\r\n\r\n')).body.toString()).toBe('hello');
  });

  it('of 204 carry no framing', async () => {
    const over1 = await client();
    const first = await over1.ask('GET /204 HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(first.status).toBe(204);
    expect(valuesOf(first.rawHeaders, 'content-length')).toEqual([]);
    expect(valuesOf(first.rawHeaders, 'transfer-encoding')).toEqual([]);
    expect((await over1.ask('GET /head HTTP/1.1\r\nHost: h1.test\r\n\r\n')).body.toString()).toBe('hello');
  });

  it.each(['/304', '/204', '/head'])('of %s are right over HTTP/2 as well', async (path) => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h1.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': path });
    expect(answer.status).toBe(path === '/head' ? 200 : Number(path.slice(1)));
    expect(answer.resetCode).toBe(0);
    if (path === '/304') expect(answer.headers['content-length']).toBe('1234');
  });
});

describe('trailers', () => {
  it('go to the agent', async () => {
    const response = await (await client()).ask('GET /trailers HTTP/1.1\r\nHost: h1.test\r\nTE: trailers\r\n\r\n');
    expect(response.body.toString()).toBe('body');
    expect(response.rawTrailers).toEqual(['X-Checksum', 'abc', 'X-Other', 'def']);
  });

  it('go to the server', async () => {
    await (
      await client()
    ).ask(
      'POST /trailers-up HTTP/1.1\r\nHost: h1.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 12\r\n\r\n',
    );
    expect(origin.only('/trailers-up').body?.toString()).toBe('body');
    expect(origin.only('/trailers-up').rawTrailers).toEqual(['X-Sum', '12']);
  });

  it('go through HTTP/2 on both sides', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/trailers', te: 'trailers' });
    expect(answer.body.toString()).toBe('body');
    expect(answer.trailers['x-checksum']).toBe('abc');
  });

  it('are translated from HTTP/1.1 to HTTP/2', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h1.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/trailers', te: 'trailers' });
    expect(answer.body.toString()).toBe('body');
    expect(answer.trailers['x-checksum']).toBe('abc');
  });

  it('are translated from HTTP/2 to HTTP/1.1', async () => {
    const response = await (
      await client('h2.test')
    ).ask('GET /trailers HTTP/1.1\r\nHost: h2.test\r\nTE: trailers\r\n\r\n');
    expect(response.body.toString()).toBe('body');
    expect(valuesOf(response.rawTrailers, 'x-checksum')).toEqual(['abc']);
  });

  it.each(['Content-Length: 5', 'Host: denied.test', 'Transfer-Encoding: chunked', 'Authorization: Basic x'])(
    'cannot smuggle %s into the head',
    async (line) => {
      const before = arrived().length;
      script = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
      const response = await (
        await client('raw.test')
      ).ask(`POST / HTTP/1.1\r\nHost: raw.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n${line}\r\n\r\n`);
      expect([200, 400]).toContain(response.status);
      expect(arrived().slice(before)).not.toContain(line);
    },
  );
});

describe('interim answers', () => {
  it('103 Early Hints reach the agent', async () => {
    const response = await (await client()).ask('GET /early-hints HTTP/1.1\r\nHost: h1.test\r\n\r\n');
    expect(response.status).toBe(200);
    expect(response.informational.map((head) => head.status)).toEqual([103]);
    expect(valuesOf(response.informational[0]?.rawHeaders ?? [], 'link')).toEqual(['</style.css>; rel=preload']);
  });

  it('103 Early Hints reach the agent over HTTP/2', async () => {
    const over2 = closeAfterTest(await h2Through(proxy.port, 'h2.test', { ca: proxy.ca }));
    const answer = await over2.ask({ ':path': '/early-hints' });
    expect(answer.informational).toEqual([103]);
    expect(answer.body.toString()).toBe('after hints');
  });

  it('100 Continue comes from the server, not from us', async () => {
    const over1 = await client();
    over1.send('PUT /expects HTTP/1.1\r\nHost: h1.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n');
    const interim = await over1.reader.head();
    expect(interim.start).toContain('100');
    over1.send('body');
    expect((await over1.reader.response()).status).toBe(200);
    const request = origin.only('/expects');
    expect(request.body?.toString()).toBe('body');
    expect(valuesOf(request.rawHeaders, 'expect')).toEqual(['100-continue']);
  });

  it('a server that will not take the body can say so instead of 100', async () => {
    const over1 = await client();
    const response = await over1.ask(
      'PUT /refuse-continue HTTP/1.1\r\nHost: h1.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n',
    );
    expect(response.status).toBe(417);
    expect(response.informational).toEqual([]);
  });

  it('a denied request is refused without its body, whatever it expects', async () => {
    const refused = closeAfterTest(await secureClient(proxy.port, 'h1.test', { ca: proxy.ca }));
    const response = await refused.ask(
      'TRACE /denied-expect HTTP/1.1\r\nHost: h1.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n',
    );
    expect(response.status).toBe(405);
    expect(response.informational).toEqual([]);
  });

  it('an unknown expectation is refused with 417', async () => {
    const response = await (await client()).ask('GET / HTTP/1.1\r\nHost: h1.test\r\nExpect: 200-maybe\r\n\r\n');
    expect(response.status).toBe(417);
  });
});

describe('an answer of the proxy itself', () => {
  it('tells no version or product beyond its header of the exchange', async () => {
    const plain = closeAfterTest(await proxyClient(proxy.port));
    const response = await plain.ask('GET http://other.invalid/ HTTP/1.1\r\nHost: other.invalid\r\n\r\n');
    expect(response.status).toBe(403);
    expect(valuesOf(response.rawHeaders, 'server')).toEqual([]);
    expect(valuesOf(response.rawHeaders, 'cache-control')).toEqual(['no-store']);
  });

  it('to HEAD has a length and no body', async () => {
    const plain = closeAfterTest(await proxyClient(proxy.port));
    const response = await plain.ask('HEAD http://other.invalid/ HTTP/1.1\r\nHost: other.invalid\r\n\r\n', 'HEAD');
    expect(response.status).toBe(403);
    expect(Number(valuesOf(response.rawHeaders, 'content-length')[0])).toBeGreaterThan(0);
    // The next answer starts right behind the head.
    const next = await plain.ask('GET http://plain.test/after-head HTTP/1.1\r\nHost: plain.test\r\n\r\n');
    expect(next.status).toBe(200);
  });
});

describe('a scripted server', () => {
  it('is asked again and again on one connection', async () => {
    const server = closeAfterTest(
      await startRawServer({ script: answering('HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx') }),
    );
    const own = closeAfterTest(await startProxy({ rules: ALLOW_ALL_TEST_HOSTS, hosts: { 'raw.test': server.port } }));
    const over1 = closeAfterTest(await secureClient(own.port, 'raw.test', { ca: own.ca }));
    for (let i = 0; i < 3; i++) expect((await over1.ask('GET / HTTP/1.1\r\nHost: raw.test\r\n\r\n')).status).toBe(200);
    expect(server.connections).toHaveLength(1);
  });
});
