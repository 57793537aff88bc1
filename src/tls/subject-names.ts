/**
 * The names of a certificate's subjectAltName as Node prints it: `DNS:a.example, URI:spiffe://b, IP Address:10.0.0.1`. Values with characters that could be
 * taken for a separator are printed as JSON strings; such a name cannot be that of an agent and is left out, instead of being cut into names that
 * nobody certified (CVE-2021-44532).
 */
export function subjectAltNames(text: string): string[] {
  const names: string[] = [];
  const entry = /[A-Za-z ]+:(?:"(?:[^"\\]|\\.)*"|([^,"]*))(?:, |$)/y;
  while (entry.lastIndex < text.length) {
    const found = entry.exec(text);
    // Not what Node writes: nothing in it can be relied on.
    if (found === null) return [];
    const [, name] = found;
    if (name !== undefined && name !== '') names.push(name);
  }
  return names;
}
