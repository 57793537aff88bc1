import { request } from 'node:http';
import { connect } from 'node:net';
import { stat } from 'node:fs/promises';
import { access, constants, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { addressText } from '../config/describe.ts';
import { readRuleFiles } from '../config/rule-files.ts';
import { ConfigError, causeOf } from '../core/errors.ts';
import type { ListenAddress, ListenerSettings, Settings } from '../core/settings.ts';
import { compilePolicy } from '../policy/compile.ts';
import { parseCertificates } from '../tls/authority.ts';
import { caPaths } from '../tls/ca-files.ts';
import { strictProblems } from '../tls/strictness.ts';
import { findingsOf } from './doctor-check.ts';
import type { Finding } from './doctor-check.ts';

const WAIT_MS = 2000;
const MAX_ANSWER_BYTES = 64 * 1024;
const DAY_MS = 86_400_000;

/** Where a client on this machine finds what listens on all addresses. */
function reachable({ host, port }: ListenAddress): ListenAddress {
  return { host: host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host, port };
}

/** The listeners and the admin port of a running proxy. */
export async function checkProxy(settings: Settings): Promise<readonly Finding[]> {
  const listeners = await Promise.all(settings.listeners.map((listener) => checkListener(listener)));
  return [...listeners, await checkAdmin(settings.admin)];
}

async function checkListener(listener: ListenerSettings): Promise<Finding> {
  const { ok, fail, skip } = findingsOf('proxy');
  const name = `listener ${listener.name}`;
  if (listener.port === 0) return skip(name, 'its port is chosen at start');
  const address = reachable(listener);
  const cause = await connectOnce(address);
  return cause === null
    ? ok(name, `answers on ${addressText(address)}`)
    : fail(name, `${addressText(address)} cannot be reached (${cause})`, 'start the proxy: subfloor start');
}

/** @returns null when connected, else the cause */
export function connectOnce({ host, port }: ListenAddress): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const end = (cause: string | null): void => {
      socket.destroy();
      resolve(cause);
    };
    socket.on('error', (error) => end(causeOf(error)));
    socket.setTimeout(WAIT_MS, () => end('no answer'));
    socket.on('connect', () => end(null));
  });
}

async function checkAdmin(admin: ListenAddress): Promise<Finding> {
  const { ok, fail, skip } = findingsOf('proxy');
  if (admin.port === 0) return skip('ready', 'the admin port is chosen at start');
  const address = reachable(admin);
  const answer = await get(address, '/readyz');
  if (typeof answer === 'string') {
    return fail('ready', `${addressText(address)} cannot be reached (${answer})`, 'start the proxy: subfloor start');
  }
  if (answer.status === 200) return ok('ready', 'the proxy is ready');
  const failed = failedChecks(answer.body);
  return fail('ready', `the proxy is not ready${failed === '' ? '' : `: ${failed}`}`, 'see its log');
}

/** Names and texts of the checks that failed, from the answer of `/readyz`. */
function failedChecks(body: string): string {
  try {
    const answer: unknown = JSON.parse(body);
    if (typeof answer !== 'object' || answer === null || !('checks' in answer) || !Array.isArray(answer.checks))
      return '';
    const checks: readonly unknown[] = answer.checks;
    return checks
      .filter((check): check is { ok: false; name: string; text: string } => {
        if (typeof check !== 'object' || check === null || !('ok' in check) || check.ok !== false) return false;
        return 'name' in check && typeof check.name === 'string' && 'text' in check && typeof check.text === 'string';
      })
      .map((check) => `${check.name} (${check.text})`)
      .join(', ');
  } catch {
    return '';
  }
}

function get({ host, port }: ListenAddress, path: string): Promise<{ status: number; body: string } | string> {
  return new Promise((resolve) => {
    const asked = request({ host, port, path, agent: false, timeout: WAIT_MS }, (response) => {
      const chunks: Buffer[] = [];
      let size = 0;
      response.on('error', (error) => resolve(causeOf(error)));
      response.on('data', (chunk: Buffer) => {
        size += chunk.length;
        if (size <= MAX_ANSWER_BYTES) chunks.push(chunk);
        else asked.destroy();
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(chunks).toString() }));
      response.on('close', () => resolve('the answer broke off'));
    });
    asked.on('error', (error) => resolve(causeOf(error)));
    asked.on('timeout', () => {
      asked.destroy();
      resolve('no answer');
    });
    asked.end();
  });
}

/** The rules compile. */
export async function checkRules(settings: Settings): Promise<readonly Finding[]> {
  const { ok, warn, fail } = findingsOf('settings');
  try {
    const result = compilePolicy(await readRuleFiles(settings.rules));
    if (!result.ok) {
      const [first] = result.problems;
      const where = first === undefined ? '' : `: ${first.file}:${first.line}:${first.column}: ${first.text}`;
      return [fail('rules', `${result.problems.length} problems${where}`, 'subfloor rules check')];
    }
    if (result.policy.ruleCount === 0) {
      return [warn('rules', 'there is no rule, so everything is denied', 'write one; docs/rules.md shows how')];
    }
    return [ok('rules', `${result.policy.ruleCount} in force, revision ${result.policy.revision}`)];
  } catch (error) {
    const text = error instanceof ConfigError ? (error.message.split('\n')[0] ?? '') : causeOf(error);
    return [fail('rules', text, 'subfloor rules check')];
  }
}

