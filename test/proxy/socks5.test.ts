import { describe, expect, test } from 'vitest';
import { CODES, type Code } from '../../src/core/errors.ts';
import { Socks5Parser, socksReply, type Socks5Event } from '../../src/proxy/socks5.ts';

const bytes = (...values: readonly (number | string)[]): Buffer =>
  Buffer.concat(
    values.map((value) => (typeof value === 'string' ? Buffer.from(value, 'latin1') : Buffer.from([value]))),
  );
const domain = (name: string, port = 443): Buffer => bytes(5, 1, 0, 3, name.length, name, port >> 8, port & 255);

/** Runs a handshake without credentials up to the request. */
function request(message: Buffer): readonly Socks5Event[] {
  const parser = new Socks5Parser({ requireAuth: false });
  parser.push(bytes(5, 1, 0));
  parser.accept();
  return parser.push(message);
}

describe('the greeting', () => {
  test('without credentials waits for a word about the client before it agrees', () => {
    const parser = new Socks5Parser({ requireAuth: false });
    expect(parser.push(bytes(5, 1, 0))).toEqual([{ kind: 'credentials', credentials: null }]);
    expect(parser.accept()).toEqual([{ kind: 'send', bytes: bytes(5, 0) }]);
  });

  test('prefers username and password when both are offered', () => {
    const parser = new Socks5Parser({ requireAuth: false });
    expect(parser.push(bytes(5, 3, 0, 1, 2))).toEqual([{ kind: 'send', bytes: bytes(5, 2) }]);
    expect(parser.push(bytes(1, 3, 'bob', 2, 'pw'))).toEqual([
      { kind: 'credentials', credentials: { username: 'bob', password: 'pw' } },
    ]);
    expect(parser.accept()).toEqual([{ kind: 'send', bytes: bytes(1, 0) }]);
  });

  test('reads UTF-8 and empty passwords', () => {
    const parser = new Socks5Parser({ requireAuth: true });
    parser.push(bytes(5, 1, 2));
    const name = Buffer.from('jürgen');
    expect(parser.push(Buffer.concat([bytes(1, name.length), name, bytes(0)]))).toEqual([
      { kind: 'credentials', credentials: { username: 'jürgen', password: '' } },
    ]);
  });

  test.each([
    ['no method but GSSAPI', bytes(5, 1, 1), false, 'bad_socks'],
    ['no credentials where they are required', bytes(5, 1, 0), true, 'proxy_auth_required'],
    ['no methods', bytes(5, 0), false, 'bad_socks'],
    ['version 4', bytes(4, 1), false, 'bad_socks'],
  ])('is refused with FF: %s', (_what, greeting, requireAuth, code) => {
    const [event, ...others] = new Socks5Parser({ requireAuth }).push(greeting);
    expect(others).toEqual([]);
    expect(event).toMatchObject({ kind: 'failed', reply: bytes(5, 0xff), error: { code } });
  });

  test('ends with FF when nobody may come without credentials', () => {
    const parser = new Socks5Parser({ requireAuth: false });
    parser.push(bytes(5, 1, 0));
    expect(parser.reject()).toEqual(bytes(5, 0xff));
    expect(parser.push(domain('example.com'))).toEqual([]);
  });

  test('ends with a status when the credentials are wrong', () => {
    const parser = new Socks5Parser({ requireAuth: false });
    parser.push(bytes(5, 1, 2, 1, 1, 'a', 1, 'b'));
    expect(parser.reject()).toEqual(bytes(1, 1));
    expect(parser.accept()).toEqual([]);
  });

  test('a wrong version of the sub-negotiation is refused', () => {
    const parser = new Socks5Parser({ requireAuth: false });
    parser.push(bytes(5, 1, 2));
    expect(parser.push(bytes(5, 1))).toMatchObject([
      { kind: 'failed', reply: bytes(1, 1), error: { code: 'bad_socks' } },
    ]);
  });
});

