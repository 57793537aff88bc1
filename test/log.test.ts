import { spawn } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { ProxyError } from '../src/core/errors.ts';
import { createLog } from '../src/log.ts';

function lines(
  format: 'json' | 'pretty' | 'auto',
  options: { isTTY?: boolean; hasColor?: boolean } = {},
): {
  readonly log: ReturnType<typeof createLog>;
  readonly text: () => string;
} {
  let text = '';
  const stream = { write: (line: string) => (text += line), isTTY: options.isTTY ?? false };
  const log = createLog({ level: 'debug', format, stream, hasColor: options.hasColor ?? false });
  return { log, text: () => text };
}

function json(text: string): Record<string, unknown> {
  const value: unknown = JSON.parse(text);
  return typeof value === 'object' && value !== null ? { ...value } : {};
}

describe('the operational log', () => {
  it('is JSON with level, time and text, and without process facts', () => {
    const { log, text } = lines('json');
    log.warn({ agent: 'a' }, 'slow');
    const line = json(text());
    expect(Object.keys(line)).toEqual(['level', 'time', 'agent', 'msg']);
    expect(line).toMatchObject({ level: 'warn', agent: 'a', msg: 'slow' });
    expect(line['time']).toMatch(/^\d{4}-.*Z$/);
  });

  it('is pretty in a terminal and JSON otherwise, unless told', () => {
    const formats = [
      lines('auto', { isTTY: true }),
      lines('auto'),
      lines('pretty'),
      lines('json', { isTTY: true }),
    ] as const;
    for (const { log } of formats) log.info({}, 'x');
    expect(formats.map(({ text }) => text().startsWith('{'))).toEqual([false, true, false, true]);
  });

  it('leaves out what is below its level', () => {
    let text = '';
    const log = createLog({ level: 'warn', format: 'json', stream: { write: (line) => (text += line) } });
    log.info({}, 'no');
    log.error({}, 'yes');
    expect(text.match(/\n/g)).toHaveLength(1);
  });

  it('prints of an error its code only, wherever it stands', () => {
    const secret = ['pass', 'word'].join('');
    const foreign = Object.assign(new Error(secret), { code: 'EPIPE', payload: secret });
    for (const format of ['json', 'pretty'] as const) {
      const { log, text } = lines(format);
      log.error({ err: foreign, deep: { list: [new Error(secret)] } }, 'a');
      log.error({ cause: new ProxyError('dns_failed', null, { cause: foreign }) }, 'b');
      log.error(new Error(secret), 'c');
      expect(text()).not.toContain(secret);
      expect(text()).toContain('EPIPE');
      expect(text()).toContain('dns_failed: EPIPE');
    }
  });

  it('never prints buffers, and bounds long texts, deep values and long lists', () => {
    const { log, text } = lines('json');
    log.info({ bytes: Buffer.from('abcdef'), long: 'x'.repeat(1e6), list: Array.from({ length: 1e4 }, () => 1) }, 'a');
    log.info({ a: { b: { c: { d: { e: 1 } } } }, n: 10n, f: () => 1 }, 'b');
    expect(text().length).toBeLessThan(10_000);
    expect(text()).toContain('"bytes":"[not shown]"');
  });

  it('shows control characters and direction marks as text in a terminal', () => {
    const { log, text } = lines('pretty');
    log.info({ host: 'a\u001b[31mb\u202ec' }, 'one\r\ntwo');
    expect(text()).not.toMatch(/[\u001b\u202e\r]/);
    expect(text().trimEnd().split('\n')).toHaveLength(1);
  });

  it('puts lists below their line', () => {
    const { log, text } = lines('pretty');
    log.error({ problems: ['a.yaml:1:1: x', 'b.yaml:2:2: y'], revision: 'r' }, 'refused');
    const [head, ...below] = text().trimEnd().split('\n');
    expect(head).toContain('refused');
    expect(head).toContain('revision=r');
    expect(below.map((line) => line.trim())).toEqual(['problems: a.yaml:1:1: x', 'problems: b.yaml:2:2: y']);
  });

  it('loses a line and nothing else when its stream throws', () => {
    const log = createLog({
      level: 'info',
      format: 'json',
      stream: {
        write: () => {
          throw new Error('ENOSPC');
        },
      },
    });
    expect(() => log.error({}, 'x')).not.toThrow();
  });

  it('a reader that goes away does not end the process', async () => {
    const script = `
      import { createLog } from ${JSON.stringify(new URL('../src/log.ts', import.meta.url).href)};
      const log = createLog({ level: 'info', format: 'json' });
      log.info({}, 'first');
      setTimeout(() => { for (let i = 0; i < 100; i += 1) log.info({}, 'x'); process.stdout.write('alive'); }, 150);
    `;
    const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.once('data', () => child.stderr.destroy());
    const code = await new Promise((resolve) => child.on('close', resolve));
    expect(stdout).toBe('alive');
    expect(code).toBe(0);
  });
});
