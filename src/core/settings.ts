/** Address to listen on. */
export interface ListenAddress {
  readonly host: string;
  readonly port: number;
}

/** One proxy listener. `tls` makes it an `https://` proxy; with `clientCa` agents may show certificates. */
export interface ListenerSettings extends ListenAddress {
  readonly name: string;
  readonly tls: {
    readonly cert: string;
    readonly key: string;
    readonly clientCa: string | null;
    readonly requireClientCertificate: boolean;
  } | null;
}

/** Limits and deadlines; every one has a reason code in core/errors.ts. Sizes in bytes, times in milliseconds. */
export interface Limits {
  readonly headerBytes: number; // 65536 → header_too_large (431); upstream → upstream_header_too_large
  readonly headerCount: number; // 200 lines → too_many_headers
  readonly targetBytes: number; // 16384 → target_too_long
  readonly connections: number; // 10000 → too_many_connections
  readonly tunnels: number; // 10000 open at once → too_many_tunnels
  readonly tunnelsPerAgent: number; // 5000
  readonly streams: number; // 20000 open exchanges → too_many_streams
  readonly streamsPerAgent: number; // 5000
  readonly h2StreamsPerConnection: number; // 128
  readonly h2ResetsPerMinute: number; // 1000 → h2_flood
  readonly headMs: number; // 10000 from first byte to whole head → head_timeout
  readonly handshakeMs: number; // 10000 sniffing, SOCKS, TLS → handshake_timeout
  readonly keepAliveMs: number; // 75000 between requests
  readonly idleMs: number; // 300000 nothing moved in an open exchange or blind tunnel → idle_timeout
  readonly slowWriteMs: number; // 60000 a peer that takes nothing while we have bytes for it → slow_peer
  readonly halfCloseMs: number; // 30000 answer for a client that closed its sending side
  readonly dnsMs: number; // 5000 → dns_timeout
  readonly connectMs: number; // 10000 per dial → connect_timeout
  readonly responseHeadMs: number; // 600000 until the first byte of the answer → upstream_timeout
  readonly upstreamIdleMs: number; // 60000 a pooled connection is kept
  readonly upstreamConnectionsPerOrigin: number; // 256 per agent and origin
  readonly messageBytes: number; // 16777216 a message that must be held whole → message_too_large
  readonly websocketMessageBytes: number; // 16777216 → message_too_large, close 1009
  readonly leafCache: number; // 2000 leaves
  readonly drainMs: number; // 30000 grace on SIGTERM
  readonly stallMs: number; // 500 event-loop stall that is reported
}

/** Effective settings. Paths are absolute. */
export interface Settings {
  readonly listeners: readonly ListenerSettings[];
  readonly admin: ListenAddress;
  readonly rules: readonly string[];
  readonly certs: string;
  /** agents.yaml, or null: everybody is the listener's agent `default`. */
  readonly agents: string | null;
  readonly audit: {
    readonly file: string;
    readonly format: 'ocsf' | 'flat';
    /** The file is moved aside before it grows beyond this; null: never. */
    readonly rotateBytes: number | null;
  };
  readonly log: { readonly level: 'debug' | 'info' | 'warn' | 'error'; readonly format: 'auto' | 'pretty' | 'json' };
  readonly upstream: {
    /** name (lower case) → address, optionally with port; keys may carry `:port` too. */
    readonly hosts: Readonly<Record<string, { readonly address: string; readonly port: number | null }>>;
    /** PEM files with additional roots. */
    readonly ca: readonly string[];
    readonly proxy: {
      readonly host: string;
      readonly port: number;
      readonly tls: boolean;
      /** `user:password` to send as Basic, or null. Comes from the URL or from a file; never printed. */
      readonly credentials: string | null;
    } | null;
    /** Client certificates by host glob. */
    readonly clientCertificates: readonly { readonly host: string; readonly cert: string; readonly key: string }[];
  };
  readonly addresses: { readonly allow: readonly string[] };
  readonly limits: Limits;
}
