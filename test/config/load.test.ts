import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadSettings } from '../../src/config/load.ts';
import type { LoadedSettings } from '../../src/config/load.ts';
import { KEYS, LIMITS, environmentName, limitNames, snakeCase } from '../../src/config/schema.ts';
import { ConfigError } from '../../src/core/errors.ts';
import { emptyFolder } from '../cli/command.ts';

interface Given {
  readonly yaml?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly flags?: Readonly<Record<string, string>>;
  readonly cwd?: string;
}

function load({ yaml, env = {}, flags = {}, cwd = emptyFolder() }: Given): Promise<LoadedSettings> {
  if (yaml !== undefined) writeFileSync(join(cwd, 'subfloor.yaml'), yaml);
  return loadSettings({ cwd, env, flags });
}

/** Problems as lines, without the folder. */
async function problems(given: Given): Promise<readonly string[]> {
  const cwd = given.cwd ?? emptyFolder();
  const error: unknown = await load({ ...given, cwd }).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(ConfigError);
  return error instanceof ConfigError ? error.message.replaceAll(`${cwd}/`, '').split('\n') : [];
}

describe('defaults', () => {
  it('are those of the documentation of the settings', async () => {
    const cwd = emptyFolder();
    const { settings, file, warnings, origins } = await load({ cwd });
    expect(settings).toMatchObject({
      listeners: [{ name: 'proxy', host: '127.0.0.1', port: 8080, tls: null }],
      admin: { host: '127.0.0.1', port: 8081 },
      certs: join(cwd, 'certs'),
      agents: null,
      audit: { file: join(cwd, 'var/audit.jsonl'), format: 'ocsf', rotateBytes: 1024 ** 3 },
      log: { level: 'info', format: 'auto' },
      upstream: { hosts: {}, ca: [], proxy: null, clientCertificates: [] },
      addresses: { allow: [] },
    });
    expect(settings.limits).toEqual(Object.fromEntries(limitNames().map((name) => [name, LIMITS[name].fallback])));
    expect(file).toBeNull();
    expect(warnings).toEqual([]);
    expect([...origins.keys()]).toEqual(KEYS.map((key) => key.path));
    expect(new Set([...origins.values()].map((origin) => origin.kind))).toEqual(new Set(['default']));
  });

  it('take the rules folder of the package only where there is no rules folder', async () => {
    const cwd = emptyFolder();
    const before = await load({ cwd });
    expect(before.settings.rules).toHaveLength(1);
    expect(before.settings.rules[0]).not.toBe(join(cwd, 'rules'));
    mkdirSync(join(cwd, 'rules'));
    expect((await load({ cwd })).settings.rules).toEqual([join(cwd, 'rules')]);
  });

  it('take agents.yaml when it is there', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'agents.yaml'), 'version: 1\n');
    expect((await load({ cwd })).settings.agents).toBe(join(cwd, 'agents.yaml'));
    expect((await load({ cwd, yaml: 'agents: null\n' })).settings.agents).toBeNull();
  });

  it('say when an agents.yaml beside the settings file is not used', async () => {
    const cwd = emptyFolder();
    const other = emptyFolder();
    writeFileSync(join(other, 'agents.yaml'), 'version: 1\n');
    writeFileSync(join(other, 'settings.yaml'), '');
    const { settings, warnings } = await loadSettings({ cwd, file: join(other, 'settings.yaml'), env: {}, flags: {} });
    expect(settings.agents).toBeNull();
    expect(warnings.join()).toContain('is not used');
  });
});

