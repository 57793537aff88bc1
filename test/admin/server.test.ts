import { afterEach, describe, expect, test } from 'vitest';
import { AdminServer } from '../../src/admin/server.ts';
import type { AdminActions, Check } from '../../src/admin/server.ts';
import { ConfigError } from '../../src/core/errors.ts';

const LOG = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const open: AdminServer[] = [];

afterEach(() => {
  for (const server of open.splice(0)) server.close();
});

async function start(actions: Partial<AdminActions> = {}): Promise<{ url: string; port: number }> {
  const server = new AdminServer(
    { host: '127.0.0.1', port: 0 },
    { version: '1.2.3', readiness: () => [], reload: () => Promise.resolve({ ok: true, problems: [] }), ...actions },
    LOG,
  );
  open.push(server);
  const { port } = await server.listen();
  return { url: `http://127.0.0.1:${port}`, port };
}

describe('the admin port', () => {
  test('is healthy as long as the process answers', async () => {
    const { url } = await start({ readiness: () => [{ name: 'audit', ok: false, text: 'disk full' }] });
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    expect((await fetch(`${url}/livez`)).status).toBe(200);
  });

  test('is ready when every check is, and says which is not', async () => {
    const checks: Check[] = [{ name: 'rules', ok: true, text: '3 rules' }];
    const { url } = await start({ readiness: () => checks });
    expect((await fetch(`${url}/readyz`)).status).toBe(200);
    checks.push({ name: 'audit', ok: false, text: 'cannot be written' });
    const answer = await fetch(`${url}/readyz`);
    expect(answer.status).toBe(503);
    expect(await answer.json()).toMatchObject({
      status: 'not ready',
      checks: [{ ok: true }, { name: 'audit', ok: false }],
    });
  });

  test('reloads on POST only, and not for a web page', async () => {
    let count = 0;
    const reload = (): ReturnType<AdminActions['reload']> => {
      count++;
      return Promise.resolve({ ok: false, problems: ['rules/a.yaml:1:1: no'] });
    };
    const { url } = await start({ reload });
    expect((await fetch(`${url}/reload`)).status).toBe(405);
    expect((await fetch(`${url}/reload`, { method: 'POST', headers: { origin: 'https://evil.example' } })).status).toBe(
      403,
    );
    expect(count).toBe(0);
    const answer = await fetch(`${url}/reload`, { method: 'POST' });
    expect(answer.status).toBe(422);
    expect(await answer.json()).toEqual({ ok: false, problems: ['rules/a.yaml:1:1: no'] });
  });

  test('answers 404 to anything else, and 500 without details when an action fails', async () => {
    const { url } = await start({ reload: () => Promise.reject(new Error('the secret plans')) });
    expect((await fetch(`${url}/console`)).status).toBe(404);
    const answer = await fetch(`${url}/reload`, { method: 'POST' });
    expect(answer.status).toBe(500);
    expect(await answer.text()).not.toContain('secret');
  });

  test('that is taken is a setting to mend', async () => {
    const { port } = await start();
    const second = new AdminServer(
      { host: '127.0.0.1', port },
      { version: '', readiness: () => [], reload: () => Promise.reject(new Error()) },
      LOG,
    );
    await expect(second.listen()).rejects.toThrow(ConfigError);
  });
});
