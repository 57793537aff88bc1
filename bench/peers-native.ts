/** Peers that are programs of their own: used where they are installed. */
import { spawn, spawnSync } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { Authority } from '../src/tls/authority.ts';
import { children, freePort, stopChild } from './peer-tools.ts';
import type { Peer } from './peer-tools.ts';
import type { World } from './world.ts';

const START_MS = 30_000;

/** Where Debian's and other packages put the helper that makes squid's certificates. */
const CERTGEN = [
  '/usr/lib/squid/security_file_certgen',
  '/usr/lib64/squid/security_file_certgen',
  '/usr/libexec/security_file_certgen',
];

/** Names of those that are not installed. */
export function missingPrograms(): string[] {
  return ['mitmdump', 'squid'].filter((program) => !isInstalled(program));
}

function isInstalled(program: string): boolean {
  if (spawnSync('which', [program]).status !== 0) return false;
  return program !== 'squid' || CERTGEN.some((path) => existsSync(path));
}

/** squid with ssl-bump: one process, no cache, no log. Started by root it gives its rights up and needs files of its own user. */
export async function squid(world: World): Promise<Peer> {
  const folder = join(world.folder, 'squid');
  mkdirSync(folder, { recursive: true });
  const { authority } = await Authority.open(join(folder, 'ca'));
  const certgen = CERTGEN.find((path) => existsSync(path)) ?? '';
  const database = join(folder, 'certificates');
  if (!existsSync(database)) spawnSync(certgen, ['-c', '-s', database, '-M', '16MB']);
  if (process.getuid?.() === 0) giveTo('proxy', world.folder, folder, database);
  const port = await freePort();
  const config = join(folder, 'squid.conf');
  writeFileSync(
    config,
    `http_port 127.0.0.1:${port} ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=16MB tls-cert=${join(folder, 'ca', 'ca.pem')} tls-key=${join(folder, 'ca', 'ca.key')}
sslcrtd_program ${certgen} -s ${database} -M 16MB
sslcrtd_children 2 startup=2
acl first at_step SslBump1
ssl_bump peek first
ssl_bump bump all
tls_outgoing_options cafile=${world.upstreamCaFile}
http_access allow all
cache deny all
cache_mem 0 MB
access_log none
cache_log ${join(folder, 'cache.log')}
pid_filename ${join(folder, 'squid.pid')}
coredump_dir ${folder}
forwarded_for delete
via off
visible_hostname bench.test
shutdown_lifetime 1 second
`,
  );
  const child = start('squid', ['-N', '-f', config]);
  await listening(port, child, () => tail(join(folder, 'cache.log')));
  return peer('squid', port, authority.certificatePem, child, new Set(['intercept']));
}

/** mitmproxy's dump program with everything off that can be. */
export async function mitmdump(world: World): Promise<Peer> {
  const folder = join(world.folder, 'mitmdump');
  mkdirSync(folder, { recursive: true });
  const port = await freePort();
  const options = {
    confdir: folder,
    ssl_verify_upstream_trusted_ca: world.upstreamCaFile,
    flow_detail: '0',
    connection_strategy: 'lazy',
  };
  const sets = Object.entries(options).flatMap(([key, value]) => ['--set', `${key}=${value}`]);
  const child = start('mitmdump', ['-q', '--listen-host', '127.0.0.1', '-p', String(port), ...sets]);
  await listening(port, child, () => '');
  const ca = readFileSync(join(folder, 'mitmproxy-ca-cert.pem'), 'utf8');
  return peer('mitmdump', port, ca, child, new Set(['intercept', 'h2']));
}

function peer(name: string, port: number, ca: string, child: ChildProcess, can: Peer['can']): Peer {
  return { name, port, ca, target: 'address', pid: child.pid ?? null, can, stop: () => stopChild(child) };
}

function start(program: string, args: readonly string[]): ChildProcess {
  const child = spawn(program, [...args], { stdio: 'ignore' });
  child.on('error', () => undefined);
  children.add(child);
  return child;
}

async function listening(port: number, child: ChildProcess, why: () => string): Promise<void> {
  const deadline = Date.now() + START_MS;
  for (;;) {
    const isUp = await new Promise<boolean>((resolve) => {
      const socket = connect(port, '127.0.0.1', () => {
        socket.destroy();
        resolve(true);
      });
      socket.on('error', () => resolve(false));
    });
    if (isUp) return;
    if (Date.now() > deadline || child.exitCode !== null) throw new Error(`it did not start: ${why()}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function tail(file: string): string {
  return existsSync(file) ? readFileSync(file, 'utf8').slice(-300) : '';
}

/** Lets the user that squid becomes read and write its folder, and reach it. */
function giveTo(user: string, world: string, folder: string, database: string): void {
  const id = (flag: string): number => Number(spawnSync('id', [flag, user], { encoding: 'utf8' }).stdout.trim());
  chmodSync(world, 0o755);
  for (const path of [folder, join(folder, 'ca')]) chownSync(path, id('-u'), id('-g'));
  spawnSync('chown', ['-R', `${id('-u')}:${id('-g')}`, database]);
}
