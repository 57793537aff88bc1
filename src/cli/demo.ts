import type { Command } from 'commander';
import { tellStory } from '../demo/story.ts';

export function addDemoCommand(program: Command): void {
  program
    .command('demo')
    .description('run local servers, a proxy and some agents, and tell what was allowed and denied; needs no network')
    .addHelpText('after', '\nExit codes: 0 everything went as the rules say, 3 something did not.')
    .action(async () => {
      const ok = await tellStory((text) => process.stdout.write(text));
      if (!ok) process.exitCode = 3;
    });
}
