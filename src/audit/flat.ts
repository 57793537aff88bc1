import type { AuditEvent } from '../core/exchange.ts';
import { factsText, pathText, withinLimit } from './facts.ts';
import { integer, text, textOrNull } from './json-text.ts';
import type { RecordContext } from './ocsf.ts';

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
  return withinLimit((caps) => {
    const { tunnel, outcome } = event;
    const path = event.path === null ? 'null' : pathText(event.path, caps);
    return (
      `{"time":${integer(event.timeMs)},"start_time":${integer(event.startedAtMs)},${contextText(context)},` +
      `"agent_name":${text(tunnel.agent.name, caps.name)},"source_address":${text(tunnel.sourceAddress, caps.name)},` +
      `"source_port":${integer(tunnel.sourcePort)},"method":${textOrNull(event.method, caps.name)},` +
      `"scheme":${textOrNull(event.scheme, caps.name)},"host":${text(event.host, caps.name)},"port":${integer(event.port)},` +
      `"path":${path},"status":${outcome.status === null ? 'null' : integer(outcome.status)},${factsText(event, caps)}}`
    );
  });
}

/** Members of a flat record that name the record itself. */
export function contextText(context: RecordContext): string {
  return `"uid":${text(context.uid, 64)},"sequence":${integer(context.sequence)},"version":${text(context.productVersion, 64)}`;
}
