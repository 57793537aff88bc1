import { execFileSync, spawnSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { clientVariables, parseProxyUrl, unsetVariables } from '../../src/cli/client-variables.ts';
import type { ClientFiles } from '../../src/cli/client-variables.ts';
import { addEnvCommands } from '../../src/cli/env.ts';
import { Authority } from '../../src/tls/authority.ts';
import { emptyFolder, runCommand } from './command.ts';

const FILES: ClientFiles = {
  ca: '/c/ca.pem',
  bundle: '/d/bundle.pem',
  wgetrc: '/d/wgetrc',
  aptConf: '/d/apt.conf',
  php: '/d/php',
  javaTrustStore: '/d/truststore.p12',
};
const PROXY = parseProxyUrl('http://127.0.0.1:8080');

function read(stdout: string): Record<string, string> {
  const value: unknown = JSON.parse(stdout);
  return Object.fromEntries(Object.entries(value ?? {}).map(([name, text]) => [name, String(text)]));
}

async function withCa(): Promise<string> {
  const cwd = emptyFolder();
  await Authority.open(join(cwd, 'certs'));
  return cwd;
}

describe('variables for clients', () => {
  const variables = Object.fromEntries(clientVariables(PROXY, FILES, {}));

  it('proxy variables stand in both cases', () => {
    for (const name of ['HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY']) {
      expect(variables[name]).toBe('http://127.0.0.1:8080');
      expect(variables[name.toLowerCase()]).toBe('http://127.0.0.1:8080');
    }
  });

  it('NO_PROXY is exactly what every client understands', () => {
    for (const name of ['NO_PROXY', 'no_proxy', 'no_grpc_proxy']) {
      expect(variables[name]).toBe('localhost,127.0.0.1,::1');
    }
  });

  it('what replaces the roots of a client gets the bundle, what adds to them gets our CA', () => {
    const pointing = (file: string): readonly string[] =>
      Object.keys(variables).filter((name) => variables[name] === file);
    expect(pointing(FILES.ca)).toEqual(['NODE_EXTRA_CA_CERTS', 'DENO_CERT', 'EGRESS_CA_FILE']);
    expect(pointing(FILES.bundle)).toEqual(
      expect.arrayContaining(['SSL_CERT_FILE', 'CURL_CA_BUNDLE', 'REQUESTS_CA_BUNDLE', 'npm_config_cafile']),
    );
  });

  it('nothing goes into NODE_OPTIONS, where Node 20 would refuse to start', () => {
    expect(variables).not.toHaveProperty('NODE_OPTIONS');
    expect(variables).toMatchObject({ NODE_USE_ENV_PROXY: '1', NODE_USE_SYSTEM_CA: '1' });
  });

  it('setting them twice changes nothing, and unsetting gives back what was there', () => {
    const mine = { JAVA_TOOL_OPTIONS: '-Xmx1g -Dx="a b"', PHP_INI_SCAN_DIR: ['', '/my/php'].join(delimiter) };
    const once = Object.fromEntries(clientVariables(PROXY, FILES, mine));
    const other = Object.fromEntries(clientVariables(parseProxyUrl('http://10.0.0.1:3128'), FILES, once));
    const twice = Object.fromEntries(clientVariables(PROXY, FILES, other));
    expect(twice).toEqual(once);
    expect(once['JAVA_TOOL_OPTIONS']).toMatch(/^-Xmx1g -Dx="a b" -Dsubfloor/);
    expect(once['PHP_INI_SCAN_DIR']).toBe(['', '/my/php', '/d/php'].join(delimiter));
    const unset = unsetVariables(Object.keys(once), FILES, once);
    expect(unset.get('JAVA_TOOL_OPTIONS')).toBe(mine.JAVA_TOOL_OPTIONS);
    expect(unset.get('PHP_INI_SCAN_DIR')).toBe(mine.PHP_INI_SCAN_DIR);
    expect(unset.get('HTTP_PROXY')).toBeNull();
    const gone = unsetVariables([], FILES, variables);
    expect([gone.get('JAVA_TOOL_OPTIONS'), gone.get('PHP_INI_SCAN_DIR')]).toEqual([null, null]);
  });

  it('PHP keeps its own folder where the user named none', () => {
    expect(variables['PHP_INI_SCAN_DIR']).toBe(`${delimiter}/d/php`);
  });

  it.each([
    ['http://h:1', 'http://h:1', 'h', 1],
    ['http://H', 'http://h:80', 'h', 80],
    ['https://h/', 'https://h:443', 'h', 443],
    ['http://[::1]:8080', 'http://[::1]:8080', '::1', 8080],
    ['http://u:p%40@h:1', 'http://u:p%40@h:1', 'h', 1],
  ])('%s is %s', (text, url, host, port) => {
    expect(parseProxyUrl(text)).toMatchObject({ text: url, host, port });
  });

  it.each(['', 'h:1', 'socks5://h:1', 'http://h:1/path', 'http://h:1?q', 'http://h:1#f', 'http:// h:1'])(
    '%j is no proxy',
    (text) => {
      expect(() => parseProxyUrl(text)).toThrow('--proxy');
    },
  );
});

describe('subfloor env', () => {
  it('writes the files that the variables point at, once', async () => {
    const cwd = await withCa();
    const { stdout, stderr } = await runCommand(addEnvCommands, ['env', '--json', '--dir', join(cwd, 'e')], { cwd });
    expect(stderr).toBe('');
    const variables = read(stdout);
    const bundle = readFileSync(variables['SSL_CERT_FILE'] ?? '', 'utf8');
    const own = new X509Certificate(readFileSync(join(cwd, 'certs/ca.pem'), 'utf8'));
    const blocks = bundle.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
    expect(blocks.length).toBeGreaterThan(50);
    expect(new X509Certificate(blocks.at(-1) ?? '').fingerprint256).toBe(own.fingerprint256);
    expect(readFileSync(variables['WGETRC'] ?? '', 'utf8')).toBe(`ca_certificate = ${join(cwd, 'e/bundle.pem')}\n`);
    expect(readFileSync(variables['APT_CONFIG'] ?? '', 'utf8')).toContain('Acquire::https::CAInfo');
    expect(readFileSync(join(cwd, 'e/php/subfloor.ini'), 'utf8')).toContain('openssl.cafile');
    expect(readdirSync(join(cwd, 'e')).sort()).toEqual(['apt.conf', 'bundle.pem', 'php', 'truststore.p12', 'wgetrc']);
    const before = readdirSync(join(cwd, 'e')).map((name) => statSync(join(cwd, 'e', name)).mtimeMs);
    const again = await runCommand(addEnvCommands, ['env', '--json', '--dir', join(cwd, 'e')], { cwd, env: variables });
    expect(read(again.stdout)).toEqual(variables);
    expect(readdirSync(join(cwd, 'e')).map((name) => statSync(join(cwd, 'e', name)).mtimeMs)).toEqual(before);
  });

  it('keeps the apt settings that were there', async () => {
    const cwd = await withCa();
    const env = { APT_CONFIG: '/etc/apt/mine.conf' };
    await runCommand(addEnvCommands, ['env', '--dir', join(cwd, 'e')], { cwd, env });
    expect(readFileSync(join(cwd, 'e/apt.conf'), 'utf8')).toMatch(/^#include "\/etc\/apt\/mine.conf";\n/);
  });

  it('a shell can evaluate it, in a folder with an awkward name', async () => {
    const cwd = await withCa();
    const folder = join(cwd, "it's $HOME");
    mkdirSync(folder);
    const { stdout } = await runCommand(addEnvCommands, ['env', '--shell', 'sh', '--dir', join(folder, 'e')], { cwd });
    const script = `${stdout}\nprintf '%s\\n' "$SSL_CERT_FILE"; test -r "$SSL_CERT_FILE" && echo readable`;
    const output = execFileSync('sh', ['-c', script], { env: {}, encoding: 'utf8' });
    expect(output).toBe(`${join(folder, 'e/bundle.pem')}\nreadable\n`);
  });

  it('takes the address of the listener, and says so when there is none to take', async () => {
    const cwd = await withCa();
    const run = (...args: readonly string[]): ReturnType<typeof runCommand> =>
      runCommand(addEnvCommands, ['env', '--json', '--dir', join(cwd, 'e'), ...args], { cwd });
    expect(read((await run('--listen', '0.0.0.0:3128')).stdout)['HTTP_PROXY']).toBe('http://127.0.0.1:3128');
    expect(read((await run('--listen', '[::]:3128')).stdout)['HTTP_PROXY']).toBe('http://[::1]:3128');
    expect(read((await run('--proxy', 'https://proxy.example:8443')).stdout)['https_proxy']).toBe(
      'https://proxy.example:8443',
    );
    const random = await run('--listen', '127.0.0.1:0');
    expect([random.exitCode, random.stderr]).toEqual([2, expect.stringContaining('--proxy')]);
    const absent = await run('--listener', 'desk');
    expect([absent.exitCode, absent.stderr]).toEqual([2, expect.stringContaining('there is no listener')]);
  });

  it('without a CA it says how to make one, and --unset needs none', async () => {
    const cwd = emptyFolder();
    const { stdout, stderr, exitCode } = await runCommand(addEnvCommands, ['env', '--dir', join(cwd, 'e')], { cwd });
    expect([stdout, exitCode]).toEqual(['', 2]);
    expect(stderr).toContain('subfloor ca init');
    const unset = await runCommand(addEnvCommands, ['env', '--unset', '--shell', 'sh'], { cwd });
    expect(unset.exitCode).toBe(0);
    expect(unset.stdout).toContain('unset HTTP_PROXY\n');
  });

  const hasJava = spawnSync('java', ['-version']).status === 0;
  it.skipIf(!hasJava)('Java takes the options, blanks in the path included, and starts', async () => {
    const cwd = await withCa();
    const folder = join(cwd, 'a b');
    mkdirSync(folder);
    writeFileSync(
      join(cwd, 'T.java'),
      `public class T { public static void main(String[] a) throws Exception {
         System.out.println(System.getProperty("http.nonProxyHosts"));
         java.security.KeyStore k = java.security.KeyStore.getInstance("PKCS12");
         k.load(new java.io.FileInputStream(System.getProperty("javax.net.ssl.trustStore")),
           System.getProperty("javax.net.ssl.trustStorePassword").toCharArray());
         System.out.println(k.size() > 50);
       } }`,
    );
    const { stdout } = await runCommand(addEnvCommands, ['env', '--json', '--dir', join(folder, 'e')], { cwd });
    const env = { PATH: process.env['PATH'], JAVA_TOOL_OPTIONS: read(stdout)['JAVA_TOOL_OPTIONS'] };
    const result = spawnSync('java', [join(cwd, 'T.java')], { env, encoding: 'utf8' });
    expect(result.stdout).toBe('localhost|127.*|[::1]\ntrue\n');
  });
});