describe('order of sources', () => {
  const yaml = 'limits:\n  idle_ms: 1m\n  dns_ms: 1s\n  head_ms: 2s\n';

  it('a flag beats a variable beats the file beats the default', async () => {
    const { settings, origins, file } = await load({
      yaml,
      env: { SUBFLOOR_LIMITS_DNS_MS: '3s', SUBFLOOR_LIMITS_IDLE_MS: '3m' },
      flags: { 'limits.idle_ms': '4m' },
    });
    expect(settings.limits).toMatchObject({ idleMs: 240_000, dnsMs: 3000, headMs: 2000, connectMs: 10_000 });
    expect(origins.get('limits.idle_ms')).toEqual({ kind: 'flag', name: '--set limits.idle_ms' });
    expect(origins.get('limits.dns_ms')).toEqual({ kind: 'environment', name: 'SUBFLOOR_LIMITS_DNS_MS' });
    expect(origins.get('limits.head_ms')).toEqual({ kind: 'file', file, line: 4, column: 3 });
    expect(origins.get('limits.connect_ms')).toEqual({ kind: 'default' });
  });

  it('paths start from the folder of the file, and from the working folder for variables and flags', async () => {
    const cwd = emptyFolder();
    mkdirSync(join(cwd, 'conf'));
    writeFileSync(join(cwd, 'conf/s.yaml'), 'certs: ca/\nrules: [a, b]\naudit: { file: x.jsonl }\n');
    const { settings } = await loadSettings({
      cwd,
      file: 'conf/s.yaml',
      env: { SUBFLOOR_RULES: 'c,d' },
      flags: { 'audit.file': 'y.jsonl' },
    });
    expect(settings.certs).toBe(join(cwd, 'conf/ca'));
    expect(settings.rules).toEqual([join(cwd, 'c'), join(cwd, 'd')]);
    expect(settings.audit.file).toBe(join(cwd, 'y.jsonl'));
  });

  it('SUBFLOOR_CONFIG names the file, and a named file must exist', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'other.yaml'), 'log: { level: warn }\n');
    const { settings } = await loadSettings({ cwd, env: { SUBFLOOR_CONFIG: 'other.yaml' }, flags: {} });
    expect(settings.log.level).toBe('warn');
    await expect(loadSettings({ cwd, file: 'absent.yaml', env: {}, flags: {} })).rejects.toThrow('ENOENT');
  });

  it('every limit can be set by its own variable and flag', async () => {
    const limits = limitNames().map((name) => ({ name, path: `limits.${snakeCase(name)}`, value: LIMITS[name].max }));
    const byName = Object.fromEntries(limits.map(({ name, value }) => [name, value]));
    const env = Object.fromEntries(limits.map(({ path, value }) => [environmentName(path), String(value)]));
    const flags = Object.fromEntries(limits.map(({ path, value }) => [path, String(value)]));
    expect((await load({ env })).settings.limits).toEqual(byName);
    expect((await load({ flags })).settings.limits).toEqual(byName);
  });

  it('an empty variable counts as not set, and [] empties a list', async () => {
    const yaml = 'addresses: { allow: [10.0.0.0/8] }\n';
    expect((await load({ yaml, env: { SUBFLOOR_ADDRESSES_ALLOW: '' } })).settings.addresses.allow).toHaveLength(1);
    expect((await load({ yaml, env: { SUBFLOOR_ADDRESSES_ALLOW: '[]' } })).settings.addresses.allow).toEqual([]);
  });

  it('what Kubernetes adds for a service named subfloor is nobody’s setting', async () => {
    const env = {
      SUBFLOOR_SERVICE_HOST: '10.0.0.9',
      SUBFLOOR_SERVICE_PORT: '8080',
      SUBFLOOR_SERVICE_PORT_PROXY: '8080',
      SUBFLOOR_PORT: 'tcp://10.0.0.9:8080',
      SUBFLOOR_PORT_8080_TCP: 'tcp://10.0.0.9:8080',
      SUBFLOOR_PORT_8080_TCP_PROTO: 'tcp',
      SUBFLOOR_PORT_8080_TCP_PORT: '8080',
      SUBFLOOR_PORT_8080_TCP_ADDR: '10.0.0.9',
      SUBFLOOR_ADMIN_PORT: 'tcp://10.0.0.9:8081',
      SUBFLOOR_ADMIN_SERVICE_HOST: '10.0.0.9',
    };
    await expect(load({ env })).resolves.toBeDefined();
  });
});

