import { isIP } from 'node:net';
import type { AuditEvent } from '../core/exchange.ts';
import type { Tunnel } from '../core/tunnel.ts';
import { factsText, withinLimit } from './facts.ts';
import type { Caps } from './facts.ts';
import { integer, text } from './json-text.ts';
import { assess } from './outcome.ts';
import type { Assessment, Coded } from './outcome.ts';
import { partsOf, withTemplates } from './parts.ts';
import type { Parts, RecordContext } from './parts.ts';

/** OCSF release that the records say they follow. */
export const OCSF_VERSION = '1.8.0';

const HTTP_ACTIVITIES: ReadonlyMap<string, number> = new Map([
  ['CONNECT', 1],
  ['DELETE', 2],
  ['GET', 3],
  ['HEAD', 4],
  ['OPTIONS', 5],
  ['POST', 6],
  ['PUT', 7],
  ['TRACE', 8],
  ['PATCH', 9],
]);
const NETWORK_ACTIVITIES: Readonly<Record<AuditEvent['outcome']['kind'], Coded>> = {
  forwarded: { id: 2, name: 'Close' },
  redacted: { id: 2, name: 'Close' },
  aborted: { id: 3, name: 'Reset' },
  failed: { id: 4, name: 'Fail' },
  denied: { id: 5, name: 'Refuse' },
};

/**
 * The record of an event as OCSF 1.8.0: HTTP Activity (4002) for an exchange, Network Activity (4001) for a tunnel.
 * For tests and tools; the trail is written with `ocsfText`.
 */
export function toOcsf(event: AuditEvent, context: RecordContext): object {
  const parsed: unknown = JSON.parse(ocsfText(event, context));
  return parsed as object;
}

/** `toOcsf` as JSON text on one line, ASCII only, at most 32 KiB with a line feed, without the line feed. */
export function ocsfText(event: AuditEvent, context: RecordContext): string {
  return withinLimit((caps) => recordText(event, partsOf(event, context, caps), context, caps));
}

const recordText = withTemplates((event, parts, context, caps) =>
  event.kind === 'tunnel' ? tunnelText(event, parts, context, caps) : exchangeText(event, parts, context, caps),
);

function exchangeText(event: AuditEvent, parts: Parts, context: RecordContext, caps: Caps): string {
  const { method, outcome } = event;
  const known = method === null ? 0 : HTTP_ACTIVITIES.get(method);
  const activity = known ?? 99;
  const httpMethod = known === undefined || method === null ? '' : `,"http_method":"${method}"`;
  const httpVersion = event.httpVersion === null ? '' : `,"version":${text(event.httpVersion, caps.name)}`;
  const uid = event.exchange === null ? '' : `"uid":${parts.exchange},`;
  const response =
    outcome.status === null
      ? ''
      : `,"http_response":{"code":${integer(outcome.status)},"body_length":${parts.bytesIn}}`;
  return (
    `{"class_uid":4002,"class_name":"HTTP Activity","activity_id":${activity},` +
    `"activity_name":${text(method ?? 'Unknown', caps.name)},"type_uid":${400200 + activity},` +
    baseText(event, parts, context, caps) +
    `,"http_request":{${uid}"body_length":${parts.bytesOut}${httpMethod}${httpVersion}${urlText(event, parts, caps)}}${response}` +
    `,"unmapped":{"subfloor":{${factsText(event, parts, caps)}}}}`
  );
}

function tunnelText(event: AuditEvent, parts: Parts, context: RecordContext, caps: Caps): string {
  const activity = NETWORK_ACTIVITIES[event.outcome.kind];
  return (
    `{"class_uid":4001,"class_name":"Network Activity","activity_id":${activity.id},` +
    `"activity_name":"${activity.name}","type_uid":${400100 + activity.id},` +
    baseText(event, parts, context, caps) +
    `,"unmapped":{"subfloor":{${factsText(event, parts, caps)}}}}`
  );
}

