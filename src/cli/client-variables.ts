import { delimiter } from 'node:path';
import { ConfigError } from '../core/errors.ts';
import { canonicalHost } from '../core/url.ts';

/** Files that the variables point at. */
export interface ClientFiles {
  /** Our CA alone, for clients that add it to their own roots. */
  readonly ca: string;
  /** Public roots and our CA, for settings that replace the roots of a client. */
  readonly bundle: string;
  readonly wgetrc: string;
  readonly aptConf: string;
  /** Folder with one ini file. */
  readonly php: string;
  /** PKCS#12, or null to leave Java's trust alone. */
  readonly javaTrustStore: string | null;
}

export interface ProxyUrl {
  /** As clients get it, with user and password if there are any. */
  readonly text: string;
  readonly scheme: 'http' | 'https';
  /** Without brackets. */
  readonly host: string;
  readonly port: number;
  readonly username: string | null;
  readonly password: string | null;
}

/** Hosts that never go through the proxy. Brackets or IPv6 ranges here make httpx raise, private ranges would be a hole. */
export const NO_PROXY = 'localhost,127.0.0.1,::1';

/** Our part of JAVA_TOOL_OPTIONS stands between two properties that mean nothing to anybody else, so that it can be found again. */
const JAVA_BEGIN = '-Dsubfloor.env=begin';
const JAVA_END = '-Dsubfloor.env=end';
const JAVA_PART = new RegExp(`\\s*${JAVA_BEGIN.replaceAll('.', '\\.')}.*?${JAVA_END.replaceAll('.', '\\.')}`, 'gs');

/** Variables that hold things of the user's, too; they are added to and taken from, never overwritten. */
const SHARED = ['JAVA_TOOL_OPTIONS', 'PHP_INI_SCAN_DIR'] as const;

/**
 * Reads the URL of the proxy as clients will.
 * @throws ConfigError it is no http or https URL with a host and a port
 */
export function parseProxyUrl(text: string): ProxyUrl {
  const url = URL.canParse(text) ? new URL(text) : null;
  const isPlain = url !== null && (url.pathname === '/' || url.pathname === '') && url.search === '' && url.hash === '';
  if (!isPlain || (url.protocol !== 'http:' && url.protocol !== 'https:')) {
    throw new ConfigError('--proxy is not the URL of a proxy; write for example http://127.0.0.1:8080');
  }
  const host = canonicalHost(url.hostname);
  if (host === null) throw new ConfigError('--proxy has no valid host; write for example http://127.0.0.1:8080');
  const scheme = url.protocol === 'https:' ? 'https' : 'http';
  const port = url.port === '' ? (scheme === 'https' ? 443 : 80) : Number(url.port);
  const userinfo = url.username === '' ? '' : `${url.username}${url.password === '' ? '' : `:${url.password}`}@`;
  const authority = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  return {
    text: `${scheme}://${userinfo}${authority}`,
    scheme,
    host,
    port,
    username: url.username === '' ? null : decodeURIComponent(url.username),
    password: url.password === '' ? null : decodeURIComponent(url.password),
  };
}

/**
 * All variables that send a client through the proxy and make it trust our CA. Setting them twice changes nothing.
 * @param env the environment they are added to
 */