describe('shapes', () => {
  it('listeners with names, addresses and TLS', async () => {
    const cwd = emptyFolder();
    const { settings } = await load({
      cwd,
      yaml: `listen:
  proxy:
    - address: "[::1]:0"
    - name: secure
      address: 127.0.0.1:8443
      tls: { cert: c.pem, key: k.pem, client_ca: ca.pem, require_client_certificate: true }
`,
    });
    expect(settings.listeners).toEqual([
      { name: 'proxy', host: '::1', port: 0, tls: null },
      {
        name: 'secure',
        host: '127.0.0.1',
        port: 8443,
        tls: {
          cert: join(cwd, 'c.pem'),
          key: join(cwd, 'k.pem'),
          clientCa: join(cwd, 'ca.pem'),
          requireClientCertificate: true,
        },
      },
    ]);
  });

  it('a variable may hold a list in one line of YAML, and an IPv6 address is not taken for one', async () => {
    const list = await load({ env: { SUBFLOOR_LISTEN_PROXY: '[{ name: a, address: "127.0.0.1:1" }]' } });
    expect(list.settings.listeners).toEqual([{ name: 'a', host: '127.0.0.1', port: 1, tls: null }]);
    const plain = await load({ env: { SUBFLOOR_LISTEN_PROXY: '[::1]:8080' } });
    expect(plain.settings.listeners).toEqual([{ name: 'proxy', host: '::1', port: 8080, tls: null }]);
  });

  it('upstream hosts in the file and in a variable', async () => {
    const hosts = {
      'api.example.com': { address: '127.0.0.1', port: 9443 },
      'b.example.com:444': { address: '::1', port: null },
    };
    const yaml = 'upstream: { hosts: { "API.example.com.": "127.0.0.1:9443", "b.example.com:444": "::1" } }\n';
    expect((await load({ yaml })).settings.upstream.hosts).toEqual(hosts);
    const env = { SUBFLOOR_UPSTREAM_HOSTS: 'api.example.com=127.0.0.1:9443, b.example.com:444=[::1]' };
    expect((await load({ env })).settings.upstream.hosts).toEqual(hosts);
  });

  it('an upstream proxy by URL, with escaped credentials', async () => {
    const { settings } = await load({ flags: { 'upstream.proxy': 'https://us%3Aer:p%40ss@[::1]:3128/' } }).catch(
      () => ({
        settings: null,
      }),
    );
    // A colon in the user name cannot be sent as Basic (RFC 7617).
    expect(settings).toBeNull();
    const good = await load({ flags: { 'upstream.proxy': 'https://user:p%40s:s@[::1]:3128/' } });
    expect(good.settings.upstream.proxy).toEqual({ host: '::1', port: 3128, tls: true, credentials: 'user:p@s:s' });
    expect((await load({ env: { SUBFLOOR_UPSTREAM_PROXY: 'none' } })).settings.upstream.proxy).toBeNull();
  });

  it('an upstream proxy with its credentials in a file', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'secret'), 'user:word\n');
    const yaml = 'upstream: { proxy: { url: "http://proxy.example.com:3128", credentials_file: secret } }\n';
    const { settings } = await load({ cwd, yaml });
    expect(settings.upstream.proxy).toEqual({
      host: 'proxy.example.com',
      port: 3128,
      tls: false,
      credentials: 'user:word',
    });
  });

  it('credentials of one proxy are not sent to another that overrides it', async () => {
    const cwd = emptyFolder();
    writeFileSync(join(cwd, 'secret'), 'user:word');
    const yaml = 'upstream: { proxy: { url: "http://proxy.example.com:3128", credentials_file: secret } }\n';
    const { settings, warnings } = await load({
      cwd,
      yaml,
      env: { SUBFLOOR_UPSTREAM_PROXY: 'http://other.example.com:80' },
    });
    expect(settings.upstream.proxy).toMatchObject({ host: 'other.example.com', credentials: null });
    expect(warnings).toHaveLength(1);
  });

  it('an admin listener that others can reach is allowed and warned of', async () => {
    expect((await load({ flags: { 'listen.admin': '0.0.0.0:8081' } })).warnings.join()).toContain('listen.admin');
    expect((await load({ flags: { 'listen.admin': 'localhost:8081' } })).warnings).toEqual([]);
  });

  it('an audit file named - is standard output, and sections may be empty', async () => {
    const { settings } = await load({ yaml: 'audit: { file: "-" }\nlimits:\nupstream:\n' });
    expect(settings.audit.file).toBe('-');
  });
});

