import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ConfigError, causeOf } from '../core/errors.ts';
import { Problems } from '../core/located.ts';
import type { Located } from '../core/located.ts';
import type { Limits, ListenAddress, Settings } from '../core/settings.ts';
import { KEYS, LIMITS, ROTATE_BYTES, limitNames, snakeCase } from './schema.ts';
import { environmentLayer, fileLayer, flagLayer } from './sources.ts';
import type { Layer, Origin, Written } from './sources.ts';
import { checkedCredentials, readClientCertificates, readHosts, readListeners, readProxyUrl } from './structures.ts';
import { readChoice, readCidrText, readLimit, readList, readListenAddress, readPath } from './values.ts';

export type { Origin } from './sources.ts';

export interface LoadOptions {
  /** Folder for the default file and for relative paths in variables and flags. */
  readonly cwd: string;
  /** Settings file; it must exist when it is given here or in SUBFLOOR_CONFIG. */
  readonly file?: string;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** By key path, for example `limits.idle_ms`. */
  readonly flags: Readonly<Record<string, string>>;
}

export interface LoadedSettings {
  readonly settings: Settings;
  /** For every key of the schema, by path. */
  readonly origins: ReadonlyMap<string, Origin>;
  /** The settings file that was read, absolute. */
  readonly file: string | null;
  /** Things that work and that an operator should know. */
  readonly warnings: readonly string[];
}

const MAX_FILE_BYTES = 1024 * 1024;

/**
 * The effective settings: defaults, overridden by `subfloor.yaml`, overridden by `SUBFLOOR_*`, overridden by flags.
 * @throws ConfigError with one line for each problem, each with its place, the value, the nearest valid word and a remedy
 */
export async function loadSettings(options: LoadOptions): Promise<LoadedSettings> {
  const cwd = resolve(options.cwd);
  const problems = new Problems();
  const file = findFile(cwd, options);
  const layers: readonly Layer[] = [
    file === null ? new Map() : fileLayer(await readSettingsFile(file), file, problems),
    environmentLayer(options.env, cwd, problems),
    flagLayer(options.flags, cwd, problems),
  ];
  const reader = new SettingsReader(layers, cwd, file, problems);
  const settings = await reader.read();
  problems.throwIfAny();
  return { settings, origins: reader.origins(), file, warnings: reader.warnings };
}

function findFile(cwd: string, options: LoadOptions): string | null {
  const named = options.file ?? options.env['SUBFLOOR_CONFIG'];
  if (named !== undefined && named !== '') return resolve(cwd, named);
  const usual = join(cwd, 'subfloor.yaml');
  return existsSync(usual) ? usual : null;
}

async function readSettingsFile(file: string): Promise<string> {
  try {
    const { size } = await stat(file);
    if (size > MAX_FILE_BYTES) throw new ConfigError('this is too large to be a settings file', { file });
    return await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`the settings file cannot be read (${causeOf(error)})`, { file });
  }
}

/** The `rules` folder that comes with the package: beside `src/` and beside `dist/`. */
function packagedRules(): string {
  return fileURLToPath(new URL('../../rules', import.meta.url));
}

class SettingsReader {
  readonly warnings: string[] = [];
  readonly #layers: readonly Layer[];
  readonly #cwd: string;
  readonly #file: string | null;
  readonly #problems: Problems;

  constructor(layers: readonly Layer[], cwd: string, file: string | null, problems: Problems) {
    this.#layers = layers;
    this.#cwd = cwd;
    this.#file = file;
    this.#problems = problems;
  }

