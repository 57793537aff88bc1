import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createDirectory, openAgents, parseAgents } from '../../src/agents/directory.ts';
import { hashPassword } from '../../src/agents/password-hash.ts';
import type { ConnectionFacts } from '../../src/core/agent.ts';
import { ConfigError } from '../../src/core/errors.ts';
import type { AgentDirectory } from '../../src/core/ports.ts';
import { emptyFolder } from '../cli/command.ts';

const CHEAP = { N: 1024, r: 1, p: 1 };
const PASSWORD = ['open', 'sesame'].join('-');
const HASH = await hashPassword(PASSWORD, CHEAP);
const SHA256 = 'ab'.repeat(32);

const FILE = `version: 1
agents:
  - id: coder
    name: Coding agent
    labels: { team: tools }
    credentials: [{ username: coder, hash: ${HASH} }]
  - id: signed
    certificates: [{ sha256: "${'AB:'.repeat(31)}AB" }, { name: Signed.agents.example }]
  - id: subnet
    sources: [10.0.0.0/8, "fd00::/8"]
  - id: host
    sources: [10.1.2.3]
  - id: desk
    listeners: [desk]
`;

function facts(some: Partial<ConnectionFacts> = {}): ConnectionFacts {
  return { sourceAddress: '192.0.2.1', sourcePort: 50_000, listener: 'proxy', ...some };
}

async function idOf(
  directory: AgentDirectory,
  some: Partial<ConnectionFacts>,
  credentials: { username: string; password: string } | null = null,
): Promise<string> {
  const found = await directory.identify(facts(some), credentials);
  return found.kind === 'agent' ? `${found.agent.id} ${found.agent.identifiedBy}` : found.kind;
}

describe('who is calling', () => {
  const directory = createDirectory(parseAgents(FILE, 'agents.yaml'));
  const right = { username: 'coder', password: PASSWORD };

  it('credentials name an agent, with its name and labels', async () => {
    expect(await directory.identify(facts(), right)).toEqual({
      kind: 'agent',
      agent: { id: 'coder', name: 'Coding agent', labels: { team: 'tools' }, identifiedBy: 'proxy_auth' },
    });
  });

  it.each([
    ['a certificate by fingerprint', { clientCertificateSha256: SHA256 }, 'signed client_certificate'],
    [
      'a certificate by name',
      { clientCertificateSha256: '00', clientCertificateNames: ['DNS:signed.AGENTS.example'] },
      'signed client_certificate',
    ],
    ['a name without a verified certificate', { clientCertificateNames: ['signed.agents.example'] }, 'challenge'],
    ['a source', { sourceAddress: '10.9.9.9' }, 'subnet source_address'],
    ['an IPv6 source', { sourceAddress: 'fd12::1' }, 'subnet source_address'],
    ['an IPv4-mapped source', { sourceAddress: '::ffff:10.9.9.9' }, 'subnet source_address'],
    ['the narrowest of two ranges', { sourceAddress: '10.1.2.3' }, 'host source_address'],
    ['a listener', { listener: 'desk' }, 'desk listener'],
    ['a source before a listener', { listener: 'desk', sourceAddress: '10.9.9.9' }, 'subnet source_address'],
    [
      'a certificate before a source',
      { clientCertificateSha256: SHA256, sourceAddress: '10.9.9.9' },
      'signed client_certificate',
    ],
    ['nothing', {}, 'challenge'],
    ['a source that is no address', { sourceAddress: '' }, 'challenge'],
  ])('%s', async (_name, some, expected) => {
    expect(await idOf(directory, some)).toBe(expected);
  });

  it('credentials come before everything else', async () => {
    const some = { clientCertificateSha256: SHA256, sourceAddress: '10.9.9.9', listener: 'desk' };
    expect(await idOf(directory, some, right)).toBe('coder proxy_auth');
  });

  it('wrong credentials never fall through to a weaker method', async () => {
    const some = { clientCertificateSha256: SHA256, sourceAddress: '10.9.9.9', listener: 'desk' };
    expect(await idOf(directory, some, { username: 'coder', password: 'wrong' })).toBe('rejected');
    expect(await idOf(directory, some, { username: 'nobody', password: PASSWORD })).toBe('rejected');
    expect(await directory.identify(facts(), { username: 'nobody', password: 'x' })).toEqual({
      kind: 'rejected',
      username: 'nobody',
    });
  });

  it('the list of agents has each of them once', () => {
    expect(directory.agents.map((agent) => agent.id)).toEqual(['coder', 'signed', 'subnet', 'host', 'desk']);
  });

  it('anonymous: allow makes everybody else the agent default, but not those with wrong credentials', async () => {
    const open = createDirectory(parseAgents(`${FILE}anonymous: allow\n`, 'agents.yaml'));
    expect(await idOf(open, {})).toBe('default listener');
    expect(await idOf(open, {}, { username: 'coder', password: 'wrong' })).toBe('rejected');
    expect(open.agents.map((agent) => agent.id)).toContain('default');
  });

  it('a certificate with the names of two agents names neither', async () => {
    const text =
      'version: 1\nagents:\n- {id: a, certificates: [{name: a.x}]}\n- {id: b, certificates: [{name: b.x}]}\n';
    const two = createDirectory(parseAgents(text, 'agents.yaml'));
    const some = { clientCertificateSha256: SHA256, clientCertificateNames: ['DNS:a.x', 'DNS:b.x'] };
    expect(await idOf(two, some)).toBe('challenge');
  });

  it('without a file everybody is the agent default, whatever they send', async () => {
    const everybody = await openAgents(null, []);
    expect(await idOf(everybody, {}, { username: 'x', password: 'y' })).toBe('default listener');
    expect(everybody.agents).toHaveLength(1);
  });

  it('a file that is not there is an error, not an open door', async () => {
    await expect(openAgents(join(emptyFolder(), 'agents.yaml'), [])).rejects.toThrow('cannot be read');
  });

  it('an empty list lets nobody in', async () => {
    expect(await idOf(createDirectory(parseAgents('version: 1\nagents: []\n', 'a')), {})).toBe('challenge');
  });
});

