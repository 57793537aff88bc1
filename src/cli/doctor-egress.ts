import { lookup } from 'node:dns/promises';
import { addressText } from '../config/describe.ts';
import { ConfigError, causeOf } from '../core/errors.ts';
import type { ListenAddress } from '../core/settings.ts';
import { findingsOf } from './doctor-check.ts';
import type { Finding } from './doctor-check.ts';
import { connectOnce } from './doctor-proxy.ts';

/** Addresses of a name that are tried; one that answers is enough to know. */
const MAX_ADDRESSES = 8;
const LOOKUP_MS = 5000;
/** Causes that show that packets do not get out. */
const CLOSED: ReadonlySet<string> = new Set([
  'no answer',
  'EACCES',
  'EADDRNOTAVAIL',
  'EHOSTUNREACH',
  'ENETDOWN',
  'ENETUNREACH',
  'EPERM',
  'ETIMEDOUT',
]);

/** `example.com:443`, `[2001:db8::1]:443`. @throws ConfigError */
export function parseEgress(text: string): ListenAddress {
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+)):([0-9]{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || !(port >= 1 && port <= 65_535)) {
    throw new ConfigError(`--egress ${JSON.stringify(text)}: write host:port, for example --egress 192.0.2.1:443`);
  }
  return { host, port };
}

/** Dials a destination directly, without the proxy. What gets through here gets through for an agent on this machine. */
export async function checkEgress(target: ListenAddress): Promise<Finding> {
  const addresses = await addressesOf(target.host);
  if (typeof addresses === 'string') return unresolved(target, addresses);
  const causes = await Promise.all(addresses.map((host) => connectOnce({ host, port: target.port })));
  return judgeEgress(target, causes);
}

/** @param causes for every address that was dialed: null when it connected, else why not */
export function judgeEgress(target: ListenAddress, causes: readonly (string | null)[]): Finding {
  const { ok, warn, fail } = findingsOf('machine');
  const where = addressText(target);
  if (causes.includes(null)) {
    return fail(
      'direct egress',
      `${where} answers without the proxy; agents here could bypass it`,
      'close the network to everything but the proxy; docker/compose.yaml shows how',
    );
  }
  const open = causes.filter((cause): cause is string => cause !== null && !CLOSED.has(cause));
  if (open.length === 0) return ok('direct egress', `${where} cannot be reached without the proxy (${known(causes)})`);
  return warn(
    'direct egress',
    `${where} refused the connection (${known(open)}); a firewall may have done so, or the host itself`,
    'try a host and port that are known to answer',
  );
}

function known(causes: readonly (string | null)[]): string {
  return [...new Set(causes)].join(', ');
}

/** A name that does not resolve says nothing about addresses: an agent that knows one needs no name. */
function unresolved(target: ListenAddress, cause: string): Finding {
  const { warn } = findingsOf('machine');
  return warn(
    'direct egress',
    `${target.host} does not resolve here (${cause})`,
    'try an address: --egress 192.0.2.1:443',
  );
}

async function addressesOf(host: string): Promise<readonly string[] | string> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve('no answer'), LOOKUP_MS);
  });
  const asked = lookup(host, { all: true }).then(
    (found) => found.slice(0, MAX_ADDRESSES).map(({ address }) => address),
    (error: unknown) => causeOf(error),
  );
  try {
    return await Promise.race([asked, late]);
  } finally {
    clearTimeout(timer);
  }
}
