import type { Command } from 'commander';
import pc from 'picocolors';
import { readAgentsFile } from '../agents/directory.ts';
import type { AgentEntry, AgentsFile } from '../agents/agents-file.ts';
import { hashPassword } from '../agents/password-hash.ts';
import { nearPath } from '../config/describe.ts';
import { readSecret } from './secret-input.ts';
import { settingsFromFlags, withSettingsOptions } from './settings-options.ts';
import type { SettingsFlags } from './settings-options.ts';

interface ListFlags extends SettingsFlags {
  readonly json?: boolean;
}

const EXIT_CODES = '\nExit codes: 0 good, 1 unexpected, 2 bad usage, or the settings or the agents file are invalid.';

/** Adds `agents hash`, `agents list` and `agents check`. */
export function addAgentsCommands(program: Command): void {
  const agents = program.command('agents').description('who may use the proxy');

  agents
    .command('hash')
    .description('hash a password for agents.yaml; it is read from standard input, or asked for in a terminal')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `\nThere is no option for the password: others could see it in the list of processes.${EXIT_CODES}`,
    )
    .action(async (flags: { readonly json?: boolean }) => {
      const hash = await hashPassword(await readSecret('Password for the agent: '));
      process.stdout.write(flags.json === true ? `${JSON.stringify({ version: 1, hash })}\n` : `${hash}\n`);
    });

  withSettingsOptions(agents.command('list').description('print the agents and what identifies them'))
    .option('--json', 'print one JSON document')
    .addHelpText('after', EXIT_CODES)
    .action(async (flags: ListFlags) => {
      const { path, file } = await load(flags);
      process.stdout.write(flags.json === true ? jsonText(path, file) : listText(file));
    });

  withSettingsOptions(agents.command('check').description('check the agents file'))
    .option('--json', 'print one JSON document')
    .addHelpText('after', EXIT_CODES)
    .action(async (flags: ListFlags) => {
      const { path, file } = await load(flags);
      const count = file?.agents.length ?? 0;
      if (flags.json === true) {
        process.stdout.write(`${JSON.stringify({ version: 1, ok: true, file: path, agents: count })}\n`);
        return;
      }
      const where = path === null ? 'no agents file: everybody is the agent default' : nearPath(path, process.cwd());
      process.stderr.write(`${pc.green('ok')} (${where}${path === null ? '' : `, ${count} agents`})\n`);
    });
}

async function load(flags: ListFlags): Promise<{ path: string | null; file: AgentsFile | null }> {
  const { settings } = await settingsFromFlags(flags);
  const path = settings.agents;
  return { path, file: path === null ? null : await readAgentsFile(path, settings.listeners) };
}

/** Everything that identifies an agent, without its hashes. */
function methods(agent: AgentEntry): Record<string, readonly string[]> {
  return {
    usernames: agent.credentials.map(({ username }) => username),
    certificates: agent.certificates.map((match) => ('sha256' in match ? match.sha256 : match.name)),
    sources: agent.sources.map(({ text }) => text),
    listeners: agent.listeners,
  };
}

function jsonText(path: string | null, file: AgentsFile | null): string {
  const agents = (file?.agents ?? []).map((agent) => ({
    id: agent.id,
    name: agent.name,
    labels: agent.labels,
    ...methods(agent),
  }));
  return `${JSON.stringify({ version: 1, file: path, anonymous: file?.anonymous ?? 'allow', agents }, null, 2)}\n`;
}

function listText(file: AgentsFile | null): string {
  if (file === null) return 'default  everybody, by listener (there is no agents file)\n';
  const rows = file.agents.map((agent) => {
    const known = Object.entries(methods(agent)).filter(([, values]) => values.length > 0);
    return [agent.id, known.map(([kind, values]) => `${kind} ${values.join(', ')}`).join('; ')] as const;
  });
  rows.push(['(others)', file.anonymous === 'allow' ? 'are the agent default' : 'are asked for credentials']);
  const width = Math.max(...rows.map(([id]) => id.length));
  return rows.map(([id, text]) => `${id.padEnd(width)}  ${text}\n`).join('');
}