describe('problems', () => {
  const table: readonly (readonly [name: string, yaml: string, problem: string])[] = [
    ['an unknown key', 'lsten: 1', 'subfloor.yaml:1:1: unknown key "lsten"; did you mean "listen"?'],
    [
      'an unknown key in a section',
      'limits:\n  haeder_bytes: 1',
      'subfloor.yaml:2:3: unknown key "haeder_bytes"; did you mean "header_bytes"?',
    ],
    [
      'a key one level too high',
      'idle_ms: 5',
      'subfloor.yaml:1:1: unknown key "idle_ms" here; it belongs at "limits.idle_ms"',
    ],
    ['a key twice', 'certs: a\ncerts: b', 'subfloor.yaml:2:1: not valid YAML: Map keys must be unique'],
    ['a list where a section belongs', 'limits: [1]', 'subfloor.yaml:1:9: a mapping expected here'],
    ['a file that is no mapping', '- a', 'subfloor.yaml:1:1: a mapping of settings expected here'],
    ['a wrong unit', 'limits: { idle_ms: 5x }', 'subfloor.yaml:1:20: "5x" is not a duration; write for example 30000'],
    ['a unit on a count', 'limits: { tunnels: 5k }', 'subfloor.yaml:1:20: "5k" is not a whole number'],
    ['a fraction', 'limits: { tunnels: 1.5 }', '"1.5" is not a whole number'],
    ['a value below its range', 'limits: { header_bytes: 1 }', '"1" is out of range; allowed is 1KiB to 16MiB'],
    ['a value above its range', 'limits: { idle_ms: 25h }', '"25h" is out of range; allowed is 10ms to 24h'],
    ['a wrong word', 'log: { level: inof }', '"inof" is none of debug, info, warn, error; did you mean "info"?'],
    ['an address without port', 'listen: { proxy: localhost }', 'write host:port'],
    ['a bare port', 'listen: { proxy: 8080 }', '"8080" is not an address to listen on'],
    ['an address without host', 'listen: { proxy: ":8080" }', '0.0.0.0:8080 for all addresses'],
    ['a port too high', 'listen: { proxy: "127.0.0.1:65536" }', 'has a port above 65535'],
    ['two listeners at one address', 'listen: { proxy: "127.0.0.1:8081" }', 'each needs its own'],
    [
      'two listeners of one name',
      'listen: { proxy: ["127.0.0.1:1", "127.0.0.1:2"] }',
      'another listener named "proxy"',
    ],
    ['no listener', 'listen: { proxy: [] }', 'needs 1 to 100 listeners'],
    ['TLS without a key', 'listen: { proxy: [{ address: "a:1", tls: { cert: c } }] }', 'needs both cert and key'],
    [
      'required client certificates of nobody',
      'listen: { proxy: [{ address: "a:1", tls: { cert: c, key: k, require_client_certificate: true } }] }',
      'with client_ca, which says whose',
    ],
    ['a range with bits behind it', 'addresses: { allow: [10.0.0.1/8] }', 'did you mean 10.0.0.0/8?'],
    ['a name as address', 'upstream: { hosts: { a.example: b.example } }', 'names cannot stand here'],
    [
      'a host in two spellings',
      'upstream: { hosts: { a.example: 1.1.1.1, A.example: 1.1.1.2 } }',
      'in another spelling',
    ],
    ['a SOCKS proxy', 'upstream: { proxy: "socks5://127.0.0.1:1" }', 'only CONNECT'],
    ['a proxy without port', 'upstream: { proxy: "http://proxy.example" }', 'needs a host and a port'],
    ['credentials without proxy', 'upstream: { proxy: { credentials_file: x } }', 'need the url of a proxy'],
    [
      'a client certificate without key',
      'upstream: { client_certificates: [{ host: a, cert: c }] }',
      'needs host, cert and key',
    ],
    [
      'a star inside a host',
      'upstream: { client_certificates: [{ host: "a*", cert: c, key: k }] }',
      'neither a host nor',
    ],
    ['a key without value', 'certs:', 'subfloor.yaml:1:7: certs has no value'],
    ['an unknown tag', 'certs: !secret x', 'not valid YAML: Unresolved tag'],
    ['two documents', 'certs: a\n---\ncerts: b', 'not valid YAML'],
  ];
  it.each(table)('%s is refused with its position', async (_name, yaml, problem) => {
    expect((await problems({ yaml })).join('\n')).toContain(problem);
  });

  it('all of them come at once, in the order of the file, variables and flags last', async () => {
    const lines = await problems({
      yaml: 'lgo: 1\nlimits: { idle_ms: x }\n',
      env: { SUBFLOOR_LIMITS_IDEL_MS: '1' },
      flags: { 'limits.idle': '1' },
    });
    expect(lines.map((line) => line.slice(0, line.indexOf(' ')))).toEqual([
      'subfloor.yaml:1:1:',
      'subfloor.yaml:2:20:',
      'SUBFLOOR_LIMITS_IDEL_MS:',
      '--set',
    ]);
    expect(lines[2]).toContain('did you mean SUBFLOOR_LIMITS_IDLE_MS?');
    expect(lines[3]).toContain('did you mean limits.idle_ms?');
  });

  it('the error carries the position of the first', async () => {
    const cwd = emptyFolder();
    await expect(load({ cwd, yaml: '\nlgo: 1\n' })).rejects.toMatchObject({
      file: join(cwd, 'subfloor.yaml'),
      line: 2,
      column: 1,
    });
  });

  it('no message shows the password of an upstream proxy', async () => {
    const password = ['hun', 'ter', '2'].join('');
    const urls = [
      `http://u:${password}@host`,
      `ftp://u:${password}@h:1`,
      `http://u:${password}%zz@h:1`,
      `u:${password}`,
    ];
    for (const url of urls) {
      expect((await problems({ yaml: `upstream: { proxy: "${url}" }` })).join()).not.toContain(password);
      expect((await problems({ env: { SUBFLOOR_UPSTREAM_PROXY: url } })).join()).not.toContain(password);
      expect((await problems({ yaml: `upstream: { proxy: "${url}" ]` })).join()).not.toContain(password);
    }
  });

  it('an alias bomb is refused and does not take the machine with it', async () => {
    const levels = Array.from({ length: 9 }, (_, i) => `a${i + 1}: &a${i + 1} [${`*a${i},`.repeat(10)}]`);
    const lines = await problems({ yaml: `a0: &a0 x\n${levels.join('\n')}\n` });
    expect(lines.join()).toContain('too many values');
  });
});

