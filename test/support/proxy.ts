import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startApp } from '../../src/app.ts';
import type { App } from '../../src/app.ts';
import type { Log } from '../../src/core/ports.ts';
import type { Limits, ListenerSettings, Settings } from '../../src/core/settings.ts';
import { testCa } from './ca.ts';
import { PATIENCE_MS, until } from './waiting.ts';

/** One line of the audit file: our own facts, and the whole record. */
export interface AuditRecord {
  readonly kind: 'tunnel' | 'exchange';
  readonly exchange: string | null;
  readonly tunnel: string;
  readonly agent: string;
  readonly identified_by: string;
  readonly transport: string;
  readonly protocol: string;
  readonly operation: string | null;
  readonly verdict: string;
  readonly judged: string;
  readonly reason: string;
  readonly rules: readonly string[];
  readonly mode: string;
  readonly outcome: string;
  readonly error: string | null;
  readonly cause: string | null;
  readonly bytes_out: number;
  readonly bytes_in: number;
  readonly messages_out: number;
  readonly messages_in: number;
  readonly upstream_address: string | null;
  readonly upstream_alpn: string | null;
  readonly tunnel_mode: string;
  readonly listener: string;
  readonly sni: string | null;
  readonly alpn: string | null;
  readonly policy: string;
  /** Host and port that the record names. */
  readonly host: string;
  readonly port: number;
  readonly path: string | null;
  readonly status: number | null;
  readonly method: string | null;
  /** The line itself, for what must not be in it. */
  readonly line: string;
  readonly whole: Readonly<Record<string, unknown>>;
}

/** Entries of the operational log. */
export interface LogEntry {
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly facts: Readonly<Record<string, unknown>>;
  readonly text: string;
}

export interface TestProxyOptions {
  /** YAML of the rules, with or without `version: 1`; several files by name if it is an object. */
  readonly rules: string | Readonly<Record<string, string>>;
  /** name → port on 127.0.0.1, or `address:port`. */
  readonly hosts?: Readonly<Record<string, number | string>>;
  readonly limits?: Partial<Limits>;
  /** YAML of agents.yaml. */
  readonly agents?: string;
  readonly listeners?: readonly ListenerSettings[];
  readonly upstream?: Partial<Omit<Settings['upstream'], 'hosts'>>;
  /** Ranges that may be dialed; loopback by default. */
  readonly allow?: readonly string[];
}

/** A proxy in this process, with all it wrote. */
export interface TestProxy {
  readonly app: App;
  readonly port: number;
  readonly adminPort: number;
  /** What clients have to trust. */
  readonly ca: string;
  readonly caFile: string;
  readonly url: string;
  readonly folder: string;
  readonly log: readonly LogEntry[];
  readonly settings: Settings;
  /** Bytes of the audit file at this very moment: no waiting, no flushing. */
  auditNow(): string;
  recordsNow(): AuditRecord[];
  /** All records once they fit the predicate. */
  waitForRecord(matches: (record: AuditRecord) => boolean, timeoutMs?: number): Promise<AuditRecord>;
  /** Waits until nothing is open, then answers all records. */
  records(): Promise<AuditRecord[]>;
  /** Writes a rule file; without `reload` the watcher has to find it. */
  writeRules(yaml: string, name?: string): void;
  /** Replaces agents.yaml. */
  writeAgents(yaml: string): void;
  close(): Promise<void>;
}

/** Safe defaults of the product, with deadlines that a test may wait for. */
export const TEST_LIMITS: Limits = {
  headerBytes: 65_536,
  headerCount: 200,
  targetBytes: 16_384,
  connections: 20_000,
  tunnels: 20_000,
  tunnelsPerAgent: 20_000,
  streams: 20_000,
  streamsPerAgent: 20_000,
  h2StreamsPerConnection: 128,
  h2ResetsPerMinute: 1000,
  headMs: 10_000,
  handshakeMs: 10_000,
  keepAliveMs: 75_000,
  idleMs: 60_000,
  slowWriteMs: 60_000,
  halfCloseMs: 30_000,
  dnsMs: 5_000,
  connectMs: 10_000,
  responseHeadMs: 60_000,
  upstreamIdleMs: 60_000,
  upstreamConnectionsPerOrigin: 256,
  messageBytes: 16 * 1024 * 1024,
  websocketMessageBytes: 16 * 1024 * 1024,
  leafCache: 2000,
  drainMs: 5_000,
  stallMs: 5_000,
};

export const ALLOW_ALL_TEST_HOSTS = `
version: 1
rules:
  - id: test-hosts
    description: every name of the tests, on all layers
    match: { host: ["*.test"] }
    action: allow
  - id: test-websockets
    description: sockets to them
    match: { host: ["*.test"], protocol: websocket }
    action: allow
  - id: test-grpc
    description: calls to them
    match: { host: ["*.test"], protocol: grpc }
    action: allow
`;

/** Starts a proxy on free ports with a folder of its own. Hand the result to `closeAfterFile` or `closeAfterTest`. */
export async function startProxy(options: TestProxyOptions): Promise<TestProxy> {
  const folder = mkdtempSync(join(tmpdir(), 'subfloor-e2e-'));
  try {
    return await startIn(folder, options);
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    throw error;
  }
}

