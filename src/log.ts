import { writeSync } from 'node:fs';
import { pino } from 'pino';
import type { DestinationStream } from 'pino';
import pc from 'picocolors';
import { causeOf } from './core/errors.ts';
import type { Log } from './core/ports.ts';
import type { Settings } from './core/settings.ts';

type LogSettings = Settings['log'];

export interface LogOptions extends LogSettings {
  /** Where lines go; standard error by default, for standard output carries data. */
  readonly stream?: LogStream;
  /** Colors in pretty lines; by default what picocolors finds out about the terminal. */
  readonly hasColor?: boolean;
}

/** The part of a stream that is used. A write that throws loses its line and nothing else. */
export interface LogStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
}

/**
 * The operational log. Lines are written synchronously, so the last one before a crash is there, and a full disk or a closed pipe (EPIPE)
 * loses lines but never the process. Errors among the facts are reduced to their code: messages of foreign errors may hold payload.
 */
export function createLog(options: LogOptions): Log {
  const stream = options.stream ?? standardError();
  const isPretty = options.format === 'pretty' || (options.format === 'auto' && stream.isTTY === true);
  const colors = pc.createColors(options.hasColor ?? (pc.isColorSupported && stream.isTTY === true));
  const destination: DestinationStream = {
    write: (line: string): void => {
      try {
        stream.write(isPretty ? prettyLine(line, colors) : line);
      } catch {
        // Nothing is left to report to.
      }
    },
  };
  const logger = pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }), log: (facts) => safeFacts(facts) },
      messageKey: 'msg',
      // Our own formatter has seen every value already.
      serializers: {},
    },
    destination,
  );
  return {
    debug: (facts, text) => logger.debug(facts, text),
    info: (facts, text) => logger.info(facts, text),
    warn: (facts, text) => logger.warn(facts, text),
    error: (facts, text) => logger.error(facts, text),
  };
}

/** Writes to descriptor 2 directly: a stream would buffer, and emit errors somewhere else later. */
function standardError(): LogStream {
  return {
    write: (text) => {
      // A pipe that is full for now (EAGAIN) gets a few more chances; then the line is lost rather than the event loop.
      for (let attempt = 0; attempt < 3; attempt += 1) {
        try {
          writeSync(2, text);
          return;
        } catch (error) {
          if (causeOf(error) !== 'EAGAIN') return;
        }
      }
    },
    isTTY: process.stderr.isTTY,
  };
}

const MAX_TEXT = 4096;
const MAX_DEPTH = 3;
const MAX_ITEMS = 50;

/** Facts as they may be printed: bounded in size, errors as their cause. */
function safeFacts(facts: object): Record<string, unknown> {
  // pino wraps an error that was passed alone; `err` is reduced like any other value.
  const safe: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(facts).slice(0, MAX_ITEMS)) safe[key] = safeValue(value, 0);
  return safe;
}

function safeValue(value: unknown, depth: number): unknown {
  if (value instanceof Error) return causeOf(value);
  if (typeof value === 'string') return value.length > MAX_TEXT ? `${value.slice(0, MAX_TEXT)}...` : value;
  if (typeof value === 'bigint') return String(value);
  if (typeof value !== 'object' || value === null) return typeof value === 'function' ? undefined : value;
  if (Buffer.isBuffer(value) || depth >= MAX_DEPTH) return '[not shown]';
  if (Array.isArray(value)) return value.slice(0, MAX_ITEMS).map((item) => safeValue(item, depth + 1));
  const entries = Object.entries(value).slice(0, MAX_ITEMS);
  return Object.fromEntries(entries.map(([key, item]) => [key, safeValue(item, depth + 1)]));
}

type Colors = ReturnType<typeof pc.createColors>;

/** `12:34:56.789 warn  the text  key=value key="two words"`; lists with several items below it. */
function prettyLine(line: string, colors: Colors): string {
  const facts = parsedLine(line);
  if (facts === null) return line;
  const { time, level, msg, ...rest } = facts;
  const clock = typeof time === 'string' ? time.slice(11, 23) : '';
  const label = typeof level === 'string' ? level : '';
  const head = `${colors.dim(clock)} ${colored(label, colors)} ${printable(typeof msg === 'string' ? msg : '')}`;
  const pairs: string[] = [];
  const below: string[] = [];
  for (const [key, value] of Object.entries(rest)) {
    if (value === undefined) continue;
    if (key === 'stack' && typeof value === 'string') below.push(...value.split('\n').slice(1, 12));
    else if (Array.isArray(value) && value.length > 1) below.push(...value.map((item) => `  ${key}: ${plain(item)}`));
    else pairs.push(`${colors.dim(`${key}=`)}${word(Array.isArray(value) ? value[0] : value)}`);
  }
  const lines = [[head, ...pairs].join('  '), ...below.map((text) => colors.dim(`    ${printable(text)}`))];
  return `${lines.join('\n')}\n`;
}

function parsedLine(line: string): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? { ...value } : null;
  } catch {
    return null;
  }
}

function colored(level: string, colors: Colors): string {
  const padded = level.padEnd(5);
  if (level === 'error') return colors.red(padded);
  if (level === 'warn') return colors.yellow(padded);
  return level === 'info' ? colors.green(padded) : colors.dim(padded);
}

function word(value: unknown): string {
  const text = plain(value);
  return /^[^\s"=]+$/.test(text) ? text : JSON.stringify(text);
}

function plain(value: unknown): string {
  return printable(typeof value === 'string' ? value : JSON.stringify(value));
}

/** Escape sequences in a host name would otherwise act on the operator's terminal; direction marks would turn its text around. */
function printable(text: string): string {
  return text.replaceAll(/[\x00-\x08\x0a-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (character) => {
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });
}