describe('audit.rotate_bytes', () => {
  it.each([
    ['a size in the file', { yaml: 'audit: { rotate_bytes: 64KiB }\n' }, 65_536],
    ['null in the file', { yaml: 'audit:\n  rotate_bytes: null\n' }, null],
    ['an empty line in the file', { yaml: 'audit:\n  rotate_bytes:\n' }, null],
    ['null in a variable', { env: { SUBFLOOR_AUDIT_ROTATE_BYTES: 'null' } }, null],
    [
      'none in a flag over the file',
      { yaml: 'audit: { rotate_bytes: 1GiB }\n', flags: { 'audit.rotate_bytes': 'none' } },
      null,
    ],
    [
      'a size in a flag over null',
      { yaml: 'audit: { rotate_bytes: null }\n', flags: { 'audit.rotate_bytes': '2MB' } },
      2_000_000,
    ],
  ])('%s', async (_name, given, expected) => {
    const { settings } = await load(given);
    expect(settings.audit.rotateBytes).toBe(expected);
  });

  it.each([
    ['64', 'out of range; allowed is 64KiB to 1024GiB'],
    ['daily', 'is not a size'],
    ['[]', 'is not a size'],
  ])('%s is refused with its place', async (text, expected) => {
    const [line, ...rest] = await problems({ yaml: `audit:\n  rotate_bytes: ${text}\n` });
    expect(line).toMatch(/^subfloor\.yaml:2:17: /);
    expect(line).toContain(expected);
    expect(rest).toEqual([]);
  });
});
