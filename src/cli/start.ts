import type { Command } from 'commander';
import pc from 'picocolors';
import { startApp } from '../app.ts';
import type { App } from '../app.ts';
import { loadSettings } from '../config/load.ts';
import { causeOf } from '../core/errors.ts';
import type { Log } from '../core/ports.ts';
import type { Settings } from '../core/settings.ts';
import { createLog } from '../log.ts';

interface StartFlags {
  readonly config?: string;
  readonly listen?: string;
  readonly admin?: string;
  readonly rules?: string;
  readonly certs?: string;
  readonly audit?: string;
  readonly set: readonly string[];
  readonly quiet?: boolean;
}

/** Options that every command which reads the settings shares. */
export function withSettingsOptions(command: Command): Command {
  return command
    .option('-c, --config <file>', 'settings file (default: subfloor.yaml in this folder, if it is there)')
    .option('--listen <address>', 'proxy address, host:port')
    .option('--admin <address>', 'admin address, host:port')
    .option('--rules <folder>', 'folder with rule files')
    .option('--certs <folder>', 'folder with ca.pem and ca.key')
    .option('--audit <file>', 'audit file; - for standard output')
    .option('--set <key=value>', 'any other setting, e.g. limits.idle_ms=60s; may be repeated', collect, []);
}

function collect(value: string, before: readonly string[]): readonly string[] {
  return [...before, value];
}

/** Settings from file, environment and the flags above. @throws ConfigError */
export function settingsFromFlags(flags: StartFlags): ReturnType<typeof loadSettings> {
  const values: Record<string, string> = {};
  for (const pair of flags.set) {
    const at = pair.indexOf('=');
    values[at < 0 ? pair : pair.slice(0, at)] = at < 0 ? '' : pair.slice(at + 1);
  }
  if (flags.listen !== undefined) values['listen.proxy'] = flags.listen;
  if (flags.admin !== undefined) values['listen.admin'] = flags.admin;
  if (flags.rules !== undefined) values['rules'] = flags.rules;
  if (flags.certs !== undefined) values['certs'] = flags.certs;
  if (flags.audit !== undefined) values['audit.file'] = flags.audit;
  return loadSettings({
    cwd: process.cwd(),
    env: process.env,
    flags: values,
    ...(flags.config === undefined ? {} : { file: flags.config }),
  });
}

export function addStartCommand(program: Command): void {
  withSettingsOptions(program.command('start').description('run the proxy'))
    .option('-q, --quiet', 'print nothing but the log')
    .addHelpText(
      'after',
      '\nSignals: SIGTERM and SIGINT drain and stop, SIGHUP reads the rules anew, SIGUSR2 reopens the audit file.\nExit codes: 0 stopped, 1 unexpected, 2 settings or rules are invalid.',
    )
    .action(async (flags: StartFlags) => {
      const { settings, warnings } = await settingsFromFlags(flags);
      const log = createLog(settings.log);
      guardProcess(log);
      const app = await startApp({ settings, log });
      for (const warning of warnings) log.warn({}, warning);
      if (flags.quiet !== true) process.stderr.write(banner(app, settings));
      log.info(
        {
          listeners: app.listeners.map((l) => `${l.name} ${l.host}:${l.port}`),
          admin: app.adminPort,
          rules: app.ruleCount,
          revision: app.revision,
        },
        'subfloor is ready',
      );
      await stopped(app, log);
    });
}

/** A bug in one connection must not end all others: it is logged, counted in the log, and the process goes on. */
function guardProcess(log: Log): void {
  process.on('uncaughtException', (error) => {
    log.error({ cause: causeOf(error), stack: error.stack }, 'an unexpected error was contained; please report it');
  });
  process.on('unhandledRejection', (reason) => {
    log.error(
      { cause: causeOf(reason), stack: reason instanceof Error ? reason.stack : undefined },
      'an unexpected rejection was contained; please report it',
    );
  });
  // The reader of our output may go away; the proxy stays.
  process.stdout.on('error', () => undefined);
  process.stderr.on('error', () => undefined);
}

/** Resolves when a signal has stopped the proxy. A second signal does not wait for open exchanges. */
function stopped(app: App, log: Log): Promise<void> {
  return new Promise((resolve) => {
    let isStopping = false;
    const stop = (): void => {
      const ended = isStopping ? app.close() : app.drain();
      isStopping = true;
      ended.then(
        () => resolve(),
        (error: unknown) => {
          log.error({ cause: causeOf(error) }, 'the proxy could not stop cleanly');
          resolve();
        },
      );
    };
    process.on('SIGTERM', stop);
    process.on('SIGINT', stop);
    process.on('SIGHUP', () => void app.reload());
    process.on('SIGUSR2', () => {
      app
        .reopenAudit()
        .catch((error: unknown) => log.error({ cause: causeOf(error) }, 'the audit file could not be reopened'));
    });
  });
}

function banner(app: App, settings: Settings): string {
  const first = app.listeners[0];
  const host =
    first === undefined ? '127.0.0.1' : first.host === '0.0.0.0' || first.host === '::' ? '127.0.0.1' : first.host;
  const url = `http://${host.includes(':') ? `[${host}]` : host}:${app.proxyPort}`;
  const lines = [
    '',
    `  ${pc.bold('subfloor')}  egress proxy for agents`,
    '',
    ...app.listeners.map((listener) =>
      row('proxy', `${listener.host}:${listener.port}${listener.name === 'proxy' ? '' : ` (${listener.name})`}`),
    ),
    row(
      'admin',
      `http://${settings.admin.host.includes(':') ? `[${settings.admin.host}]` : settings.admin.host}:${app.adminPort}/readyz`,
    ),
    row('rules', `${app.ruleCount} in force, revision ${app.revision}`),
    ...app.ruleFiles.map((file) => row('', pc.dim(file))),
    row('audit', settings.audit.file),
    row('root CA', `${app.caFile}${app.caCreated ? pc.yellow('  (made just now)') : ''}`),
    '',
    `  ${pc.dim('Point an agent at it:')}`,
    `    export HTTPS_PROXY=${url} HTTP_PROXY=${url}`,
    `    export NODE_EXTRA_CA_CERTS=${app.caFile} CURL_CA_BUNDLE=${app.caFile}`,
    `  ${pc.dim('All variables for all clients:')} eval "$(npx subfloor env)"`,
    '',
  ];
  return `${lines.join('\n')}\n`;
}

function row(label: string, text: string): string {
  return `  ${pc.cyan(label.padEnd(9))}${text}`;
}
