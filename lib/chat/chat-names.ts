import { createHash } from 'node:crypto';
import { invalidArgument } from '../common/errors.js';
import { show } from '../common/options.js';

/** UTF-16 units. */
const MOST_NAME = 1000;
/** Bytes of a file's name without its extension. With an id and another extension behind it still fits the 255 of most systems. */
const MOST_BYTES = 195;
/** Between the beginning of a long name and the hash of all of it. */
const HASH_MARK = '~';
const HASH_CHARACTERS = 32;

/** What Windows takes for a device, whatever extension follows. */
const DEVICE = /^(?:con|prn|aux|nul|com\d|lpt\d)$/;

/** Checks the name of a conversation. */
export function checkName(value: unknown, name = 'name'): string {
  if (typeof value !== 'string' || value === '') {
    throw invalidArgument(`${name} must be a text that is not empty, got ${show(value)}`);
  }
  if (value.length > MOST_NAME)
    throw invalidArgument(`${name} has ${value.length} characters, of at most ${MOST_NAME}`);
  if (/\p{Cs}/u.test(value)) throw invalidArgument(`${name} has half of a character in it: ${show(value)}`);
  return value;
}

/**
 * The name of a file, without its extension, for a conversation of any name. Different names have different files on every
 * file system: also where it makes no difference between upper and lower case, or between the two ways to write é. Letters and
 * digits, spaces, - and _ stay as they are, as far as that goes; other characters become their UTF-8 bytes, %41 for A. What
 * becomes too long is cut and ends with a hash.
 */
export function fileNameOf(name: string): string {
  let parts = Array.from(name, (character) => (isSafe(character) ? character : percent(character)));
  // Letters that would be composed with each other.
  if (parts.join('').normalize('NFC') !== parts.join('')) {
    parts = Array.from(name, (character) => (isSafe(character) && isAscii(character) ? character : percent(character)));
  }
  const ends = DEVICE.test(parts.join('')) ? [0] : [0, parts.length - 1].filter((index) => parts[index] === ' ');
  for (const index of ends) parts[index] = percent(parts[index] as string);
  const encoded = parts.join('');
  if (Buffer.byteLength(encoded) <= MOST_BYTES) return encoded;
  const hash = createHash('sha256').update(name).digest('hex').slice(0, HASH_CHARACTERS);
  const end = HASH_MARK + hash;
  let length = end.length;
  const cut = parts.findIndex((part) => {
    length += Buffer.byteLength(part);
    return length > MOST_BYTES;
  });
  return parts.slice(0, cut).join('') + end;
}

/** The name that a file stands for. Of one that was cut undefined: the file's content tells. Null for a file of another origin. */
export function nameOf(fileName: string): string | undefined | null {
  const normal = fileName.normalize('NFC');
  if (new RegExp(`${HASH_MARK}[0-9a-f]{${HASH_CHARACTERS}}$`).test(normal)) return undefined;
  try {
    const name = decodeURIComponent(normal);
    return fileNameOf(name) === normal ? name : null;
  } catch {
    return null;
  }
}

function isSafe(character: string): boolean {
  if (/^[a-z0-9 _-]$/.test(character)) return true;
  if (isAscii(character) || !/^[\p{L}\p{Nd}]$/u.test(character)) return false;
  // Neither an upper case letter nor one that some upper case letter's file would collide with.
  const isLower = character.toLowerCase() === character && character.toUpperCase().toLowerCase() === character;
  return isLower && character.normalize('NFKC') === character;
}

function isAscii(character: string): boolean {
  return character <= '\x7f';
}

function percent(character: string): string {
  return [...Buffer.from(character)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('');
}
