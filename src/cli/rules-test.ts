import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import pc from 'picocolors';
import { listTestFiles, readRuleFiles, readSingleRuleFiles, readText } from '../config/rule-files.ts';
import { readCases } from '../policy/case-schema.ts';
import type { Case, Expected } from '../policy/case-schema.ts';
import { compileRules } from '../policy/compile.ts';
import { formatProblem } from '../policy/problem.ts';
import type { Problem } from '../policy/problem.ts';
import type { RulePolicy } from '../policy/rule-policy.ts';
import { suppose } from '../policy/what-if.ts';
import type { Outcome } from '../policy/what-if.ts';
import { isFolder } from './rule-paths.ts';

interface CaseResult {
  readonly file: string;
  readonly line: number;
  readonly name: string;
  /** What differs, in words; empty when the case passed. */
  readonly differences: readonly string[];
  readonly verdict: string;
  readonly reason: string;
  readonly rules: readonly string[];
}

/** Depth of folders that are searched for test files. */
const MAX_DEPTH = 4;

/** Runs all cases and prints a table or JSON. Sets exit code 2 when a file is not valid, 3 when a case fails. @throws ConfigError */
export async function runTests(paths: readonly string[], asJson: boolean): Promise<void> {
  const results: CaseResult[] = [];
  const problems: Problem[] = [];
  const files = new Set<string>();
  for (const path of paths)
    for (const file of (await isFolder(path)) ? await findTests(path, MAX_DEPTH) : [path]) files.add(file);
  for (const file of files) results.push(...(await runFile(file, problems)));
  const failed = results.filter((result) => result.differences.length > 0);
  if (asJson) {
    process.stdout.write(
      `${JSON.stringify({ ok: failed.length === 0 && problems.length === 0, passed: results.length - failed.length, failed: failed.length, cases: results, problems }, null, 2)}\n`,
    );
  } else {
    print(results);
    for (const problem of problems) process.stderr.write(`${pc.red('•')} ${formatProblem(problem)}\n`);
    process.stdout.write(`${summary(results.length, failed.length, files.size, problems.length)}\n`);
  }
  if (problems.length > 0) process.exitCode = 2;
  else if (failed.length > 0) process.exitCode = 3;
}

async function findTests(folder: string, depth: number): Promise<string[]> {
  const found = await listTestFiles(folder);
  if (depth === 0) return found;
  const entries = await readdir(folder, { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.isDirectory() && !entry.name.startsWith('.'))
      found.push(...(await findTests(join(folder, entry.name), depth - 1)));
  }
  return found;
}

async function runFile(file: string, problems: Problem[]): Promise<CaseResult[]> {
  const { against, cases } = readCases(file, await readText(file), problems);
  const beside = file.replace(/\.test(\.ya?ml)$/, '$1');
  const rules = against === 'folder' ? await readRuleFiles([dirname(file)]) : await readSingleRuleFiles([beside]);
  const compiled = compileRules(rules);
  if (!compiled.ok) {
    problems.push(...compiled.problems);
    return [];
  }
  return cases.map((one) => runCase(file, one, compiled.policy));
}

function runCase(file: string, one: Case, policy: RulePolicy): CaseResult {
  const outcome = suppose(policy, one.supposed);
  const { action, reason, rules } = outcome.verdict;
  return {
    file,
    line: one.line,
    name: one.name,
    differences: differencesOf(one.expected, outcome),
    verdict: action,
    reason,
    rules,
  };
}

function differencesOf(expected: Expected, outcome: Outcome): string[] {
  const { verdict, tunnel } = outcome;
  const differences: string[] = [];
  const compare = (what: string, wanted: string | null, got: string): void => {
    if (wanted !== null && wanted !== got) differences.push(`${what} is ${got}, not ${wanted}`);
  };
  compare('verdict', expected.verdict, verdict.action);
  compare('judged', expected.judged, verdict.judged);
  compare('reason', expected.reason, verdict.reason);
  compare('mode', expected.mode, verdict.mode);
  compare('tunnel', expected.tunnel, tunnel);
  const named = verdict.rules.length === 0 ? 'no rule' : verdict.rules.join(', ');
  if (expected.rules?.length === 0 && verdict.rules.length > 0) differences.push(`decided by ${named}, not by no rule`);
  const missing = expected.rules?.filter((rule) => !verdict.rules.includes(rule)) ?? [];
  if (missing.length > 0) differences.push(`decided by ${named}, not by ${missing.join(', ')}`);
  if (expected.message !== null && verdict.message?.includes(expected.message) !== true) {
    differences.push(`the message is ${verdict.message === null ? 'missing' : JSON.stringify(verdict.message)}`);
  }
  return differences;
}

function print(results: readonly CaseResult[]): void {
  let file = '';
  const width = Math.min(60, Math.max(0, ...results.map((result) => result.name.length)));
  for (const result of results) {
    if (result.file !== file) {
      file = result.file;
      process.stdout.write(`${pc.bold(file)}\n`);
    }
    const isGood = result.differences.length === 0;
    const rules = result.rules.length === 0 ? '' : ` ${pc.dim(result.rules.join(', '))}`;
    const paint =
      result.verdict === 'deny' || result.verdict === 'approve'
        ? pc.red
        : result.verdict === 'allow'
          ? pc.green
          : pc.yellow;
    process.stdout.write(
      `  ${isGood ? pc.green('✓') : pc.red('✗')} ${result.name.padEnd(width)}  ${paint(result.verdict.padEnd(7))} ${result.reason}${rules}\n`,
    );
    for (const difference of result.differences)
      process.stdout.write(`      ${pc.red(difference)}  ${pc.dim(`${result.file}:${result.line}`)}\n`);
  }
}

function summary(all: number, failed: number, files: number, problems: number): string {
  const scope = `${all} case${all === 1 ? '' : 's'} in ${files} file${files === 1 ? '' : 's'}`;
  if (problems > 0)
    return `${pc.red('not valid:')} ${problems} problem${problems === 1 ? '' : 's'}; ran ${scope}, ${failed} failed`;
  if (failed > 0) return `${pc.red('failed:')} ${failed} of ${scope}`;
  return all === 0
    ? 'no cases found: write some in a file named like the rules, ending in .test.yaml'
    : `${pc.green('passed:')} ${scope}`;
}
