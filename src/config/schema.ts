import type { Code } from '../core/errors.ts';
import type { Limits } from '../core/settings.ts';

/**
 * Every key of `subfloor.yaml`, in the order in which they are shown. Names of variables follow from the path; docs/configuration.md is kept in
 * step by test/config/docs.test.ts.
 */
export interface Key {
  /** Path in the file, snake_case: `limits.header_bytes`. */
  readonly path: string;
  /** What a value looks like, in words. */
  readonly type: string;
  /** The default in words. */
  readonly fallback: string;
  readonly meaning: string;
  /** Reason codes that this key leads to. */
  readonly codes: readonly Code[];
}

export type LimitUnit = 'size' | 'duration' | 'count';

/** A limit: its default, its range and its meaning. Sizes in bytes, durations in milliseconds. */
export interface LimitKey {
  readonly unit: LimitUnit;
  readonly fallback: number;
  readonly min: number;
  readonly max: number;
  readonly meaning: string;
  readonly codes: readonly Code[];
}

const KIB = 1024;
const MIB = 1024 * KIB;
const GIB = 1024 * MIB;
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const DAY = 24 * 60 * MINUTE;

function size(fallback: number, min: number, max: number, meaning: string, codes: readonly Code[]): LimitKey {
  return { unit: 'size', fallback, min, max, meaning, codes };
}

/** Timers of Node take 31 bits; a day is far below and longer than any wait that makes sense. */
function duration(fallback: number, meaning: string, codes: readonly Code[], min = 10): LimitKey {
  return { unit: 'duration', fallback, min, max: DAY, meaning, codes };
}

function count(fallback: number, min: number, max: number, meaning: string, codes: readonly Code[]): LimitKey {
  return { unit: 'count', fallback, min, max, meaning, codes };
}

/** All limits by their name in `Settings`. */
export const LIMITS: { readonly [Name in keyof Limits]: LimitKey } = {
  headerBytes: size(64 * KIB, KIB, 16 * MIB, 'Header section of a request or an answer.', [
    'header_too_large',
    'upstream_header_too_large',
  ]),
  headerCount: count(200, 10, 10_000, 'Lines in a header section.', ['too_many_headers']),
  targetBytes: size(16 * KIB, 256, MIB, 'Request target (path and query).', ['target_too_long']),
  connections: count(10_000, 1, 1_000_000, 'Client connections open at once.', ['too_many_connections']),
  tunnels: count(10_000, 1, 1_000_000, 'Tunnels open at once.', ['too_many_tunnels']),
  tunnelsPerAgent: count(5000, 1, 1_000_000, 'Tunnels open at once for one agent.', ['too_many_tunnels']),
  streams: count(20_000, 1, 1_000_000, 'Exchanges open at once.', ['too_many_streams']),
  streamsPerAgent: count(5000, 1, 1_000_000, 'Exchanges open at once for one agent.', ['too_many_streams']),
  h2StreamsPerConnection: count(128, 1, 10_000, 'Streams open at once in one HTTP/2 connection of an agent.', []),
  h2ResetsPerMinute: count(1000, 10, 1_000_000, 'Streams that one HTTP/2 connection may reset in a minute.', [
    'h2_flood',
  ]),
  headMs: duration(10 * SECOND, 'From the first byte of a request head to its last.', ['head_timeout']),
  handshakeMs: duration(10 * SECOND, 'First bytes, SOCKS handshake and TLS handshake with an agent.', [
    'handshake_timeout',
  ]),
  keepAliveMs: duration(75 * SECOND, 'A connection of an agent waits this long for its next request.', []),
  idleMs: duration(5 * MINUTE, 'Nothing moved in an open exchange or an unread tunnel.', ['idle_timeout']),
  slowWriteMs: duration(MINUTE, 'A peer takes no byte although there are some for it.', ['slow_peer']),
  halfCloseMs: duration(30 * SECOND, 'An answer for a client that closed its sending side.', []),
  dnsMs: duration(5 * SECOND, 'Resolving a name.', ['dns_timeout']),
  connectMs: duration(10 * SECOND, 'One dial.', ['connect_timeout']),
  responseHeadMs: duration(10 * MINUTE, 'Until the first byte of an answer.', ['upstream_timeout']),
  upstreamIdleMs: duration(MINUTE, 'An unused connection to a server is kept this long.', []),
  upstreamConnectionsPerOrigin: count(256, 1, 100_000, 'Connections to one server for one agent.', []),
  messageBytes: size(16 * MIB, KIB, GIB, 'A message that must be held whole to be judged.', ['message_too_large']),
  websocketMessageBytes: size(16 * MIB, KIB, GIB, 'A WebSocket message; larger ones close the socket with 1009.', [
    'message_too_large',
  ]),
  leafCache: count(2000, 1, 100_000, 'Leaf certificates kept in memory.', []),
  drainMs: duration(30 * SECOND, 'Open exchanges may finish this long after SIGTERM.', ['draining'], 0),
  stallMs: duration(500, 'An event loop that stands still this long is reported in the log.', []),
};

/** Names of the limits, typed. */
export function limitNames(): readonly (keyof Limits)[] {
  return Object.keys(LIMITS).filter((name): name is keyof Limits => Object.hasOwn(LIMITS, name));
}

