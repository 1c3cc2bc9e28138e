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
  let encoded = [...name].map((character) => (isSafe(character) ? character : percent(character))).join('');
  // Letters that would be composed with each other.
  if (encoded.normalize('NFC') !== encoded) {
    encoded = [...name].map((c) => (isSafe(c) && c <= '\x7f' ? c : percent(c))).join('');
  }
  if (DEVICE.test(encoded)) encoded = percent(encoded.charAt(0)) + encoded.slice(1);
  encoded = encoded.replace(/^ | $/g, '%20');
  if (Buffer.byteLength(encoded) <= MOST_BYTES) return encoded;
  const hash = createHash('sha256').update(name).digest('hex').slice(0, HASH_CHARACTERS);
  return beginning(encoded, MOST_BYTES - HASH_MARK.length - HASH_CHARACTERS) + HASH_MARK + hash;
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
  if (!/^[^\0-\x7f]$/u.test(character) || !/^[\p{L}\p{Nd}]$/u.test(character)) return false;
  // Neither an upper case letter nor one that some upper case letter's file would collide with.
  const isLower = character.toLowerCase() === character && character.toUpperCase().toLowerCase() === character;
  return isLower && character.normalize('NFKC') === character;
}

function percent(character: string): string {
  return [...Buffer.from(character)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('');
}

/** The first bytes of an encoded name, without a part of a character at the end. */
function beginning(encoded: string, bytes: number): string {
  let result = '';
  let length = 0;
  for (const [character] of encoded.matchAll(/(?:%[0-9A-F]{2})+|./gu)) {
    length += Buffer.byteLength(character);
    if (length > bytes) break;
    result += character;
  }
  return result;
}
