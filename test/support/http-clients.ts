import { Agent as HttpAgent, request as httpRequest } from 'node:http';
import type { IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import axios from 'axios';
import { EnvHttpProxyAgent, ProxyAgent, fetch as undiciFetch } from 'undici';
import type { Dispatcher } from 'undici';
import { vi } from 'vitest';
import { hashPassword } from '../../src/agents/password-hash.ts';
import { closeAfterTest } from './closing.ts';
import { isInstalled, run } from './programs.ts';
import type { Ran } from './programs.ts';
import { connectThrough, startTls } from './raw-client.ts';
import { socksConnect } from './socks-client.ts';
import { within } from './waiting.ts';
import { openWebSocket } from './websocket-client.ts';
import type { WsClient } from './websocket-client.ts';

/** Where a client finds the proxy, and what it has to trust. */
export interface ClientWorld {
  readonly port: number;
  readonly url: string;
  readonly ca: string;
  readonly caFile: string;
}

/** What the program or library made of it: an HTTP answer, or an error because it never got through to the host. */
export type ClientOutcome =
  | { readonly kind: 'answer'; readonly status: number; readonly body: string }
  | { readonly kind: 'refused'; readonly exitCode: number | null; readonly text: string };

export interface HttpClient {
  readonly name: string;
  /** False where the program or library is absent. */
  readonly isPresent: boolean;
  /** How it reaches https and http URLs; null: it is not tried with http. */
  readonly transport: 'connect' | 'socks5';
  readonly plainTransport: 'connect' | 'socks5' | 'absolute_form' | null;
  /** What it says of a denied host, in an error or in the body of a 403. */
  readonly refusal: RegExp;
  readonly refusalExitCode: number | null;
  get(world: ClientWorld, url: string): Promise<ClientOutcome>;
}

/** The proxy refused the tunnel, in words that a program may read. */
export class TunnelRefused extends Error {
  readonly status: number;
  readonly rawHeaders: readonly string[];
  readonly body: string;

  constructor(status: number, rawHeaders: readonly string[], body: string) {
    super(`tunnel refused with ${status}`);
    this.status = status;
    this.rawHeaders = rawHeaders;
    this.body = body;
  }
}

/** Opens a tunnel to a host. @throws TunnelRefused */
export type OpenTunnel = (host: string, port: number) => Promise<Socket>;

/** By CONNECT. @param headers further lines of the request, each with its line end */
export function byConnect(proxyPort: number, headers = ''): OpenTunnel {
  return async (host, port) => {
    const { response, socket } = await connectThrough(proxyPort, `${host}:${port}`, { headers });
    if (response.status === 200) return socket;
    socket.destroy();
    throw new TunnelRefused(response.status, response.rawHeaders, response.body.toString());
  };
}

export function bySocks(proxyPort: number, credentials?: { username: string; password: string }): OpenTunnel {
  return async (host, port) => {
    const answer = await socksConnect(proxyPort, host, port, credentials === undefined ? {} : { credentials });
    if (answer.reply === 0) return answer.socket;
    answer.socket.destroy();
    throw new TunnelRefused(answer.reply ?? -1, [], `SOCKS reply ${answer.reply ?? 'none'}`);
  };
}

/** An agent for Node's https, axios or ws that opens its connections through a tunnel. */
export function secureTunnelAgent(open: OpenTunnel, ca: string): HttpsAgent {
  const agent = new HttpsAgent({ keepAlive: false });
  agent.createConnection = (options, done) => {
    const host = options.host ?? '';
    open(host, Number(options.port))
      .then((socket) => startTls(socket, host, { ca }))
      .then(
        (secure) => done?.(null, secure),
        (error: unknown) => done?.(asError(error), new PassThrough()),
      );
    return undefined;
  };
  return agent;
}

/** A WebSocket through such an agent, which asks for compression of every message. */
export async function webSocketOver(agent: HttpsAgent, url: string): Promise<WsClient> {
  return closeAfterTest(await openWebSocket(url, [], { agent, perMessageDeflate: { threshold: 0 } }));
}

/** An agent for plain HTTP inside a tunnel. */
export function plainTunnelAgent(open: OpenTunnel): HttpAgent {
  const agent = new HttpAgent({ keepAlive: false });
  agent.createConnection = (options, done) => {
    open(options.host ?? '', Number(options.port)).then(
      (socket) => {
        // It was paused so that no byte behind the answer to CONNECT is lost; http does not resume a paused socket.
        socket.resume();
        done?.(null, socket);
      },
      (error: unknown) => done?.(asError(error), new PassThrough()),
    );
    return undefined;
  };
  return agent;
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

/** An error with those that caused it, as a person would read them in a log. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message}: ${errorText(error.cause)}`;
}

/** An agents.yaml with one agent, who is known by its id and this password. */
export async function agentsFile(id: string, password: string): Promise<string> {
  const hash = await hashPassword(password, { N: 1024, r: 8, p: 1 });
  return `version: 1\nagents:\n  - id: ${id}\n    credentials: [{ username: ${id}, hash: "${hash}" }]\n`;
}

/** The body of a denial. */
export function refusalIn(body: string): unknown {
  const parsed: unknown = JSON.parse(body);
  return parsed;
}

const CURL = isInstalled('curl');
const WGET = isInstalled('wget');
const PYTHON = isInstalled('python3');
const REQUESTS = PYTHON && isInstalled('python3', ['-c', 'import requests']);
/** Node reads proxy variables by itself from 22.21 and 24.5 on. */
const [MAJOR = 0, MINOR = 0] = process.versions.node.split('.').map(Number);
const NODE_READS_VARIABLES = MAJOR > 24 || (MAJOR === 24 && MINOR >= 5) || (MAJOR === 22 && MINOR >= 21);

const CURL_REFUSAL = /CONNECT tunnel failed, response 403|HTTP code 403 from proxy after CONNECT/;
const PYTHON_REFUSAL = /Tunnel connection failed: 403 Forbidden/;

/** Clients that people have, each with the settings that its users have. */
export const HTTP_CLIENTS: readonly HttpClient[] = [
  curl('curl', ['--http1.1'], 'connect'),
  curl('curl --http2', ['--http2'], 'connect'),
  curl('curl --socks5-hostname', [], 'socks5'),
  {
    name: 'wget',
    isPresent: WGET,
    transport: 'connect',
    plainTransport: 'absolute_form',
    refusal: /Proxy tunneling failed: Forbidden/,
    refusalExitCode: null,
    get: async (world, url) => {
      const ran = await run(
        'wget',
        ['-S', '-O', '-', '--content-on-error', '--tries=1', `--ca-certificate=${world.caFile}`, url],
        { env: { http_proxy: world.url, https_proxy: world.url } },
      );
      // Only an answer of the host has a line with its status; that to CONNECT is not shown.
      const status = [...ran.stderr.matchAll(/^ +HTTP\/1\.1 (\d{3})/gm)].at(-1)?.[1];
      return status === undefined ? refused(ran) : { kind: 'answer', status: Number(status), body: ran.stdout };
    },
  },
  python(
    'python3 urllib',
    PYTHON,
    `import sys, urllib.error, urllib.request
try:
    answer = urllib.request.urlopen(sys.argv[1], timeout=15)
except urllib.error.HTTPError as error:
    answer = error
except OSError as error:
    sys.exit(str(error))
sys.stdout.write("%d\\n%s" % (answer.getcode(), answer.read().decode()))
`,
  ),
  python(
    'python3 requests',
    REQUESTS,
    `import sys, requests
try:
    answer = requests.get(sys.argv[1], timeout=15)
except requests.exceptions.ProxyError as error:
    sys.exit(str(error))
sys.stdout.write("%d\\n%s" % (answer.status_code, answer.text))
`,
  ),
  undici('undici fetch with ProxyAgent', ({ url, ca }) => new ProxyAgent({ uri: url, requestTls: { ca } })),
  undici('undici fetch with EnvHttpProxyAgent', ({ url, ca }) => {
    // The variables are read once, when the agent is made.
    for (const name of ['http_proxy', 'https_proxy']) vi.stubEnv(name, url);
    vi.stubEnv('no_proxy', '');
    try {
      return new EnvHttpProxyAgent({ requestTls: { ca }, noProxy: '' });
    } finally {
      vi.unstubAllEnvs();
    }
  }),
  {
    name: 'Node fetch with NODE_USE_ENV_PROXY',
    isPresent: NODE_READS_VARIABLES,
    transport: 'connect',
    // Newer versions send plain http the way other clients do.
    plainTransport: Number(process.versions.node.split('.')[0]) >= 26 ? 'absolute_form' : 'connect',
    refusal: /403/,
    refusalExitCode: 1,
    get: async (world, url) => {
      const script = `fetch(process.argv[1]).then(async (answer) => {
        process.stdout.write(answer.status + '\\n' + await answer.text());
      })`;
      const env = { NODE_USE_ENV_PROXY: '1', NODE_EXTRA_CA_CERTS: world.caFile };
      return printed(
        await run(process.execPath, ['-e', script, url], {
          env: { ...env, HTTP_PROXY: world.url, HTTPS_PROXY: world.url },
        }),
      );
    },
  },
  // Its agent hands the answer to CONNECT on as if the host had given it.
  library('axios with its proxy setting', 'absolute_form', /"code":"host_not_allowed"/, async (world, url) => {
    const answer = await axios.get<string>(url, {
      proxy: { protocol: 'http', host: '127.0.0.1', port: world.port },
      httpsAgent: new HttpsAgent({ ca: world.ca, keepAlive: false }),
      ...AXIOS_OPTIONS,
    });
    return { kind: 'answer', status: answer.status, body: answer.data };
  }),
  library('axios with an agent of its own', 'connect', /tunnel refused with 403/, async (world, url) => {
    const open = byConnect(world.port);
    const answer = await axios.get<string>(url, {
      proxy: false,
      httpAgent: plainTunnelAgent(open),
      httpsAgent: secureTunnelAgent(open, world.ca),
      ...AXIOS_OPTIONS,
    });
    return { kind: 'answer', status: answer.status, body: answer.data };
  }),
  library('Node http and https with a CONNECT agent', 'connect', /tunnel refused with 403/, (world, url) =>
    nodeGet(url, byConnect(world.port), world.ca),
  ),
  {
    ...library('Node http and https with a SOCKS5 agent', 'socks5', /SOCKS reply 2/, (world, url) =>
      nodeGet(url, bySocks(world.port), world.ca),
    ),
    transport: 'socks5',
  },
];

const AXIOS_OPTIONS = {
  responseType: 'text',
  transformResponse: (data: unknown) => data,
  validateStatus: () => true,
  timeout: 15_000,
} as const;

function curl(name: string, options: readonly string[], transport: 'connect' | 'socks5'): HttpClient {
  const isSocks = transport === 'socks5';
  return {
    name,
    isPresent: CURL,
    transport,
    plainTransport: isSocks ? 'socks5' : 'absolute_form',
    refusal: isSocks ? /SOCKS5/ : CURL_REFUSAL,
    refusalExitCode: isSocks ? 97 : 56,
    get: async (world, url) => {
      const proxy = isSocks ? ['--socks5-hostname', `127.0.0.1:${world.port}`] : ['-x', world.url];
      const marked = ['-sS', '--max-time', '15', '--cacert', world.caFile, '-w', '\n%{http_code}'];
      const ran = await run('curl', [...marked, ...options, ...proxy, url]);
      const end = ran.stdout.lastIndexOf('\n');
      if (ran.code !== 0) return refused(ran);
      return { kind: 'answer', status: Number(ran.stdout.slice(end + 1)), body: ran.stdout.slice(0, end) };
    },
  };
}

function python(name: string, isPresent: boolean, script: string): HttpClient {
  return {
    name,
    isPresent,
    transport: 'connect',
    plainTransport: 'absolute_form',
    refusal: PYTHON_REFUSAL,
    refusalExitCode: 1,
    get: async (world, url) => {
      const env = { SSL_CERT_FILE: world.caFile, REQUESTS_CA_BUNDLE: world.caFile };
      return printed(
        await run('python3', ['-c', script, url], { env: { ...env, http_proxy: world.url, https_proxy: world.url } }),
      );
    },
  };
}

function undici(name: string, agent: (world: ClientWorld) => Dispatcher): HttpClient {
  return library(name, 'connect', /Proxy response \(403\) !== 200/, async (world, url) => {
    const dispatcher = agent(world);
    try {
      const answer = await undiciFetch(url, { dispatcher, signal: AbortSignal.timeout(15_000) });
      return { kind: 'answer', status: answer.status, body: await answer.text() };
    } finally {
      await dispatcher.destroy();
    }
  });
}

/** A client inside this process, whose errors are what it says of a refusal. */
function library(
  name: string,
  plainTransport: HttpClient['plainTransport'],
  refusal: RegExp,
  get: HttpClient['get'],
): HttpClient {
  return {
    name,
    isPresent: true,
    transport: 'connect',
    plainTransport,
    refusal,
    refusalExitCode: null,
    get: async (world, url) => {
      try {
        return await within(`an answer to ${name}`, get(world, url), 15_000);
      } catch (error) {
        const body = error instanceof TunnelRefused ? `: ${error.body}` : '';
        return { kind: 'refused', exitCode: null, text: `${errorText(error)}${body}` };
      }
    },
  };
}

function nodeGet(url: string, open: OpenTunnel, ca: string): Promise<ClientOutcome> {
  return new Promise((resolve, reject) => {
    const take = (response: IncomingMessage): void => {
      const chunks: Buffer[] = [];
      response.on('data', (chunk: Buffer) => chunks.push(chunk));
      response.on('error', reject);
      response.on('end', () =>
        resolve({ kind: 'answer', status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString() }),
      );
    };
    const request = url.startsWith('https:')
      ? httpsRequest(url, { agent: secureTunnelAgent(open, ca) }, take)
      : httpRequest(url, { agent: plainTunnelAgent(open) }, take);
    request.on('error', reject);
    request.end();
  });
}

function refused(ran: Ran): ClientOutcome {
  return { kind: 'refused', exitCode: ran.code, text: ran.stderr };
}

/** A script that prints a status, a line feed and the body. */
function printed(ran: Ran): ClientOutcome {
  if (ran.code !== 0) return refused(ran);
  const end = ran.stdout.indexOf('\n');
  return { kind: 'answer', status: Number(ran.stdout.slice(0, end)), body: ran.stdout.slice(end + 1) };
}
