import { parseCidr } from '../core/cidr.ts';
import type { Cidr } from '../core/cidr.ts';
import { Problems, described, nearest, placeText, quoted } from '../core/located.ts';
import type { Located, Place } from '../core/located.ts';
import { readYaml } from '../core/yaml.ts';
import { parsePasswordHash } from './password-hash.ts';
import type { PasswordHash } from './password-hash.ts';

/** One agent of `agents.yaml` with everything that identifies it. */
export interface AgentEntry {
  readonly id: string;
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly credentials: readonly { readonly username: string; readonly hash: PasswordHash }[];
  readonly certificates: readonly CertificateMatch[];
  readonly sources: readonly Cidr[];
  readonly listeners: readonly string[];
}

/** A client certificate, by the SHA-256 of its DER in lower-case hex, or by a name in it (lower case). */
export type CertificateMatch = { readonly sha256: string } | { readonly name: string };

export interface AgentsFile {
  /** What becomes of connections that match no agent: the agent `default`, or a 407. */
  readonly anonymous: 'allow' | 'deny';
  readonly agents: readonly AgentEntry[];
}

export interface ListenerNames {
  readonly name: string;
  /** Whether it can see client certificates at all. */
  readonly hasClientCa: boolean;
}

const MAX_AGENTS = 10_000;
const MAX_PER_LIST = 1000;
/** Rules name agents by globs of ids: no glob characters in them, and nothing that needs quoting. */
const ID = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$/;
const LABEL = /^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$/;

/** Id of everybody whom no entry names. */
export const DEFAULT_AGENT_ID = 'default';

/**
 * Reads `agents.yaml`.
 * @param listeners names that entries may use; null leaves them unchecked
 * @throws ConfigError with one line for each problem and its position. Hashes are never shown
 */
export function parseAgents(
  text: string,
  fileName: string,
  listeners: readonly ListenerNames[] | null = null,
): AgentsFile {
  const problems = new Problems();
  const root = readYaml(text, fileName, problems);
  problems.throwIfAny();
  const start: Place = { source: fileName, line: 1, column: 1 };
  const reader = new AgentsReader(problems, listeners);
  const file = reader.file(root ?? { type: 'scalar', at: start, value: null, text: '' });
  problems.throwIfAny();
  return file;
}

class AgentsReader {
  readonly #problems: Problems;
  readonly #listeners: readonly ListenerNames[] | null;
  /** What identifies an agent may stand only once in the file. */
  readonly #claimed = new Map<string, Place>();

  constructor(problems: Problems, listeners: readonly ListenerNames[] | null) {
    this.#problems = problems;
    this.#listeners = listeners;
  }

  file(root: Located): AgentsFile {
    const fields = this.#fields(root, ['version', 'anonymous', 'agents'], 'version, anonymous and agents');
    const version = fields.get('version');
    if (version === undefined) this.#add(root.at, 'version: 1 is missing');
    else if (version.type !== 'scalar' || version.value !== 1) {
      this.#add(version.at, `version ${described(version)} is unknown; this program reads version 1`);
    }
    const anonymous = fields.get('anonymous');
    const word = anonymous?.type === 'scalar' ? anonymous.value : undefined;
    if (anonymous !== undefined && word !== 'allow' && word !== 'deny') {
      this.#add(anonymous.at, `${described(anonymous)} is neither allow nor deny`);
    }
    const agents = this.#list(fields.get('agents'), MAX_AGENTS).map((item) => this.#agent(item));
    return { anonymous: word === 'allow' ? 'allow' : 'deny', agents: agents.filter((agent) => agent !== null) };
  }

