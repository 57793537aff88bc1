/** How we know whose traffic this is; the first method that matches wins. */
export type IdentifiedBy = 'proxy_auth' | 'client_certificate' | 'source_address' | 'listener';

/** Whose traffic this is. An object, not a string: credentials, budgets and kill switches will hang on it. */
export interface Agent {
  readonly id: string;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly identifiedBy: IdentifiedBy;
}

/** What a listener knows about a connection before it reads a request. */
export interface ConnectionFacts {
  /** Peer address without zone or brackets; IPv4-mapped IPv6 is given as IPv4. */
  readonly sourceAddress: string;
  readonly sourcePort: number;
  /** Name of the listener from the configuration, `proxy` by default. */
  readonly listener: string;
  /** Lower-case hex SHA-256 of the client certificate's DER on a TLS listener, when the chain verified. */
  readonly clientCertificateSha256?: string;
  /** Subject common name and SAN entries of that certificate. */
  readonly clientCertificateNames?: readonly string[];
}

/** Basic credentials from `Proxy-Authorization` or SOCKS5 username/password (RFC 1929). */
export interface ProxyCredentials {
  readonly username: string;
  readonly password: string;
}

/**
 * Answer of the agent directory. `challenge`: credentials are needed (407); `rejected`: they were wrong (407 as well, but recorded).
 */
export type Identification =
  | { readonly kind: 'agent'; readonly agent: Agent }
  | { readonly kind: 'challenge' }
  | { readonly kind: 'rejected'; readonly username: string };
