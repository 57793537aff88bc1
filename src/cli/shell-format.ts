import { ConfigError } from '../core/errors.ts';

export const SHELLS = ['sh', 'fish', 'powershell', 'dotenv', 'json', 'docker'] as const;
export type Shell = (typeof SHELLS)[number];

/** A variable to set, or with null to remove. */
export type Variables = ReadonlyMap<string, string | null>;

/**
 * Writes variables in the syntax of a shell or file. Whatever the values are, the reader gets them byte for byte, and nothing in them is run.
 * @throws ConfigError a value that the syntax cannot hold (a line break in a dotenv or Docker file, NUL anywhere)
 */
export function formatVariables(variables: Variables, shell: Shell): string {
  for (const [name, value] of variables) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw new ConfigError(`${JSON.stringify(name)} is no variable name`);
    if (value?.includes('\0') === true) throw new ConfigError(`${name} would hold a NUL character`);
  }
  if (shell === 'json') return `${JSON.stringify(Object.fromEntries(variables), null, 2)}\n`;
  const lines: string[] = [];
  for (const [name, value] of variables) {
    const line = value === null ? unsetLine(name, shell) : setLine(name, value, shell);
    if (line !== null) lines.push(line);
  }
  return lines.map((line) => `${line}\n`).join('');
}

function setLine(name: string, value: string, shell: Exclude<Shell, 'json'>): string {
  switch (shell) {
    case 'sh':
      return `export ${name}=${quoteSh(value)}`;
    case 'fish':
      return `set -gx ${name} ${quoteFish(value)}`;
    case 'powershell':
      return `$env:${name} = ${quotePowerShell(value)}`;
    case 'dotenv':
      return `${name}=${quoteDotenv(name, value)}`;
    case 'docker':
      // Docker takes all that follows the equals sign as it is: no quotes, no escapes.
      if (/[\r\n]/.test(value)) throw new ConfigError(`${name} holds a line break, which an env file of Docker cannot`);
      return `${name}=${value}`;
  }
}

function unsetLine(name: string, shell: Exclude<Shell, 'json'>): string | null {
  switch (shell) {
    case 'sh':
      return `unset ${name}`;
    case 'fish':
      return `set -e ${name}`;
    case 'powershell':
      return `Remove-Item -Path Env:${name} -ErrorAction SilentlyContinue`;
    case 'dotenv':
    case 'docker':
      // These files can only set. An empty value is what most programs take for absent.
      return `${name}=`;
  }
}

/** POSIX shell, 2.2.2: nothing is special between single quotes but the single quote. */
export function quoteSh(value: string): string {
  return `'${value.replaceAll("'", `'\\''`)}'`;
}

/** fish, "Quotes": between single quotes, `\'` and `\\` are escapes. */
function quoteFish(value: string): string {
  return `'${value.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}

/** about_Quoting_Rules: a doubled quote is one. PowerShell takes the typographic single quotes for quotes, too. */
function quotePowerShell(value: string): string {
  return `'${value.replaceAll(/['\u2018-\u201b]/g, '$&$&')}'`;
}

/** Readers differ (Node, dotenv, Compose); single quotes without escapes are what they agree on. */
function quoteDotenv(name: string, value: string): string {
  if (/^[A-Za-z0-9_./:,@%+=-]*$/.test(value)) return value;
  if (/[\r\n]/.test(value)) throw new ConfigError(`${name} holds a line break, which a dotenv file cannot`);
  if (!value.includes("'")) return `'${value}'`;
  if (!/["\\$`]/.test(value)) return `"${value}"`;
  throw new ConfigError(`${name} holds both kinds of quotes, which readers of dotenv files take in different ways`);
}
