import forge from 'node-forge';

const { asn1 } = forge;
const { UNIVERSAL, CONTEXT_SPECIFIC } = asn1.Class;

/** One ASN.1 value. Made by the functions below, turned into bytes by `encode`. */
export type Der = forge.asn1.Asn1;

/*
 * The only importer of node-forge. It keeps its bytes in latin1 strings; this file is where they become Buffers.
 * Only what X.509 and PKCS#12 need is here, in DER (ITU-T X.690): definite lengths, minimal integers.
 */

/** Context tags in use. node-forge types a tag number by the name of the universal type that has the same number. */
const TAG = {
  0: asn1.Type.NONE,
  1: asn1.Type.BOOLEAN,
  2: asn1.Type.INTEGER,
  3: asn1.Type.BITSTRING,
  7: asn1.Type.ODESC,
} as const;
type Tag = keyof typeof TAG;

export function sequence(...items: readonly Der[]): Der {
  return asn1.create(UNIVERSAL, asn1.Type.SEQUENCE, true, [...items]);
}

/** A SET OF. DER wants its members sorted by their encoding (X.690 11.6). */
export function setOf(...items: readonly Der[]): Der {
  const sorted = [...items].sort((a, b) => Buffer.compare(encode(a), encode(b)));
  return asn1.create(UNIVERSAL, asn1.Type.SET, true, sorted);
}

/** An unsigned big-endian number; leading zeros are made minimal (X.690 8.3.2). */
export function unsignedInteger(value: Buffer | number): Der {
  const bytes = typeof value === 'number' ? Buffer.from(value.toString(16).padStart(8, '0'), 'hex') : value;
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start += 1;
  const minimal = bytes.subarray(start);
  const padded = (minimal[0] ?? 0) & 0x80 ? Buffer.concat([Buffer.of(0), minimal]) : minimal;
  return asn1.create(UNIVERSAL, asn1.Type.INTEGER, false, padded.toString('latin1'));
}

/** @param dotted for example `2.5.29.17` */
export function objectId(dotted: string): Der {
  return asn1.create(UNIVERSAL, asn1.Type.OID, false, asn1.oidToDer(dotted).getBytes());
}

export function nothing(): Der {
  return asn1.create(UNIVERSAL, asn1.Type.NULL, false, '');
}

export function truth(): Der {
  return asn1.create(UNIVERSAL, asn1.Type.BOOLEAN, false, '\xff');
}

export function utf8(text: string): Der {
  return asn1.create(UNIVERSAL, asn1.Type.UTF8, false, Buffer.from(text, 'utf8').toString('latin1'));
}

/** A BMPString: UTF-16 in big-endian order, as PKCS#12 friendly names are. Characters beyond U+FFFF do not exist in it. */
export function bmp(text: string): Der {
  // node-forge widens BMP strings by itself when it encodes them, so it gets the plain text.
  return asn1.create(UNIVERSAL, asn1.Type.BMPSTRING, false, text);
}

export function octets(content: Buffer | Der): Der {
  const bytes = Buffer.isBuffer(content) ? content : encode(content);
  return asn1.create(UNIVERSAL, asn1.Type.OCTETSTRING, false, bytes.toString('latin1'));
}

/** @param unusedBits how many low bits of the last byte do not count */
export function bits(content: Buffer, unusedBits = 0): Der {
  const value = String.fromCharCode(unusedBits) + content.toString('latin1');
  return asn1.create(UNIVERSAL, asn1.Type.BITSTRING, false, value);
}

/** Seconds precision; two-digit years until 2049, four digits from 2050 (RFC 5280 section 4.1.2.5). */
export function time(atMs: number): Der {
  const digits = new Date(atMs).toISOString().replace(/[-:T]|\.\d+/g, '');
  const isShort = atMs < Date.UTC(2050, 0, 1);
  return isShort
    ? asn1.create(UNIVERSAL, asn1.Type.UTCTIME, false, digits.slice(2))
    : asn1.create(UNIVERSAL, asn1.Type.GENERALIZEDTIME, false, digits);
}

/** `[tag] EXPLICIT`. */
export function explicit(tag: Tag, item: Der): Der {
  return asn1.create(CONTEXT_SPECIFIC, TAG[tag], true, [item]);
}

/** `[tag] IMPLICIT` over a primitive value. */
export function implicit(tag: Tag, content: Buffer): Der {
  return asn1.create(CONTEXT_SPECIFIC, TAG[tag], false, content.toString('latin1'));
}

export function encode(value: Der): Buffer {
  return Buffer.from(asn1.toDer(value).getBytes(), 'latin1');
}

/** @throws Error on anything but exactly one well-formed value */
export function decode(bytes: Buffer): Der {
  return asn1.fromDer(bytes.toString('latin1'), true);
}

/** Members of a SEQUENCE, SET or explicit tag; empty for a primitive value. */
export function members(value: Der | undefined): readonly Der[] {
  return value === undefined || typeof value.value === 'string' ? [] : value.value;
}

/** Content bytes of a primitive value; empty for a constructed one. */
export function content(value: Der | undefined): Buffer {
  return value === undefined || typeof value.value !== 'string' ? Buffer.alloc(0) : Buffer.from(value.value, 'latin1');
}

export function isUniversal(value: Der | undefined, type: 'boolean' | 'integer' | 'oid'): boolean {
  const wanted = { boolean: asn1.Type.BOOLEAN, integer: asn1.Type.INTEGER, oid: asn1.Type.OID }[type];
  return value?.tagClass === UNIVERSAL && value.type === wanted;
}

/** True for `[tag]`, explicit or implicit. */
export function isTagged(value: Der | undefined, tag: Tag): boolean {
  return value?.tagClass === CONTEXT_SPECIFIC && value.type === TAG[tag];
}

/** Dotted form; empty when the value is no object identifier. */
export function dotted(value: Der | undefined): string {
  return value !== undefined && isUniversal(value, 'oid') && typeof value.value === 'string'
    ? asn1.derToOid(value.value)
    : '';
}

/**
 * Key for the integrity MAC of a PKCS#12 store.
 * Source: RFC 7292 appendix B, ID 3
 */
export function pkcs12MacKey(password: string, salt: Buffer, iterations: number): Buffer {
  const key = forge.pkcs12.generateKey(
    password,
    forge.util.createBuffer(salt.toString('latin1')),
    3,
    iterations,
    32,
    forge.md.sha256.create(),
  );
  return Buffer.from(key.getBytes(), 'latin1');
}
