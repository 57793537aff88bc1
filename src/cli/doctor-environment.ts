import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseCidr } from '../core/cidr.ts';
import { causeOf } from '../core/errors.ts';
import { NO_PROXY } from './client-variables.ts';
import { findingsOf, outputOf } from './doctor-check.ts';
import type { Finding } from './doctor-check.ts';

type Environment = Readonly<Record<string, string | undefined>>;

const MEND = 'eval "$(subfloor env)"';
const { ok, warn, fail, skip } = findingsOf('environment');

/** Proxy variables: set in both cases, with one value, and no way around through NO_PROXY. */
export function checkProxyVariables(env: Environment): readonly Finding[] {
  const found: Finding[] = [];
  const pairs = ['HTTP_PROXY', 'HTTPS_PROXY'].map((upper) => [upper, upper.toLowerCase()] as const);
  if (pairs.every(([upper, lower]) => isUnset(env, upper) && isUnset(env, lower))) {
    return [warn('proxy variables', 'none is set here, so programs go out directly', MEND)];
  }
  for (const [upper, lower] of pairs) {
    const missing = [upper, lower].filter((name) => isUnset(env, name));
    if (missing.length > 0) {
      found.push(fail(upper, `${missing.join(' and ')} not set; some clients read only that one`, MEND));
    } else if (env[upper] !== env[lower]) {
      found.push(fail(upper, `${upper} and ${lower} differ`, MEND));
    } else found.push(ok(upper, 'set in both cases'));
  }
  const values = new Set(pairs.map(([upper, lower]) => env[upper] ?? env[lower]));
  if (values.size > 1) found.push(warn('one proxy', 'HTTP_PROXY and HTTPS_PROXY name different proxies', MEND));
  found.push(...checkNoProxy(env));
  return found;
}

function isUnset(env: Environment, name: string): boolean {
  return env[name] === undefined || env[name] === '';
}

function checkNoProxy(env: Environment): readonly Finding[] {
  const upper = env['NO_PROXY'] ?? '';
  const lower = env['no_proxy'] ?? '';
  const fix = `set both to ${NO_PROXY}`;
  if (upper !== lower) return [fail('NO_PROXY', 'NO_PROXY and no_proxy differ', fix)];
  const problems: string[] = [];
  for (const entry of upper.split(',').map((item) => item.trim())) {
    if (entry === '' || NO_PROXY.split(',').includes(entry)) continue;
    if (entry === '*') problems.push('* sends everything past the proxy');
    else if (entry.includes('[')) problems.push(`${entry} makes httpx, and with it AI SDKs for Python, fail`);
    else if (entry.includes('/') && entry.includes(':')) problems.push(`${entry}: IPv6 ranges make httpx fail`);
    else if (typeof parseCidr(entry) !== 'string') problems.push(`${entry} goes past the proxy, where rules decide`);
    else problems.push(`${entry} goes past the proxy`);
  }
  if (problems.length === 0) return [ok('NO_PROXY', upper === '' ? 'not set' : upper)];
  return [warn('NO_PROXY', problems.slice(0, 5).join('; '), fix)];
}

/** Variables that add to the roots of a client; our CA alone will do. */
const ADDING = ['NODE_EXTRA_CA_CERTS', 'DENO_CERT'] as const;
/** Variables that replace the roots of a client; they need the public ones as well. */
const REPLACING = [
  'SSL_CERT_FILE',
  'CURL_CA_BUNDLE',
  'REQUESTS_CA_BUNDLE',
  'PIP_CERT',
  'AWS_CA_BUNDLE',
  'GIT_SSL_CAINFO',
  'npm_config_cafile',
  'CARGO_HTTP_CAINFO',
  'GRPC_DEFAULT_SSL_ROOTS_FILE_PATH',
] as const;

/**
 * CA variables: they point at files that hold our CA, and the public roots where they replace them.
 * @param caPem our CA, or null when there is none yet
 */
