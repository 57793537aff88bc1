/**
 * The load, in a process of its own and cheaper than any proxy: raw sockets, prebuilt requests, answers counted by length.
 * argv: JSON Job. Prints one JSON line with the result.
 */
import { spawn } from 'node:child_process';
import { connect as connectH2 } from 'node:http2';
import { connect as connectTcp } from 'node:net';
import type { Socket } from 'node:net';
import { connect as connectTls, createSecureContext } from 'node:tls';
import type { TLSSocket } from 'node:tls';

export interface Job {
  readonly phase:
    | 'requests'
    | 'tunnels'
    | 'new-hosts'
    | 'burst'
    | 'download'
    | 'upload'
    | 'stall'
    | 'sse'
    | 'idle'
    | 'h2'
    | 'blind-bytes'
    | 'blind-tunnels'
    | 'drop';
  /** Proxy port on loopback; null goes straight to the target. */
  readonly proxy: number | null;
  readonly ca: string;
  /** CONNECT target, and where to connect without a proxy. */
  readonly host: string;
  readonly port: number;
  readonly servername: string;
  /** Value of the Host header. */
  readonly authority: string;
  readonly connections: number;
  readonly seconds: number;
  readonly bytes?: number;
}

const job = JSON.parse(process.argv[2] ?? '{}') as Job;
const secureContext = job.ca === '' ? undefined : createSecureContext({ ca: job.ca });
const DEADLINE_MS = 30_000;

function tunnel(host = job.host, port = job.port): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connectTcp({ host: '127.0.0.1', port: job.proxy ?? port, noDelay: true });
    const timer = setTimeout(() => socket.destroy(new Error('CONNECT timed out')), DEADLINE_MS);
    socket.on('error', reject);
    if (job.proxy === null) {
      socket.once('connect', () => {
        clearTimeout(timer);
        resolve(socket);
      });
      return;
    }
    socket.write(`CONNECT ${host}:${port} HTTP/1.1\r\nHost: ${host}:${port}\r\n\r\n`);
    let head = '';
    const onData = (chunk: Buffer): void => {
      head += chunk.toString('latin1');
      if (!head.includes('\r\n\r\n')) return;
      clearTimeout(timer);
      socket.off('data', onData);
      socket.pause();
      if (head.startsWith('HTTP/1.1 200') || head.startsWith('HTTP/1.0 200')) resolve(socket);
      else reject(new Error(head.split('\r\n')[0]));
    };
    socket.on('data', onData);
  });
}

let session: Buffer | undefined;

async function secure(alpn: string, host = job.host, servername = job.servername, resume = false): Promise<TLSSocket> {
  const raw = await tunnel(host);
  return new Promise((resolve, reject) => {
    const socket = connectTls(
      {
        socket: raw,
        servername,
        ALPNProtocols: [alpn],
        ...(secureContext === undefined ? {} : { secureContext }),
        ...(resume && session !== undefined ? { session } : {}),
        checkServerIdentity: () => undefined,
      },
      () => {
        resolve(socket);
      },
    );
    if (resume) socket.on('session', (ticket: Buffer) => (session = ticket));
    socket.on('error', reject);
  });
}

const BODY = 'x'.repeat(1024);
const HEADERS = `Host: ${job.authority}\r\nUser-Agent: bench\r\nAccept: application/json\r\nAuthorization: Bearer ${'t'.repeat(40)}\r\nContent-Type: application/json\r\n`;
const REQUEST = Buffer.from(`POST /v1/items HTTP/1.1\r\n${HEADERS}Content-Length: 1024\r\n\r\n${BODY}`);

