import type { Tunnel } from '../core/tunnel.ts';

interface Kept {
  readonly name: number;
  readonly mode: string;
  readonly sni: string | null;
  readonly alpn: string | null;
  readonly tlsVersion: string | null;
  readonly text: string;
}

/**
 * Remembers for each tunnel the text that `write` makes of it: a tunnel may carry thousands of exchanges, and two fifths of a record are the same
 * for all of them. Forgotten with the tunnel; written anew should one of the facts that are learned late have changed.
 */
export function perTunnel(write: (tunnel: Tunnel, name: number) => string): (tunnel: Tunnel, name: number) => string {
  const memory = new WeakMap<Tunnel, Kept>();
  return (tunnel, name) => {
    const kept = memory.get(tunnel);
    if (
      kept?.name === name &&
      kept.mode === tunnel.mode &&
      kept.sni === tunnel.sni &&
      kept.alpn === tunnel.alpn &&
      kept.tlsVersion === tunnel.tlsVersion
    ) {
      return kept.text;
    }
    const text = write(tunnel, name);
    const { mode, sni, alpn, tlsVersion } = tunnel;
    memory.set(tunnel, { name, mode, sni, alpn, tlsVersion, text });
    return text;
  };
}
