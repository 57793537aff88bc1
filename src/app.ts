import { readFileSync } from 'node:fs';
import { AdminServer } from './admin/server.ts';
import type { Check } from './admin/server.ts';
import { openAgents } from './agents/directory.ts';
import { openFileSink } from './audit/file-sink.ts';
import { openStdoutSink } from './audit/stdout-sink.ts';
import { readRuleFiles } from './config/rule-files.ts';
import { watchPaths } from './config/watch.ts';
import { ConfigError, ProxyError, causeOf } from './core/errors.ts';
import type { Policy } from './core/facts.ts';
import { createIds } from './core/ids.ts';
import type { Agent } from './core/agent.ts';
import { Registry } from './core/registry.ts';
import type { AgentDirectory, AuditSink, Log } from './core/ports.ts';
import type { Settings } from './core/settings.ts';
import { createLog } from './log.ts';
import type { PipelineContext } from './pipeline/context.ts';
import { OpenExchanges } from './pipeline/open-exchanges.ts';
import { compilePolicy } from './policy/compile.ts';
import type { Problem } from './policy/problem.ts';
import { AddressGuard } from './proxy/address-guard.ts';
import { Dialer } from './proxy/dial.ts';
import { Deadlines, OpenCounter } from './proxy/limits.ts';
import { ProxyListener } from './proxy/listener.ts';
import { UpstreamPools } from './proxy/pool.ts';
import { Resolver } from './proxy/resolve.ts';
import type { TunnelContext } from './proxy/tunnel.ts';
import { Authority } from './tls/authority.ts';
import { LeafCache } from './tls/leaf-cache.ts';
import { TrustFailures } from './tls/trust-failures.ts';
import { UpstreamContexts } from './tls/upstream-context.ts';
import { watchEventLoop } from './watchdog.ts';

/** A running proxy. */
export interface App {
  /** Port of the first proxy listener, and of the admin listener. */
  readonly proxyPort: number;
  readonly adminPort: number;
  readonly listeners: readonly { readonly name: string; readonly host: string; readonly port: number }[];
  /** What agents have to trust. */
  readonly caPem: string;
  readonly caFile: string;
  readonly caCreated: boolean;
  readonly ruleCount: number;
  readonly revision: string;
  readonly ruleFiles: readonly string[];
  /** Open tunnels, exchanges and upstream connections, for the curious and for tests. */
  counts(): {
    readonly tunnels: number;
    readonly exchanges: number;
    readonly upstreams: number;
    readonly connections: number;
  };
  /** Reads rules and agents anew; a bad file changes nothing. */
  reload(): Promise<{ readonly ok: boolean; readonly problems: readonly string[] }>;
  /** Takes no new tunnels, waits for open exchanges up to the grace period, then closes. */
  drain(): Promise<void>;
  close(): Promise<void>;
  /** Closes and opens the audit file again, after somebody rotated it. */
  reopenAudit(): Promise<void>;
}

export interface AppOptions {
  readonly settings: Settings;
  readonly log?: Log;
}

/** Version of the package, read next to the code. */
export function productVersion(): string {
  const text: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return typeof text === 'object' && text !== null && 'version' in text && typeof text.version === 'string'
    ? text.version
    : '0.0.0';
}

/** All rules of the folders as one policy. @throws ConfigError naming every problem */
async function loadPolicy(folders: readonly string[]): Promise<{ policy: Policy; files: readonly string[] }> {
  const files = await readRuleFiles(folders);
  const result = compilePolicy(files);
  if (!result.ok) throw new ConfigError(result.problems.map(problemText).join('\n'));
  return { policy: result.policy, files: files.filter((file) => file.kind === 'rules').map((file) => file.name) };
}

function problemText(problem: Problem): string {
  const hint = problem.hint === null || problem.hint === '' ? '' : ` (${problem.hint})`;
  return `${problem.file}:${problem.line}:${problem.column}: ${problem.text}${hint}`;
}

