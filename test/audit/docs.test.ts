import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { toFlat } from '../../src/audit/flat.ts';
import { createFormatter } from '../../src/audit/formatter.ts';
import { toOcsf } from '../../src/audit/ocsf.ts';
import { exchangeEvent, sampleContext, sampleDenied, sampleOutage, sampleTunnel } from './events.ts';

const page = readFileSync(new URL('../../docs/audit.md', import.meta.url), 'utf8');
const schema = JSON.parse(readFileSync(new URL('../../docs/schemas/record.schema.json', import.meta.url), 'utf8')) as {
  readonly $defs: Readonly<Record<string, { readonly properties?: Readonly<Record<string, unknown>> }>>;
};

function samples(): unknown[] {
  return [...page.matchAll(/```json\n(.*?)```/gs)].map((match) => JSON.parse(match[1] ?? '') as unknown);
}

describe('the page about the audit trail', () => {
  it('shows records as they are written', () => {
    const gap = JSON.parse(createFormatter({ format: 'flat', productVersion: '0.1.0' }).gap(sampleOutage)) as object;
    expect(samples()).toEqual([
      toOcsf(sampleDenied(), sampleContext),
      toOcsf(sampleTunnel(), sampleContext),
      toFlat(exchangeEvent(), sampleContext),
      { ...gap, uid: sampleContext.uid },
    ]);
  });

  it('names every field of the schema', () => {
    const named = new Set([...page.matchAll(/`([a-z_]+)`/g)].map((match) => match[1]));
    for (const part of ['factProperties', 'gapProperties', 'recordProperties', 'finding', 'flat']) {
      for (const field of Object.keys(schema.$defs[part]?.properties ?? {}))
        expect(named, `${part}: ${field}`).toContain(field);
    }
  });
});
