import { type ApiError, badRequest } from './errors.js';
import { kindOf, shown } from './validation.js';

/** An object of a request. */
export type Fields = Readonly<Record<string, unknown>>;

/**
 * Reads the parts of a request whose shape a field of theirs decides, such as the items of a list that may be of several
 * types: a JSON schema would tell of each of them what is wrong. Messages and `param` name the place.
 */
export function objectAt(value: unknown, place: string): Fields {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
  throw wrongType(place, 'an object', value);
}

export function stringAt(value: unknown, place: string): string {
  if (typeof value === 'string') return value;
  throw wrongType(place, 'a string', value);
}

export function arrayAt(value: unknown, place: string): readonly unknown[] {
  if (Array.isArray(value)) return value;
  throw wrongType(place, 'an array', value);
}

/** A field that may be absent or null. */
export function optionalAt<T>(
  value: unknown,
  place: string,
  read: (value: unknown, place: string) => T,
): T | undefined {
  return value === undefined || value === null ? undefined : read(value, place);
}

export function booleanAt(value: unknown, place: string): boolean {
  if (typeof value === 'boolean') return value;
  throw wrongType(place, 'a boolean', value);
}

/** A string that is not empty. */
export function nameAt(value: unknown, place: string): string {
  const name = stringAt(value, place);
  if (name === '') throw badRequest(`Invalid '${place}': the string must not be empty.`, place, 'empty_string');
  return name;
}

/** Refuses a value that is none of those that there are. */
export function wrongValue(place: string, value: unknown, allowed: readonly string[]): ApiError {
  return badRequest(
    `Invalid value for '${place}': ${shown(value)}. Supported values are: ${allowed.map(shown).join(', ')}.`,
    place,
    'invalid_value',
  );
}

function wrongType(place: string, expected: string, value: unknown): ApiError {
  if (value === undefined) {
    return badRequest(`Missing required parameter: '${place}'.`, place, 'missing_required_parameter');
  }
  return badRequest(`Invalid type for '${place}': expected ${expected}, got ${kindOf(value)}.`, place, 'invalid_type');
}

/** A client's text for a message: its beginning, where it is long. */
export function cut(text: string): string {
  return text.length > 100 ? `${text.slice(0, 99)}…` : text;
}