/** Sends requests one after the other on one connection; calls back after each answer. */
function exchange(socket: TLSSocket, onAnswer: () => boolean, request = REQUEST): void {
  let left = -1;
  let head: Buffer = Buffer.alloc(0);
  socket.on('data', (chunk: Buffer) => {
    let bytes = chunk;
    while (bytes.length > 0) {
      if (left < 0) {
        head = head.length === 0 ? bytes : Buffer.concat([head, bytes]);
        const end = head.indexOf('\r\n\r\n');
        if (end < 0) return;
        const text = head.toString('latin1', 0, end).toLowerCase();
        if (!text.startsWith('http/1.1 200')) throw new Error(text.split('\r\n')[0]);
        const length = /content-length: (\d+)/.exec(text);
        // mockttp and others may answer chunked: then the body is what is left until the last chunk.
        left = length === null ? -2 : Number(length[1]);
        bytes = head.subarray(end + 4);
        head = Buffer.alloc(0);
      }
      if (left === -2) {
        head = Buffer.concat([head, bytes]);
        if (!head.subarray(-7).includes('0\r\n\r\n')) {
          left = -2;
          return;
        }
        head = Buffer.alloc(0);
        bytes = Buffer.alloc(0);
        left = 0;
      }
      const take = Math.min(left, bytes.length);
      left -= take;
      bytes = bytes.subarray(take);
      if (left > 0) return;
      left = -1;
      if (onAnswer()) socket.write(request);
    }
  });
  socket.write(request);
}