  origins(): ReadonlyMap<string, Origin> {
    return new Map(KEYS.map(({ path }) => [path, this.#written(path)?.origin ?? { kind: 'default' }]));
  }

  async read(): Promise<Settings> {
    const problems = this.#problems;
    const settings: Settings = {
      listeners: this.#value('listen.proxy', (value, base) => readListeners(value, base, problems), [
        { name: 'proxy', host: '127.0.0.1', port: 8080, tls: null },
      ]),
      admin: this.#value('listen.admin', (value) => readListenAddress(value, problems), {
        host: '127.0.0.1',
        port: 8081,
      }),
      rules: this.#value('rules', (value, base) => this.#paths(value, base, 'a folder of rules'), this.#defaultRules()),
      certs: this.#value('certs', (value, base) => readPath(value, base, problems), join(this.#cwd, 'certs')),
      agents: this.#agents(),
      audit: {
        file: this.#value(
          'audit.file',
          (value, base) => auditFile(value, base, problems),
          join(this.#cwd, 'var/audit.jsonl'),
        ),
        format: this.#value('audit.format', (value) => readChoice(value, ['ocsf', 'flat'], problems), 'ocsf'),
        rotateBytes: this.#rotateBytes(),
      },
      log: {
        level: this.#value(
          'log.level',
          (value) => readChoice(value, ['debug', 'info', 'warn', 'error'], problems),
          'info',
        ),
        format: this.#value('log.format', (value) => readChoice(value, ['auto', 'pretty', 'json'], problems), 'auto'),
      },
      upstream: {
        hosts: this.#value('upstream.hosts', (value) => readHosts(value, problems), {}),
        ca: this.#value('upstream.ca', (value, base) => readList(value, (item) => readPath(item, base, problems)), []),
        proxy: await this.#upstreamProxy(),
        clientCertificates: this.#value(
          'upstream.client_certificates',
          (value, base) => readClientCertificates(value, base, problems),
          [],
        ),
      },
      addresses: {
        allow: this.#value('addresses.allow', (value) => readList(value, (item) => readCidrText(item, problems)), []),
      },
      limits: this.#limits(),
    };
    this.#checkTogether(settings);
    return settings;
  }

  /** What the strictest layer says about a key. */
  #written(path: string): Written | undefined {
    return this.#layers.findLast((layer) => layer.has(path))?.get(path);
  }

  #rank(path: string): number {
    return this.#layers.findLastIndex((layer) => layer.has(path));
  }

  #value<Value>(path: string, read: (value: Located, base: string) => Value | null, fallback: Value): Value {
    const written = this.#written(path);
    if (written === undefined) return fallback;
    const { value, base } = written;
    if (value.type === 'scalar' && value.value === null) {
      this.#problems.add(value.at, `${path} has no value; remove the line to have the default`);
      return fallback;
    }
    // A null has left its problem behind, so the fallback is never used.
    return read(value, base) ?? fallback;
  }

  #paths(value: Located, base: string, what: string): readonly string[] {
    const paths = readList(value, (item) => readPath(item, base, this.#problems));
    if (value.type === 'list' && value.items.length === 0) this.#problems.add(value.at, `at least ${what} is needed`);
    return [...new Set(paths)];
  }

  #defaultRules(): readonly string[] {
    const own = join(this.#cwd, 'rules');
    return [existsSync(own) ? own : packagedRules()];
  }

  #agents(): string | null {
    const written = this.#written('agents');
    if (written !== undefined) {
      const { value, base } = written;
      return value.type === 'scalar' && value.value === null ? null : readPath(value, base, this.#problems);
    }
    const usual = join(this.#cwd, 'agents.yaml');
    if (existsSync(usual)) return usual;
    const beside = this.#file === null ? null : join(dirname(this.#file), 'agents.yaml');
    if (beside !== null && existsSync(beside)) {
      this.warnings.push(`${beside} is not used: name it with "agents: agents.yaml" in ${this.#file ?? ''}`);
    }
    return null;
  }

  /** Null is a value here, and the only way to say "never". */
  #rotateBytes(): number | null {
    const written = this.#written('audit.rotate_bytes')?.value;
    if (written?.type === 'scalar' && written.value === null) return null;
    return this.#value(
      'audit.rotate_bytes',
      (value) => readLimit(value, ROTATE_BYTES, this.#problems),
      ROTATE_BYTES.fallback,
    );
  }

  async #upstreamProxy(): Promise<Settings['upstream']['proxy']> {
    const problems = this.#problems;
    const url = this.#written('upstream.proxy');
    const credentials = this.#written('upstream.proxy.credentials_file');
    const proxy = url === undefined ? null : readProxyUrl(url.value, problems);
    if (credentials === undefined) return proxy;
    const file = readPath(credentials.value, credentials.base, problems);
    if (url === undefined) problems.add(credentials.value.at, 'credentials need the url of a proxy to send them to');
    if (file === null || proxy === null) return proxy;
    if (this.#rank('upstream.proxy.credentials_file') < this.#rank('upstream.proxy')) {
      // Somebody pointed us to another proxy; the password of the first is none of its business.
      this.warnings.push(
        'upstream.proxy was overridden, so the credentials_file of the settings file is not used for it',
      );
      return proxy;
    }
    if (proxy.credentials !== null) {
      problems.add(credentials.value.at, 'credentials stand in the URL already; keep them in one place');
      return proxy;
    }
    const text = await readFile(file, 'utf8').catch((error: unknown) => {
      problems.add(credentials.value.at, `the credentials file cannot be read (${causeOf(error)})`);
      return null;
    });
    if (text === null) return proxy;
    const checked = checkedCredentials(text.replace(/\r?\n$/, ''));
    if (checked === null)
      problems.add(credentials.value.at, 'the credentials file does not hold one line user:password');
    return { ...proxy, credentials: checked };
  }

  #limits(): Limits {
    const read = (name: keyof Limits): number =>
      this.#value(
        `limits.${snakeCase(name)}`,
        (value) => readLimit(value, LIMITS[name], this.#problems),
        LIMITS[name].fallback,
      );
    const entries = limitNames().map((name): [keyof Limits, number] => [name, read(name)]);
    return Object.fromEntries(entries) as Record<keyof Limits, number>;
  }

  #checkTogether(settings: Settings): void {
    const places = new Map<string, string>();
    const all: readonly { readonly name: string; readonly address: ListenAddress }[] = [
      ...settings.listeners.map((listener) => ({ name: `listener ${listener.name}`, address: listener })),
      { name: 'the admin listener', address: settings.admin },
    ];
    for (const { name, address } of all) {
      if (address.port === 0) continue;
      const text = `${address.host} ${address.port}`;
      const other = places.get(text);
      if (other !== undefined) {
        const at = this.#written(name === 'the admin listener' ? 'listen.admin' : 'listen.proxy')?.value.at;
        this.#problems.add(
          at ?? { source: 'listen', line: null, column: null },
          `${name} has the address of ${other}; each needs its own`,
        );
      }
      places.set(text, name);
    }
    if (!isLoopback(settings.admin.host)) {
      this.warnings.push(
        `listen.admin is ${settings.admin.host}: whoever reaches it can reload the rules and read the state; keep agents away from it`,
      );
    }
  }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || host.startsWith('127.');
}

/** `-` is standard output, not a file of that name. */
function auditFile(value: Located, base: string, problems: Problems): string | null {
  return value.type === 'scalar' && value.text === '-' ? '-' : readPath(value, base, problems);
}
