import { access, constants } from 'node:fs/promises';
import type { Command } from 'commander';
import pc from 'picocolors';
import { openAgents } from '../agents/directory.ts';
import { describeSettings, nearPath, originText } from '../config/describe.ts';
import type { LoadedSettings } from '../config/load.ts';
import { causeOf } from '../core/errors.ts';
import { settingsFromFlags, withSettingsOptions } from './settings-options.ts';
import type { SettingsFlags } from './settings-options.ts';

interface ShowFlags extends SettingsFlags {
  readonly json?: boolean;
}

const EXIT_CODES =
  '\nExit codes: 0 good, 1 unexpected, 2 the settings are invalid, 3 a file they name cannot be used (check).';

/** Adds `config show` and `config check`. */
export function addConfigCommands(program: Command): void {
  const config = program.command('config').description('the effective settings');

  withSettingsOptions(config.command('show').description('print every setting with its value and where it comes from'))
    .option('--json', 'print one JSON document')
    .addHelpText('after', EXIT_CODES)
    .action(async (flags: ShowFlags) => {
      const loaded = await settingsFromFlags(flags);
      process.stdout.write(flags.json === true ? jsonText(loaded) : showText(loaded, process.cwd()));
      for (const warning of loaded.warnings) process.stderr.write(`${pc.yellow('warning:')} ${warning}\n`);
    });

  withSettingsOptions(config.command('check').description('read the settings and the files that they name'))
    .option('--json', 'print one JSON document')
    .addHelpText('after', EXIT_CODES)
    .action(async (flags: ShowFlags) => {
      const loaded = await settingsFromFlags(flags);
      await openAgents(loaded.settings.agents, loaded.settings.listeners);
      const problems = await unreadableFiles(loaded);
      if (problems.length > 0) process.exitCode = 3;
      if (flags.json === true) {
        const result = {
          version: 1,
          ok: problems.length === 0,
          file: loaded.file,
          problems,
          warnings: loaded.warnings,
        };
        process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
        return;
      }
      for (const warning of loaded.warnings) process.stderr.write(`${pc.yellow('warning:')} ${warning}\n`);
      for (const problem of problems) process.stderr.write(`${pc.red('problem:')} ${problem}\n`);
      const file = loaded.file === null ? 'no settings file' : nearPath(loaded.file, process.cwd());
      if (problems.length === 0) process.stderr.write(`${pc.green('ok')} (${file})\n`);
    });
}

function jsonText({ settings, origins, file, warnings }: LoadedSettings): string {
  const values = describeSettings(settings).map(({ path, value }) => ({
    key: path,
    value,
    origin: origins.get(path) ?? { kind: 'default' },
  }));
  return `${JSON.stringify({ version: 1, file, warnings, settings: values }, null, 2)}\n`;
}

/** Three columns; values that were set stand out from defaults. */
export function showText({ settings, origins }: LoadedSettings, cwd: string): string {
  const rows = describeSettings(settings).map(({ path, text }) => {
    const origin = origins.get(path) ?? { kind: 'default' };
    return { path, text, origin: originText(origin, cwd), isDefault: origin.kind === 'default' };
  });
  const pathWidth = Math.max(...rows.map((row) => row.path.length));
  const valueWidth = Math.min(48, Math.max(...rows.map((row) => row.text.length)));
  const lines = rows.map((row) => {
    const line = `${row.path.padEnd(pathWidth)}  ${row.text.padEnd(valueWidth)}  ${row.origin}`;
    return row.isDefault ? pc.dim(line) : line;
  });
  return `${lines.join('\n')}\n`;
}

/** Folders and files that a start would make are not asked for. */
async function unreadableFiles({ settings }: LoadedSettings): Promise<string[]> {
  const named: readonly (readonly [string, string])[] = [
    ...settings.rules.map((path) => ['rules', path] as const),
    ...settings.upstream.ca.map((path) => ['upstream.ca', path] as const),
    ...settings.upstream.clientCertificates.flatMap(({ cert, key }) => [
      ['upstream.client_certificates', cert] as const,
      ['upstream.client_certificates', key] as const,
    ]),
    ...settings.listeners.flatMap(({ tls }) =>
      tls === null
        ? []
        : [tls.cert, tls.key, ...(tls.clientCa === null ? [] : [tls.clientCa])].map(
            (path) => ['listen.proxy', path] as const,
          ),
    ),
  ];
  const problems: string[] = [];
  for (const [key, path] of named) {
    await access(path, constants.R_OK).catch((error: unknown) => {
      problems.push(`${key}: ${path} cannot be read (${causeOf(error)})`);
    });
  }
  return problems;
}
