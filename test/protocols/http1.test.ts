import { describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { ProxyError } from '../../src/core/errors.ts';
import { BodyDecoder, encodeLastChunk } from '../../src/protocols/http1-body.ts';
import { HeadCollector, parseRequestHead, parseResponseHead } from '../../src/protocols/http1.ts';

const LIMITS = { headerBytes: 65536, headerCount: 100, targetBytes: 8192 };

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof ProxyError) return error.code;
    throw error;
  }
  return 'accepted';
}

/** Reads one request head and body; bytes are given in the pieces. */
function readRequest(pieces: readonly Buffer[]): {
  method: string;
  target: string;
  headers: readonly string[];
  body: string;
  trailers: readonly string[];
  isDone: boolean;
} {
  const collector = new HeadCollector(LIMITS.headerBytes);
  let decoder: BodyDecoder | null = null;
  let head: ReturnType<typeof parseRequestHead> | null = null;
  const body: Buffer[] = [];
  let trailers: readonly string[] = [];
  let isDone = false;
  const events = {
    data: (chunk: Buffer): void => void body.push(Buffer.from(chunk)),
    end: (found: readonly string[]): void => {
      trailers = found;
      isDone = true;
    },
  };
  for (const piece of pieces) {
    let rest = piece;
    if (head === null) {
      const found = collector.push(piece);
      if (found === null) continue;
      head = parseRequestHead(found.head, LIMITS);
      decoder = new BodyDecoder(head.framing, LIMITS, 'bad_chunk');
      if (decoder.isDone) isDone = true;
      rest = found.rest;
    }
    if (decoder !== null && !decoder.isDone && rest.length > 0) decoder.push(rest, events);
  }
  return {
    method: head?.method ?? '',
    target: head?.target ?? '',
    headers: head?.headers ?? [],
    body: Buffer.concat(body).toString('latin1'),
    trailers,
    isDone,
  };
}

