import { describe, expect, test } from 'vitest';
import { subjectAltNames } from '../../src/tls/subject-names.ts';

describe('names of a client certificate', () => {
  test.each([
    ['', []],
    ['DNS:agent-1.example', ['agent-1.example']],
    [
      'DNS:a.example, URI:spiffe://mesh/agent/b, IP Address:10.0.0.1',
      ['a.example', 'spiffe://mesh/agent/b', '10.0.0.1'],
    ],
    ['email:ops@example.com, DNS:a.example', ['ops@example.com', 'a.example']],
    // A name that holds ", DNS:admin" is one name, and no agent's.
    [String.raw`DNS:"a.example, DNS:admin.example", DNS:b.example`, ['b.example']],
    [String.raw`URI:"https://x/\", DNS:admin.example", DNS:b.example`, ['b.example']],
    [String.raw`DNS:"a, DNS:admin.example`, []],
  ])('%s', (text, names) => {
    expect(subjectAltNames(text)).toEqual(names);
  });
});
