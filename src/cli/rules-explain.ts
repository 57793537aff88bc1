import { Option, type Command } from 'commander';
import pc from 'picocolors';
import { ConfigError, codeFacts, isCode } from '../core/errors.ts';
import { parseAuthority } from '../core/url.ts';
import type { Layer } from '../core/verdict.ts';
import { readUrl } from '../policy/case-schema.ts';
import { compileRules, packNameOf } from '../policy/compile.ts';
import type { RuleFile } from '../policy/compile.ts';
import { describeRule, explain, suppose, supposeRequest } from '../policy/what-if.ts';
import type { Explanation, Supposed } from '../policy/what-if.ts';
import { pathsOrFolders, readPaths, sayProblems } from './rule-paths.ts';

interface ExplainOptions {
  readonly config?: string;
  readonly json?: boolean;
  readonly rules: readonly string[];
  readonly agent: string;
  readonly label: readonly string[];
  readonly method?: string;
  readonly header: readonly string[];
  readonly protocol: Layer;
  readonly time?: string;
}

function collect(value: string, before: readonly string[]): readonly string[] {
  return [...before, value];
}

/** Adds `rules explain`. */
export function addExplainCommand(rules: Command, config: Option, exitCodes: string): void {
  rules
    .command('explain')
    .description('say what would happen to a request, which rules decide it, and what would be allowed instead')
    .argument('<url>', 'https://host/path for a request, or host:port for a tunnel alone')
    .addOption(config)
    .option('--rules <path>', 'folder or file with rules; may be repeated', collect, [])
    .option('-a, --agent <id>', 'whose request it is', 'default')
    .option('--label <key=value>', 'a label of the agent; may be repeated', collect, [])
    .option('-X, --method <method>', 'method of the request (GET; POST for gRPC)')
    .option('-H, --header <name: value>', 'a header of the request; may be repeated', collect, [])
    .addOption(
      new Option('--protocol <protocol>', 'what the traffic is')
        .choices(['http', 'websocket', 'grpc', 'raw'])
        .default('http'),
    )
    .option('--time <iso>', 'when it happens; default: now')
    .option('--json', 'print the explanation as JSON')
    .addHelpText('after', exitCodes)
    .action(run);
}

async function run(target: string, options: ExplainOptions): Promise<void> {
  const supposed = readSupposed(target, options);
  const files = await readPaths(await pathsOrFolders(options.rules, options));
  const compiled = compileRules(files);
  if (!compiled.ok) {
    sayProblems(compiled.problems, pc.red);
    throw new ConfigError('the rules are not valid, so nothing can be explained');
  }
  const explanation = explain(compiled.policy, supposed);
  const packs = isRefused(explanation) && explanation.alternatives.length === 0 ? packsFor(files, supposed) : [];
  if (options.json === true) process.stdout.write(`${JSON.stringify(toJson(explanation, packs), null, 2)}\n`);
  else print(target, options.agent, explanation, packs);
}

function readSupposed(target: string, options: ExplainOptions): Supposed {
  const url = /^https?:\/\//i.test(target) ? readUrl(target) : null;
  const authority = url === null && !target.includes('://') ? parseAuthority(target, 443) : null;
  if (url === null && authority === null) {
    throw new ConfigError(`${JSON.stringify(target)} is neither a URL nor host:port that the proxy would take`);
  }
  const timeMs = options.time === undefined ? Date.now() : Date.parse(options.time);
  if (Number.isNaN(timeMs))
    throw new ConfigError(`${JSON.stringify(options.time)} is no time; write it as 2026-01-05T12:00:00Z`);
  const place = url ?? {
    host: authority?.host ?? '',
    port: authority?.port ?? 443,
    scheme: 'https' as const,
    path: '/',
    query: '',
  };
  const pairs = (texts: readonly string[], separator: string, what: string): Record<string, string> =>
    Object.fromEntries(
      texts.map((text) => {
        const at = text.indexOf(separator);
        if (at < 1) throw new ConfigError(`${JSON.stringify(text)} is no ${what}`);
        return [text.slice(0, at).trim(), text.slice(at + 1).trim()];
      }),
    );
  const headers = Object.fromEntries(
    Object.entries(pairs(options.header, ':', 'header; write "name: value"')).map(([name, value]) => [
      name.toLowerCase(),
      value,
    ]),
  );
  return {
    facts: supposeRequest({
      ...place,
      agent: {
        id: options.agent,
        name: options.agent,
        labels: pairs(options.label, '=', 'label; write key=value'),
        identifiedBy: 'listener',
      },
      layer: options.protocol,
      method: options.method ?? (options.protocol === 'grpc' ? 'POST' : 'GET'),
      headers,
      timeMs,
    }),
    station: options.protocol === 'raw' ? 'raw' : url === null ? 'tunnel' : 'request',
    message: null,
  };
}

