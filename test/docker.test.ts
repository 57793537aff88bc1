import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { loadSettings } from '../src/config/load.ts';

/** There is no container engine where the tests run: these check what can be wrong without one. */
const ROOT = join(import.meta.dirname, '..');

interface Service {
  readonly networks: readonly string[];
  readonly volumes?: readonly string[];
  readonly ports?: readonly string[];
  readonly privileged?: boolean;
  readonly cap_drop?: readonly string[];
  readonly read_only?: boolean;
  readonly environment?: Readonly<Record<string, string>>;
  readonly depends_on?: Readonly<Record<string, { readonly condition: string }>>;
}

interface Compose {
  readonly services: Readonly<Record<string, Service>>;
  readonly networks: Readonly<Record<string, { readonly internal?: boolean } | null>>;
  readonly volumes: Readonly<Record<string, unknown>>;
}

const compose = parse(readFileSync(join(ROOT, 'docker/compose.yaml'), 'utf8')) as Compose;

describe('the compose file', () => {
  test('leaves the agent no network but the internal one', () => {
    const agent = compose.services['agent'];
    expect(agent?.networks).toEqual(['agents']);
    expect(compose.networks['agents']?.internal).toBe(true);
    expect(agent?.ports).toBeUndefined();
    expect(agent?.privileged).toBeUndefined();
    expect(agent?.cap_drop).toEqual(['ALL']);
  });

  test('gives the agent the certificate and not the key', () => {
    const volumes = compose.services['agent']?.volumes ?? [];
    expect(volumes).toContain('trust:/trust:ro');
    expect(volumes.some((volume) => volume.startsWith('state:'))).toBe(false);
  });

  test('starts the agent when the proxy is healthy, and points it there in both cases', () => {
    const agent = compose.services['agent'];
    expect(agent?.depends_on?.['subfloor']?.condition).toBe('service_healthy');
    for (const name of ['HTTP_PROXY', 'HTTPS_PROXY', 'http_proxy', 'https_proxy'])
      expect(agent?.environment?.[name]).toBe('http://subfloor:8080');
    expect(agent?.environment?.['NO_PROXY']).toBe('localhost,127.0.0.1,::1');
  });

  test('runs the proxy read-only and without capabilities', () => {
    const proxy = compose.services['subfloor'];
    expect(proxy?.read_only).toBe(true);
    expect(proxy?.cap_drop).toEqual(['ALL']);
    expect([...(proxy?.networks ?? [])].sort()).toEqual(['agents', 'egress']);
  });

  test('declares every network and volume that it uses', () => {
    for (const service of Object.values(compose.services)) {
      for (const network of service.networks) expect(Object.keys(compose.networks)).toContain(network);
      for (const volume of service.volumes ?? []) {
        const name = volume.split(':')[0] ?? '';
        if (name.startsWith('.')) expect(existsSync(join(ROOT, 'docker', name)), name).toBe(true);
        else expect(Object.keys(compose.volumes)).toContain(name);
      }
    }
  });
});

describe('the Dockerfile', () => {
  const lines = readFileSync(join(ROOT, 'docker/Dockerfile'), 'utf8').split('\n');

  test('copies only what is there', () => {
    const copied = lines
      .filter((line) => line.startsWith('COPY ') && !line.includes('--from='))
      .flatMap((line) => line.split(/\s+/).slice(1, -1));
    expect(copied.length).toBeGreaterThan(4);
    for (const path of copied) expect(existsSync(join(ROOT, path)), path).toBe(true);
  });

  test('ends as a user that is not root, with a health check and SIGTERM', () => {
    const user = lines.findLastIndex((line) => line.startsWith('USER '));
    expect(lines[user]).toBe('USER node');
    expect(lines.findLastIndex((line) => line.startsWith('RUN '))).toBeLessThan(user);
    expect(lines.some((line) => line.startsWith('HEALTHCHECK'))).toBe(true);
    expect(lines).toContain('STOPSIGNAL SIGTERM');
  });

  test('starts with settings that are valid', async () => {
    const { settings } = await loadSettings({
      cwd: ROOT,
      file: join(ROOT, 'docker/subfloor.yaml'),
      env: {},
      flags: {},
    });
    expect(settings.listeners.map(({ host, port }) => `${host}:${port}`)).toEqual(['0.0.0.0:8080']);
    expect(settings.admin).toEqual({ host: '127.0.0.1', port: 8081 });
    expect(settings.certs).toBe('/var/lib/subfloor/certs');
  });
});

test('the health check follows /readyz', async () => {
  let status = 200;
  const server = createServer((_request, response) => response.writeHead(status).end());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/readyz`;
  const check = (target: string): Promise<number | null> =>
    new Promise((resolve) => {
      const child = spawn(process.execPath, [join(ROOT, 'docker/healthcheck.mjs')], {
        env: { ...process.env, SUBFLOOR_HEALTH_URL: target },
      });
      child.on('exit', resolve);
    });
  expect(await check(url)).toBe(0);
  status = 503;
  expect(await check(url)).toBe(1);
  server.close();
  server.closeAllConnections();
  expect(await check(url)).toBe(1);
});
