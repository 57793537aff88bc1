import { createHash } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { Agent, ConnectionFacts, Identification, IdentifiedBy, ProxyCredentials } from '../core/agent.ts';
import { cidrContains, parseAddress } from '../core/cidr.ts';
import type { Cidr } from '../core/cidr.ts';
import { ConfigError, causeOf } from '../core/errors.ts';
import type { AgentDirectory } from '../core/ports.ts';
import type { ListenerSettings } from '../core/settings.ts';
import { DEFAULT_AGENT_ID, parseAgents } from './agents-file.ts';
import type { AgentEntry, AgentsFile } from './agents-file.ts';
import { CredentialCheck } from './credential-check.ts';
import type { CredentialCheckOptions } from './credential-check.ts';

export { parseAgents } from './agents-file.ts';

const MAX_FILE_BYTES = 4 * 1024 * 1024;

/**
 * Opens the directory of agents.
 * @param file `agents.yaml`; null makes everybody the agent `default`, identified by the listener
 * @param listeners the configured ones: entries may only name these
 * @throws ConfigError the file cannot be read, or has problems; every one is named with its position
 */
export async function openAgents(file: string | null, listeners: readonly ListenerSettings[]): Promise<AgentDirectory> {
  if (file === null) return new EverybodyDirectory();
  return createDirectory(await readAgentsFile(file, listeners));
}

/**
 * Reads and checks an agents file, for the directory and for those who only want to look.
 * @throws ConfigError as `openAgents`
 */
export async function readAgentsFile(file: string, listeners: readonly ListenerSettings[]): Promise<AgentsFile> {
  const names = listeners.map(({ name, tls }) => ({ name, hasClientCa: tls !== null && tls.clientCa !== null }));
  return parseAgents(await readText(file), file, names);
}

/** The directory for the contents of an agents file. */
export function createDirectory(file: AgentsFile, options: CredentialCheckOptions = {}): AgentDirectory {
  return new FileDirectory(file, options);
}

async function readText(file: string): Promise<string> {
  try {
    const { size } = await stat(file);
    if (size > MAX_FILE_BYTES) throw new ConfigError('this is too large to be a list of agents', { file });
    return await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(
      `the agents file cannot be read (${causeOf(error)}); mend its path, or set agents: null to let everybody in`,
      { file },
    );
  }
}

const EVERYBODY: Agent = { id: DEFAULT_AGENT_ID, name: DEFAULT_AGENT_ID, labels: {}, identifiedBy: 'listener' };

/** Without an agents file there is one agent, and credentials mean nothing. */
class EverybodyDirectory implements AgentDirectory {
  readonly agents: readonly Agent[] = [EVERYBODY];

  identify(): Promise<Identification> {
    return Promise.resolve({ kind: 'agent', agent: EVERYBODY });
  }

  isCurrent(agent: Agent): boolean {
    return agent === EVERYBODY;
  }
}

/**
 * Agents from a file. Methods in their order: credentials, client certificate (fingerprint, then names), source address (narrowest range), listener.
 * The first that matches wins. Credentials that are wrong end it: they never fall through to a weaker method.
 */
class FileDirectory implements AgentDirectory {
  readonly agents: readonly Agent[];
  readonly #isAnonymousAllowed: boolean;
  readonly #byUsername = new Map<string, Agent>();
  readonly #byCertificate = new Map<string, Agent>();
  readonly #byCertificateName = new Map<string, Agent>();
  readonly #byListener = new Map<string, Agent>();
  readonly #bySource: readonly { readonly cidr: Cidr; readonly agent: Agent }[];
  readonly #credentials: CredentialCheck;
  readonly #means: ReadonlySet<string>;

  constructor(file: AgentsFile, options: CredentialCheckOptions) {
    this.#isAnonymousAllowed = file.anonymous === 'allow';
    const bySource: { cidr: Cidr; agent: Agent }[] = [];
    for (const entry of file.agents) {
      for (const { username } of entry.credentials) this.#byUsername.set(username, known(entry, 'proxy_auth'));
      for (const match of entry.certificates) {
        const agent = known(entry, 'client_certificate');
        if ('sha256' in match) this.#byCertificate.set(match.sha256, agent);
        else this.#byCertificateName.set(match.name, agent);
      }
      for (const cidr of entry.sources) bySource.push({ cidr, agent: known(entry, 'source_address') });
      for (const name of entry.listeners) this.#byListener.set(name, known(entry, 'listener'));
    }
    this.#bySource = bySource.sort((a, b) => b.cidr.bits - a.cidr.bits);
    this.#credentials = new CredentialCheck(
      new Map(file.agents.flatMap((entry) => entry.credentials.map(({ username, hash }) => [username, hash] as const))),
      options,
    );
    this.#means = new Set(file.agents.flatMap((entry) => METHODS.map((identifiedBy) => meansOf(entry, identifiedBy))));
    this.agents = [
      ...file.agents.map((entry) => known(entry, strongestMethod(entry))),
      ...(this.#isAnonymousAllowed ? [EVERYBODY] : []),
    ];
  }

