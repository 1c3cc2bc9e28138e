import { readFileSync } from 'node:fs';
import { invalidArgument } from '../checks.js';
import { type ServerKey, toServerKey } from './key.js';

/** The names of a key's limits in files, and in options. */
const FIELDS = {
  weight: 'weight',
  requests: 'requestsPerMinute',
  tokens: 'tokensPerMinute',
  parallel: 'parallel',
  models: 'models',
  expires: 'expires',
} as const;

/**
 * Reads keys, one a line: `anna sha256:… weight=2 requests=60 tokens=100000 parallel=4 models=a,b expires=2030-12-31`. Empty
 * lines, and what begins with #, are skipped. In place of a hash there may be the key itself.
 *
 * @param what What an error calls the text, such as the file's name.
 */
export function parseKeys(text: string, what: string): ServerKey[] {
  const keys: ServerKey[] = [];
  for (const [index, line] of text.split(/\r?\n/).entries()) {
    const trimmed = line.trim();
    if (trimmed === '' || trimmed.startsWith('#')) continue;
    const where = `${what}, line ${index + 1}`;
    const [name, secret = '', ...fields] = trimmed.split(/\s+/);
    const given: Record<string, unknown> = { name };
    if (secret.startsWith('sha256:')) given.hash = secret.slice('sha256:'.length);
    else given.key = secret;
    for (const field of fields) {
      const equals = field.indexOf('=');
      const [short, value] = [field.slice(0, equals), field.slice(equals + 1)];
      if (equals < 0 || !Object.hasOwn(FIELDS, short)) {
        throw invalidArgument(
          `${where}: ${equals < 0 ? 'a word without =' : `no field ${JSON.stringify(short.slice(0, 20))}`}; ` +
            `there are ${Object.keys(FIELDS).join(', ')}`,
        );
      }
      given[FIELDS[short as keyof typeof FIELDS]] =
        short === 'models' ? value.split(',') : short === 'expires' ? value : Number(value);
    }
    const key = toServerKey(where, given);
    if (keys.some((other) => other.name === key.name)) {
      throw invalidArgument(`${where}: the name ${key.name} is there already`);
    }
    keys.push(key);
  }
  return keys;
}

/** The keys of a file. */
export function readKeyFile(file: string): ServerKey[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'ENOENT' ? 'there is no such file' : code === 'EACCES' ? 'it may not be read' : code;
    throw invalidArgument(`the file of keys ${file} cannot be read: ${why}`, error);
  }
  return parseKeys(text, file);
}

/** A key's line in a file. */
export function keyLine(
  name: string,
  hash: Buffer,
  fields: Readonly<Record<string, string | number | undefined>>,
): string {
  const set = Object.entries(fields).filter(([, value]) => value !== undefined);
  return [name, `sha256:${hash.toString('hex')}`, ...set.map(([field, value]) => `${field}=${value}`)].join(' ');
}