async function startIn(folder: string, options: TestProxyOptions): Promise<TestProxy> {
  const ca = await testCa();
  mkdirSync(join(folder, 'rules'));
  const writeRules = (yaml: string, name = '10-test.yaml'): void => {
    writeFileSync(join(folder, 'rules', name), /^version:/m.test(yaml) ? yaml : `version: 1\n${yaml}`);
  };
  if (typeof options.rules === 'string') writeRules(options.rules);
  else for (const [name, yaml] of Object.entries(options.rules)) writeRules(yaml, name);
  if (options.agents !== undefined) writeFileSync(join(folder, 'agents.yaml'), options.agents);
  const settings: Settings = {
    listeners: options.listeners ?? [{ name: 'proxy', host: '127.0.0.1', port: 0, tls: null }],
    admin: { host: '127.0.0.1', port: 0 },
    rules: [join(folder, 'rules')],
    certs: join(folder, 'certs'),
    agents: options.agents === undefined ? null : join(folder, 'agents.yaml'),
    audit: { file: join(folder, 'audit', 'audit.jsonl'), format: 'ocsf', rotateBytes: null },
    log: { level: 'debug', format: 'json' },
    upstream: {
      ca: [ca.file],
      proxy: null,
      clientCertificates: [],
      ...options.upstream,
      hosts: hostsOf(options.hosts ?? {}),
    },
    addresses: { allow: options.allow ?? ['127.0.0.0/8', '::1/128'] },
    limits: { ...TEST_LIMITS, ...options.limits },
  };
  const log: LogEntry[] = [];
  const app = await startApp({ settings, log: collectingLog(log) });
  const auditNow = (): string => {
    try {
      return readFileSync(settings.audit.file, 'utf8');
    } catch {
      return '';
    }
  };
  const recordsNow = (): AuditRecord[] => parseRecords(auditNow());
  return {
    app,
    port: app.proxyPort,
    adminPort: app.adminPort,
    ca: app.caPem,
    caFile: join(settings.certs, 'ca.pem'),
    url: `http://127.0.0.1:${app.proxyPort}`,
    folder,
    log,
    settings,
    auditNow,
    recordsNow,
    waitForRecord: (matches, timeoutMs = PATIENCE_MS) =>
      until('an audit record', () => recordsNow().find(matches), timeoutMs),
    records: async () => {
      await until('all tunnels and exchanges to end', () => {
        const { exchanges, tunnels } = app.counts();
        return exchanges === 0 && tunnels === 0;
      }).catch((error: unknown) => {
        throw new Error(`still open: ${JSON.stringify(app.counts())}`, { cause: error });
      });
      // Records of what was allowed are written in groups a moment later.
      let before = -1;
      await until('the audit file to come to rest', () => {
        const size = auditNow().length;
        const isSame = size === before;
        before = size;
        return new Promise<boolean>((resolve) => setTimeout(() => resolve(isSame), 60));
      });
      return recordsNow();
    },
    writeRules,
    writeAgents: (yaml) => writeFileSync(join(folder, 'agents.yaml'), yaml),
    close: async () => {
      await app.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function hostsOf(hosts: Readonly<Record<string, number | string>>): Settings['upstream']['hosts'] {
  const mapped: Record<string, { address: string; port: number | null }> = {};
  for (const [name, where] of Object.entries(hosts)) {
    if (typeof where === 'number') {
      mapped[name] = { address: '127.0.0.1', port: where };
      continue;
    }
    const colon = where.lastIndexOf(':');
    mapped[name] =
      colon < 0
        ? { address: where, port: null }
        : { address: where.slice(0, colon), port: Number(where.slice(colon + 1)) };
  }
  return mapped;
}

function collectingLog(entries: LogEntry[]): Log {
  const at = (level: LogEntry['level']) => (facts: object, text: string) => {
    entries.push({ level, facts: { ...facts }, text });
  };
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') };
}

interface OcsfLine {
  readonly unmapped: {
    readonly subfloor: Omit<AuditRecord, 'host' | 'port' | 'path' | 'status' | 'method' | 'line' | 'whole'>;
  };
  readonly dst_endpoint?: { readonly hostname?: string; readonly port?: number };
  readonly http_request?: { readonly url?: { readonly path?: string }; readonly http_method?: string };
  readonly http_response?: { readonly code?: number };
}

/** Whole lines only: the last one may be just being written. */
export function parseRecords(text: string): AuditRecord[] {
  return text
    .split('\n')
    .slice(0, -1)
    .filter((line) => line !== '')
    .map((line) => ({ line, whole: JSON.parse(line) as OcsfLine & Readonly<Record<string, unknown>> }))
    .filter(({ whole }) => KINDS.has(whole.unmapped.subfloor.kind))
    .map(({ line, whole }) => {
      return {
        ...whole.unmapped.subfloor,
        host: whole.dst_endpoint?.hostname ?? '',
        port: whole.dst_endpoint?.port ?? 0,
        path: whole.http_request?.url?.path ?? null,
        method: whole.http_request?.http_method ?? null,
        status: whole.http_response?.code ?? null,
        line,
        whole,
      };
    });
}

/** Others tell of the life of the proxy. */
const KINDS: ReadonlySet<string> = new Set(['tunnel', 'exchange']);
