import { CODES, isCode } from '../core/errors.ts';
import type { CodeFacts } from '../core/errors.ts';
import type { AuditEvent } from '../core/exchange.ts';
import { severityOf } from './facts.ts';

/** An OCSF enumeration value with its caption. */
export interface Coded {
  readonly id: number;
  readonly name: string;
}

/** What the security_control profile and the base fields say about how an event ended. */
export interface Assessment {
  readonly severity: Coded;
  readonly status: Coded;
  readonly action: Coded;
  readonly disposition: Coded;
  readonly isAlert: boolean;
}

const UNKNOWN_SEVERITY: Coded = { id: 0, name: 'Unknown' };
const INFORMATIONAL: Coded = { id: 1, name: 'Informational' };
const LOW: Coded = { id: 2, name: 'Low' };
const MEDIUM: Coded = { id: 3, name: 'Medium' };
const SEVERITIES: readonly Coded[] = [
  UNKNOWN_SEVERITY,
  INFORMATIONAL,
  LOW,
  MEDIUM,
  { id: 4, name: 'High' },
  { id: 5, name: 'Critical' },
];

const SUCCESS: Coded = { id: 1, name: 'Success' };
const FAILURE: Coded = { id: 2, name: 'Failure' };

const ALLOWED: Coded = { id: 1, name: 'Allowed' };
const DENIED: Coded = { id: 2, name: 'Denied' };
const OBSERVED: Coded = { id: 3, name: 'Observed' };
const MODIFIED: Coded = { id: 4, name: 'Modified' };

const D_ALLOWED: Coded = { id: 1, name: 'Allowed' };
const D_BLOCKED: Coded = { id: 2, name: 'Blocked' };
const D_CORRECTED: Coded = { id: 11, name: 'Corrected' };
const D_DETECTED: Coded = { id: 15, name: 'Detected' };
const D_ALERT: Coded = { id: 19, name: 'Alert' };
const D_REJECTED: Coded = { id: 25, name: 'Rejected' };
const D_UNAUTHORIZED: Coded = { id: 26, name: 'Unauthorized' };
const D_ERROR: Coded = { id: 27, name: 'Error' };

/** Says in OCSF terms how an event ended. */
export function assess(event: AuditEvent): Assessment {
  const severity = severityFor(event);
  const disposition = dispositionFor(event);
  return {
    severity,
    status: event.outcome.kind === 'forwarded' || event.outcome.kind === 'redacted' ? SUCCESS : FAILURE,
    action: actionFor(disposition),
    disposition,
    isAlert: disposition === D_ALERT || severity.id >= 4,
  };
}

function dispositionFor(event: AuditEvent): Coded {
  const { outcome, verdict } = event;
  switch (outcome.kind) {
    case 'denied':
      return refused(outcome.error ?? verdict.reason);
    case 'failed':
      return outcome.error === null ? D_ERROR : failed(outcome.error);
    case 'redacted':
      return D_CORRECTED;
    case 'forwarded':
    case 'aborted':
      if (verdict.action === 'warn') return D_ALERT;
      return isObservedOnly(event) ? D_DETECTED : D_ALLOWED;
  }
}

function refused(code: string): Coded {
  return code.startsWith('proxy_auth_') ? D_UNAUTHORIZED : D_BLOCKED;
}

/** A failure is ours or the server's (error), or what the agent sent was not acceptable (rejected). */
function failed(code: string): Coded {
  if (code.startsWith('proxy_auth_')) return D_UNAUTHORIZED;
  const kind = kindOf(code);
  return kind === 'client' || kind === 'limit' ? D_REJECTED : kind === 'policy' ? D_BLOCKED : D_ERROR;
}

function actionFor(disposition: Coded): Coded {
  switch (disposition) {
    case D_BLOCKED:
    case D_REJECTED:
    case D_UNAUTHORIZED:
      return DENIED;
    case D_CORRECTED:
      return MODIFIED;
    case D_ALERT:
    case D_DETECTED:
      return OBSERVED;
    default:
      return ALLOWED;
  }
}

/** A rule in monitor mode would have been stricter. */
function isObservedOnly(event: AuditEvent): boolean {
  return event.verdict.mode === 'monitor' && event.verdict.judged !== event.verdict.action;
}

/** The gravest of the findings, at least what the outcome is worth. A denial is medium: it is the product at work, yet somebody should look. */
function severityFor(event: AuditEvent): Coded {
  const { outcome, verdict, findings } = event;
  let severity = INFORMATIONAL;
  if (outcome.kind === 'denied') severity = MEDIUM;
  else if (outcome.kind !== 'forwarded' || verdict.action === 'warn' || isObservedOnly(event)) severity = LOW;
  for (const finding of findings) {
    const id = severityOf(finding);
    if (id > severity.id) severity = SEVERITIES[id] ?? severity;
  }
  return severity;
}

function kindOf(code: string): CodeFacts['kind'] | null {
  return isCode(code) ? CODES[code].kind : null;
}
