import type { AuditEvent } from '../core/exchange.ts';
import type { Timings } from '../core/exchange.ts';
import type { Tunnel } from '../core/tunnel.ts';
import type { Caps } from './facts.ts';
import { integer, milliseconds, text, textOrNull } from './json-text.ts';

/** What distinguishes one record from the next, whatever it is about. */
export interface RecordContext {
  /** Counts up by one for each record of this process, also for those that had to be dropped. */
  readonly sequence: number;
  /** ULID of the record. */
  readonly uid: string;
  readonly productVersion: string;
}

/** The parts of a record that differ between two exchanges of a tunnel that are otherwise alike; JSON text. */
export interface Parts {
  readonly time: string;
  readonly startTime: string;
  readonly duration: string;
  readonly uid: string;
  readonly sequence: string;
  readonly exchange: string;
  readonly path: string;
  readonly bytesOut: string;
  readonly bytesIn: string;
  readonly timings: string;
}

/** Stand where the parts will be. Control characters: `text` lets none through. */
const MARKS: Parts = {
  time: '\u0001',
  startTime: '\u0002',
  duration: '\u0003',
  uid: '\u0004',
  sequence: '\u0005',
  exchange: '\u0006',
  path: '\u0007',
  bytesOut: '\u000e',
  bytesIn: '\u000f',
  timings: '\u0010',
};
const MARK = /([\u0001-\u0010])/;
const PART_OF: ReadonlyMap<string, keyof Parts> = new Map(
  Object.entries(MARKS).map(([name, mark]) => [mark, name as keyof Parts]),
);

export function partsOf(event: AuditEvent, context: RecordContext, caps: Caps): Parts {
  return {
    time: integer(event.timeMs),
    startTime: integer(event.startedAtMs),
    duration: integer(Math.max(0, event.timeMs - event.startedAtMs)),
    uid: text(context.uid, 64),
    sequence: integer(context.sequence),
    exchange: textOrNull(event.exchange, caps.name),
    path: event.path === null ? 'null' : pathText(event.path, caps),
    bytesOut: integer(event.bytesOut),
    bytesIn: integer(event.bytesIn),
    timings: timingsText(event.timings),
  };
}

/** The path without what must never be recorded, should a caller have left it on. */
function pathText(path: string, caps: Caps): string {
  const end = path.search(/[?#]/);
  return text(end === -1 ? path : path.slice(0, end), caps.path);
}

function timingsText(timings: Readonly<Timings>): string {
  return (
    `{"queue":${milliseconds(timings.queue)},"inspect":${milliseconds(timings.inspect)},` +
    `"upstream_connect":${milliseconds(timings.upstreamConnect)},"first_byte":${milliseconds(timings.firstByte)},` +
    `"total":${milliseconds(timings.total)}}`
  );
}

/** Writes a record with these parts in their places. */
export type RecordText = (event: AuditEvent, parts: Parts, context: RecordContext, caps: Caps) => string;

/**
 * Remembers the last record of each tunnel as a text with gaps: a tunnel may carry thousands of exchanges that differ in their parts alone, and
 * putting a hundred pieces together anew for each takes longer than the policy. Forgotten with the tunnel.
 */
export function withTemplates(write: RecordText): RecordText {
  const templates = new WeakMap<Tunnel, Template>();
  return (event, parts, context, caps) => {
    if (event.findings.length > 0) return write(event, parts, context, caps);
    let template = templates.get(event.tunnel);
    if (template?.fits(event, context, caps) !== true) {
      template = new Template(event, context, caps, write(event, MARKS, context, caps));
      templates.set(event.tunnel, template);
    }
    return template.fill(parts);
  };
}

class Template {
  readonly #caps: Caps;
  readonly #version: string;
  /** Facts of the tunnel that are learned late. */
  readonly #tunnel: Pick<Tunnel, 'mode' | 'sni' | 'alpn' | 'tlsVersion'>;
  readonly #event: AuditEvent;
  readonly #first: string;
  readonly #rest: readonly { readonly part: keyof Parts; readonly after: string }[];

  constructor(event: AuditEvent, context: RecordContext, caps: Caps, marked: string) {
    const { mode, sni, alpn, tlsVersion } = event.tunnel;
    this.#caps = caps;
    this.#version = context.productVersion;
    this.#tunnel = { mode, sni, alpn, tlsVersion };
    this.#event = event;
    const pieces = marked.split(MARK);
    this.#first = pieces[0] ?? '';
    const rest: { part: keyof Parts; after: string }[] = [];
    for (let i = 1; i + 1 < pieces.length; i += 2) {
      const part = PART_OF.get(pieces[i] ?? '');
      if (part !== undefined) rest.push({ part, after: pieces[i + 1] ?? '' });
    }
    this.#rest = rest;
  }

  /** Whether the event differs from the remembered one in its parts at most. */
  fits(event: AuditEvent, context: RecordContext, caps: Caps): boolean {
    const old = this.#event;
    const tunnel = this.#tunnel;
    return (
      caps === this.#caps &&
      context.productVersion === this.#version &&
      event.kind === old.kind &&
      event.method === old.method &&
      event.host === old.host &&
      event.port === old.port &&
      event.scheme === old.scheme &&
      event.httpVersion === old.httpVersion &&
      event.hasQuery === old.hasQuery &&
      event.policy === old.policy &&
      event.upstreamAddress === old.upstreamAddress &&
      event.upstreamPort === old.upstreamPort &&
      event.upstreamAlpn === old.upstreamAlpn &&
      event.upstreamTls === old.upstreamTls &&
      event.messagesOut === old.messagesOut &&
      event.messagesIn === old.messagesIn &&
      (event.exchange === null) === (old.exchange === null) &&
      (event.path === null) === (old.path === null) &&
      event.tunnel.mode === tunnel.mode &&
      event.tunnel.sni === tunnel.sni &&
      event.tunnel.alpn === tunnel.alpn &&
      event.tunnel.tlsVersion === tunnel.tlsVersion &&
      isSameOutcome(event.outcome, old.outcome) &&
      isSameVerdict(event.verdict, old.verdict) &&
      isSameRecognition(event.recognition, old.recognition)
    );
  }

  fill(parts: Parts): string {
    let record = this.#first;
    for (const { part, after } of this.#rest) record += parts[part] + after;
    return record;
  }
}

function isSameOutcome(a: AuditEvent['outcome'], b: AuditEvent['outcome']): boolean {
  return a.kind === b.kind && a.status === b.status && a.error === b.error && a.cause === b.cause;
}

function isSameVerdict(a: AuditEvent['verdict'], b: AuditEvent['verdict']): boolean {
  if (a === b) return true;
  return (
    a.action === b.action &&
    a.judged === b.judged &&
    a.reason === b.reason &&
    a.mode === b.mode &&
    a.rules.length === b.rules.length &&
    a.rules.every((rule, i) => rule === b.rules[i])
  );
}

function isSameRecognition(a: AuditEvent['recognition'], b: AuditEvent['recognition']): boolean {
  if (a === null || b === null) return a === b;
  return a.protocol === b.protocol && a.operation === b.operation && a.subject === b.subject && a.server === b.server;
}
