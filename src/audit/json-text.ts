/**
 * Pieces of JSON text. Records are on the path of every exchange, so they are written as text at once instead of as objects that are
 * serialized afterwards; these functions are the only ones that put a value into that text.
 */

/** Stands at the end of a string that was cut. */
export const CUT_MARK = '[cut]';

/** Printable ASCII without quote and backslash: goes into JSON as it is. */
const NEEDS_ESCAPE = /[^\x20\x21\x23-\x5b\x5d-\x7e]/;
const NOT_ASCII = /[\u007f-\uffff]/g;
const LONE_SURROGATE = /\p{Surrogate}/gu;

/**
 * A JSON string, ASCII only: everything else is escaped, so that no reader splits a line at U+2028 or U+0085 and a string is as many bytes as it
 * has characters. Half surrogate pairs, which strict parsers refuse, become U+FFFD.
 * @param max longest string kept, in UTF-16 units; a longer one is cut and ends in `[cut]`
 */
export function text(value: string, max: number): string {
  const kept = value.length > max ? value.slice(0, max) + CUT_MARK : value;
  return NEEDS_ESCAPE.test(kept) ? escaped(kept) : `"${kept}"`;
}

/** Like `text`, with `null` for null. */
export function textOrNull(value: string | null, max: number): string {
  return value === null ? 'null' : text(value, max);
}

/** A JSON array of strings; what is over `maxItems` is counted in a last item `[cut] n more`. */
export function texts(values: readonly string[], maxItems: number, max: number): string {
  if (values.length === 0) return '[]';
  let list = '';
  for (let i = 0; i < values.length && i < maxItems; i++) list += `${i === 0 ? '' : ','}${text(values[i] ?? '', max)}`;
  return values.length > maxItems ? `[${list},"${CUT_MARK} ${values.length - maxItems} more"]` : `[${list}]`;
}

/** A JSON integer; 0 for what is none. */
export function integer(value: number): string {
  const whole = Math.trunc(value);
  return Number.isSafeInteger(whole) ? String(whole) : '0';
}

/** Decimals of a millisecond, by microseconds, without zeros at the end: a table is five times as fast as printing a fraction. */
const DECIMALS: readonly string[] = Array.from({ length: 1000 }, (_unused, us) =>
  us === 0 ? '' : `.${String(us).padStart(3, '0').replace(/0+$/, '')}`,
);

/** Milliseconds with up to three decimals, or `null` for what is no such number. */
export function milliseconds(value: number | null): string {
  if (value === null || !(value >= 0 && value < 1e12)) return 'null';
  const us = Math.round(value * 1000);
  const whole = Math.floor(us / 1000);
  return `${whole}${DECIMALS[us - whole * 1000] ?? ''}`;
}

/** A JSON number, or `null` for what JSON cannot say. */
export function numberOrNull(value: number): string {
  return Number.isFinite(value) ? String(value) : 'null';
}

function escaped(value: string): string {
  return JSON.stringify(value.replace(LONE_SURROGATE, '\ufffd')).replace(
    NOT_ASCII,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
