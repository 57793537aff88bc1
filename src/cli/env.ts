import { resolve } from 'node:path';
import { Option } from 'commander';
import type { Command } from 'commander';
import { addressText } from '../config/describe.ts';
import { ConfigError } from '../core/errors.ts';
import type { Settings } from '../core/settings.ts';
import { clientFilePaths, writeClientFiles } from './client-files.ts';
import { clientVariables, parseProxyUrl, unsetVariables } from './client-variables.ts';
import type { ProxyUrl } from './client-variables.ts';
import { settingsFromFlags, withSettingsOptions } from './settings-options.ts';
import type { SettingsFlags } from './settings-options.ts';
import { SHELLS, formatVariables } from './shell-format.ts';
import type { Shell } from './shell-format.ts';

interface EnvFlags extends SettingsFlags {
  readonly shell: Shell;
  readonly unset?: boolean;
  readonly json?: boolean;
  readonly proxy?: string;
  readonly listener?: string;
  readonly dir: string;
}

const HELP = `
Examples:
  eval "$(subfloor env)"                       sh, bash, zsh
  subfloor env --shell fish | source
  subfloor env --shell powershell | Out-String | Invoke-Expression
  subfloor env --shell docker > agent.env      docker run --env-file agent.env …
  eval "$(subfloor env --unset)"

A user and password in --proxy end up in the variables, where every program of that user can read them.
Exit codes: 0 good, 1 unexpected, 2 bad usage, invalid settings, or no CA yet.`;

/** Adds `env`. */
export function addEnvCommands(program: Command): void {
  withSettingsOptions(program.command('env').description('print the variables that send clients through the proxy'))
    .addOption(
      new Option('--shell <shell>', 'syntax of the output')
        .choices([...SHELLS])
        .default(process.platform === 'win32' ? 'powershell' : 'sh'),
    )
    .option('--json', 'the same as --shell json')
    .option('--unset', 'print what takes the variables away again')
    .option('--proxy <url>', 'URL that clients use (default: the listener of the settings)')
    .option('--listener <name>', 'listener of the settings to use (default: the first)')
    .option('--dir <folder>', 'folder for generated files: bundle, wgetrc, apt.conf, php, Java trust store', 'var/env')
    .addHelpText('after', HELP)
    .action(async (flags: EnvFlags) => {
      const { settings } = await settingsFromFlags(flags);
      const proxy = flags.proxy === undefined ? proxyOf(settings, flags.listener) : parseProxyUrl(flags.proxy);
      const files = clientFilePaths(settings.certs, resolve(flags.dir));
      const variables = clientVariables(proxy, files, process.env);
      const shell = flags.json === true ? 'json' : flags.shell;
      if (flags.unset === true) {
        process.stdout.write(
          formatVariables(unsetVariables(namesToUnset(variables.keys()), files, process.env), shell),
        );
        return;
      }
      await writeClientFiles(files, process.env);
      process.stdout.write(formatVariables(variables, shell));
      if (process.stdout.isTTY && shell === 'sh') {
        process.stderr.write('\nThese lines do nothing by themselves; run: eval "$(subfloor env)"\n');
      }
    });
}

/** Also those that only some proxies need. */
function namesToUnset(names: Iterable<string>): readonly string[] {
  const sometimes = ['CLOUDSDK_PROXY_USERNAME', 'CLOUDSDK_PROXY_PASSWORD', 'GIT_HTTP_PROXY_AUTHMETHOD'];
  return [...new Set([...names, ...sometimes])];
}

/**
 * The URL of a configured listener, as a client on this machine uses it.
 * @throws ConfigError there is no such listener, or its port is chosen at start
 */
export function proxyOf(settings: Settings, name: string | undefined): ProxyUrl {
  const listener = settings.listeners.find((entry) => name === undefined || entry.name === name);
  if (listener === undefined) {
    const names = settings.listeners.map((entry) => entry.name).join(', ');
    throw new ConfigError(`--listener: there is no listener "${name ?? ''}"; there are ${names}`);
  }
  if (listener.port === 0) {
    throw new ConfigError('the port of the listener is chosen at start; say with --proxy where clients connect');
  }
  // Nobody can connect to "all addresses".
  const host = listener.host === '0.0.0.0' ? '127.0.0.1' : listener.host === '::' ? '::1' : listener.host;
  return parseProxyUrl(`${listener.tls === null ? 'http' : 'https'}://${addressText({ host, port: listener.port })}`);
}