/**
 * Builds the proxy and starts listening. The only place that knows every part.
 * @throws ConfigError for anything the operator can mend: rules, agents, certificates, addresses
 */
export async function startApp(options: AppOptions): Promise<App> {
  const { settings } = options;
  const { limits } = settings;
  const log = options.log ?? createLog(settings.log);
  const version = productVersion();

  let loaded = await loadPolicy(settings.rules);
  const { authority, created } = await Authority.open(settings.certs);
  let agents: AgentDirectory = await openAgents(settings.agents, settings.listeners);
  const audit: AuditSink & { reopen?: () => Promise<void> } =
    settings.audit.file === '-'
      ? openStdoutSink({
          format: settings.audit.format,
          productVersion: version,
          onError: (cause) => log.error({ cause }, 'the audit stream cannot be written; nothing passes until it can'),
        })
      : await openFileSink({
          file: settings.audit.file,
          format: settings.audit.format,
          productVersion: version,
          ...(settings.audit.rotateBytes === null ? {} : { maxBytes: settings.audit.rotateBytes }),
          onError: (cause) => log.error({ cause }, 'the audit file cannot be written; nothing passes until it can'),
        });

  const shortest = Math.min(
    limits.headMs,
    limits.handshakeMs,
    limits.keepAliveMs,
    limits.idleMs,
    limits.slowWriteMs,
    limits.halfCloseMs,
    limits.responseHeadMs,
  );
  const deadlines = new Deadlines(Math.max(20, Math.min(250, shortest / 4)));
  const bound: { host: string; port: number }[] = [];
  const guard = new AddressGuard({ allow: settings.addresses.allow, ownListeners: () => bound });
  const dialer = new Dialer({
    resolver: new Resolver({ hosts: settings.upstream.hosts, dnsMs: limits.dnsMs }),
    guard,
    limits,
    upstreamProxy: settings.upstream.proxy,
    upstreamContexts: new UpstreamContexts({
      ca: settings.upstream.ca,
      clientCertificates: settings.upstream.clientCertificates,
    }),
  });
  const upstreams = new UpstreamPools(dialer, limits, deadlines);
  const open = new OpenExchanges(limits);
  const pipeline: PipelineContext = {
    policy: () => loaded.policy,
    audit,
    upstreams,
    open,
    limits,
    newId: createIds(),
    log,
    now: () => performance.now(),
    wallClock: () => Date.now(),
  };
  const tunnels: TunnelContext = {
    pipeline,
    dialer,
    tls: { leaves: new LeafCache(authority, { max: limits.leafCache }), trustFailures: new TrustFailures() },
    limits,
    deadlines,
    counter: new OpenCounter(limits.tunnels, limits.tunnelsPerAgent),
    tunnels: new Registry(),
    log,
    isDraining: false,
  };
  const watchdog = watchEventLoop(limits.stallMs, log);

  let reloading: Promise<{ ok: boolean; problems: string[] }> | null = null;
  const reload = (): Promise<{ ok: boolean; problems: string[] }> =>
    (reloading ??= (async () => {
      try {
        const next = await loadPolicy(settings.rules);
        const nextAgents = await openAgents(settings.agents, settings.listeners);
        const isSame = next.policy.revision === loaded.policy.revision;
        loaded = next;
        agents = nextAgents;
        if (!isSame) {
          log.info({ revision: next.policy.revision, rules: next.policy.ruleCount }, 'new rules are in force');
          for (const { item } of tunnels.tunnels.snapshot()) item.rejudge(next.policy);
          open.rejudge(next.policy);
        }
        // Who is no longer who it was when it came has to come again.
        const isGone = (agent: Agent): boolean => !nextAgents.isCurrent(agent);
        open.cut(new ProxyError('policy_changed'), (exchange) => isGone(exchange.agent));
        for (const { item } of tunnels.tunnels.snapshot())
          if (isGone(item.agent)) item.destroy(new ProxyError('policy_changed'));
        return { ok: true, problems: [] };
      } catch (error) {
        const text = error instanceof ConfigError ? error.message : causeOf(error);
        log.error({ problems: text.split('\n') }, 'the new rules were refused; the last good ones stay in force');
        return { ok: false, problems: text.split('\n') };
      } finally {
        reloading = null;
      }
    })());

  const readiness = (): Check[] => [
    { name: 'rules', ok: true, text: `${loaded.policy.ruleCount} rules, revision ${loaded.policy.revision}` },
    {
      name: 'ca',
      ok: authority.notAfter.getTime() > Date.now(),
      text: `valid until ${authority.notAfter.toISOString().slice(0, 10)}`,
    },
    { name: 'audit', ok: audit.isHealthy, text: audit.isHealthy ? 'writable' : 'cannot be written' },
    { name: 'draining', ok: !tunnels.isDraining, text: tunnels.isDraining ? 'draining' : 'no' },
  ];

  const admin = new AdminServer(settings.admin, { version, readiness, reload }, log);
  const listeners: ProxyListener[] = [];
  const addresses: { name: string; host: string; port: number }[] = [];
  let adminAddress: { host: string; port: number };
  try {
    for (const listenerSettings of settings.listeners) {
      const listener = new ProxyListener(listenerSettings, { tunnels, agents: () => agents });
      const address = await listener.listen();
      listeners.push(listener);
      bound.push(address);
      addresses.push({ name: listenerSettings.name, ...address });
    }
    adminAddress = await admin.listen();
    bound.push(adminAddress);
  } catch (error) {
    for (const listener of listeners) listener.close();
    admin.close();
    watchdog.close();
    deadlines.close();
    await audit.close();
    throw error;
  }

  const watcher = watchPaths(
    [...settings.rules, ...(settings.agents === null ? [] : [settings.agents])],
    () => void reload(),
  );
  // What changed between the first reading and the first look of the watch.
  await reload();

  let closing: Promise<void> | null = null;
  const close = (): Promise<void> =>
    (closing ??= (async () => {
      tunnels.isDraining = true;
      watcher.close();
      for (const listener of listeners) listener.close();
      open.cut(new ProxyError('draining'));
      for (const { item } of tunnels.tunnels.snapshot()) item.destroy(new ProxyError('draining'));
      upstreams.close();
      admin.close();
      watchdog.close();
      deadlines.close();
      await audit.close();
    })());

  const drain = async (): Promise<void> => {
    if (tunnels.isDraining) return close();
    tunnels.isDraining = true;
    log.info(
      { open: open.size, tunnels: tunnels.tunnels.size },
      'draining: nothing new is taken, open exchanges may finish',
    );
    for (const listener of listeners) listener.drain();
    for (const { item } of tunnels.tunnels.snapshot()) item.drain();
    const deadline = performance.now() + limits.drainMs;
    while ((open.size > 0 || tunnels.tunnels.size > 0) && performance.now() < deadline) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    if (open.size > 0 || tunnels.tunnels.size > 0) {
      log.warn(
        { open: open.size, tunnels: tunnels.tunnels.size },
        'the grace period is over; what is still open is cut',
      );
    }
    await close();
  };

  const first = addresses[0];
  return {
    proxyPort: first?.port ?? 0,
    adminPort: adminAddress.port,
    listeners: addresses,
    caPem: authority.certificatePem,
    caFile: `${settings.certs.replace(/\/$/, '')}/ca.pem`,
    caCreated: created,
    get ruleCount() {
      return loaded.policy.ruleCount;
    },
    get revision() {
      return loaded.policy.revision;
    },
    get ruleFiles() {
      return loaded.files;
    },
    counts: () => ({
      tunnels: tunnels.tunnels.size,
      exchanges: open.size,
      upstreams: upstreams.size,
      connections: listeners.reduce((sum, listener) => sum + listener.connections, 0),
    }),
    reload,
    drain,
    close,
    reopenAudit: async () => {
      await audit.reopen?.();
    },
  };
}
