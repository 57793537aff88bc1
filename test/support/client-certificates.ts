import forge from 'node-forge';

export interface ClientCertificates {
  /** PEM of the CA that signed them. */
  readonly ca: string;
  issue(name: string): { readonly key: string; readonly cert: string };
}

/** A CA for client certificates, made by another library than the product's: leaves say clientAuth, which the product's own never do. */
export function makeClientCertificates(): ClientCertificates {
  const authority = newKeys();
  let serial = 1;
  const sign = (
    name: string,
    publicKey: forge.pki.PublicKey,
    extensions: readonly Readonly<Record<string, unknown>>[],
  ): string => {
    const certificate = forge.pki.createCertificate();
    certificate.publicKey = publicKey;
    certificate.serialNumber = String(serial++).padStart(2, '0');
    certificate.validity.notBefore = new Date(Date.now() - 3_600_000);
    certificate.validity.notAfter = new Date(Date.now() + 3_600_000);
    certificate.setSubject([{ name: 'commonName', value: name }]);
    certificate.setIssuer([{ name: 'commonName', value: 'Test agents CA' }]);
    certificate.setExtensions([...extensions]);
    certificate.sign(authority.privateKey, forge.md.sha256.create());
    return forge.pki.certificateToPem(certificate);
  };
  const ca = sign('Test agents CA', authority.publicKey, [
    { name: 'basicConstraints', cA: true, critical: true },
    { name: 'keyUsage', keyCertSign: true, critical: true },
    { name: 'subjectKeyIdentifier' },
  ]);
  return {
    ca,
    issue: (name) => {
      const keys = newKeys();
      const cert = sign(name, keys.publicKey, [
        { name: 'basicConstraints', cA: false },
        { name: 'keyUsage', digitalSignature: true },
        { name: 'extKeyUsage', clientAuth: true },
        { name: 'subjectAltName', altNames: [{ type: 2, value: name }] },
      ]);
      return { key: forge.pki.privateKeyToPem(keys.privateKey), cert };
    },
  };
}

function newKeys(): forge.pki.rsa.KeyPair {
  return forge.pki.rsa.generateKeyPair(2048);
}
