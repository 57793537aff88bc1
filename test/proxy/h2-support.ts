import { closeAfterTest } from '../support/closing.ts';
import { startOrigin } from '../support/https-server.ts';
import type { Origin } from '../support/https-server.ts';
import { ALLOW_ALL_TEST_HOSTS, startProxy } from '../support/proxy.ts';
import type { TestProxy, TestProxyOptions } from '../support/proxy.ts';
import { rawH2 } from '../support/raw-h2.ts';
import type { RawH2 } from '../support/raw-h2.ts';
import { startRawServer } from '../support/raw-server.ts';
import type { RawServer } from '../support/raw-server.ts';

/** Error codes and frame types of RFC 9113. */
export const NO_ERROR = 0;
export const CANCEL = 8;
export const CALM = 11;
export const DATA = 0;
export const RST_STREAM = 3;
export const CONTINUATION = 9;

export type Fields = readonly (readonly [string, string])[];

/** Pseudo headers of a request. */
export function request(path: string, method = 'GET', host = 'h1.test'): Fields {
  return [
    [':method', method],
    [':scheme', 'https'],
    [':authority', host],
    [':path', path],
  ];
}

/** `h1.test` is an honest server, `raw.test` answers every head with `script`. */
export interface H2World {
  readonly origin: Origin;
  readonly raw: RawServer;
  script: string;
  start(limits?: TestProxyOptions['limits']): Promise<TestProxy>;
  close(): Promise<void>;
}

export const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok';
/** Resets a minute that these proxies put up with. */
export const RESETS = 20;

export async function h2World(): Promise<H2World> {
  const origin = await startOrigin();
  const raw = await startRawServer({
    script: async (connection) => {
      for (;;) {
        await connection.reader.head(60_000);
        connection.send(world.script);
      }
    },
  });
  const world: H2World = {
    origin,
    raw,
    script: OK,
    start: (limits = {}) =>
      startProxy({
        rules: ALLOW_ALL_TEST_HOSTS,
        hosts: { 'h1.test': origin.port, 'raw.test': raw.port },
        limits: { h2ResetsPerMinute: RESETS, ...limits },
      }),
    close: async () => {
      await raw.close();
      await origin.close();
    },
  };
  return world;
}

/** A client in frames, closed when the running test is done. */
export async function frames(proxy: TestProxy, host = 'h1.test'): Promise<RawH2> {
  return closeAfterTest(await rawH2(proxy.port, host, proxy.ca));
}