function percentile(values: number[], share: number): number {
  values.sort((a, b) => a - b);
  return values[Math.min(values.length - 1, Math.floor(values.length * share))] ?? 0;
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const say = (result: object): void => void process.stdout.write(`${JSON.stringify(result)}\n`);

async function requests(): Promise<object> {
  let done = 0;
  let isCounting = false;
  const latencies: number[] = [];
  const sockets = await Promise.all(Array.from({ length: job.connections }, () => secure('http/1.1')));
  for (const socket of sockets) {
    let startedAt = performance.now();
    exchange(socket, () => {
      const now = performance.now();
      if (isCounting) {
        done++;
        if (job.connections === 1) latencies.push(now - startedAt);
      }
      startedAt = now;
      return true;
    });
  }
  await sleep(Math.min(1500, job.seconds * 400));
  say({ event: 'counting' });
  isCounting = true;
  const startedAt = performance.now();
  await sleep(job.seconds * 1000);
  isCounting = false;
  const seconds = (performance.now() - startedAt) / 1000;
  if (done === 0) throw new Error('no answer came through');
  return { rate: done / seconds, count: done, p50: percentile(latencies, 0.5) };
}

/** New tunnel, new TLS (resumed when it can be), one request, closed. */
async function tunnels(): Promise<object> {
  let done = 0;
  let isOver = false;
  let failures = 0;
  const worker = async (): Promise<void> => {
    while (!isOver) {
      try {
        const socket = await secure('http/1.1', job.host, job.servername, true);
        await new Promise<void>((resolve, reject) => {
          socket.on('error', reject);
          exchange(socket, () => {
            resolve();
            return false;
          });
        });
        socket.destroy();
        done++;
      } catch {
        if (++failures > 50) return;
      }
    }
  };
  const workers = Array.from({ length: job.connections }, worker);
  await sleep(500);
  say({ event: 'counting' });
  done = 0;
  const startedAt = performance.now();
  await sleep(job.seconds * 1000);
  const seconds = (performance.now() - startedAt) / 1000;
  const count = done;
  isOver = true;
  await Promise.race([Promise.all(workers), sleep(2000)]);
  return { rate: count / seconds, count, failures };
}

/** One request on a connection of its own; how long it took in all. */
async function once(host: string): Promise<number> {
  const startedAt = performance.now();
  const socket = await secure('http/1.1', host, host);
  await new Promise<void>((resolve) => {
    exchange(
      socket,
      () => {
        resolve();
        return false;
      },
      Buffer.from(REQUEST.toString('latin1').replace(job.authority, host), 'latin1'),
    );
  });
  const tookMs = performance.now() - startedAt;
  socket.destroy();
  return tookMs;
}

/** Fifty new hosts at once, when a line comes on stdin. */
async function burst(): Promise<object> {
  say({ event: 'ready' });
  await new Promise((resolve) => process.stdin.once('data', resolve));
  await Promise.all(Array.from({ length: 50 }, (_all, i) => once(`n${100 + i}.${job.servername}`)));
  return { ok: true };
}

/** The burst in a process of its own: the handshakes of fifty clients must not delay the clock that measures. */
function startBurst(): { ready: Promise<void>; run(): Promise<void> } {
  const args = [process.argv[1] ?? '', JSON.stringify({ ...job, phase: 'burst' })];
  const child = spawn(process.execPath, [...process.execArgv, ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  const said = (word: string): Promise<void> =>
    new Promise((resolve, reject) => {
      child.on('exit', () => reject(new Error('the burst ended early')));
      child.stdout.on('data', (chunk: Buffer) => {
        if (chunk.toString().includes(word)) resolve();
      });
    });
  const done = said('"result"');
  done.catch(() => undefined);
  return {
    ready: said('"ready"'),
    run: () => {
      child.stdin.end('go\n');
      return done;
    },
  };
}

/** Time to the first answer on hosts never seen before, one by one; then fifty at once beside steady traffic. */
async function newHosts(): Promise<object> {
  const others = startBurst();
  await others.ready;
  await once(job.host);
  const warm: number[] = [];
  for (let i = 0; i < 20; i++) warm.push(await once(job.host));
  const cold: number[] = [];
  for (let i = 0; i < 20; i++) cold.push(await once(`n${i}.${job.servername}`));
  const steady = await secure('http/1.1');
  const latencies: number[] = [];
  let startedAt = performance.now();
  let isOver = false;
  exchange(steady, () => {
    const now = performance.now();
    latencies.push(now - startedAt);
    startedAt = now;
    return !isOver;
  });
  await sleep(500);
  const calm = percentile(latencies.splice(0), 0.99);
  await others.run();
  const busy = percentile(latencies, 0.99);
  isOver = true;
  return { added: percentile(cold, 0.5) - percentile(warm, 0.5), calmP99: calm, busyP99: busy };
}

async function download(): Promise<object> {
  const size = job.bytes ?? 104_857_600;
  const socket = await secure('http/1.1');
  let got = 0;
  const startedAt = performance.now();
  await new Promise<void>((resolve, reject) => {
    socket.on('error', reject);
    socket.on('close', () => reject(new Error('closed')));
    socket.on('data', (chunk: Buffer) => {
      got += chunk.length;
      if (got >= size) resolve();
    });
    socket.write(`GET /big=${size} HTTP/1.1\r\nHost: ${job.authority}\r\n\r\n`);
  });
  return { rate: size / 1e6 / ((performance.now() - startedAt) / 1000) };
}

async function upload(): Promise<object> {
  const size = job.bytes ?? 104_857_600;
  const socket = await secure('http/1.1');
  const chunk = Buffer.alloc(256 * 1024, 'u');
  const startedAt = performance.now();
  await new Promise<void>((resolve, reject) => {
    socket.on('error', reject);
    socket.on('close', () => reject(new Error('closed')));
    socket.once('data', () => resolve());
    socket.write(`POST /up HTTP/1.1\r\nHost: ${job.authority}\r\nContent-Length: ${size}\r\n\r\n`);
    let sent = 0;
    const push = (): void => {
      while (sent < size) {
        const part = size - sent >= chunk.length ? chunk : chunk.subarray(0, size - sent);
        sent += part.length;
        if (!socket.write(part)) return;
      }
    };
    socket.on('drain', push);
    push();
  });
  return { rate: size / 1e6 / ((performance.now() - startedAt) / 1000) };
}

/** Asks for 100 MB and stops reading. */
async function stall(): Promise<object> {
  const socket = await secure('http/1.1');
  socket.write(`GET /big=104857600 HTTP/1.1\r\nHost: ${job.authority}\r\n\r\n`);
  socket.once('data', () => socket.pause());
  await sleep(500);
  say({ event: 'counting' });
  await sleep(job.seconds * 1000);
  return { ok: true };
}

async function sse(): Promise<object> {
  const latencies: number[] = [];
  let isCounting = false;
  const sockets = await Promise.all(Array.from({ length: job.connections }, () => secure('http/1.1')));
  for (const socket of sockets) {
    socket.on('data', (chunk: Buffer) => {
      if (!isCounting) return;
      const now = process.hrtime.bigint();
      for (const match of chunk.toString('latin1').matchAll(/data: (\d+)/g))
        latencies.push(Number(now - BigInt(match[1] ?? '0')) / 1e6);
    });
    socket.write(`GET /sse HTTP/1.1\r\nHost: ${job.authority}\r\n\r\n`);
  }
  await sleep(1000);
  isCounting = true;
  await sleep(job.seconds * 1000);
  if (latencies.length === 0) throw new Error('no event came through');
  return { p50: percentile(latencies, 0.5), p99: percentile(latencies, 0.99), count: latencies.length };
}

async function idle(): Promise<object> {
  const sockets: TLSSocket[] = [];
  say({ event: 'before' });
  await sleep(300);
  while (sockets.length < job.connections) {
    sockets.push(
      ...(await Promise.all(
        Array.from({ length: Math.min(50, job.connections - sockets.length) }, () =>
          secure('http/1.1', job.host, job.servername, true),
        ),
      )),
    );
  }
  await sleep(1500);
  say({ event: 'counting' });
  await sleep(1000);
  return { held: sockets.filter((socket) => !socket.destroyed).length };
}

async function h2(): Promise<object> {
  const socket = await secure('h2');
  const client = connectH2(`https://${job.authority}`, { createConnection: () => socket });
  let done = 0;
  let isOver = false;
  const body = Buffer.from(BODY);
  const one = (): void => {
    if (isOver) return;
    const stream = client.request({
      ':method': 'POST',
      ':path': '/v1/items',
      'content-type': 'application/json',
      'content-length': 1024,
      authorization: 'Bearer t',
    });
    stream.on('error', () => undefined);
    stream.resume();
    stream.on('end', () => {
      done++;
      one();
    });
    stream.end(body);
  };
  for (let i = 0; i < job.connections; i++) one();
  await sleep(1000);
  say({ event: 'counting' });
  done = 0;
  const startedAt = performance.now();
  await sleep(job.seconds * 1000);
  const result = { rate: done / ((performance.now() - startedAt) / 1000), count: done };
  isOver = true;
  client.destroy();
  return result;
}

async function blindBytes(): Promise<object> {
  const socket = await tunnel();
  let got = 0;
  socket.on('data', (chunk: Buffer) => {
    got += chunk.length;
  });
  socket.resume();
  socket.write('\0d');
  await sleep(500);
  got = 0;
  const startedAt = performance.now();
  await sleep(job.seconds * 1000);
  return { rate: got / 1e6 / ((performance.now() - startedAt) / 1000) };
}

async function blindTunnels(): Promise<object> {
  let done = 0;
  let isOver = false;
  let failures = 0;
  const worker = async (): Promise<void> => {
    while (!isOver) {
      try {
        const socket = await tunnel();
        await new Promise<void>((resolve, reject) => {
          socket.on('error', reject);
          socket.on('close', () => reject(new Error('closed')));
          socket.once('data', () => resolve());
          socket.resume();
          socket.write('\0echo');
        });
        socket.destroy();
        done++;
      } catch {
        if (++failures > 50) return;
      }
    }
  };
  const workers = Array.from({ length: job.connections }, worker);
  await sleep(500);
  say({ event: 'counting' });
  done = 0;
  const startedAt = performance.now();
  await sleep(job.seconds * 1000);
  const result = { rate: done / ((performance.now() - startedAt) / 1000), count: done, failures };
  isOver = true;
  await Promise.race([Promise.all(workers), sleep(1000)]);
  return result;
}

/** Opens tunnels with TLS and drops them, many times over. */
async function drop(): Promise<object> {
  say({ event: 'before' });
  await sleep(300);
  let done = 0;
  while (done < job.connections) {
    const batch = await Promise.allSettled(
      Array.from({ length: 50 }, () => secure('http/1.1', job.host, job.servername, true)),
    );
    for (const result of batch) if (result.status === 'fulfilled') result.value.destroy();
    done += batch.length;
  }
  await sleep(3000);
  say({ event: 'counting' });
  await sleep(500);
  return { count: done };
}

const PHASES: Readonly<Record<Job['phase'], () => Promise<object>>> = {
  requests,
  tunnels,
  'new-hosts': newHosts,
  burst,
  download,
  upload,
  stall,
  sse,
  idle,
  h2,
  'blind-bytes': blindBytes,
  'blind-tunnels': blindTunnels,
  drop,
};

process.on('uncaughtException', (error) => {
  say({ error: error.message });
  process.exit(1);
});
try {
  const result = await PHASES[job.phase]();
  say({ result });
  process.exit(0);
} catch (error) {
  say({ error: error instanceof Error ? error.message : 'failed' });
  process.exit(1);
}