describe('problems in agents.yaml', () => {
  const listeners = [{ name: 'proxy', hasClientCa: false }];
  const agent = (fields: string): string => `version: 1\nagents:\n  - { ${fields} }\n`;
  it.each([
    ['an empty file', '', 'agents.yaml:1:1: a mapping expected'],
    ['no version', 'agents: []', 'agents.yaml:1:1: version: 1 is missing'],
    ['another version', 'version: 2', 'agents.yaml:1:10: version "2" is unknown'],
    ['an unknown key', 'version: 1\nagnets: []', 'agents.yaml:2:1: unknown key "agnets"; did you mean "agents"?'],
    ['another word', 'version: 1\nanonymous: yes', 'neither allow nor deny'],
    ['no id', agent('sources: [10.0.0.0/8]'), 'needs an id'],
    ['a glob as id', agent('id: "c*", listeners: [proxy]'), '"c*" is no id'],
    ['the reserved id', agent('id: default, listeners: [proxy]'), 'means everybody whom no entry names'],
    ['nothing that identifies', agent('id: a'), 'agents.yaml:3:5: nothing identifies this agent'],
    ['an unknown listener', agent('id: a, listeners: [porxy]'), 'did you mean "proxy"?'],
    [
      'certificates nobody asks for',
      agent(`id: a, certificates: [{ sha256: ${SHA256} }]`),
      'no listener asks for client',
    ],
    ['a short fingerprint', agent('id: a, certificates: [{ sha256: abcd }]'), 'no SHA-256 fingerprint'],
    [
      'both kinds of certificate',
      agent(`id: a, certificates: [{ sha256: ${SHA256}, name: x }]`),
      'either sha256 or name',
    ],
    ['a star in a certificate name', agent('id: a, certificates: [{ name: "*.x" }]'), 'a star matches nothing'],
    ['a bad range', agent('id: a, sources: [10.0.0.1/8]'), 'did you mean 10.0.0.0/8?'],
    ['a credential without hash', agent('id: a, credentials: [{ username: u }]'), 'needs username and hash'],
    ['a colon in a username', agent(`id: a, credentials: [{ username: "u:v", hash: "${HASH}" }]`), 'has no colon'],
    ['a label that is a list', agent('id: a, listeners: [proxy], labels: { t: [] }'), 'text expected here'],
    ['one item where a list belongs', agent('id: a, listeners: proxy'), 'a list expected here'],
  ])('%s', (_name, text, problem) => {
    expect(() => parseAgents(text, 'agents.yaml', listeners)).toThrow(problem);
  });

  it.each(['id', 'username', 'source', 'listener', 'certificate'])(
    'a %s that stands twice is named with both places',
    (kind) => {
      const fields: Readonly<Record<string, string>> = {
        id: 'id: a, sources: [10.0.0.0/8]',
        username: `id: ID, credentials: [{ username: u, hash: "${HASH}" }]`,
        source: 'id: ID, sources: [10.0.0.0/8]',
        listener: 'id: ID, listeners: [proxy]',
        certificate: `id: ID, certificates: [{ sha256: ${SHA256} }]`,
      };
      const entry = fields[kind] ?? '';
      const text = `version: 1\nagents:\n  - { ${entry.replace('ID', 'x')} }\n  - { ${entry.replace('ID', 'y')} }\n`;
      expect(() => parseAgents(text, 'agents.yaml')).toThrow(/agents\.yaml:4:\d+: .*agents\.yaml:3:\d+ already/);
    },
  );

  it('a hash that is wrong is not shown', () => {
    const wrong = `${HASH}x`.replace('scrypt', 'bcrypt');
    const text = agent(`id: a, credentials: [{ username: u, hash: "${wrong}" }]`);
    try {
      parseAgents(text, 'agents.yaml');
      expect.unreachable();
    } catch (error) {
      expect(error).toBeInstanceOf(ConfigError);
      expect(String(error)).not.toContain(wrong.slice(-20));
      expect(String(error)).toContain('subfloor agents hash');
    }
  });

  it('the file is read with the names of the listeners', async () => {
    const file = join(emptyFolder(), 'agents.yaml');
    writeFileSync(file, agent('id: a, listeners: [desk]'));
    const listener = { host: '127.0.0.1', port: 1, tls: null };
    await expect(openAgents(file, [{ ...listener, name: 'desk' }])).resolves.toBeDefined();
    await expect(openAgents(file, [{ ...listener, name: 'proxy' }])).rejects.toThrow('there is no listener "desk"');
  });
});