describe('a request head', () => {
  const table: readonly (readonly [string, string, string])[] = [
    ['a plain request', 'GET / HTTP/1.1\r\nHost: a', 'accepted'],
    ['an absolute target', 'GET http://a/ HTTP/1.1\r\nHost: a', 'accepted'],
    ['obs-text in a value', 'GET / HTTP/1.1\r\nX: caf\xe9', 'accepted'],
    ['an empty value', 'GET / HTTP/1.1\r\nX:', 'accepted'],
    ['chunked in capitals', 'POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED', 'accepted'],
    ['two blanks in the request line', 'GET  / HTTP/1.1', 'bad_request_line'],
    ['a tab in the request line', 'GET\t/ HTTP/1.1', 'bad_request_line'],
    ['a blank in the target', 'GET /a b HTTP/1.1', 'bad_request_line'],
    ['no version', 'GET /', 'bad_request_line'],
    ['a lower-case version', 'GET / http/1.1', 'bad_request_line'],
    ['HTTP/2.0 in a line', 'GET / HTTP/2.0', 'http_version'],
    ['HTTP/1.10', 'GET / HTTP/1.10', 'bad_request_line'],
    ['a method with a colon', 'GE:T / HTTP/1.1', 'bad_request_line'],
    ['a target with 8-bit bytes', 'GET /\xff HTTP/1.1', 'bad_request_line'],
    ['a bare LF between headers', 'GET / HTTP/1.1\r\nA: b\nC: d', 'bad_header'],
    ['a bare CR in a value', 'GET / HTTP/1.1\r\nA: b\rC: d', 'bad_header'],
    ['NUL in a value', 'GET / HTTP/1.1\r\nA: b\0', 'bad_header'],
    ['NUL in a name', 'GET / HTTP/1.1\r\nA\0: b', 'bad_header'],
    ['obs-fold', 'GET / HTTP/1.1\r\nA: b\r\n c', 'bad_header'],
    ['obs-fold with a tab', 'GET / HTTP/1.1\r\nA: b\r\n\tc', 'bad_header'],
    ['a blank before the first header', 'GET / HTTP/1.1\r\n A: b', 'bad_header'],
    ['a blank before the colon', 'POST / HTTP/1.1\r\nTransfer-Encoding : chunked', 'bad_header'],
    ['a line without colon', 'GET / HTTP/1.1\r\nfoo', 'bad_header'],
    ['an empty name', 'GET / HTTP/1.1\r\n: b', 'bad_header'],
    ['CL and TE', 'POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked', 'bad_framing'],
    ['TE and CL', 'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4', 'bad_framing'],
    ['two CL that differ', 'POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5', 'bad_framing'],
    ['two CL that agree', 'POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4', 'bad_framing'],
    ['a CL list', 'POST / HTTP/1.1\r\nContent-Length: 4, 4', 'bad_framing'],
    ['CL with a plus', 'POST / HTTP/1.1\r\nContent-Length: +5', 'bad_framing'],
    ['CL with a minus', 'POST / HTTP/1.1\r\nContent-Length: -5', 'bad_framing'],
    ['CL in hex', 'POST / HTTP/1.1\r\nContent-Length: 0x5', 'bad_framing'],
    ['CL with a blank inside', 'POST / HTTP/1.1\r\nContent-Length: 1 2', 'bad_framing'],
    ['CL with a fraction', 'POST / HTTP/1.1\r\nContent-Length: 1.0', 'bad_framing'],
    ['an empty CL', 'POST / HTTP/1.1\r\nContent-Length:', 'bad_framing'],
    ['a CL beyond 2^53', 'POST / HTTP/1.1\r\nContent-Length: 99999999999999999999', 'bad_framing'],
    ['TE xchunked', 'POST / HTTP/1.1\r\nTransfer-Encoding: xchunked', 'bad_framing'],
    ['TE gzip, chunked', 'POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked', 'bad_framing'],
    ['TE chunked, identity', 'POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity', 'bad_framing'],
    ['TE chunked twice', 'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked', 'bad_framing'],
    ['TE in quotes', 'POST / HTTP/1.1\r\nTransfer-Encoding: "chunked"', 'bad_framing'],
    ['TE with a vertical tab', 'POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked', 'bad_header'],
    ['an empty TE', 'POST / HTTP/1.1\r\nTransfer-Encoding:', 'bad_framing'],
    ['TE in HTTP/1.0', 'POST / HTTP/1.0\r\nTransfer-Encoding: chunked', 'bad_framing'],
    ['TE with an underscore', 'POST / HTTP/1.1\r\nTransfer_Encoding: chunked', 'bad_framing'],
    ['CL with an underscore', 'POST / HTTP/1.1\r\nContent_Length: 4', 'bad_framing'],
  ];
  test.each(table)('with %s', (_name, head, expected) => {
    expect(refusal(() => parseRequestHead(head, LIMITS))).toBe(expected);
  });

  test('keeps order, case and duplicates of its headers', () => {
    const head = parseRequestHead('GET / HTTP/1.1\r\nHost: a\r\nx-B: 1\r\nX-a: 2\r\nx-b:  3 \t', LIMITS);
    expect(head.headers).toEqual(['Host', 'a', 'x-B', '1', 'X-a', '2', 'x-b', '3']);
  });

  test('is limited in bytes, lines and target', () => {
    const collector = new HeadCollector(100);
    expect(refusal(() => collector.push(Buffer.alloc(101, 'a')))).toBe('header_too_large');
    expect(refusal(() => parseRequestHead(`GET / HTTP/1.1${'\r\nA: b'.repeat(101)}`, LIMITS))).toBe('too_many_headers');
    expect(refusal(() => parseRequestHead(`GET /${'a'.repeat(9000)} HTTP/1.1`, LIMITS))).toBe('target_too_long');
  });

  test('that ends its lines with LF alone is refused at once, not at the deadline', () => {
    const collector = new HeadCollector(1000);
    expect(refusal(() => collector.push(Buffer.from('GET / HTTP/1.1\n')))).toBe('bad_header');
  });
});