describe('the request', () => {
  test.each([
    ['a name', domain('Example.COM.'), 'example.com', 443],
    ['an IPv4 address', bytes(5, 1, 0, 1, 10, 0, 0, 1, 0, 80), '10.0.0.1', 80],
    ['an IPv6 address', bytes(5, 1, 0, 4, ...new Array<number>(15).fill(0), 1, 0xff, 0xff), '::1', 65_535],
    [
      'an IPv4-mapped address',
      bytes(5, 1, 0, 4, ...new Array<number>(10).fill(0), 255, 255, 127, 0, 0, 1, 0, 80),
      '127.0.0.1',
      80,
    ],
    ['a literal in the domain form', domain('127.0.0.1'), '127.0.0.1', 443],
    ['an odd literal in the domain form', domain('0x7f.1'), '127.0.0.1', 443],
    ['an IPv6 literal in the domain form', domain('[::1]'), '::1', 443],
  ])('names %s', (_what, message, host, port) => {
    expect(request(message)).toEqual([{ kind: 'request', destination: { host, port }, rest: Buffer.alloc(0) }]);
  });

  test('gives back what follows it', () => {
    expect(request(Buffer.concat([domain('a'), bytes('hello')]))).toMatchObject([
      { kind: 'request', rest: bytes('hello') },
    ]);
  });

  test.each([
    ['BIND', bytes(5, 2), 7, 'socks_command'],
    ['UDP ASSOCIATE', bytes(5, 3, 0, 1, 0, 0, 0, 0, 0, 0), 7, 'socks_command'],
    ['an unknown command', bytes(5, 9), 7, 'socks_command'],
    ['an unknown address type', bytes(5, 1, 0, 2), 8, 'bad_socks'],
    ['another version', bytes(4), 1, 'bad_socks'],
    ['a reserved byte', bytes(5, 1, 1), 1, 'bad_socks'],
    ['an empty name', domain(''), 1, 'bad_socks'],
    ['a name with a slash', domain('a/b'), 1, 'bad_socks'],
    ['a name that is a path', domain('../../x'), 1, 'bad_socks'],
    ['a name with a zero byte', domain('a\0b'), 1, 'bad_socks'],
    ['a name with a port', domain('a:80'), 1, 'bad_socks'],
    ['a name that is not ASCII', domain('\xfc.example'), 1, 'bad_socks'],
    ['port 0', domain('a', 0), 1, 'bad_socks'],
  ])('is refused: %s', (_what, message, reply, code) => {
    const [event] = request(message);
    expect(event).toMatchObject({ kind: 'failed', error: { code } });
    expect(event?.kind === 'failed' ? [...event.reply] : []).toEqual([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]);
  });
});

test('a client that sends everything ahead gets its answers in order', () => {
  const parser = new Socks5Parser({ requireAuth: false });
  const ahead = Buffer.concat([bytes(5, 1, 2, 1, 1, 'a', 1, 'b'), domain('example.com'), bytes('rest')]);
  expect(parser.push(ahead)).toEqual([
    { kind: 'send', bytes: bytes(5, 2) },
    { kind: 'credentials', credentials: { username: 'a', password: 'b' } },
  ]);
  expect(parser.accept()).toEqual([
    { kind: 'send', bytes: bytes(1, 0) },
    { kind: 'request', destination: { host: 'example.com', port: 443 }, rest: bytes('rest') },
  ]);
});

test('a client that floods before it is answered is refused', () => {
  const parser = new Socks5Parser({ requireAuth: false });
  parser.push(bytes(5, 1, 0));
  expect(parser.push(Buffer.alloc(65_537))).toMatchObject([{ kind: 'failed', error: { code: 'bad_socks' } }]);
  expect(parser.push(Buffer.alloc(1))).toEqual([]);
});

describe('the reply', () => {
  test.each<[Code, number]>([
    ['allowed', 0],
    ['host_not_allowed', 2],
    ['address_denied', 2],
    ['dns_failed', 4],
    ['dns_timeout', 4],
    ['connect_refused', 5],
    ['connect_timeout', 6],
    ['connect_failed', 3],
    ['socks_command', 7],
    ['internal_error', 1],
    ['upstream_proxy_failed', 1],
  ])('to %s is %i', (code, reply) => {
    expect([...socksReply(code)]).toEqual([5, reply, 0, 1, 0, 0, 0, 0, 0, 0]);
  });

  test('is success for nothing but an allow', () => {
    const codes = Object.keys(CODES) as Code[];
    expect(codes.filter((code) => socksReply(code)[1] === 0)).toEqual(['allowed']);
  });
});
