import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import pc from 'picocolors';
import { openAgents } from '../agents/directory.ts';
import { nearPath } from '../config/describe.ts';
import type { LoadedSettings } from '../config/load.ts';
import { ConfigError } from '../core/errors.ts';
import { caPaths } from '../tls/ca-files.ts';
import { findingsOf } from './doctor-check.ts';
import type { Finding } from './doctor-check.ts';
import { checkClients } from './doctor-clients.ts';
import { checkEgress, parseEgress } from './doctor-egress.ts';
import {
  checkCaVariables,
  checkClientFiles,
  checkDangerousVariables,
  checkProxyVariables,
} from './doctor-environment.ts';
import { checkAudit, checkCertificates, checkMachine, checkProxy, checkRules } from './doctor-proxy.ts';
import { settingsFromFlags, withSettingsOptions } from './settings-options.ts';
import type { SettingsFlags } from './settings-options.ts';

interface DoctorFlags extends SettingsFlags {
  readonly json?: boolean;
  readonly egress?: string;
}

/** Adds `doctor`. */
export function addDoctorCommands(program: Command): void {
  withSettingsOptions(
    program.command('doctor').description('look for what keeps clients from working through the proxy'),
  )
    .option('--json', 'print one JSON document')
    .option('--egress <host:port>', 'also dial there directly; an answer means that agents here could bypass the proxy')
    .addHelpText('after', '\nExit codes: 0 nothing failed, 1 unexpected, 2 bad usage, 3 something failed.')
    .action(async (flags: DoctorFlags) => {
      const egress = flags.egress === undefined ? null : parseEgress(flags.egress);
      const findings = [...(await examine(flags)), ...(egress === null ? [] : [await checkEgress(egress)])];
      const failed = findings.filter((finding) => finding.status === 'fail').length;
      if (flags.json === true) {
        process.stdout.write(`${JSON.stringify({ version: 1, ok: failed === 0, findings }, null, 2)}\n`);
      } else process.stdout.write(findingsText(findings));
      if (failed > 0) process.exitCode = 3;
    });
}

async function examine(flags: SettingsFlags): Promise<readonly Finding[]> {
  const { ok, warn, fail } = findingsOf('settings');
  const env = process.env;
  const found: Finding[] = [];
  let loaded: LoadedSettings | null = null;
  try {
    loaded = await settingsFromFlags(flags);
    const where = loaded.file === null ? 'defaults, variables and flags' : nearPath(loaded.file, process.cwd());
    found.push(ok('settings', where));
    for (const text of loaded.warnings) found.push(warn('settings', text, 'docs/configuration.md'));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    found.push(fail('settings', firstLine(error), 'subfloor config check'));
  }
  if (loaded !== null) {
    const { settings } = loaded;
    found.push(await checkAgents(loaded));
    const groups = await Promise.all([
      checkRules(settings),
      checkAudit(settings),
      checkProxy(settings),
      checkCertificates(settings, new Date()),
      checkMachine(settings),
    ]);
    found.push(...groups.flat());
    const caPem = await readFile(caPaths(settings.certs).pem, 'latin1').catch(() => null);
    found.push(...(await checkCaVariables(env, caPem)));
  }
  found.push(...checkProxyVariables(env), ...checkDangerousVariables(env));
  found.push(...(await checkClientFiles(env, process.cwd())), ...(await checkClients(env)));
  return found;
}

async function checkAgents({ settings }: LoadedSettings): Promise<Finding> {
  const { ok, fail } = findingsOf('settings');
  try {
    const directory = await openAgents(settings.agents, settings.listeners);
    return ok(
      'agents',
      settings.agents === null ? 'everybody is the agent default' : `${directory.agents.length} agents`,
    );
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return fail('agents', firstLine(error), 'subfloor agents check');
  }
}

function firstLine(error: ConfigError): string {
  const [first = '', ...rest] = error.message.split('\n');
  return rest.length === 0 ? first : `${first} (and ${rest.length} more)`;
}

const GROUPS: readonly Finding['group'][] = ['settings', 'proxy', 'certificates', 'environment', 'clients', 'machine'];
const MARKS: Readonly<Record<Finding['status'], () => string>> = {
  ok: () => pc.green('✓'),
  warn: () => pc.yellow('!'),
  fail: () => pc.red('✗'),
  skip: () => pc.dim('-'),
};

/** A table by groups, with the remedy below each finding that has one. */
export function findingsText(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map((finding) => finding.name.length));
  const lines: string[] = [];
  for (const group of GROUPS) {
    const inside = findings.filter((finding) => finding.group === group);
    if (inside.length === 0) continue;
    lines.push('', pc.bold(group));
    for (const finding of inside) {
      lines.push(`  ${MARKS[finding.status]()} ${finding.name.padEnd(width)}  ${finding.text}`);
      if (finding.remedy !== null) lines.push(`    ${' '.repeat(width)}  ${pc.cyan(`→ ${finding.remedy}`)}`);
    }
  }
  const count = (status: Finding['status']): number => findings.filter((finding) => finding.status === status).length;
  lines.push('', `${count('ok')} good, ${count('warn')} to look at, ${count('fail')} failed`);
  return `${lines.slice(1).join('\n')}\n`;
}
