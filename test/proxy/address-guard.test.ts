import { networkInterfaces } from 'node:os';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../src/core/errors.ts';
import { AddressGuard } from '../../src/proxy/address-guard.ts';

const guard = (
  allow: readonly string[] = [],
  listeners: readonly { host: string; port: number }[] = [],
): AddressGuard =>
  new AddressGuard({ allow, ownListeners: () => listeners, localAddresses: () => ['10.1.2.3', 'fd00::5'] });

describe('without allowed ranges', () => {
  test.each([
    ['0.0.0.0', 'this network'],
    ['0.1.2.3', 'this network'],
    ['10.0.0.0', 'private'],
    ['10.255.255.255', 'private'],
    ['100.64.0.0', 'shared address space'],
    ['100.127.255.255', 'shared address space'],
    ['100.100.100.200', 'metadata'],
    ['127.0.0.1', 'loopback'],
    ['127.255.255.254', 'loopback'],
    ['168.63.129.16', 'metadata'],
    ['169.254.0.1', 'link-local'],
    ['169.254.169.254', 'metadata'],
    ['169.254.170.2', 'metadata'],
    ['172.16.0.1', 'private'],
    ['172.31.255.255', 'private'],
    ['192.0.0.1', 'protocol assignments'],
    ['192.0.0.192', 'metadata'],
    ['192.0.2.1', 'documentation'],
    ['192.88.99.1', '6to4 relay'],
    ['192.168.255.255', 'private'],
    ['198.18.0.1', 'benchmarking'],
    ['198.19.255.255', 'benchmarking'],
    ['198.51.100.1', 'documentation'],
    ['203.0.113.1', 'documentation'],
    ['224.0.0.1', 'multicast'],
    ['239.255.255.255', 'multicast'],
    ['240.0.0.1', 'reserved'],
    ['255.255.255.255', 'broadcast'],
    ['::', 'unspecified'],
    ['::1', 'loopback'],
    ['::2', 'IPv4-compatible'],
    ['::7f00:1', 'IPv4-compatible'],
    ['::8.8.8.8', 'IPv4-compatible'],
    ['::ffff:127.0.0.1', 'loopback'],
    ['::ffff:10.0.0.1', 'private'],
    ['::ffff:a9fe:a9fe', 'metadata'],
    ['::ffff:0:8.8.8.8', 'IPv4-translated'],
    ['64:ff9b::8.8.8.8', 'NAT64'],
    ['64:ff9b::a00:1', 'NAT64'],
    ['64:ff9b:1::1', 'NAT64'],
    ['100::1', 'discard'],
    ['100:0:0:1::1', 'reserved'],
    ['2001::1', 'Teredo'],
    ['2001:2::1', 'protocol assignments'],
    ['2001:10::1', 'ORCHID'],
    ['2001:2f:ffff::1', 'ORCHID'],
    ['2001:1ff:ffff::1', 'protocol assignments'],
    ['2001:db8::1', 'documentation'],
    ['2002:808:808::1', '6to4'],
    ['3fff::1', 'documentation'],
    ['3fff:fff:ffff::1', 'documentation'],
    ['5f00::1', 'segment routing'],
    ['4000::1', 'reserved'],
    ['1fff::1', 'reserved'],
    ['fc00::1', 'private'],
    ['fd00:ec2::254', 'metadata'],
    ['fd12:3456::1', 'private'],
    ['fe80::1', 'link-local'],
    ['febf::1', 'link-local'],
    ['fec0::1', 'site-local'],
    ['feff::1', 'site-local'],
    ['ff02::1', 'multicast'],
    ['200::1', 'reserved'],
    ['e000::1', 'reserved'],
    ['0x7f.1', 'loopback'],
    ['2130706433', 'loopback'],
    ['[::1]', 'loopback'],
    ['fe80::1%eth0', 'not an address'],
    ['localhost', 'not an address'],
    ['', 'not an address'],
  ])('%s is refused as %s', (address, reason) => {
    expect(guard().check(address, 443)).toMatchObject({ reason });
  });

  test.each([
    '1.1.1.1',
    '8.8.8.8',
    '9.255.255.255',
    '11.0.0.0',
    '100.63.255.255',
    '100.128.0.0',
    '126.255.255.255',
    '128.0.0.1',
    '168.63.129.15',
    '169.253.255.255',
    '169.255.0.0',
    '172.15.255.255',
    '172.32.0.0',
    '192.0.1.0',
    '192.0.3.0',
    '192.167.255.255',
    '192.169.0.0',
    '198.17.255.255',
    '198.20.0.0',
    '198.51.101.0',
    '203.0.112.255',
    '223.255.255.255',
    '::ffff:8.8.8.8',
    '2000::1',
    '2001:200::1',
    '2001:4860:4860::8888',
    '2001:db7:ffff::1',
    '2001:db9::',
    '2003::1',
    '2606:4700::1111',
    '2a00::1',
    '3ffe::1',
    '3fff:1000::1',
  ])('%s may be dialed', (address) => {
    expect(guard().check(address, 443)).toBeNull();
  });

  test('the refusal names the range and not the address', () => {
    expect(guard().check('10.7.7.7', 443)).toEqual({ range: '10.0.0.0/8', reason: 'private' });
  });
});

