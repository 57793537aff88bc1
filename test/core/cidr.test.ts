import { BlockList, isIP } from 'node:net';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cidrContains, parseAddress, parseCidr } from '../../src/core/cidr.ts';

describe('ranges of addresses', () => {
  it.each([
    ['10.0.0.0/8', '10.0.0.0/8'],
    ['10.1.2.3', '10.1.2.3/32'],
    ['0.0.0.0/0', '0.0.0.0/0'],
    ['::/0', '::/0'],
    ['FD00::/8', 'fd00::/8'],
    ['::1', '::1/128'],
    ['::ffff:10.0.0.0/104', '10.0.0.0/8'],
    ['64:ff9b::1.2.3.4', '64:ff9b::102:304/128'],
  ])('%s is %s', (text, canonical) => {
    expect(parseCidr(text)).toMatchObject({ text: canonical });
  });

  it.each([
    '',
    '10.0.0.0/',
    '10.0.0.0/33',
    '10.0.0.0/08',
    '10.0.0.0/-1',
    '::/129',
    '10.1/8',
    '0x7f.1',
    'a.example',
    '[::1]',
    '10.0.0.1/8',
    '::ffff:0.0.0.0/95',
    '1.2.3.4/8/8',
  ])('%j is refused with a reason', (text) => {
    expect(typeof parseCidr(text)).toBe('string');
  });

  it('agree with the judgment of Node on every address', () => {
    fc.assert(
      fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), fc.oneof(fc.ipV4(), fc.ipV6()), fc.nat(128), (base, other, bits) => {
        const family = isIP(base) === 4 ? 'ipv4' : 'ipv6';
        const length = Math.min(bits, family === 'ipv4' ? 32 : 128);
        const single = parseCidr(base);
        if (typeof single === 'string' || parseAddress(other) === null) return;
        // IPv4-mapped addresses are IPv4 for us and not for Node.
        if (family === 'ipv6' && single.family === 4) return;
        const shift = BigInt((family === 'ipv4' ? 32 : 128) - length);
        const range = { ...single, bits: length, first: (single.first >> shift) << shift };
        const list = new BlockList();
        list.addSubnet(base, length, family);
        const address = parseAddress(other);
        // Node finds IPv4 addresses in ::/0; a range of ours has one family.
        if (address?.family !== range.family || (isIP(other) === 6 && address.family === 4)) return;
        expect(cidrContains(range, address)).toBe(list.check(other, isIP(other) === 4 ? 'ipv4' : 'ipv6'));
      }),
    );
  });

  it('an address is itself, however it is written', () => {
    expect(parseAddress('::ffff:10.1.2.3')).toEqual(parseAddress('10.1.2.3'));
    expect(parseAddress('fe80::1%eth0')).toEqual(parseAddress('FE80:0:0:0:0:0:0:1'));
    expect(parseAddress('a.example')).toBeNull();
  });
});
