import type { AuditEvent } from '../core/exchange.ts';
import type { Finding } from '../core/finding.ts';
import type { Tunnel } from '../core/tunnel.ts';
import { integer, numberOrNull, text, textOrNull, texts } from './json-text.ts';
import type { Parts } from './parts.ts';

/** Longest strings (UTF-16 units) and lists in a record. */
export interface Caps {
  readonly name: number;
  readonly path: number;
  readonly rules: number;
  readonly findings: number;
}

/** A record is at most this many bytes with its line feed. */
export const MAX_RECORD_BYTES = 32_768;

/** What fits every honest record. */
export const WIDE: Caps = { name: 256, path: 2048, rules: 32, findings: 32 };
/** For the record that would be over the limit: small enough even if every character has to be escaped in six bytes. */
export const NARROW: Caps = { name: 48, path: 256, rules: 4, findings: 3 };

/** `write(WIDE)`, or `write(NARROW)` when that would be over the limit. */
export function withinLimit(write: (caps: Caps) => string): string {
  const record = write(WIDE);
  // The text is ASCII only: its length is its size in bytes.
  return record.length < MAX_RECORD_BYTES ? record : write(NARROW);
}

/** Our own facts of an event, the members of `unmapped.subfloor` without the braces. Names are stable (docs/schemas/record.schema.json). */
export function factsText(event: AuditEvent, parts: Parts, caps: Caps): string {
  const { tunnel, verdict, outcome, recognition } = event;
  const isTunnel = event.kind === 'tunnel';
  const name = caps.name;
  return (
    `"kind":"${event.kind}","exchange":${parts.exchange},${tunnelFactsText(tunnel, name)},` +
    `"http_version":${textOrNull(event.httpVersion, name)},` +
    `"protocol":"${isTunnel ? 'tunnel' : (recognition?.protocol ?? 'http')}",` +
    `"operation":${textOrNull(recognition?.operation ?? event.method, name)},` +
    `"subject":${textOrNull(recognition?.subject ?? null, name)},"server":${textOrNull(recognition?.server ?? null, name)},` +
    `"verdict":"${verdict.action}","judged":"${verdict.judged}","reason":${text(verdict.reason, name)},` +
    `"rules":${texts(verdict.rules, caps.rules, name)},"mode":"${verdict.mode}","outcome":"${outcome.kind}",` +
    `"error":${textOrNull(outcome.error, name)},"cause":${textOrNull(outcome.cause, name)},` +
    `"findings":${findingsText(event.findings, caps)},` +
    (event.findings.length > caps.findings ? `"findings_omitted":${event.findings.length - caps.findings},` : '') +
    `"bytes_out":${parts.bytesOut},"bytes_in":${parts.bytesIn},` +
    `"messages_out":${integer(event.messagesOut)},"messages_in":${integer(event.messagesIn)},` +
    `"timings_ms":${parts.timings},` +
    `"policy":${text(event.policy, name)},` +
    `"upstream_address":${textOrNull(event.upstreamAddress, name)},` +
    `"upstream_port":${event.upstreamPort === null ? 'null' : integer(event.upstreamPort)},` +
    `"upstream_alpn":${textOrNull(event.upstreamAlpn, name)},"upstream_tls":${textOrNull(event.upstreamTls, name)},` +
    `"has_query":${event.hasQuery ? 'true' : 'false'}`
  );
}

/** What is the same for all exchanges of a tunnel. */
function tunnelFactsText(tunnel: Tunnel, name: number): string {
  return (
    `"tunnel":${text(tunnel.id, name)},"agent":${text(tunnel.agent.id, name)},"identified_by":"${tunnel.agent.identifiedBy}",` +
    `"transport":"${tunnel.via}","listener":${text(tunnel.listener, name)},"tunnel_mode":"${tunnel.mode}",` +
    `"sni":${textOrNull(tunnel.sni, name)},"alpn":${textOrNull(tunnel.alpn, name)},"tls":${textOrNull(tunnel.tlsVersion, name)}`
  );
}

function findingsText(findings: readonly Finding[], caps: Caps): string {
  if (findings.length === 0) return '[]';
  const kept = findings.length > caps.findings ? mostSevere(findings, caps.findings) : findings;
  return `[${kept.map((finding) => findingText(finding, caps)).join(',')}]`;
}

function findingText(finding: Finding, caps: Caps): string {
  return (
    `{"detector":${text(finding.detector, caps.name)},"kind":${text(finding.kind, caps.name)},"severity":"${finding.severity}",` +
    `"confidence":${numberOrNull(finding.confidence)},"field":${text(finding.field, caps.name)},` +
    `"hash":${textOrNull(finding.hash, caps.name)},"masked":${textOrNull(finding.masked, caps.name)}}`
  );
}

const SEVERITY_ORDER: Readonly<Record<Finding['severity'], number>> = {
  info: 1,
  low: 2,
  medium: 3,
  high: 4,
  critical: 5,
};

/** OCSF `severity_id` of a finding. */
export function severityOf(finding: Finding): number {
  return SEVERITY_ORDER[finding.severity];
}

function mostSevere(findings: readonly Finding[], count: number): Finding[] {
  return [...findings].sort((a, b) => severityOf(b) - severityOf(a)).slice(0, count);
}