describe('allowed ranges', () => {
  test.each<[string, readonly string[]]>([
    ['10.1.1.1', ['10.0.0.0/8']],
    ['10.1.1.1', ['10.1.1.1']],
    ['10.1.1.1', ['192.168.0.0/16', '10.1.1.0/31']],
    ['::ffff:10.1.1.1', ['10.0.0.0/8']],
    ['10.1.1.1', ['::ffff:10.0.0.0/104']],
    ['240.0.0.1', ['0.0.0.0/0']],
    ['::1', ['::1']],
    ['fd12::1', ['fc00::/7']],
    ['fe80::1', ['fe80::/10']],
    ['64:ff9b::8.8.8.8', ['64:ff9b::/96']],
    ['64:ff9b::10.0.0.1', ['64:ff9b::/96', '10.0.0.0/8']],
    ['2002:a00:1::1', ['2002::/16', '10.0.0.0/8']],
    ['2001:0:1:2:3:4:f5ff:fffe', ['2001::/32', '10.0.0.0/8']],
    ['::10.0.0.1', ['::/96', '10.0.0.0/8']],
    ['169.254.169.254', ['169.254.169.254']],
    ['fd00:ec2::254', ['fd00:ec2::254/128']],
    ['127.0.0.1', ['127.0.0.0/8']],
  ])('%s may be dialed with %j', (address, allow) => {
    expect(guard(allow).check(address, 443)).toBeNull();
  });

  test.each<[string, readonly string[], string]>([
    ['10.1.1.2', ['10.1.1.0/31'], 'private'],
    ['11.1.1.1', ['10.0.0.0/8'], ''],
    ['64:ff9b::10.0.0.1', ['10.0.0.0/8'], 'NAT64'],
    ['64:ff9b::10.0.0.1', ['64:ff9b::/96'], 'private'],
    ['64:ff9b::169.254.169.254', ['64:ff9b::/96', '169.254.0.0/16'], 'metadata'],
    ['64:ff9b:1::10.0.0.1', ['64:ff9b:1::/48'], 'private'],
    ['2002:a00:1::1', ['2002::/16'], 'private'],
    ['2002:7f00:1::', ['::/0'], 'loopback'],
    ['2001:0:1:2:3:4:f5ff:fffe', ['2001::/32'], 'private'],
    ['::10.0.0.1', ['::/96'], 'private'],
    ['::ffff:0:10.0.0.1', ['::/0'], 'private'],
    ['10.0.0.1', ['::/0'], 'private'],
    ['169.254.169.254', ['169.254.0.0/16'], 'metadata'],
    ['169.254.169.254', ['0.0.0.0/0'], 'metadata'],
    ['100.100.100.200', ['100.64.0.0/10'], 'metadata'],
    ['fd00:ec2::254', ['fd00::/8'], 'metadata'],
  ])('%s with %j: %j', (address, allow, reason) => {
    const refusal = guard(allow).check(address, 443);
    expect(refusal?.reason ?? '').toBe(reason);
  });

  test.each([
    '',
    '10.0.0.0/',
    '10.0.0.0/33',
    '10.0.0.0/-1',
    '10.0.0.0/08',
    '10.0.0.0/8/8',
    '10.0.0.1/8',
    '10/8',
    '10.0/16',
    '010.0.0.0/8',
    '0x0a.0.0.0/8',
    'example.com',
    'example.com/8',
    '::/129',
    '::1/127',
    'fe80::1%eth0',
    '10.0.0.0/a',
    '::ffff:10.0.0.0/8',
    '10.0.0.0 /8',
    '*',
    '10.0.0.0-10.0.0.9',
    '255.255.255.255/31',
  ])('%j is refused by its name', (entry) => {
    expect(() => guard(['127.0.0.1', entry])).toThrow(ConfigError);
    expect(() => guard(['127.0.0.1', entry])).toThrow(JSON.stringify(entry));
  });
});

describe('our own listeners', () => {
  const everything = ['0.0.0.0/0', '::/0', '127.0.0.0/8', '::1/128'];
  const own = guard(everything, [
    { host: '127.0.0.1', port: 8080 },
    { host: '0.0.0.0', port: 8081 },
    { host: '203.0.113.9', port: 8082 },
  ]);

  test.each([
    ['127.0.0.1', 8080],
    ['127.0.0.2', 8080],
    ['::1', 8080],
    ['::', 8080],
    ['0.0.0.0', 8080],
    ['::ffff:127.0.0.1', 8080],
    ['10.1.2.3', 8080],
    ['fd00::5', 8081],
    ['10.1.2.3', 8081],
    ['0x7f.1', 8081],
    ['203.0.113.9', 8082],
  ])('%s port %i is refused whatever is allowed', (address, port) => {
    expect(own.check(address, port)).toMatchObject({ range: 'own listener' });
  });

  test.each([
    ['127.0.0.1', 8083],
    ['10.9.9.9', 8080],
    ['203.0.113.8', 8082],
  ])('%s port %i is not ours', (address, port) => {
    expect(own.check(address, port)).toBeNull();
  });

  test('the addresses of this machine are asked for when none are given', () => {
    const real = new AddressGuard({ allow: everything, ownListeners: () => [{ host: '0.0.0.0', port: 8080 }] });
    const addresses = Object.values(networkInterfaces()).flatMap((entries) =>
      (entries ?? []).map((entry) => entry.address),
    );
    expect(addresses.length).toBeGreaterThan(0);
    for (const address of addresses) expect(real.check(address, 8080)).not.toBeNull();
  });
});
