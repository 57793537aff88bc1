import type { AuditEvent } from '../../src/core/exchange.ts';
import type { Finding } from '../../src/core/finding.ts';
import type { Tunnel } from '../../src/core/tunnel.ts';
import type { Verdict } from '../../src/core/verdict.ts';

/** A tunnel to api.example.com that is intercepted. */
export function tunnel(changes: Partial<Tunnel> = {}): Tunnel {
  return {
    id: '01JC0000000000000000000001',
    agent: { id: 'researcher', name: 'Research agent', labels: { team: 'blue' }, identifiedBy: 'proxy_auth' },
    destination: { host: 'api.example.com', port: 443 },
    via: 'connect',
    sourceAddress: '10.1.2.3',
    sourcePort: 50123,
    listener: 'proxy',
    openedAtMs: 1_793_700_000_000,
    mode: 'intercept',
    sni: 'api.example.com',
    alpn: 'h2',
    tlsVersion: 'TLSv1.3',
    ...changes,
  };
}

export function verdict(changes: Partial<Verdict> = {}): Verdict {
  return {
    action: 'allow',
    judged: 'allow',
    reason: 'allowed',
    rules: ['docs-read'],
    mode: 'enforce',
    message: null,
    findings: [],
    ...changes,
  };
}

export function finding(changes: Partial<Finding> = {}): Finding {
  return {
    detector: 'credentials',
    kind: 'github_token',
    severity: 'high',
    confidence: 0.95,
    field: '/messages/3/content',
    hash: 'k1:5f1c0a7e',
    masked: 'ghp_…x9Qz',
    ...changes,
  };
}

/** An allowed GET that went well. */
export function exchangeEvent(changes: Partial<AuditEvent> = {}): AuditEvent {
  return {
    kind: 'exchange',
    timeMs: 1_793_700_000_250,
    startedAtMs: 1_793_700_000_100,
    exchange: '01JC0000000000000000000002',
    tunnel: tunnel(),
    httpVersion: '2',
    method: 'GET',
    scheme: 'https',
    host: 'api.example.com',
    port: 443,
    path: '/v1/pages/7',
    hasQuery: true,
    recognition: { protocol: 'http', operation: 'GET', subject: null, server: null, basis: 'declared' },
    verdict: verdict(),
    outcome: { kind: 'forwarded', status: 200, error: null, cause: null },
    findings: [],
    bytesOut: 0,
    bytesIn: 5120,
    timings: { queue: 0.0312, inspect: 0.125, upstreamConnect: 21.5, firstByte: 120.75, total: 150.0625 },
    upstreamAddress: '203.0.113.10',
    upstreamPort: 443,
    upstreamAlpn: 'h2',
    upstreamTls: 'TLSv1.3',
    policy: 'b1946ac92492',
    messagesOut: 0,
    messagesIn: 0,
    ...changes,
  };
}

/** The record of a tunnel that ended well. */
export function tunnelEvent(changes: Partial<AuditEvent> = {}): AuditEvent {
  return exchangeEvent({
    kind: 'tunnel',
    exchange: null,
    httpVersion: null,
    method: null,
    scheme: null,
    path: null,
    hasQuery: false,
    recognition: null,
    outcome: { kind: 'forwarded', status: null, error: null, cause: null },
    bytesOut: 1800,
    ...changes,
  });
}

/** The records that docs/audit.md shows. */
export const sampleContext = { sequence: 4711, uid: '01JC0000000000000000000009', productVersion: '0.1.0' };

export function sampleDenied(): AuditEvent {
  return exchangeEvent({
    method: 'POST',
    path: '/v1/pages',
    hasQuery: false,
    recognition: { protocol: 'http', operation: 'POST', subject: null, server: null, basis: 'declared' },
    verdict: verdict({ action: 'deny', judged: 'deny', reason: 'denied_by_rule', rules: ['secrets-stay-home'] }),
    outcome: { kind: 'denied', status: 403, error: null, cause: null },
    findings: [finding()],
    bytesOut: 734,
    bytesIn: 0,
    timings: { queue: 0.03, inspect: 0.41, upstreamConnect: null, firstByte: null, total: 2.75 },
    upstreamAddress: null,
    upstreamPort: null,
    upstreamAlpn: null,
    upstreamTls: null,
  });
}

export function sampleTunnel(): AuditEvent {
  return tunnelEvent({
    host: 'paste.example.net',
    tunnel: tunnel({
      destination: { host: 'paste.example.net', port: 443 },
      mode: 'undecided',
      sni: null,
      alpn: null,
      tlsVersion: null,
    }),
    verdict: verdict({ action: 'deny', judged: 'deny', reason: 'host_not_allowed', rules: [] }),
    outcome: { kind: 'denied', status: 403, error: null, cause: null },
    bytesOut: 0,
    bytesIn: 0,
    timings: { queue: 0.02, inspect: 0.05, upstreamConnect: null, firstByte: null, total: 0.6 },
    upstreamAddress: null,
    upstreamPort: null,
    upstreamAlpn: null,
    upstreamTls: null,
  });
}

/** An outage of twelve seconds in which nothing was lost. */
export const sampleOutage = { fromMs: 1_793_700_000_000, toMs: 1_793_700_012_500, dropped: 0, cause: 'ENOSPC' };