function isRefused({ verdict }: Explanation): boolean {
  return verdict.action === 'deny' || verdict.action === 'approve';
}

/** Packs that would let it pass; nobody has to guess their names. */
function packsFor(files: readonly RuleFile[], supposed: Supposed): string[] {
  const packs = files.filter((file) => file.kind === 'pack');
  return packs
    .map((pack) => packNameOf(pack.name))
    .filter((name) => {
      const alone = compileRules([{ name: 'pack', text: `version: 1\ninclude: ["${name}"]`, kind: 'rules' }, ...packs]);
      if (!alone.ok) return false;
      const { action } = suppose(alone.policy, supposed).verdict;
      return action === 'allow' || action === 'warn';
    });
}

function toJson(explanation: Explanation, packs: readonly string[]): object {
  const { verdict, station, tunnel, answers, alternatives } = explanation;
  return {
    verdict,
    station,
    tunnel,
    rules: answers.map(({ rule, isMatch, why }) => ({
      id: rule.id,
      action: rule.action,
      mode: rule.mode,
      matches: isMatch,
      decides: verdict.rules.includes(rule.id),
      why,
      file: rule.file,
      line: rule.line,
    })),
    alternatives,
    packs,
  };
}

const STATIONS = {
  gate: 'at the gate, before the name is resolved',
  raw: 'in the tunnel',
  request: 'at the request',
  message: 'at the message',
} as const;

function print(target: string, agent: string, explanation: Explanation, packs: readonly string[]): void {
  const { verdict, station, tunnel, answers, alternatives } = explanation;
  const out = (line: string): void => void process.stdout.write(`${line}\n`);
  const paint = isRefused(explanation) ? pc.red : verdict.action === 'allow' ? pc.green : pc.yellow;
  out(`${paint(pc.bold(verdict.action))}  ${target}  for agent ${agent}, ${STATIONS[station]}`);
  out(`  reason: ${verdict.reason}${isCode(verdict.reason) ? ` (${codeFacts(verdict.reason).text})` : ''}`);
  out(
    `  decided by: ${verdict.rules.length === 0 ? 'no rule; what is not allowed is denied' : verdict.rules.join(', ')}`,
  );
  if (verdict.mode === 'monitor') out(`  ${pc.yellow('monitor')}: without monitor mode it would be ${verdict.judged}`);
  if (tunnel === 'passthrough') out('  the tunnel is carried untouched: nothing inside is inspected');
  if (verdict.message !== null) out(`  the agent is told: ${verdict.message}`);
  if (answers.length > 0) out('\nrules for this host:');
  for (const { rule, isMatch, why } of answers) {
    const mark = verdict.rules.includes(rule.id) ? pc.bold('→') : isMatch ? '✓' : pc.dim('·');
    out(
      `  ${mark} ${rule.id} ${pc.dim(`${rule.action}${rule.mode === 'monitor' ? ' (monitor)' : ''}, ${rule.file}:${rule.line}`)}`,
    );
    out(`      ${pc.dim(describeRule(rule))}`);
    out(`      ${isMatch ? 'matches' : `does not match: ${why}`}`);
  }
  if (alternatives.length > 0) out('\nwhat would be allowed:');
  for (const text of alternatives) out(`  ${text}`);
  if (packs.length > 0) out(`\npacks that allow it: ${packs.join(', ')}  (include: [${packs[0] ?? ''}])`);
}
