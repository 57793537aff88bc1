import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startOrigin } from './https-server.ts';
import type { Origin } from './https-server.ts';
import { isInstalled } from './programs.ts';

export interface GitOrigin {
  readonly origin: Origin;
  /** Path of the repository on the server. */
  readonly path: string;
  close(): Promise<void>;
}

/** Whether `git http-backend` can serve here. */
export function hasGit(): boolean {
  return isInstalled('git', ['--version']);
}

/** Smart HTTP over https, with one repository of a few commits. */
export async function startGitOrigin(): Promise<GitOrigin> {
  const folder = mkdtempSync(join(tmpdir(), 'subfloor-git-'));
  const work = join(folder, 'work');
  git(folder, 'init', '--quiet', '--initial-branch=main', 'work');
  for (let commit = 0; commit < 5; commit++) {
    writeFileSync(join(work, 'file.txt'), `version ${commit}\n${'line of text\n'.repeat(2000 * commit)}`);
    git(work, 'add', '.');
    git(
      work,
      '-c',
      'user.name=Test',
      '-c',
      'user.email=test@example.test',
      'commit',
      '--quiet',
      '-m',
      `commit ${commit}`,
    );
  }
  git(folder, 'clone', '--quiet', '--bare', 'work', 'repo.git');
  git(join(folder, 'repo.git'), 'config', 'http.receivepack', 'true');
  const origin = await startOrigin({
    answer: (request, response) => {
      runBackend(folder, request, response);
      return true;
    },
  });
  return {
    origin,
    path: '/repo.git',
    close: async () => {
      await origin.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function git(cwd: string, ...args: readonly string[]): void {
  const { status, stderr } = spawnSync('git', [...args], {
    cwd,
    env: { ...process.env, GIT_CONFIG_NOSYSTEM: '1', HOME: cwd },
  });
  if (status !== 0) throw new Error(`git ${args[0] ?? ''}: ${stderr.toString()}`);
}

/** git http-backend as a CGI program (RFC 3875). */
function runBackend(root: string, request: IncomingMessage, response: ServerResponse): void {
  const url = new URL(request.url ?? '/', 'https://origin.test');
  const child = spawn('git', ['http-backend'], {
    env: {
      PATH: process.env['PATH'] ?? '',
      GIT_PROJECT_ROOT: root,
      GIT_HTTP_EXPORT_ALL: '1',
      PATH_INFO: url.pathname,
      QUERY_STRING: url.search.slice(1),
      REQUEST_METHOD: request.method ?? 'GET',
      CONTENT_TYPE: request.headers['content-type'] ?? '',
      HTTP_CONTENT_ENCODING: request.headers['content-encoding'] ?? '',
      GIT_PROTOCOL: String(request.headers['git-protocol'] ?? ''),
      REMOTE_USER: 'test',
      REMOTE_ADDR: '127.0.0.1',
    },
  });
  child.on('error', () => response.destroy());
  child.stdin.on('error', () => undefined);
  request.pipe(child.stdin);
  let head = Buffer.alloc(0);
  let isHeadDone = false;
  child.stdout.on('data', (chunk: Buffer) => {
    if (isHeadDone) {
      response.write(chunk);
      return;
    }
    head = Buffer.concat([head, chunk]);
    const end = head.indexOf('\r\n\r\n');
    if (end < 0) return;
    isHeadDone = true;
    for (const line of head.toString('latin1', 0, end).split('\r\n')) {
      const colon = line.indexOf(':');
      const name = line.slice(0, colon);
      const value = line.slice(colon + 1).trim();
      if (name.toLowerCase() === 'status') response.statusCode = Number(value.slice(0, 3));
      else response.setHeader(name, value);
    }
    response.write(head.subarray(end + 4));
  });
  child.stdout.on('end', () => response.end());
}