/** What both classes share: base fields, the profiles security_control and network_proxy, and the endpoints. */
function baseText(event: AuditEvent, parts: Parts, context: RecordContext, caps: Caps): string {
  const { tunnel, verdict, outcome } = event;
  const assessment = assess(event);
  const name = caps.name;
  const rule = verdict.rules[0];
  return (
    `"category_uid":4,"category_name":"Network Activity","time":${parts.time},` +
    `"start_time":${parts.startTime},"duration":${parts.duration},` +
    assessmentText(assessment) +
    `,"status_code":${text(outcome.error ?? verdict.reason, name)}` +
    (outcome.cause === null ? '' : `,"status_detail":${text(outcome.cause, name)}`) +
    `,"message":${messageText(event, assessment, caps)}` +
    (rule === undefined ? '' : `,"firewall_rule":{"uid":${text(rule, name)}}`) +
    (event.policy === '' ? '' : `,"policy":{"name":"rules","uid":${text(event.policy, name)}}`) +
    `,"dst_endpoint":${destinationText(event, caps)}` +
    `,"traffic":{"bytes_out":${parts.bytesOut},"bytes_in":${parts.bytesIn}}` +
    `,${connectionText(tunnel, name)}` +
    (event.upstreamTls === null ? '' : `,"proxy_tls":{"version":${text(tlsNumber(event.upstreamTls), name)}}`) +
    metadataText(
      parts,
      context.productVersion,
      `,"correlation_uid":${text(tunnel.id, name)},"profiles":["security_control","network_proxy"]`,
    )
  );
}

/** The `metadata` member with a comma before it. `more` are further members, each with a comma before it. */
export function metadataText(parts: Pick<Parts, 'uid' | 'sequence'>, version: string, more: string): string {
  return (
    `,"metadata":{"version":"${OCSF_VERSION}","uid":${parts.uid},"sequence":${parts.sequence},"log_name":"audit",` +
    `"product":{"name":"subfloor","vendor_name":"subfloor","version":${text(version, 64)}}${more}}`
  );
}

function assessmentText({ severity, status, action, disposition, isAlert }: Assessment): string {
  return (
    `"severity_id":${severity.id},"severity":"${severity.name}","status_id":${status.id},"status":"${status.name}",` +
    `"action_id":${action.id},"action":"${action.name}","disposition_id":${disposition.id},"disposition":"${disposition.name}",` +
    `"is_alert":${isAlert ? 'true' : 'false'}`
  );
}

function messageText(event: AuditEvent, { disposition }: Assessment, caps: Caps): string {
  const what = event.kind === 'tunnel' ? 'tunnel to' : (event.method ?? 'request to');
  const code = event.outcome.error ?? event.verdict.reason;
  return text(`${disposition.name}: ${what} ${event.host}:${event.port} (${code})`, caps.name * 2);
}

/** The members about the tunnel and its ends. */
function connectionText(tunnel: Tunnel, name: number): string {
  const sni = tunnel.sni === null ? '' : `,"sni":${text(tunnel.sni, name)}`;
  const tls = tunnel.tlsVersion === null ? '' : `,"tls":{"version":${text(tlsNumber(tunnel.tlsVersion), name)}${sni}}`;
  return (
    `"src_endpoint":${sourceText(tunnel, name)}` +
    `,"connection_info":{"uid":${text(tunnel.id, name)},"direction_id":2,"direction":"Outbound","protocol_name":"tcp"}` +
    `,"proxy_endpoint":{"name":"subfloor","svc_name":${text(tunnel.listener, name)}}${tls}`
  );
}

function sourceText(tunnel: Tunnel, name: number): string {
  const { agent, sourceAddress } = tunnel;
  const ip = isIP(sourceAddress) === 0 ? '' : `,"ip":"${sourceAddress}"`;
  return `{"uid":${text(agent.id, name)},"name":${text(agent.name, name)}${ip},"port":${integer(tunnel.sourcePort)}}`;
}

function destinationText(event: AuditEvent, caps: Caps): string {
  const { upstreamAddress } = event;
  const ip = upstreamAddress === null || isIP(upstreamAddress) === 0 ? '' : `,"ip":"${upstreamAddress}"`;
  return `{"hostname":${text(event.host, caps.name)},"port":${integer(event.port)}${ip}}`;
}

/** `1.3` for Node's `TLSv1.3`, as OCSF and ECS write it. */
function tlsNumber(version: string): string {
  return version.startsWith('TLSv') ? version.slice(4) : version;
}

/** OCSF demands a path or a whole URL in `url`; without a path there is none. */
function urlText(event: AuditEvent, parts: Parts, caps: Caps): string {
  if (event.path === null) return '';
  const scheme = event.scheme === null ? '' : `"scheme":${text(event.scheme, caps.name)},`;
  return `,"url":{${scheme}"hostname":${text(event.host, caps.name)},"port":${integer(event.port)},"path":${parts.path}}`;
}