/** `headerBytes` → `header_bytes`. */
export function snakeCase(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Size at which the audit file is moved aside; `null` leaves that to others. */
export const ROTATE_BYTES: LimitKey = size(
  GIB,
  64 * KIB,
  1024 * GIB,
  'The audit file is moved aside before it grows beyond this. Nothing is deleted. `null` leaves rotation to others.',
  [],
);

const PLAIN_KEYS: readonly Key[] = [
  {
    path: 'listen.proxy',
    type: 'address, or list of listeners (name, address, tls)',
    fallback: '127.0.0.1:8080',
    meaning:
      'Where agents connect. CONNECT, absolute-form requests and SOCKS5 share the port. Port 0 takes a free one.',
    codes: [],
  },
  {
    path: 'listen.admin',
    type: 'address',
    fallback: '127.0.0.1:8081',
    meaning: 'Health, readiness and reload. Keep it away from agents.',
    codes: [],
  },
  {
    path: 'rules',
    type: 'folder or list of folders',
    fallback: 'rules/',
    meaning: 'Rule files; all of them together are the policy. Without a `rules` folder, the one of the package.',
    codes: [],
  },
  {
    path: 'certs',
    type: 'folder',
    fallback: 'certs/',
    meaning: 'Holds `ca.pem` and `ca.key`; they are made at the first start.',
    codes: ['certificate_failed'],
  },
  {
    path: 'agents',
    type: 'file or null',
    fallback: 'agents.yaml if it is there, else null',
    meaning: 'Who may use the proxy. Without it everybody is the agent `default`.',
    codes: ['proxy_auth_required', 'proxy_auth_rejected'],
  },
  {
    path: 'audit.file',
    type: 'file, or - for standard output',
    fallback: 'var/audit.jsonl',
    meaning: 'One record a line for every tunnel and exchange.',
    codes: ['audit_unavailable'],
  },
  {
    path: 'audit.format',
    type: '`ocsf` or `flat`',
    fallback: 'ocsf',
    meaning: 'Form of the records.',
    codes: [],
  },
  {
    path: 'audit.rotate_bytes',
    type: `${ROTATE_BYTES.unit}, ${limitRange(ROTATE_BYTES)}, or null`,
    fallback: formatLimit(ROTATE_BYTES.unit, ROTATE_BYTES.fallback),
    meaning: ROTATE_BYTES.meaning,
    codes: ROTATE_BYTES.codes,
  },
  {
    path: 'log.level',
    type: '`debug`, `info`, `warn` or `error`',
    fallback: 'info',
    meaning: 'What the operational log (standard error) tells.',
    codes: [],
  },
  {
    path: 'log.format',
    type: '`auto`, `pretty` or `json`',
    fallback: 'auto',
    meaning: '`auto` is pretty in a terminal and JSON otherwise.',
    codes: [],
  },
  {
    path: 'upstream.hosts',
    type: 'mapping of name or name:port to address or address:port',
    fallback: '{}',
    meaning: 'Dials this address for the name. The name is still what is judged and verified.',
    codes: [],
  },
  {
    path: 'upstream.ca',
    type: 'list of PEM files',
    fallback: '[]',
    meaning: 'Roots that are trusted beside the public ones and those of the system.',
    codes: ['upstream_tls_untrusted'],
  },
  {
    path: 'upstream.proxy',
    type: 'URL, mapping of url and credentials_file, or null',
    fallback: 'null',
    meaning: 'A further proxy on the way out, asked with CONNECT: `http://proxy.example.com:3128`.',
    codes: ['upstream_proxy_failed'],
  },
  {
    path: 'upstream.proxy.credentials_file',
    type: 'file',
    fallback: 'none',
    meaning: 'One line `user:password` for that proxy, sent as Basic.',
    codes: ['upstream_proxy_failed'],
  },
  {
    path: 'upstream.client_certificates',
    type: 'list of host, cert and key',
    fallback: '[]',
    meaning: 'Certificates that are shown to chosen servers. `host` is a name or `*.` and a name.',
    codes: ['upstream_tls_failed'],
  },
  {
    path: 'addresses.allow',
    type: 'list of CIDRs or addresses',
    fallback: '[]',
    meaning: 'Private and reserved ranges that agents may reach after all.',
    codes: ['address_denied'],
  },
];

/** Every key, limits last. */
export const KEYS: readonly Key[] = [
  ...PLAIN_KEYS,
  ...limitNames().map((name): Key => {
    const limit = LIMITS[name];
    return {
      path: `limits.${snakeCase(name)}`,
      type: `${limit.unit}, ${limitRange(limit)}`,
      fallback: formatLimit(limit.unit, limit.fallback),
      meaning: limit.meaning,
      codes: limit.codes,
    };
  }),
];

function limitRange({ unit, min, max }: LimitKey): string {
  return `${formatLimit(unit, min)} to ${formatLimit(unit, max)}`;
}

/** `limits.idle_ms` → `SUBFLOOR_LIMITS_IDLE_MS`. */
export function environmentName(path: string): string {
  return `SUBFLOOR_${path.replaceAll('.', '_').toUpperCase()}`;
}

/** Variables that start like settings and are none. */
export const OTHER_VARIABLES: Readonly<Record<string, string>> = {
  SUBFLOOR_CONFIG: 'the settings file, as --config',
};

/** A size, duration or count as people write it; reads back to the same number. */
export function formatLimit(unit: LimitUnit, value: number): string {
  if (unit === 'size') {
    if (value >= GIB && value % GIB === 0) return `${value / GIB}GiB`;
    if (value >= MIB && value % MIB === 0) return `${value / MIB}MiB`;
    return value >= KIB && value % KIB === 0 ? `${value / KIB}KiB` : String(value);
  }
  if (unit === 'duration') {
    if (value >= DAY / 24 && value % (DAY / 24) === 0) return `${value / (DAY / 24)}h`;
    if (value >= MINUTE && value % MINUTE === 0) return `${value / MINUTE}m`;
    return value >= SECOND && value % SECOND === 0 ? `${value / SECOND}s` : `${value}ms`;
  }
  return String(value);
}