  isCurrent(agent: Agent): boolean {
    if (agent === EVERYBODY) return this.#isAnonymousAllowed;
    const means = MEANS.get(agent);
    return means !== undefined && this.#means.has(means);
  }

  async identify(facts: ConnectionFacts, credentials: ProxyCredentials | null): Promise<Identification> {
    if (credentials !== null) return this.#byCredentials(facts, credentials);
    const agent =
      this.#certificateOwner(facts) ?? this.#sourceOwner(facts.sourceAddress) ?? this.#byListener.get(facts.listener);
    if (agent !== undefined) return { kind: 'agent', agent };
    return this.#isAnonymousAllowed ? { kind: 'agent', agent: EVERYBODY } : { kind: 'challenge' };
  }

  async #byCredentials(facts: ConnectionFacts, credentials: ProxyCredentials): Promise<Identification> {
    const { username } = credentials;
    try {
      const isRight = await this.#credentials.check(credentials, facts.sourceAddress);
      const agent = this.#byUsername.get(username);
      if (isRight && agent !== undefined) return { kind: 'agent', agent };
    } catch {
      // No memory for scrypt, for instance. Doubt ends in deny.
    }
    return { kind: 'rejected', username };
  }

  #certificateOwner(facts: ConnectionFacts): Agent | undefined {
    const { clientCertificateSha256, clientCertificateNames } = facts;
    if (clientCertificateSha256 === undefined) return undefined;
    const owner = this.#byCertificate.get(clientCertificateSha256.replaceAll(':', '').toLowerCase());
    if (owner !== undefined) return owner;
    const owners = new Set<Agent>();
    for (const name of clientCertificateNames ?? []) {
      const found = this.#byCertificateName.get(withoutKind(name));
      if (found !== undefined) owners.add(found);
    }
    const [only] = owners;
    // A certificate with the names of two agents says nothing about which one it is.
    return owners.size === 1 ? only : undefined;
  }

  #sourceOwner(sourceAddress: string): Agent | undefined {
    if (this.#bySource.length === 0) return undefined;
    const address = parseAddress(sourceAddress);
    if (address === null) return undefined;
    return this.#bySource.find(({ cidr }) => cidrContains(cidr, address))?.agent;
  }
}

/** Node writes SAN entries as `DNS:name`, `URI:…`, `email:…`, `IP Address:…`. */
function withoutKind(name: string): string {
  return name.replace(/^(?:DNS|URI|email|IP Address):/i, '').toLowerCase();
}

const METHODS: readonly IdentifiedBy[] = ['proxy_auth', 'client_certificate', 'source_address', 'listener'];

/** By what each agent was identified, as a hash; beside the agents, since rules and records must not see it. */
const MEANS = new WeakMap<Agent, string>();

function known(entry: AgentEntry, identifiedBy: IdentifiedBy): Agent {
  const agent: Agent = { id: entry.id, name: entry.name, labels: entry.labels, identifiedBy };
  MEANS.set(agent, meansOf(entry, identifiedBy));
  return agent;
}

/** Changes when the agent, its labels, or what identifies it by this method changes. */
function meansOf(entry: AgentEntry, identifiedBy: IdentifiedBy): string {
  const means = {
    proxy_auth: entry.credentials,
    client_certificate: entry.certificates,
    source_address: entry.sources,
    listener: entry.listeners,
  }[identifiedBy];
  const text = JSON.stringify([entry.id, entry.name, entry.labels, identifiedBy, means], (_key, value: unknown) =>
    typeof value === 'bigint' ? value.toString() : value,
  );
  return createHash('sha256').update(text).digest('base64');
}

function strongestMethod(entry: AgentEntry): IdentifiedBy {
  if (entry.credentials.length > 0) return 'proxy_auth';
  if (entry.certificates.length > 0) return 'client_certificate';
  return entry.sources.length > 0 ? 'source_address' : 'listener';
}
