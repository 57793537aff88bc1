import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import pc from 'picocolors';
import type { App } from '../app.ts';
import { addressText } from '../config/describe.ts';
import type { LoadedSettings } from '../config/load.ts';
import type { ListenAddress } from '../core/settings.ts';
import { quoteSh } from './shell-format.ts';

/** What a start says to people: what listens, which rules are in force, and what to export. */
export function banner(app: App, loaded: LoadedSettings, config: string | undefined): string {
  const { settings } = loaded;
  const url = clientUrl(app, loaded);
  // picocolors looks at standard output alone, and takes a CI for a terminal.
  const hasColor = pc.isColorSupported && (process.stderr.isTTY || process.env['FORCE_COLOR'] !== undefined);
  const colors = pc.createColors(hasColor);
  const row = (label: string, text: string): string => `  ${colors.cyan(label.padEnd(9))}${text}`;
  const admin = addressText({ host: settings.admin.host, port: app.adminPort });
  const lines = [
    '',
    `  ${colors.bold('subfloor')}  egress proxy for agents`,
    '',
    ...app.listeners.map((listener) =>
      row('proxy', `${addressText(listener)}${listener.name === 'proxy' ? '' : ` (${listener.name})`}`),
    ),
    row('admin', `http://${admin}/readyz`),
    row('rules', `${app.ruleCount} in force, revision ${app.revision}`),
    ...app.ruleFiles.map((file) => row('', colors.dim(file))),
    row('audit', settings.audit.file === '-' ? 'standard output' : settings.audit.file),
    row('root CA', `${app.caFile}${app.caCreated ? colors.yellow('  (made just now)') : ''}`),
    '',
    `  ${colors.dim('Point an agent at it:')}`,
    `    export HTTPS_PROXY=${word(url)} HTTP_PROXY=${word(url)}`,
    `    export NODE_EXTRA_CA_CERTS=${word(app.caFile)}`,
    `  ${colors.dim('All variables for all clients:')} eval "$(${[...program(), 'env', ...envFlags(loaded, config, url)].map(word).join(' ')})"`,
    '',
  ];
  return `${lines.join('\n')}\n`;
}

/** The first listener, as a client on this machine reaches it. */
function clientUrl(app: App, { settings }: LoadedSettings): string {
  const host = app.listeners[0]?.host ?? '127.0.0.1';
  const near: ListenAddress = { host: host === '0.0.0.0' || host === '::' ? '127.0.0.1' : host, port: app.proxyPort };
  return `${settings.listeners[0]?.tls == null ? 'http' : 'https'}://${addressText(near)}`;
}

/** How the reader can start this very program: outside of its own folder, npx would ask the registry for some program of that name. */
function program(): readonly string[] {
  const started = process.argv[1] ?? '';
  const isOwnFolder = process.cwd() === resolve(fileURLToPath(new URL('../..', import.meta.url)));
  if (isOwnFolder || dirname(started).endsWith(join('node_modules', '.bin'))) return ['npx', 'subfloor'];
  return basename(started) === 'subfloor' ? ['subfloor'] : ['node', started];
}

/** What `env` cannot find out from the settings file and the variables. */
function envFlags({ settings, origins }: LoadedSettings, config: string | undefined, url: string): readonly string[] {
  const isFlag = (path: string): boolean => origins.get(path)?.kind === 'flag';
  return [
    ...(config === undefined ? [] : ['--config', config]),
    ...(isFlag('certs') ? ['--certs', settings.certs] : []),
    ...(isFlag('listen.proxy') || settings.listeners[0]?.port === 0 ? ['--proxy', url] : []),
  ];
}

/** Quoted where the shell would not take it for one plain word. */
function word(text: string): string {
  return /^[\w./:@%+,=-]+$/.test(text) ? text : quoteSh(text);
}
