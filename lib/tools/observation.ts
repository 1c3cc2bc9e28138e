// What the model is told about what a tool gave, or why it gave nothing.
import { types } from 'node:util';
import { show } from '../common/options.js';
import { dumpJsonLine } from '../common/python-text.js';

/** Characters of an observation, unless told otherwise. */
export const MOST_CHARACTERS = 20_000;

/**
 * A tool's result as text: a string as it is, `ok` for undefined, other values as Python's json.dumps() writes them, which is
 * what the models were trained with.
 *
 * @throws {TypeError} where the value has no JSON that says the same: cycles, bigints, functions, symbols, maps and sets.
 */
export function observationOf(value: unknown): string {
  if (typeof value === 'string') return value;
  if (value === undefined) return 'ok';
  const json = JSON.stringify(value, (_key, entry: unknown) => {
    const isLost = typeof entry === 'function' || typeof entry === 'symbol' || types.isMap(entry) || types.isSet(entry);
    if (isLost) throw new TypeError(`JSON has no way to write ${show(entry)}`);
    return entry;
  });
  // toJSON() of the value may have given undefined.
  return json === undefined ? 'ok' : dumpJsonLine(JSON.parse(json));
}

/** The beginning of a text that is too long, and a note that it is one. */
export function limited(text: string, most: number): string {
  if (text.length <= most) return text;
  const isPair = /^[\ud800-\udbff]$/.test(text.charAt(most - 1));
  return `${text.slice(0, isPair ? most - 1 : most)}\n[cut: the result has ${text.length} characters, these are the first ${most}]`;
}

/** What was thrown, as the model is told it: in full, as opposed to what this package's own messages say of it. */
export function reasonOf(thrown: unknown): string {
  if (typeof thrown === 'string' && thrown !== '') return thrown;
  try {
    const { message } = thrown as Error;
    if (typeof message === 'string' && message !== '') return message;
  } catch {
    // Anything may be thrown, also what cannot be looked at.
  }
  return show(thrown);
}