describe('a response head', () => {
  const table: readonly (readonly [string, string, string, string])[] = [
    ['a length', 'GET', 'HTTP/1.1 200 OK\r\nContent-Length: 3', 'length'],
    ['no length', 'GET', 'HTTP/1.1 200 OK', 'close'],
    ['chunked', 'GET', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked', 'chunked'],
    ['HEAD with a length', 'HEAD', 'HTTP/1.1 200 OK\r\nContent-Length: 3', 'none'],
    ['204', 'GET', 'HTTP/1.1 204 No Content', 'none'],
    ['304 with a length', 'GET', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 3', 'none'],
    ['no reason', 'GET', 'HTTP/1.1 200\r\nContent-Length: 0', 'none'],
    ['CL and TE', 'GET', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked', 'upstream_protocol'],
    ['two lengths', 'GET', 'HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4', 'upstream_protocol'],
    ['HTTP/2', 'GET', 'HTTP/2 200 OK', 'upstream_protocol'],
    ['a four-digit status', 'GET', 'HTTP/1.1 2000 OK', 'upstream_protocol'],
    ['a folded header', 'GET', 'HTTP/1.1 200 OK\r\nA: b\r\n c', 'upstream_protocol'],
  ];
  test.each(table)('with %s', (_name, method, head, expected) => {
    let found: string;
    try {
      found = parseResponseHead(head, method, LIMITS).framing.kind;
    } catch (error) {
      found = error instanceof ProxyError ? error.code : 'thrown';
    }
    expect(found).toBe(expected);
  });
});

describe('a chunked body', () => {
  const start = 'POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n';
  const table: readonly (readonly [string, string, string])[] = [
    ['one chunk', '3\r\nabc\r\n0\r\n\r\n', 'abc'],
    ['an extension', '3;x=y\r\nabc\r\n0\r\n\r\n', 'abc'],
    ['trailers', '3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n', 'abc'],
    ['LF after the size', '3\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['LF in an extension', '3;x\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['CR alone in an extension', '3;x\ry\r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['LF after the data', '3\r\nabc\n0\r\n\r\n', 'bad_chunk'],
    ['data longer than its size', '3\r\nabcd\r\n0\r\n\r\n', 'bad_chunk'],
    ['a size with 0x', '0x3\r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['a negative size', '-3\r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['an empty size', '\r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['a blank before the size', ' 3\r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['a blank after the size', '3 \r\nabc\r\n0\r\n\r\n', 'bad_chunk'],
    ['a huge size', 'fffffffffffffffff\r\n', 'bad_chunk'],
    ['a Content-Length trailer', '0\r\nContent-Length: 5\r\n\r\n', 'bad_chunk'],
    ['a Transfer-Encoding trailer', '0\r\nTransfer-Encoding: x\r\n\r\n', 'bad_chunk'],
    ['a Host trailer', '0\r\nHost: x\r\n\r\n', 'bad_chunk'],
    ['a folded trailer', '0\r\nA: b\r\n c\r\n\r\n', 'bad_header'],
    ['a bare LF in the trailers', '0\r\nA: b\n\r\n\r\n', 'bad_header'],
  ];
  test.each(table)('with %s', (_name, body, expected) => {
    let found: string;
    try {
      found = readRequest([Buffer.from(start + body, 'latin1')]).body;
    } catch (error) {
      found = error instanceof ProxyError ? error.code : 'thrown';
    }
    expect(found).toBe(expected);
  });

  test('gives its trailers with the end', () => {
    const read = readRequest([Buffer.from(`${start}1\r\na\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\n`)]);
    expect(read.trailers).toEqual(['X-Sum', '1', 'x-sum', '2']);
  });

  test('written with trailers is read back', () => {
    const read = readRequest([Buffer.from(`${start}${encodeLastChunk(['X-A', '1', 'Content-Length', '9'])}`)]);
    expect(read.trailers).toEqual(['X-A', '1']);
    expect(read.isDone).toBe(true);
  });
});

describe('any chunking of the bytes', () => {
  const body = fc.array(fc.uint8Array({ minLength: 1, maxLength: 40 }), { maxLength: 5 });
  test('gives the same request', () => {
    fc.assert(
      fc.property(body, fc.boolean(), fc.array(fc.nat(200), { maxLength: 12 }), (chunks, isChunked, cuts) => {
        const content = Buffer.concat(chunks);
        const framed = isChunked
          ? Buffer.concat([
              ...chunks.flatMap((chunk) => [
                Buffer.from(`${chunk.length.toString(16)}\r\n`),
                Buffer.from(chunk),
                Buffer.from('\r\n'),
              ]),
              Buffer.from('0\r\nX-T: 1\r\n\r\n'),
            ])
          : content;
        const head = `POST /p HTTP/1.1\r\nHost: a\r\n${isChunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${content.length}`}\r\n\r\n`;
        const bytes = Buffer.concat([Buffer.from(head), framed]);
        const whole = readRequest([bytes]);
        expect(whole.isDone).toBe(true);
        expect(whole.body).toBe(content.toString('latin1'));
        const at = [...new Set(cuts.map((cut) => cut % (bytes.length + 1)))].sort((a, b) => a - b);
        const pieces = [0, ...at]
          .map((from, i) => bytes.subarray(from, at[i] ?? bytes.length))
          .filter((piece) => piece.length > 0);
        expect(readRequest(pieces)).toEqual(whole);
        expect(readRequest([...bytes].map((byte) => Buffer.from([byte])))).toEqual(whole);
      }),
      { numRuns: 200 },
    );
  });

  test('never gives anything but a request or a refusal of ours', () => {
    const token = fc.constantFrom(
      'GET',
      ' ',
      '/',
      'HTTP/1.1',
      '\r\n',
      '\n',
      '\r',
      ':',
      'Host',
      'Content-Length',
      'Transfer-Encoding',
      'chunked',
      '0',
      '5',
      '\0',
      '\t',
      ';',
      'a',
    );
    fc.assert(
      fc.property(fc.array(token, { maxLength: 40 }), (parts) => {
        try {
          readRequest([Buffer.from(`${parts.join('')}\r\n\r\n`, 'latin1')]);
        } catch (error) {
          expect(error).toBeInstanceOf(ProxyError);
        }
      }),
      { numRuns: 2000 },
    );
  });
});
