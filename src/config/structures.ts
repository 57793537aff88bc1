import { quoted } from '../core/located.ts';
import type { Located, Problems } from '../core/located.ts';
import type { ListenerSettings, Settings } from '../core/settings.ts';
import { canonicalHost, formatAuthority, parseAuthority } from '../core/url.ts';
import {
  isMapping,
  readAddressWithPort,
  readBoolean,
  readFields,
  readListenAddress,
  readPath,
  readText,
} from './values.ts';

/** Readers for the keys whose values have a shape of their own. Each notes its problems and gives what could be read. */

const LISTENER_KEYS = ['name', 'address', 'tls'] as const;
const TLS_KEYS = ['cert', 'key', 'client_ca', 'require_client_certificate'] as const;
const MAX_LISTENERS = 100;

/** `listen.proxy`: an address, or a list of listeners. The first listener without a name is `proxy`. */
export function readListeners(value: Located, base: string, problems: Problems): readonly ListenerSettings[] {
  if (value.type === 'scalar') {
    const address = readListenAddress(value, problems);
    return address === null ? [] : [{ name: 'proxy', ...address, tls: null }];
  }
  const items = value.type === 'list' ? value.items : [value];
  if (items.length === 0 || items.length > MAX_LISTENERS) {
    problems.add(value.at, `the list needs 1 to ${MAX_LISTENERS} listeners`);
  }
  const listeners: ListenerSettings[] = [];
  for (const item of items.slice(0, MAX_LISTENERS)) {
    const listener = readListener(item, base, problems);
    if (listener === null) continue;
    if (listeners.some((other) => other.name === listener.name)) {
      problems.add(item.at, `there is another listener named ${quoted(listener.name)}; give each its own name`);
    }
    listeners.push(listener);
  }
  return listeners;
}

function readListener(item: Located, base: string, problems: Problems): ListenerSettings | null {
  if (item.type === 'scalar') {
    const address = readListenAddress(item, problems);
    return address === null ? null : { name: 'proxy', ...address, tls: null };
  }
  const read = readFields(item, LISTENER_KEYS, problems, 'a listener');
  if (read === null) return null;
  const nameValue = read.fields.get('name');
  const name = nameValue === undefined ? 'proxy' : readText(nameValue, problems, 'a name');
  if (nameValue !== undefined && name !== null && !/^[a-z][a-z0-9_-]{0,31}$/.test(name)) {
    problems.add(nameValue.at, `${quoted(name)} is no name for a listener; use lower-case letters, digits, - and _`);
  }
  const addressValue = read.fields.get('address');
  if (addressValue === undefined) problems.add(item.at, 'a listener needs an address');
  const address = addressValue === undefined ? null : readListenAddress(addressValue, problems);
  const tlsValue = read.fields.get('tls');
  const isPlain = tlsValue === undefined || (tlsValue.type === 'scalar' && tlsValue.value === null);
  const tls = isPlain ? null : readListenerTls(tlsValue, base, problems);
  // Never a plain listener where TLS was asked for and could not be read.
  if (!isPlain && tls === null) return null;
  return name === null || address === null ? null : { name, ...address, tls };
}

function readListenerTls(value: Located, base: string, problems: Problems): ListenerSettings['tls'] {
  const read = readFields(value, TLS_KEYS, problems, 'TLS settings');
  if (read === null) return null;
  const pathOf = (key: string): string | null => {
    const found = read.fields.get(key);
    return found === undefined ? null : readPath(found, base, problems);
  };
  const cert = pathOf('cert');
  const key = pathOf('key');
  const clientCa = pathOf('client_ca');
  if (!read.fields.has('cert') || !read.fields.has('key')) problems.add(read.at, 'TLS needs both cert and key');
  const required = read.fields.get('require_client_certificate');
  const requireClientCertificate = required === undefined ? false : readBoolean(required, problems);
  if (required !== undefined && requireClientCertificate === true && !read.fields.has('client_ca')) {
    problems.add(required.at, 'client certificates can only be required with client_ca, which says whose');
  }
  if (cert === null || key === null || requireClientCertificate === null) return null;
  return { cert, key, clientCa, requireClientCertificate };
}

