import type { Command } from 'commander';
import { startApp } from '../app.ts';
import type { App } from '../app.ts';
import { causeOf } from '../core/errors.ts';
import type { Log } from '../core/ports.ts';
import { createLog } from '../log.ts';
import { banner } from './banner.ts';
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
      const loaded = await settingsFromFlags(flags);
      const { settings, warnings } = loaded;
      const log = createLog(settings.log);
      guardProcess(log);
      tuneCollector();
      const app = await startApp({ settings, log });
      for (const warning of warnings) log.warn({}, warning);
      if (flags.quiet !== true) process.stderr.write(banner(app, loaded, flags.config));
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
