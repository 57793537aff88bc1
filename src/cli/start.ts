import type { Command } from 'commander';
import pc from 'picocolors';
import { startApp } from '../app.ts';
import type { App } from '../app.ts';
import { causeOf } from '../core/errors.ts';
import type { Log } from '../core/ports.ts';
import type { Settings } from '../core/settings.ts';
import { createLog } from '../log.ts';
import { tuneCollector } from './collector.ts';
import { settingsFromFlags, withSettingsOptions } from './settings-options.ts';
import type { SettingsFlags } from './settings-options.ts';

interface StartFlags extends SettingsFlags {
  readonly quiet?: boolean;
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
      tuneCollector();
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
    `    export NODE_EXTRA_CA_CERTS=${app.caFile}`,
    `  ${pc.dim('All variables for all clients:')} eval "$(npx subfloor env)"`,
    '',
  ];
  return `${lines.join('\n')}\n`;
}

function row(label: string, text: string): string {
  return `  ${pc.cyan(label.padEnd(9))}${text}`;
}
