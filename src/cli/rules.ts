import { Option, type Command } from 'commander';
import pc from 'picocolors';
import { readPacks } from '../config/rule-files.ts';
import type { RuleFileText } from '../config/rule-files.ts';
import { compileRules, packNameOf } from '../policy/compile.ts';
import type { RulesResult } from '../policy/compile.ts';
import type { Problem } from '../policy/problem.ts';
import { describeRule } from '../policy/what-if.ts';
import { pathsOrFolders, readPaths, sayProblems } from './rule-paths.ts';
import type { ConfigOption } from './rule-paths.ts';
import { addExplainCommand } from './rules-explain.ts';
import { runTests } from './rules-test.ts';

const EXIT_CODES = `
Exit codes: 0 good, 1 unexpected, 2 bad usage, or rules that are not valid, 3 cases that failed (test)`;

interface CommonOptions extends ConfigOption {
  readonly json?: boolean;
}

/**
 * Adds `rules check`, `rules test`, `rules explain` and `rules packs`. Data goes to stdout, talk to stderr.
 * Exit codes: 0 good, 1 unexpected, 2 bad usage or rules that are not valid, 3 cases that failed.
 */
export function addRulesCommands(program: Command): void {
  const rules = program.command('rules').description('check, test and explain the rules');
  const config = (): Option => new Option('-c, --config <file>', 'settings file that names the rules folders');

  rules
    .command('check')
    .description('read all rules and say what is wrong with them, with file, line and column')
    .argument('[paths...]', 'folders or files; default: the folders of the settings (rules/)')
    .addOption(config())
    .option('--json', 'print the result as JSON')
    .addHelpText('after', EXIT_CODES)
    .action((paths: string[], options: CommonOptions) => check(paths, options));

  rules
    .command('test')
    .description('run the cases in *.test.yaml, each file against the rules beside it')
    .argument(
      '[paths...]',
      'folders (with their subfolders) or test files; default: the folders of the settings (rules/)',
    )
    .addOption(config())
    .option('--json', 'print the result as JSON')
    .addHelpText('after', EXIT_CODES)
    .action(async (paths: string[], options: CommonOptions) =>
      runTests(await pathsOrFolders(paths, options), options.json === true),
    );

  addExplainCommand(rules, config(), EXIT_CODES);

  rules
    .command('packs')
    .description('list the packs that a rule file can include by name')
    .addOption(config())
    .option('--json', 'print the list as JSON')
    .addHelpText('after', EXIT_CODES)
    .action((options: CommonOptions) => packs(options));
}

async function check(paths: readonly string[], options: CommonOptions): Promise<void> {
  const files = await readPaths(await pathsOrFolders(paths, options));
  const result = compileRules(files);
  const problems = [...(result.ok ? [] : result.problems), ...problemsOfPacks(files, result)];
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(toJson(result, problems), null, 2)}\n`);
  } else {
    if (result.ok) sayProblems(result.notes, pc.yellow);
    sayProblems(problems, pc.red);
    process.stdout.write(`${summary(result, files, problems.length)}\n`);
  }
  if (problems.length > 0) process.exitCode = 2;
}

/** Mistakes in packs that no file includes: nobody would see them before the day they are included. */
function problemsOfPacks(files: readonly RuleFileText[], result: RulesResult): Problem[] {
  const known = new Set((result.ok ? [] : result.problems).map((problem) => problem.file));
  return files
    .filter((file) => file.kind === 'pack' && !known.has(file.name))
    .flatMap((file) => {
      const others = files.filter((other) => other.kind === 'pack');
      const alone = compileRules([
        { name: file.name, text: `version: 1\ninclude: ["${packNameOf(file.name)}"]`, kind: 'rules' },
        ...others,
      ]);
      return alone.ok ? [] : alone.problems.filter((problem) => problem.file === file.name);
    });
}

function summary(result: RulesResult, files: readonly RuleFileText[], problems: number): string {
  const fileCount = count(files.filter((file) => file.kind === 'rules').length, 'file');
  if (!result.ok || problems > 0) return `${pc.red('not valid:')} ${count(problems, 'problem')} in ${fileCount}`;
  const { rules, notes, policy } = result;
  const byAction = (['deny', 'approve', 'redact', 'warn', 'allow'] as const)
    .map((action) => ({ action, number: rules.filter((rule) => rule.action === action).length }))
    .filter(({ number }) => number > 0)
    .map(({ action, number }) => `${number} ${action}`);
  const monitored = rules.filter((rule) => rule.mode === 'monitor').length;
  const details = [...byAction, ...(monitored > 0 ? [`${monitored} in monitor mode`] : [])].join(', ');
  const noted = notes.length > 0 ? `, ${count(notes.length, 'note')}` : '';
  const nothing = rules.some((rule) => rule.action === 'allow' || rule.action === 'warn')
    ? ''
    : '; no rule allows anything, so everything is denied';
  return `${pc.green('valid:')} ${count(rules.length, 'rule')} in ${fileCount}${details === '' ? '' : ` (${details})`}${noted}, revision ${policy.revision}${nothing}`;
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

function toJson(result: RulesResult, problems: readonly Problem[]): object {
  if (!result.ok || problems.length > 0) return { ok: false, problems };
  const { policy, rules, notes } = result;
  return {
    ok: true,
    revision: policy.revision,
    defaults: policy.defaults,
    rules: rules.map((rule) => ({
      id: rule.id,
      description: rule.description,
      action: rule.action,
      mode: rule.mode,
      match: describeRule(rule),
      file: rule.file,
      line: rule.line,
    })),
    notes,
  };
}

async function packs(options: CommonOptions): Promise<void> {
  const files = await readPacks(await pathsOrFolders([], options));
  const list = files
    .map((file) => {
      const name = packNameOf(file.name);
      const result = compileRules([
        { name: file.name, text: `version: 1\ninclude: ["${name}"]`, kind: 'rules' },
        ...files,
      ]);
      const rules = result.ok ? result.rules : [];
      // The first comment that is not for the editor says what the pack is.
      const title = /^# (?!yaml-language-server)(.*)$/m.exec(file.text)?.[1] ?? '';
      const hosts = [...new Set(rules.flatMap((rule) => rule.hosts?.map((host) => host.text) ?? []))];
      return { name, title, rules: rules.length, hosts, file: file.name, ok: result.ok };
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(list, null, 2)}\n`);
    return;
  }
  const width = Math.max(...list.map((pack) => pack.name.length));
  for (const pack of list)
    process.stdout.write(`${pc.bold(pack.name.padEnd(width))}  ${pack.ok ? pack.title : pc.red('not valid')}\n`);
  process.stderr.write(
    `\n${count(list.length, 'pack')}. Include one in a rule file:  include: [${list[0]?.name ?? 'name'}]\n`,
  );
}
