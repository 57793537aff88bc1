import { open } from 'node:fs/promises';
import { resolve } from 'node:path';
import type { X509Certificate } from 'node:crypto';
import { Option, type Command } from 'commander';
import { loadSettings } from '../config/load.ts';
import { ConfigError } from '../core/errors.ts';
import { Authority, checkOrganization } from '../tls/authority.ts';
import { caPaths, retireCaPair } from '../tls/ca-files.ts';
import { spkiSha256, strictProblems } from '../tls/strictness.ts';
import { bundleWith, javaTrustStore, pemBundle } from '../tls/trust-store.ts';

interface FolderOption {
  readonly certs?: string;
  readonly config?: string;
}

/** Java's conventional password. The store holds public certificates only, so it guards nothing. */
const TRUST_STORE_PASSWORD = 'changeit';

/**
 * Adds `ca init`, `ca show`, `ca export` and `ca bundle`. Data goes to stdout, talk to stderr.
 * Exit codes: 0 good, 1 unexpected, 2 bad usage or a CA that cannot be used, 3 `show` found that strict clients will refuse the CA.
 */
export function addCaCommands(program: Command): void {
  const ca = program.command('ca').description('the root CA that agents trust: make it, show it, hand it out');
  const folder = (): Option =>
    new Option('--certs <dir>', 'folder with ca.pem and ca.key (default: that of the settings)');
  const config = (): Option => new Option('-c, --config <file>', 'settings file that names the folder');

  ca.command('init')
    .description('make a root CA if there is none')
    .addOption(folder())
    .addOption(config())
    .option('--force', 'make a new one even so; the old files are renamed, never overwritten')
    .option('--organization <name>', 'name in the certificate', 'Subfloor')
    .option('--json', 'print facts as JSON')
    .addHelpText('after', EXIT_CODES)
    .action((options: FolderOption & { force?: boolean; organization: string; json?: boolean }) =>
      reporting(() => init(options)),
    );

  ca.command('show')
    .description('what agents have to trust: subject, fingerprint, validity, and whether strict clients will take it')
    .addOption(folder())
    .addOption(config())
    .option('--json', 'print facts as JSON')
    .addHelpText('after', EXIT_CODES)
    .action((options: FolderOption & { json?: boolean }) => reporting(() => show(options)));

  ca.command('export')
    .description('write the CA certificate (never its key) for a trust store')
    .addOption(folder())
    .addOption(config())
    .addOption(
      new Option('--format <format>', 'pem, der, or p12 for Java').choices(['pem', 'der', 'p12']).default('pem'),
    )
    .option('-o, --output <file>', 'write there and not to stdout')
    .option('--password <word>', 'for p12; it keys an integrity check only', TRUST_STORE_PASSWORD)
    .addHelpText('after', EXIT_CODES)
    .action((options: FolderOption & StoreOptions) =>
      reporting(async () => {
        const { authority } = await Authority.open(await folderOf(options), { create: false });
        await emit(store(authority.certificates, options), options.output);
      }),
    );

  ca.command('bundle')
    .description('public roots and our CA in one, for settings that replace the trust store of a client')
    .addOption(folder())
    .addOption(config())
    .addOption(new Option('--format <format>', 'pem, or p12 for Java').choices(['pem', 'p12']).default('pem'))
    .option('-o, --output <file>', 'write there and not to stdout')
    .option('--password <word>', 'for p12; it keys an integrity check only', TRUST_STORE_PASSWORD)
    .addHelpText('after', EXIT_CODES)
    .action((options: FolderOption & StoreOptions) =>
      reporting(async () => {
        const { authority } = await Authority.open(await folderOf(options), { create: false });
        await emit(store(bundleWith(authority.certificates), options), options.output);
      }),
    );
}

/** The folder that was named, or the one that a start would use. @throws ConfigError */
async function folderOf(options: FolderOption): Promise<string> {
  if (options.certs !== undefined) return resolve(options.certs);
  const { settings } = await loadSettings({
    cwd: process.cwd(),
    env: process.env,
    flags: {},
    ...(options.config === undefined ? {} : { file: options.config }),
  });
  return settings.certs;
}

const EXIT_CODES = `
Exit codes: 0 good, 1 unexpected, 2 bad usage or a CA that cannot be used, 3 strict clients will refuse the CA (show)`;

interface StoreOptions {
  readonly format: string;
  readonly output?: string;
  readonly password: string;
}

