import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  AuditError,
  CODES,
  ConfigError,
  LimitError,
  ProtocolError,
  ProxyError,
  UpstreamError,
  causeOf,
  isCode,
} from '../../src/core/errors.ts';
import type { CodeFacts } from '../../src/core/errors.ts';

const table: readonly (readonly [string, CodeFacts])[] = Object.entries(CODES);

interface DocumentedCode {
  readonly kind: string;
  readonly status: string;
  readonly text: string;
  readonly remedy: string;
}

/** Rows of the tables in docs/errors.md, by code. */
function documentedCodes(): ReadonlyMap<string, DocumentedCode> {
  const rows = new Map<string, DocumentedCode>();
  let kind = '';
  for (const line of readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8').split('\n')) {
    kind = /^## .*\((\w+)\)$/.exec(line)?.[1] ?? kind;
    const cells = line.split('|').map((cell) => cell.trim());
    const code = /^`([a-z0-9_]+)`$/.exec(cells[1] ?? '')?.[1];
    if (code === undefined || cells.length !== 7) continue;
    if (rows.has(code)) throw new Error(`${code} is documented twice`);
    rows.set(code, { kind, status: cells[2] ?? '', text: cells[3] ?? '', remedy: cells[5] ?? '' });
  }
  return rows;
}

describe('the table of codes', () => {
  it('is in docs/errors.md, code for code, with the same kind, status and sentence', () => {
    const fromDocs = [...documentedCodes()].map(([code, row]) => [code, row.kind, row.status, row.text]);
    const fromTable = table.map(([code, facts]) => [code, facts.kind, String(facts.status ?? '–'), facts.text]);
    expect(fromDocs.sort()).toEqual(fromTable.sort());
  });

  it('tells the operator what to do about every code', () => {
    for (const [code, row] of documentedCodes()) expect(row.remedy, code).toMatch(/^[A-Z`].*\.$/);
  });

  it('has lower snake case codes and whole sentences without control characters', () => {
    for (const [code, facts] of table) {
      expect(code).toMatch(/^[a-z][a-z0-9]*(_[a-z0-9]+)*$/);
      expect(facts.text, code).toMatch(/^[A-Z][\x20-\x7e]{5,150}\.$/);
    }
  });

  it('never denies by policy with a status that SDKs retry', () => {
    for (const [code, facts] of table) {
      if (facts.kind === 'policy') expect([null, 403, 405], code).toContain(facts.status);
    }
  });

  it('uses only error statuses', () => {
    for (const [code, { status }] of table) {
      if (status !== null) expect(status >= 400 && status <= 599, code).toBe(true);
    }
  });
});

describe('isCode', () => {
  it.each([
    ['host_not_allowed', true],
    ['no_such_code', false],
    ['toString', false],
    ['__proto__', false],
    ['', false],
  ])('says of %j: %j', (text, expected) => {
    expect(isCode(text)).toBe(expected);
  });
});

describe('a proxy error', () => {
  it('keeps code, detail and cause, and is named after its class', () => {
    const cause = new Error('secret in a foreign message');
    const error = new UpstreamError('connect_failed', 'Port 443.', { cause });
    expect(error).toBeInstanceOf(ProxyError);
    expect(error).toMatchObject({
      name: 'UpstreamError',
      code: 'connect_failed',
      detail: 'Port 443.',
      status: 502,
      cause,
    });
    expect(error.message).toBe('The server could not be reached. Port 443.');
  });

  it('has the status of the table', () => {
    expect(new ProtocolError('bad_request').status).toBe(400);
    expect(new LimitError('too_many_tunnels').status).toBe(503);
    expect(new ProtocolError('sni_missing').status).toBe(502);
  });
});

describe('a config error', () => {
  it.each([
    [{}, 'wrong'],
    [{ file: 'a.yaml' }, 'a.yaml: wrong'],
    [{ file: 'a.yaml', line: 3 }, 'a.yaml:3:1: wrong'],
    [{ file: 'a.yaml', line: 3, column: 9 }, 'a.yaml:3:9: wrong'],
  ])('with %j says %j', (position, message) => {
    expect(new ConfigError('wrong', position).message).toBe(message);
  });
});

describe('causeOf', () => {
  it('names codes and classes, never the message of a foreign error', () => {
    const system = Object.assign(new Error('connect to hidden.example'), { code: 'ECONNREFUSED' });
    expect(causeOf(system)).toBe('ECONNREFUSED');
    expect(causeOf(new TypeError('hidden'))).toBe('TypeError');
    expect(causeOf('hidden')).toBe('string');
    expect(causeOf(new AuditError('audit_unavailable', null, { cause: system }))).toBe(
      'audit_unavailable: ECONNREFUSED',
    );
    expect(causeOf(new ProtocolError('bad_host', 'Line 3'))).toBe('bad_host');
  });
});