export async function checkCaVariables(env: Environment, caPem: string | null): Promise<readonly Finding[]> {
  const own = caPem === null ? null : fingerprints(caPem);
  if (own === null || own.size === 0) return [skip('CA variables', 'there is no CA to compare with')];
  const names = [...ADDING, ...REPLACING].filter((name) => !isUnset(env, name));
  if (names.length === 0) return [warn('CA variables', 'none is set here, so clients distrust the proxy', MEND)];
  const found: Finding[] = [];
  const good: string[] = [];
  for (const name of names) {
    const path = env[name] ?? '';
    const text = await readFile(path, 'latin1').catch((error: unknown) => {
      found.push(fail(name, `${path} cannot be read (${causeOf(error)})`, MEND));
      return null;
    });
    if (text === null) continue;
    const inside = fingerprints(text);
    if (![...own].some((fingerprint) => inside.has(fingerprint))) {
      found.push(fail(name, `${path} does not hold our CA`, MEND));
    } else if (REPLACING.some((entry) => entry === name) && inside.size < 20) {
      found.push(warn(name, `${path} lacks the public roots; what is not intercepted will fail`, MEND));
    } else good.push(name);
  }
  const usual = ['NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'GIT_SSL_CAINFO'];
  const missing = usual.filter((name) => isUnset(env, name));
  if (missing.length > 0) found.push(warn('CA variables', `not set: ${missing.join(', ')}`, MEND));
  if (good.length > 0) found.push(ok('CA variables', good.join(', ')));
  return found;
}

function fingerprints(pem: string): ReadonlySet<string> {
  const found = new Set<string>();
  for (const [block] of pem.matchAll(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g)) {
    try {
      found.add(new X509Certificate(block).fingerprint256);
    } catch {
      // Somebody else's broken block is not what is asked here.
    }
  }
  return found;
}

/** Variables that undo what the proxy is for, or stop a program from starting. */
export function checkDangerousVariables(env: Environment): readonly Finding[] {
  const found: Finding[] = [];
  if (env['NODE_TLS_REJECT_UNAUTHORIZED'] === '0') {
    found.push(
      warn(
        'NODE_TLS_REJECT_UNAUTHORIZED',
        'Node programs accept every certificate',
        'unset it, and trust the CA instead',
      ),
    );
  }
  if (/--use-(?:env-proxy|system-ca)/.test(env['NODE_OPTIONS'] ?? '')) {
    found.push(
      fail(
        'NODE_OPTIONS',
        'Node 20 does not start with these options',
        'use NODE_USE_ENV_PROXY=1 and NODE_USE_SYSTEM_CA=1',
      ),
    );
  }
  if (!isUnset(env, 'GIT_SSL_NO_VERIFY')) {
    found.push(warn('GIT_SSL_NO_VERIFY', 'git accepts every certificate', 'unset it, and trust the CA instead'));
  }
  return found;
}

/** Files of clients that win over the variables. */
export async function checkClientFiles(env: Environment, cwd: string, home = homedir()): Promise<readonly Finding[]> {
  const clients = findingsOf('clients');
  const found: Finding[] = [];
  for (const file of [join(cwd, '.npmrc'), join(home, '.npmrc')]) {
    const text = await readFile(file, 'utf8').catch(() => '');
    if (/^\s*cafile\s*=/m.test(text) && isUnset(env, 'npm_config_cafile')) {
      found.push(clients.warn('npm', `${file} sets cafile, which replaces NODE_EXTRA_CA_CERTS`, MEND));
    }
    if (/^\s*strict-ssl\s*=\s*false/m.test(text)) {
      found.push(clients.warn('npm', `${file} turns certificate checks off`, 'remove strict-ssl=false'));
    }
    if (/^\s*(?:https-?)?proxy\s*=/m.test(text)) {
      found.push(clients.warn('npm', `${file} names a proxy of its own`, 'remove it, or point it at this proxy'));
    }
  }
  const pipFiles = [join(home, '.config/pip/pip.conf'), join(home, '.pip/pip.conf'), '/etc/pip.conf'];
  for (const file of pipFiles) {
    const text = await readFile(file, 'utf8').catch(() => '');
    if (/^\s*cert\s*=/m.test(text) && isUnset(env, 'PIP_CERT')) {
      found.push(clients.warn('pip', `${file} sets cert, which replaces the usual roots`, MEND));
    }
  }
  const git = await outputOf('git', ['config', '--get', 'http.sslCAInfo'], env);
  if (git !== null && git !== '' && isUnset(env, 'GIT_SSL_CAINFO')) {
    found.push(clients.warn('git', `its settings have http.sslCAInfo = ${git}`, `${MEND}, whose variable wins`));
  }
  const verify = await outputOf('git', ['config', '--get', 'http.sslVerify'], env);
  if (verify === 'false') found.push(clients.warn('git', 'http.sslVerify is off', 'git config --unset http.sslVerify'));
  return found;
}