/** `upstream.hosts`: name or name:port → address or address:port. */
export function readHosts(value: Located, problems: Problems): Settings['upstream']['hosts'] {
  if (!isMapping(value)) {
    problems.add(
      value.at,
      'a mapping of names to addresses expected here, for example api.example.com: 127.0.0.1:9443',
    );
    return {};
  }
  const hosts = new Map<string, Settings['upstream']['hosts'][string]>();
  for (const entry of value.entries) {
    const name = hostKey(entry.key);
    const address = readAddressWithPort(entry.value, problems);
    if (name === null) problems.add(entry.keyAt, `${quoted(entry.key)} is no host name or host:port`);
    else if (hosts.has(name)) problems.add(entry.keyAt, `${quoted(entry.key)} is there already, in another spelling`);
    else if (address !== null) hosts.set(name, address);
  }
  return Object.fromEntries(hosts);
}

function hostKey(text: string): string | null {
  const host = canonicalHost(text);
  if (host !== null) return host;
  const destination = parseAuthority(text, null);
  return destination === null ? null : formatAuthority(destination);
}

const CERTIFICATE_KEYS = ['host', 'cert', 'key'] as const;

/** `upstream.client_certificates`. */
export function readClientCertificates(
  value: Located,
  base: string,
  problems: Problems,
): Settings['upstream']['clientCertificates'] {
  const found: { host: string; cert: string; key: string }[] = [];
  for (const item of value.type === 'list' ? value.items : [value]) {
    const read = readFields(item, CERTIFICATE_KEYS, problems, 'a client certificate');
    if (read === null) continue;
    const [hostValue, certValue, keyValue] = CERTIFICATE_KEYS.map((key) => read.fields.get(key));
    if (hostValue === undefined || certValue === undefined || keyValue === undefined) {
      problems.add(item.at, 'a client certificate needs host, cert and key');
      continue;
    }
    const text = readText(hostValue, problems, 'a host');
    const cert = readPath(certValue, base, problems);
    const key = readPath(keyValue, base, problems);
    if (text === null || cert === null || key === null) continue;
    const isWild = text.startsWith('*.');
    const name = canonicalHost(isWild ? text.slice(2) : text);
    if (name === null) {
      problems.add(hostValue.at, `${quoted(text)} is neither a host nor *. and a host`);
      continue;
    }
    const host = isWild ? `*.${name}` : name;
    if (found.some((other) => other.host === host)) {
      problems.add(hostValue.at, `there is another certificate for ${quoted(host)}`);
      continue;
    }
    found.push({ host, cert, key });
  }
  return found;
}

type UpstreamProxy = NonNullable<Settings['upstream']['proxy']>;

/** `upstream.proxy` as a URL. Its text may hold a password: no message shows it. */
export function readProxyUrl(value: Located, problems: Problems): UpstreamProxy | null {
  if (value.type === 'scalar' && value.value === null) return null;
  const refuse = (text: string): null => {
    problems.add(value.at, `${text}; write for example http://proxy.example.com:3128`);
    return null;
  };
  if (value.type !== 'scalar') return refuse('the URL of a proxy expected here');
  const match = /^(https?):\/\/(?:([^/?#\s]*)@)?([^/?#@\s]+)\/?$/i.exec(value.text);
  if (match === null) {
    return refuse(
      /^socks/i.test(value.text)
        ? 'SOCKS towards an upstream proxy is not supported, only CONNECT'
        : 'this is not the URL of a proxy (http or https, a host and a port, no path)',
    );
  }
  const [, scheme = '', userinfo, authority = ''] = match;
  const destination = parseAuthority(authority, null);
  if (destination === null) return refuse('the URL of the proxy needs a host and a port');
  let credentials: string | null = null;
  if (userinfo !== undefined) {
    credentials = decodeUserinfo(userinfo);
    if (credentials === null) return refuse('user and password in the URL of the proxy are malformed');
  }
  return { ...destination, tls: scheme.toLowerCase() === 'https', credentials };
}

function decodeUserinfo(userinfo: string): string | null {
  try {
    const colon = userinfo.indexOf(':');
    const user = decodeURIComponent(colon === -1 ? userinfo : userinfo.slice(0, colon));
    const password = colon === -1 ? '' : decodeURIComponent(userinfo.slice(colon + 1));
    // RFC 7617 section 2: the first colon ends the user.
    return user === '' || user.includes(':') ? null : checkedCredentials(`${user}:${password}`);
  } catch {
    return null;
  }
}

/** `user:password` without control characters, which could not stand in a header; null otherwise. */
export function checkedCredentials(text: string): string | null {
  return text.length <= 4096 && /^[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*$/.test(text) ? text : null;
}
