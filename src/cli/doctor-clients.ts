import { findingsOf, outputOf } from './doctor-check.ts';
import type { Finding } from './doctor-check.ts';

/** Programs that agents use, with the words that make them tell their version. */
const PROGRAMS: readonly (readonly [name: string, ...args: string[]])[] = [
  ['node', '--version'],
  ['npm', '--version'],
  ['python3', '--version'],
  ['pip3', '--version'],
  ['curl', '--version'],
  ['wget', '--version'],
  ['git', '--version'],
  ['go', 'version'],
  ['java', '-version'],
  ['cargo', '--version'],
  ['ruby', '--version'],
  ['php', '--version'],
  ['deno', '--version'],
  ['bun', '--version'],
  ['uv', '--version'],
];
const AT_ONCE = 3;

/** Which clients are here, with a word on those that variables do not reach. */
export async function checkClients(
  env: Readonly<Record<string, string | undefined>>,
  timeoutMs = 4000,
): Promise<readonly Finding[]> {
  // Java prints the options of JAVA_TOOL_OPTIONS before its version.
  const plain = { ...env, JAVA_TOOL_OPTIONS: undefined };
  const waiting = [...PROGRAMS];
  const found = new Map<string, Finding>();
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [name, ...args] = next;
      const output = await outputOf(name, args, plain, timeoutMs);
      if (output !== null) found.set(name, judge(name, output));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return PROGRAMS.map(([name]) => found.get(name)).filter((finding) => finding !== undefined);
}

/** A finding for a program and what it says about itself. */
export function judge(name: string, output: string): Finding {
  const { ok, warn } = findingsOf('clients');
  const line = (output.split('\n', 1)[0] ?? '').slice(0, 80);
  const version = /\d+(?:\.\d+)+/.exec(line)?.[0] ?? line;
  if (name === 'node') {
    const [major = 0, minor = 0] = version.split('.').map(Number);
    const readsProxy = major > 24 || (major === 24 && minor >= 5) || (major === 22 && minor >= 21);
    if (!readsProxy) {
      return warn(
        name,
        `${version}: fetch, http and https ignore HTTPS_PROXY`,
        'use Node 22.21 or 24.5, or give the program an agent of its own (undici EnvHttpProxyAgent)',
      );
    }
  }
  return ok(name, version);
}
