import type { AuditEvent } from '../core/exchange.ts';
import { createIds } from '../core/ids.ts';
import { contextText, flatText } from './flat.ts';
import { integer, text } from './json-text.ts';
import { metadataText, ocsfText } from './ocsf.ts';
import type { Parts, RecordContext } from './parts.ts';

/** How records are written down. */
export type AuditFormat = 'ocsf' | 'flat';

/** A time in which records could not be written. */
export interface Gap {
  readonly fromMs: number;
  readonly toMs: number;
  /** Records that are lost for good; the others of that time follow late. */
  readonly dropped: number;
  /** First cause: an operating-system error code. */
  readonly cause: string;
}

/** Turns events into lines, each with its own uid and the next number of the sequence. */
export interface Formatter {
  /** One record with its line feed; ASCII only, so its length is its size in bytes. */
  line(event: AuditEvent): string;
  /** Uses up a number of the sequence for a record that could not be kept, so that readers see the hole. */
  skip(): void;
  /** The record that tells of a gap, with its line feed. */
  gap(gap: Gap): string;
}

/** @param options.now epoch milliseconds; for the ids of the records */
export function createFormatter(options: {
  readonly format: AuditFormat;
  readonly productVersion: string;
  readonly now?: () => number;
}): Formatter {
  const { format, productVersion, now } = options;
  const newUid = createIds(now === undefined ? {} : { now });
  const write = format === 'ocsf' ? ocsfText : flatText;
  const writeGap = format === 'ocsf' ? ocsfGap : flatGap;
  let sequence = 0;
  const context = (): RecordContext => ({ sequence: ++sequence, uid: newUid(), productVersion });
  return {
    line: (event) => `${write(event, context())}\n`,
    skip: () => {
      sequence++;
    },
    gap: (gap) => `${writeGap(gap, context())}\n`,
  };
}

function namesOf(context: RecordContext): Pick<Parts, 'uid' | 'sequence'> {
  return { uid: text(context.uid, 64), sequence: integer(context.sequence) };
}

function gapFacts(gap: Gap): string {
  return `"kind":"gap","dropped":${integer(gap.dropped)},"from":${integer(gap.fromMs)},"to":${integer(gap.toMs)},"cause":${text(gap.cause, 128)}`;
}

/** Application Lifecycle (6002) is the class for what happens to us rather than to an exchange. */
function ocsfGap(gap: Gap, context: RecordContext): string {
  const lost = gap.dropped > 0;
  return (
    `{"class_uid":6002,"class_name":"Application Lifecycle","activity_id":99,"activity_name":"Audit gap","type_uid":600299,` +
    `"category_uid":6,"category_name":"Application Activity","time":${integer(gap.toMs)},"start_time":${integer(gap.fromMs)},` +
    `"duration":${integer(Math.max(0, gap.toMs - gap.fromMs))},"severity_id":${lost ? 4 : 2},"severity":"${lost ? 'High' : 'Low'}",` +
    `"status_id":2,"status":"Failure","status_code":"audit_unavailable","status_detail":${text(gap.cause, 128)},` +
    `"message":"Records could not be written for a while: ${integer(gap.dropped)} lost","app":{"name":"subfloor"}` +
    `${metadataText(namesOf(context), context.productVersion, '')},"unmapped":{"subfloor":{${gapFacts(gap)}}}}`
  );
}

function flatGap(gap: Gap, context: RecordContext): string {
  return `{"time":${integer(gap.toMs)},"start_time":${integer(gap.fromMs)},${contextText(namesOf(context), context.productVersion)},${gapFacts(gap)}}`;
}
