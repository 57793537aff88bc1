import type { AuditEvent } from '../core/exchange.ts';
import { factsText, withinLimit } from './facts.ts';
import { integer, text, textOrNull } from './json-text.ts';
import { partsOf, withTemplates } from './parts.ts';
import type { Parts, RecordContext } from './parts.ts';

/**
 * The flat format (`audit.format: flat`): the facts of `unmapped.subfloor` at the top level, with time, place and agent beside them.
 * For tests and tools; the trail is written with `flatText`.
 */
export function toFlat(event: AuditEvent, context: RecordContext): object {
  const parsed: unknown = JSON.parse(flatText(event, context));
  return parsed as object;
}

/** `toFlat` as JSON text on one line, ASCII only, at most 32 KiB with a line feed, without the line feed. */
export function flatText(event: AuditEvent, context: RecordContext): string {
  return withinLimit((caps) => recordText(event, partsOf(event, context, caps), context, caps));
}

const recordText = withTemplates((event, parts, context, caps) => {
  const { tunnel, outcome } = event;
  return (
    `{"time":${parts.time},"start_time":${parts.startTime},${contextText(parts, context.productVersion)},` +
    `"agent_name":${text(tunnel.agent.name, caps.name)},"source_address":${text(tunnel.sourceAddress, caps.name)},` +
    `"source_port":${integer(tunnel.sourcePort)},"method":${textOrNull(event.method, caps.name)},` +
    `"scheme":${textOrNull(event.scheme, caps.name)},"host":${text(event.host, caps.name)},"port":${integer(event.port)},` +
    `"path":${parts.path},"status":${outcome.status === null ? 'null' : integer(outcome.status)},${factsText(event, parts, caps)}}`
  );
});

/** Members of a flat record that name the record itself. */
export function contextText(parts: Pick<Parts, 'uid' | 'sequence'>, version: string): string {
  return `"uid":${parts.uid},"sequence":${parts.sequence},"version":${text(version, 64)}`;
}