async function init(options: FolderOption & { force?: boolean; organization: string; json?: boolean }): Promise<void> {
  const folder = await folderOf(options);
  // Before anything is moved: a bad name must not cost the old CA.
  checkOrganization(options.organization);
  if (options.force === true) {
    const stamp = new Date().toISOString().replaceAll(/[-:]|\.\d+/g, '');
    for (const path of await retireCaPair(folder, stamp)) say(`kept the old file as ${path}`);
  }
  const { authority, created } = await Authority.open(folder, { organization: options.organization });
  const paths = caPaths(folder);
  say(
    created
      ? `made a root CA: ${paths.pem}, key in ${paths.key} (mode 0600)`
      : `there is a root CA already: ${paths.pem}`,
  );
  if (created && options.force === true)
    say('agents must trust the new one, and a running proxy must be restarted to use it');
  print(factsOf(authority), options.json === true);
}

async function show(options: FolderOption & { json?: boolean }): Promise<void> {
  const { authority } = await Authority.open(await folderOf(options), { create: false });
  const facts = factsOf(authority);
  print(facts, options.json === true);
  if (facts.strictProblems.length > 0) {
    say('Strict clients (Python 3.13 and later among them) will refuse this CA; see strictProblems.');
    process.exitCode = 3;
  }
}

interface CaFacts {
  readonly subject: string;
  readonly issuer: string;
  readonly fingerprintSha256: string;
  readonly validFrom: string;
  readonly validTo: string;
  readonly key: string;
  readonly spkiSha256: string;
  readonly chainLength: number;
  readonly strictProblems: readonly string[];
}

function factsOf(authority: Authority): CaFacts {
  const [certificate] = authority.certificates;
  const { asymmetricKeyType = 'unknown', asymmetricKeyDetails = {} } = certificate.publicKey;
  const size = asymmetricKeyDetails.namedCurve ?? asymmetricKeyDetails.modulusLength ?? '';
  return {
    subject: oneLine(certificate.subject),
    issuer: oneLine(certificate.issuer),
    fingerprintSha256: authority.fingerprintSha256,
    validFrom: new Date(certificate.validFrom).toISOString(),
    validTo: authority.notAfter.toISOString(),
    key: `${asymmetricKeyType} ${size}`,
    spkiSha256: spkiSha256(certificate),
    chainLength: authority.certificates.length,
    strictProblems: authority.certificates.flatMap(strictProblems),
  };
}

/** Node puts each part of a name on a line of its own. */
function oneLine(name: string): string {
  return name.split('\n').join(', ');
}

function print(facts: CaFacts, asJson: boolean): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify(facts, null, 2)}\n`);
    return;
  }
  const rows: readonly (readonly [string, string])[] = [
    ['subject', facts.subject],
    ['issuer', facts.issuer],
    ['SHA-256 fingerprint', facts.fingerprintSha256],
    ['valid from', facts.validFrom],
    ['valid to', facts.validTo],
    ['key', facts.key],
    ['SPKI SHA-256 (Chromium)', facts.spkiSha256],
    ['certificates in chain', String(facts.chainLength)],
    ['strict verifiers', facts.strictProblems.length === 0 ? 'accept it' : facts.strictProblems.join('; ')],
  ];
  for (const [name, value] of rows) process.stdout.write(`${name.padEnd(24)} ${value}\n`);
}

function store(certificates: readonly X509Certificate[], options: StoreOptions): string | Buffer {
  switch (options.format) {
    case 'p12':
      return javaTrustStore(certificates, options.password);
    case 'der':
      // DER has room for one: the certificate that signs.
      return certificates[0]?.raw ?? Buffer.alloc(0);
    default:
      return pemBundle(certificates);
  }
}

async function emit(content: string | Buffer, output: string | undefined): Promise<void> {
  if (output === undefined) {
    if (Buffer.isBuffer(content) && process.stdout.isTTY) {
      throw new ConfigError('This format is binary: name a file with --output, or pipe it.');
    }
    process.stdout.write(content);
    return;
  }
  const path = resolve(output);
  try {
    const file = await open(path, 'w', 0o644);
    try {
      await file.writeFile(content);
    } finally {
      await file.close();
    }
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    throw new ConfigError(`The file cannot be written (${code}).`, { file: path });
  }
  say(`wrote ${path}`);
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Configuration errors carry file and remedy in their message and need no stack. Anything else is ours to fix and goes on up. */
async function reporting(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    say(error.message);
    process.exitCode = 2;
  }
}