/** The CA: there, valid for a while, its key closed to others, good enough for strict verifiers. */
export async function checkCertificates(settings: Settings, now: Date): Promise<readonly Finding[]> {
  const { ok, warn, fail } = findingsOf('certificates');
  const paths = caPaths(settings.certs);
  const pem = await readFile(paths.pem, 'latin1').catch(() => null);
  if (pem === null) return [fail('CA', `there is no ${paths.pem}`, 'subfloor ca init, or start the proxy once')];
  const found: Finding[] = [];
  try {
    const certificates = parseCertificates(pem, paths.pem);
    const notAfter = Math.min(...certificates.map((certificate) => Date.parse(certificate.validTo)));
    const notBefore = Math.max(...certificates.map((certificate) => Date.parse(certificate.validFrom)));
    const days = Math.floor((notAfter - now.getTime()) / DAY_MS);
    const until = new Date(notAfter).toISOString().slice(0, 10);
    const renew = 'make a new one (subfloor ca init --force) and hand it out to agents';
    if (notBefore > now.getTime()) found.push(fail('CA', 'it is not valid yet', 'look at the clock of this machine'));
    else if (days < 0) found.push(fail('CA', `it ended on ${until}`, renew));
    else if (days < 30) found.push(warn('CA', `it ends in ${days} days`, renew));
    else found.push(ok('CA', `valid until ${until}`));
    const problems = certificates.flatMap(strictProblems);
    if (problems.length > 0) found.push(warn('strict clients', `they refuse the CA: ${problems.join('; ')}`, renew));
    else found.push(ok('strict clients', 'they accept the CA'));
  } catch (error) {
    found.push(fail('CA', error instanceof ConfigError ? error.message : causeOf(error), 'put a CA certificate there'));
  }
  return [...found, await checkKey(paths.key)];
}

async function checkKey(path: string): Promise<Finding> {
  const { ok, warn, fail } = findingsOf('certificates');
  try {
    const facts = await stat(path);
    if (process.platform === 'win32' || (facts.mode & 0o077) === 0) return ok('CA key', 'closed to others');
    const mode = (facts.mode & 0o777).toString(8).padStart(4, '0');
    return fail('CA key', `others can read it (mode ${mode})`, `chmod 600 ${path}, and think about a new CA`);
  } catch (error) {
    // An agent's machine has the certificate only, and should.
    return warn('CA key', `it is not here (${causeOf(error)})`, 'fine where no proxy runs; otherwise subfloor ca init');
  }
}

/** The audit file, or the folder that it will be made in, can be written. */
export async function checkAudit(settings: Settings): Promise<readonly Finding[]> {
  const { ok, fail } = findingsOf('settings');
  const { file } = settings.audit;
  if (file === '-') return [ok('audit', 'goes to standard output')];
  for (let path = file; ; path = dirname(path)) {
    try {
      await access(path, constants.W_OK);
      return [ok('audit', `${file} can be written`)];
    } catch (error) {
      const cause = causeOf(error);
      if (cause === 'ENOENT' && dirname(path) !== path) continue;
      return [
        fail('audit', `${file} cannot be written (${cause} at ${path})`, 'mend the permissions, or set audit.file'),
      ];
    }
  }
}

/** Every tunnel takes two descriptors. */
export async function checkMachine(settings: Settings): Promise<readonly Finding[]> {
  const { ok, warn, skip } = findingsOf('machine');
  const limits = await readFile('/proc/self/limits', 'latin1').catch(() => null);
  const match = limits === null ? null : /^Max open files\s+(\d+|unlimited)/m.exec(limits);
  const found: Finding[] = [];
  if (match === null) found.push(skip('open files', 'this system does not say how many are allowed'));
  else {
    const allowed = match[1] === 'unlimited' ? Number.POSITIVE_INFINITY : Number(match[1]);
    const wanted = settings.limits.connections * 2 + 1000;
    found.push(
      allowed >= wanted
        ? ok('open files', `${match[1] ?? ''} allowed`)
        : warn(
            'open files',
            `${allowed} allowed; ${settings.limits.connections} connections take up to ${wanted}`,
            'raise the limit (ulimit -n, LimitNOFILE), or lower limits.connections',
          ),
    );
  }
  const major = Number(process.versions.node.split('.', 1)[0]);
  found.push(
    major >= 22
      ? ok('Node of the proxy', process.version)
      : warn('Node of the proxy', `${process.version} gets no security fixes any more`, 'run it on Node 22 or later'),
  );
  return found;
}