  #agent(item: Located): AgentEntry | null {
    const known = ['id', 'name', 'labels', 'credentials', 'certificates', 'sources', 'listeners'];
    const fields = this.#fields(item, known, 'an agent');
    const idValue = fields.get('id');
    const id = idValue === undefined ? null : this.#text(idValue);
    if (idValue === undefined) this.#add(item.at, 'an agent needs an id');
    else if (id !== null && !ID.test(id)) {
      this.#add(idValue.at, `${quoted(id)} is no id; use letters, digits, . _ @ and -, at most 64`);
    } else if (id === DEFAULT_AGENT_ID) {
      this.#add(idValue.at, `the id "${DEFAULT_AGENT_ID}" means everybody whom no entry names; choose another`);
    } else if (id !== null) this.#claim('id', id, idValue.at);
    const nameValue = fields.get('name');
    const name = nameValue === undefined ? id : this.#text(nameValue);
    const credentials = this.#list(fields.get('credentials')).map((value) => this.#credential(value));
    const certificates = this.#list(fields.get('certificates')).map((value) => this.#certificate(value));
    const sources = this.#list(fields.get('sources')).map((value) => this.#source(value));
    const listeners = this.#list(fields.get('listeners')).map((value) => this.#listener(value));
    if (credentials.length + certificates.length + sources.length + listeners.length === 0) {
      this.#add(item.at, 'nothing identifies this agent; give it credentials, certificates, sources or listeners');
    }
    if (id === null || name === null) return null;
    return {
      id,
      name,
      labels: this.#labels(fields.get('labels')),
      credentials: credentials.filter((value) => value !== null),
      certificates: certificates.filter((value) => value !== null),
      sources: sources.filter((value) => value !== null),
      listeners: listeners.filter((value) => value !== null),
    };
  }

  #labels(value: Located | undefined): Readonly<Record<string, string>> {
    if (value === undefined || isNothing(value)) return {};
    if (value.type !== 'map') {
      this.#add(value.at, `a mapping of labels expected here, found ${described(value)}`);
      return {};
    }
    const labels: [string, string][] = [];
    for (const entry of value.entries) {
      if (!LABEL.test(entry.key)) this.#add(entry.keyAt, `${quoted(entry.key)} is no name for a label`);
      const text = this.#text(entry.value);
      if (text !== null) labels.push([entry.key, text]);
    }
    return Object.fromEntries(labels);
  }

  #credential(value: Located): AgentEntry['credentials'][number] | null {
    const fields = this.#fields(value, ['username', 'hash'], 'a credential');
    const usernameValue = fields.get('username');
    const hashValue = fields.get('hash');
    if (usernameValue === undefined || hashValue === undefined) {
      this.#add(value.at, 'a credential needs username and hash; "subfloor agents hash" makes one');
      return null;
    }
    const username = this.#text(usernameValue);
    // RFC 7617 section 2: a colon would end the name.
    if (username === null || username.includes(':') || Buffer.byteLength(username) > 255) {
      this.#add(usernameValue.at, 'a username has no colon and at most 255 bytes');
      return null;
    }
    this.#claim('username', username, usernameValue.at);
    const hash = hashValue.type === 'scalar' ? parsePasswordHash(hashValue.text) : null;
    if (hash === null) {
      this.#add(hashValue.at, 'this is no scrypt hash of ours; make one with "subfloor agents hash"');
      return null;
    }
    return { username, hash };
  }

  #certificate(value: Located): CertificateMatch | null {
    if (this.#listeners !== null && !this.#listeners.some((listener) => listener.hasClientCa)) {
      this.#add(value.at, 'no listener asks for client certificates; give one tls with client_ca in the settings');
    }
    const fields = this.#fields(value, ['sha256', 'name'], 'a certificate');
    const sha256Value = fields.get('sha256');
    const nameValue = fields.get('name');
    if ((sha256Value === undefined) === (nameValue === undefined)) {
      this.#add(value.at, 'a certificate is named by either sha256 or name');
      return null;
    }
    if (sha256Value !== undefined) {
      const text = this.#text(sha256Value);
      if (text === null) return null;
      const sha256 = text.replaceAll(':', '').toLowerCase();
      if (!/^[0-9a-f]{64}$/.test(sha256)) {
        this.#add(sha256Value.at, `${quoted(text)} is no SHA-256 fingerprint (64 hex digits, colons allowed)`);
        return null;
      }
      this.#claim('certificate', sha256, sha256Value.at);
      return { sha256 };
    }
    const text = nameValue === undefined ? null : this.#text(nameValue);
    if (text === null || nameValue === undefined) return null;
    const name = text.toLowerCase();
    if (name.includes('*')) {
      this.#add(nameValue.at, 'the name of a client certificate is taken as it is; a star matches nothing');
      return null;
    }
    this.#claim('certificate name', name, nameValue.at);
    return { name };
  }

  #source(value: Located): Cidr | null {
    const text = this.#text(value);
    if (text === null) return null;
    const cidr = parseCidr(text);
    if (typeof cidr === 'string') {
      this.#add(value.at, `${quoted(text)} ${cidr}`);
      return null;
    }
    this.#claim('source range', cidr.text, value.at);
    return cidr;
  }

  #listener(value: Located): string | null {
    const name = this.#text(value);
    if (name === null) return null;
    if (this.#listeners !== null && !this.#listeners.some((listener) => listener.name === name)) {
      const names = this.#listeners.map((listener) => listener.name);
      const near = nearest(name, names);
      const hint = near === null ? `there are ${names.join(', ')}` : `did you mean ${quoted(near)}?`;
      this.#add(value.at, `there is no listener ${quoted(name)}; ${hint}`);
      return null;
    }
    this.#claim('listener', name, value.at);
    return name;
  }

  #claim(kind: string, text: string, at: Place): void {
    const key = `${kind} ${text}`;
    const before = this.#claimed.get(key);
    if (before === undefined) this.#claimed.set(key, at);
    else
      this.#add(at, `the ${kind} ${quoted(text)} stands at ${placeText(before)} already; it can mean one agent only`);
  }

  #text(value: Located): string | null {
    const isText = value.type === 'scalar' && value.value !== null && value.text !== '' && value.text.length <= 1024;
    if (isText) {
      const text = typeof value.value === 'string' ? value.value : value.text;
      if (!/[\x00-\x1f\x7f]/.test(text)) return text;
    }
    this.#add(value.at, `text expected here, found ${described(value)}`);
    return null;
  }

  #list(value: Located | undefined, max = MAX_PER_LIST): readonly Located[] {
    if (value === undefined || isNothing(value)) return [];
    if (value.type !== 'list') {
      this.#add(value.at, `a list expected here, found ${described(value)}`);
      return [];
    }
    if (value.items.length > max) this.#add(value.at, `at most ${max} entries, found ${value.items.length}`);
    return value.items.slice(0, max);
  }

  #fields(value: Located, known: readonly string[], what: string): ReadonlyMap<string, Located> {
    const fields = new Map<string, Located>();
    if (value.type !== 'map') {
      this.#add(value.at, `a mapping expected here for ${what}, found ${described(value)}`);
      return fields;
    }
    for (const entry of value.entries) {
      if (known.includes(entry.key)) {
        fields.set(entry.key, entry.value);
        continue;
      }
      const near = nearest(entry.key, known);
      const hint = near === null ? `allowed are ${known.join(', ')}` : `did you mean ${quoted(near)}?`;
      this.#add(entry.keyAt, `unknown key ${quoted(entry.key)}; ${hint}`);
    }
    return fields;
  }

  #add(at: Place, text: string): void {
    this.#problems.add(at, text);
  }
}

function isNothing(value: Located): boolean {
  return value.type === 'scalar' && value.value === null;
}
