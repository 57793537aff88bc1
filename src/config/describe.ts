import { relative } from 'node:path';
import type { ListenAddress, Settings } from '../core/settings.ts';
import { LIMITS, formatLimit, limitNames, snakeCase } from './schema.ts';
import type { Origin } from './sources.ts';

/** An effective value, for people and for programs. No secrets in it. */
export interface DescribedSetting {
  readonly path: string;
  /** In one line. */
  readonly text: string;
  /** JSON value; sizes in bytes, durations in milliseconds, paths absolute. */
  readonly value: unknown;
}

/** All settings in the order of the schema, with credentials masked. */
export function describeSettings(settings: Settings): readonly DescribedSetting[] {
  const { upstream } = settings;
  const { proxy } = upstream;
  const url = proxy === null ? null : `${proxy.tls ? 'https' : 'http'}://${addressText(proxy)}`;
  const hosts = Object.entries(upstream.hosts).map(([name, to]) => [name, targetText(to)] as const);
  return [
    {
      path: 'listen.proxy',
      text: settings.listeners.map(listenerText).join(', '),
      value: settings.listeners.map((listener) => ({
        name: listener.name,
        address: addressText(listener),
        tls:
          listener.tls === null
            ? null
            : {
                cert: listener.tls.cert,
                key: listener.tls.key,
                client_ca: listener.tls.clientCa,
                require_client_certificate: listener.tls.requireClientCertificate,
              },
      })),
    },
    plain('listen.admin', addressText(settings.admin)),
    list('rules', settings.rules),
    plain('certs', settings.certs),
    { path: 'agents', text: settings.agents ?? 'none', value: settings.agents },
    plain('audit.file', settings.audit.file),
    plain('audit.format', settings.audit.format),
    {
      path: 'audit.rotate_bytes',
      text: settings.audit.rotateBytes === null ? 'never' : formatLimit('size', settings.audit.rotateBytes),
      value: settings.audit.rotateBytes,
    },
    plain('log.level', settings.log.level),
    plain('log.format', settings.log.format),
    {
      path: 'upstream.hosts',
      text: hosts.length === 0 ? 'none' : hosts.map(([name, to]) => `${name} to ${to}`).join(', '),
      value: Object.fromEntries(hosts),
    },
    list('upstream.ca', upstream.ca),
    { path: 'upstream.proxy', text: url ?? 'none', value: url },
    {
      path: 'upstream.proxy.credentials_file',
      text: proxy === null || proxy.credentials === null ? 'no credentials' : 'credentials set, not shown',
      value: proxy === null || proxy.credentials === null ? null : '(not shown)',
    },
    {
      path: 'upstream.client_certificates',
      text:
        upstream.clientCertificates.length === 0
          ? 'none'
          : upstream.clientCertificates.map((entry) => `${entry.host} ${entry.cert}`).join(', '),
      value: upstream.clientCertificates,
    },
    list('addresses.allow', settings.addresses.allow),
    ...limitNames().map((name) => ({
      path: `limits.${snakeCase(name)}`,
      text: formatLimit(LIMITS[name].unit, settings.limits[name]),
      value: settings.limits[name],
    })),
  ];
}

/** `default`, `subfloor.yaml:3:5`, `SUBFLOOR_CERTS`, `--listen`. */
export function originText(origin: Origin, cwd: string): string {
  switch (origin.kind) {
    case 'default':
      return 'default';
    case 'file':
      return `${nearPath(origin.file, cwd)}:${origin.line}:${origin.column}`;
    case 'environment':
    case 'flag':
      return origin.name;
  }
}

/** A path from the working folder where it lies inside it. */
export function nearPath(path: string, cwd: string): string {
  const near = relative(cwd, path);
  return near === '' || near.startsWith('..') ? path : near;
}

/** `127.0.0.1:8080`, `[::1]:8080`. */
export function addressText({ host, port }: ListenAddress): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}

function targetText({ address, port }: { readonly address: string; readonly port: number | null }): string {
  return port === null ? address : addressText({ host: address, port });
}

function listenerText(listener: Settings['listeners'][number]): string {
  const name = listener.name === 'proxy' ? '' : `${listener.name} `;
  const required = listener.tls?.requireClientCertificate === true ? ', client certificate required' : '';
  return `${name}${addressText(listener)}${listener.tls === null ? '' : ` (TLS${required})`}`;
}

function plain(path: string, text: string): DescribedSetting {
  return { path, text, value: text };
}

function list(path: string, items: readonly string[]): DescribedSetting {
  return { path, text: items.length === 0 ? 'none' : items.join(', '), value: items };
}
