#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import pc from 'picocolors';
import { productVersion } from './app.ts';
import { addAgentsCommands } from './cli/agents.ts';
import { addCaCommands } from './cli/ca.ts';
import { addConfigCommands } from './cli/config.ts';
import { addDemoCommand } from './cli/demo.ts';
import { addDoctorCommands } from './cli/doctor.ts';
import { addEnvCommands } from './cli/env.ts';
import { addRulesCommands } from './cli/rules.ts';
import { addStartCommand } from './cli/start.ts';
import { ConfigError } from './core/errors.ts';

const program = new Command('subfloor')
  .description('TLS-intercepting egress proxy for AI agents: the network floor beneath MCP-level controls')
  .version(productVersion())
  .showHelpAfterError('(add --help for the options)')
  .configureHelp({ sortSubcommands: false });

addStartCommand(program);
addEnvCommands(program);
addCaCommands(program);
addRulesCommands(program);
addAgentsCommands(program);
addConfigCommands(program);
addDoctorCommands(program);
addDemoCommand(program);

for (const command of program.commands) exitOnUsage(command);
exitOnUsage(program);

function exitOnUsage(command: Command): void {
  command.exitOverride();
  for (const child of command.commands) exitOnUsage(child);
}

try {
  await program.parseAsync(process.argv);
  // Timers and sockets of a stopped proxy must not keep the process.
  if (process.exitCode === undefined) process.exitCode = 0;
} catch (error) {
  if (error instanceof CommanderError) {
    // Help and version are answers, not mistakes.
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else if (error instanceof ConfigError) {
    process.stderr.write(`${pc.red('subfloor:')} ${error.message}\n`);
    process.exitCode = 2;
  } else {
    process.stderr.write(
      `${pc.red('subfloor: unexpected error')}\n${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
    process.exitCode = 1;
  }
}
