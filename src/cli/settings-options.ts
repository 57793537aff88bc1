import type { Command } from 'commander';
import { loadSettings } from '../config/load.ts';
import type { LoadedSettings } from '../config/load.ts';
import { ConfigError } from '../core/errors.ts';

/** What commander makes of the options below. */
export interface SettingsFlags {
  readonly config?: string;
  readonly listen?: string;
  readonly admin?: string;
  readonly rules?: string;
  readonly certs?: string;
  readonly audit?: string;
  readonly set: readonly string[];
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

/**
 * Settings from file, environment and the flags above.
 * @throws ConfigError
 */
export function settingsFromFlags(flags: SettingsFlags): Promise<LoadedSettings> {
  const values = new Map<string, string>();
  for (const pair of flags.set) {
    const equals = pair.indexOf('=');
    if (equals < 1) throw new ConfigError(`--set ${pair}: write key=value, for example --set limits.idle_ms=60s`);
    values.set(pair.slice(0, equals), pair.slice(equals + 1));
  }
  const short: readonly (readonly [string, string | undefined])[] = [
    ['listen.proxy', flags.listen],
    ['listen.admin', flags.admin],
    ['rules', flags.rules],
    ['certs', flags.certs],
    ['audit.file', flags.audit],
  ];
  for (const [path, value] of short) if (value !== undefined) values.set(path, value);
  return loadSettings({
    cwd: process.cwd(),
    env: process.env,
    flags: Object.fromEntries(values),
    ...(flags.config === undefined ? {} : { file: flags.config }),
  });
}