export function clientVariables(
  proxy: ProxyUrl,
  files: ClientFiles,
  env: Readonly<Record<string, string | undefined>>,
): ReadonlyMap<string, string> {
  const variables = new Map<string, string>();
  const set = (names: string, value: string): void => {
    for (const name of names.split(' ')) variables.set(name, value);
  };
  // Both cases: wget, apt and gRPC read lower case only, curl reads http_proxy in lower case only, others upper case only.
  set('HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy grpc_proxy', proxy.text);
  set('NO_PROXY no_proxy no_grpc_proxy', NO_PROXY);
  set('YARN_HTTP_PROXY YARN_HTTPS_PROXY CARGO_HTTP_PROXY', proxy.text);
  set('CLOUDSDK_PROXY_TYPE', 'http');
  set('CLOUDSDK_PROXY_ADDRESS', proxy.host);
  set('CLOUDSDK_PROXY_PORT', String(proxy.port));
  if (proxy.username !== null) {
    set('CLOUDSDK_PROXY_USERNAME', proxy.username);
    set('CLOUDSDK_PROXY_PASSWORD', proxy.password ?? '');
    // Without it git asks once in vain for every request.
    set('GIT_HTTP_PROXY_AUTHMETHOD', 'basic');
  }
  set('SSL_CERT_FILE NIX_SSL_CERT_FILE', files.bundle);
  set('CURL_CA_BUNDLE GIT_SSL_CAINFO GIT_PROXY_SSL_CAINFO', files.bundle);
  set('WGETRC', files.wgetrc);
  set('REQUESTS_CA_BUNDLE PIP_CERT AWS_CA_BUNDLE HTTPLIB2_CA_CERTS', files.bundle);
  set('UV_SYSTEM_CERTS', '1');
  set('NODE_EXTRA_CA_CERTS DENO_CERT', files.ca);
  // As variables: Node 20 refuses to start with the same words in NODE_OPTIONS, and ignores these.
  set('NODE_USE_ENV_PROXY NODE_USE_SYSTEM_CA', '1');
  set('DENO_TLS_CA_STORE', 'mozilla,system');
  set('npm_config_cafile YARN_HTTPS_CA_FILE_PATH', files.bundle);
  set('CARGO_HTTP_CAINFO GRPC_DEFAULT_SSL_ROOTS_FILE_PATH BUNDLE_SSL_CA_CERT', files.bundle);
  set('PHP_INI_SCAN_DIR', phpScanDir(env['PHP_INI_SCAN_DIR'], files.php));
  set('JAVA_TOOL_OPTIONS', javaOptions(env['JAVA_TOOL_OPTIONS'], proxy, files.javaTrustStore));
  set('APT_CONFIG', files.aptConf);
  set('CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE CODEX_CA_CERTIFICATE', files.bundle);
  set('EGRESS_PROXY_URL', proxy.text);
  set('EGRESS_CA_FILE', files.ca);
  return variables;
}

/** What takes the variables away again: null for those that are ours, the user's own part for the shared ones. */
export function unsetVariables(
  names: Iterable<string>,
  files: Pick<ClientFiles, 'php'>,
  env: Readonly<Record<string, string | undefined>>,
): ReadonlyMap<string, string | null> {
  const variables = new Map<string, string | null>([...names].map((name) => [name, null]));
  const rests: Readonly<Record<(typeof SHARED)[number], string>> = {
    JAVA_TOOL_OPTIONS: withoutOurJava(env['JAVA_TOOL_OPTIONS']),
    PHP_INI_SCAN_DIR: scanDirs(env['PHP_INI_SCAN_DIR'], files.php).join(delimiter),
  };
  for (const name of SHARED) variables.set(name, rests[name] === '' ? null : rests[name]);
  return variables;
}

function withoutOurJava(existing: string | undefined): string {
  return (existing ?? '').replaceAll(JAVA_PART, '').trim();
}

function javaOptions(existing: string | undefined, proxy: ProxyUrl, trustStore: string | null): string {
  const properties: [string, string][] = [
    ['http.proxyHost', proxy.host],
    ['http.proxyPort', String(proxy.port)],
    ['https.proxyHost', proxy.host],
    ['https.proxyPort', String(proxy.port)],
    // Bars between them, and no ranges (networking properties of the JDK).
    ['http.nonProxyHosts', 'localhost|127.*|[::1]'],
  ];
  if (trustStore !== null) {
    properties.push(['javax.net.ssl.trustStore', trustStore], ['javax.net.ssl.trustStoreType', 'PKCS12']);
    properties.push(['javax.net.ssl.trustStorePassword', 'changeit']);
  }
  const ours = [JAVA_BEGIN, ...properties.map(([name, value]) => quoteJava(`-D${name}=${value}`)), JAVA_END].join(' ');
  const theirs = withoutOurJava(existing);
  return theirs === '' ? ours : `${theirs} ${ours}`;
}

/** The JVM splits at white space and knows both kinds of quotes, without escapes. */
function quoteJava(option: string): string {
  if (!/[\s'"]/.test(option)) return option;
  return option.includes('"') ? `'${option}'` : `"${option}"`;
}

/** An empty entry is PHP's own folder, which must stay in the list. */
function scanDirs(existing: string | undefined, ours: string): readonly string[] {
  if (existing === undefined || existing === '') return [];
  const dirs = existing.split(delimiter).filter((dir) => dir !== ours);
  return dirs.every((dir) => dir === '') ? [] : dirs;
}

function phpScanDir(existing: string | undefined, ours: string): string {
  const theirs = scanDirs(existing, ours);
  return theirs.length === 0 ? `${delimiter}${ours}` : [...theirs, ours].join(delimiter);
}
