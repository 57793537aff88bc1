import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { ConfigError } from '../core/errors.ts';

const MAX_BYTES = 1024;

/**
 * Reads a secret: the first line of standard input when that is a pipe or file, a prompt without echo when it is a terminal.
 * @throws ConfigError it is empty, too long, or has control characters
 */
export async function readSecret(
  prompt: string,
  input: NodeJS.ReadableStream & { readonly isTTY?: boolean } = process.stdin,
): Promise<string> {
  const secret = input.isTTY === true ? await ask(prompt, input) : await firstLine(input);
  if (secret === '') throw new ConfigError('the password is empty');
  if (Buffer.byteLength(secret) > MAX_BYTES || /[\x00-\x1f\x7f]/.test(secret)) {
    throw new ConfigError(`the password has control characters, several lines, or more than ${MAX_BYTES} bytes`);
  }
  return secret;
}

async function firstLine(input: NodeJS.ReadableStream): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of input) {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
    chunks.push(bytes);
    size += bytes.length;
    if (size > MAX_BYTES + 2) break;
  }
  // One line end belongs to the file and not to the secret.
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '');
}

async function ask(prompt: string, input: NodeJS.ReadableStream): Promise<string> {
  process.stderr.write(prompt);
  // readline in terminal mode echoes what is typed to its output; this one swallows it.
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = createInterface({ input, output: nowhere, terminal: true });
  const stop = new AbortController();
  lines.on('SIGINT', () => stop.abort());
  try {
    return await lines.question('', { signal: stop.signal });
  } catch {
    throw new ConfigError('interrupted; nothing was hashed');
  } finally {
    lines.close();
    process.stderr.write('\n');
  }
}
