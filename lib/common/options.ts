import { fileURLToPath } from 'node:url';
import { ChatGLMError, invalidArgument } from './errors.js';
import { shown } from './invalid.js';

/** Options as callers may give them: null, which JSON has for "not set", is as good as leaving an option out. */
export type Nullable<T> = { [K in keyof T]: undefined extends T[K] ? T[K] | null : T[K] };

/** Options that were read: those that are not set are absent. */
export type Settings<T> = { [K in keyof T]?: NonNullable<T[K]> };

/** A path as Node's own functions take it: text, a `file:` URL, or UTF-8 bytes. */
export type FilePath = string | URL | Uint8Array;

/**
 * Reads an object of options, each of them once: what the caller, a getter or a proxy does later changes nothing. Options
 * that do not exist are refused unless they are not set: a misspelt one must not be silently without effect.
 *
 * @param what Whose options they are, as errors say it: `loadModel()`.
 */
export function readOptions<T extends object>(
  options: unknown,
  known: readonly (keyof T & string)[],
  what: string,
): Settings<T> {
  return reading(`the options of ${what}`, () => {
    if (!isPlainObject(options))
      throw invalidArgument(`the options of ${what} must be an object, got ${show(options)}`);
    const names: readonly string[] = known;
    const set: Record<string, unknown> = {};
    for (const name of Object.keys(options)) {
      const value = options[name];
      if (value === undefined || value === null) continue;
      if (!names.includes(name)) {
        throw invalidArgument(`${what} has no option ${short(name)}; there are ${names.join(', ')}`);
      }
      set[name] = value;
    }
    return set as Settings<T>;
  });
}

/** Runs `read`, which looks into a value from outside: whatever a getter or a proxy throws becomes an error that names it. */
export function reading<T>(name: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof ChatGLMError) throw error;
    throw invalidArgument(`${name} cannot be read: ${messageOf(error)}`, error);
  }
}

/** What was thrown, as a message can go on with it. By its shape: an error of another realm is no instance of this one's. */
export function messageOf(thrown: unknown): string {
  try {
    const { message } = thrown as Error;
    if (typeof message === 'string') return short(message);
  } catch {
    // Anything may be thrown, also what cannot be looked at.
  }
  return show(thrown);
}

/** Whether the value is an object of plain data and no instance of a class. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  try {
    const prototype: unknown = Object.getPrototypeOf(value);
    // An object of another realm has another Object.prototype, which has no prototype either.
    return !Array.isArray(value) && (prototype === null || Object.getPrototypeOf(prototype) === null);
  } catch {
    return false; // a proxy that throws
  }
}

interface Range {
  least?: number;
  most?: number;
  /** Whether `least` itself is excluded. */
  above?: boolean;
}

/** A finite number, or the default where it is undefined. */
export function numberOption(name: string, value: unknown, fallback: number, range: Range = {}): number {
  if (value === undefined) return fallback;
  const { least = Number.NEGATIVE_INFINITY, most = Number.POSITIVE_INFINITY, above = false } = range;
  if (typeof value === 'number' && Number.isFinite(value) && value <= most) {
    if (above ? value > least : value >= least) return value;
  }
  throw invalidArgument(`${name} must be a number${describe(range)}, got ${show(value)}`);
}

/** A whole number, or the default where it is undefined. */
export function integerOption<T>(name: string, value: unknown, fallback: T, range: Range = {}): number | T {
  if (value === undefined) return fallback;
  const { least = 0, most = Number.MAX_SAFE_INTEGER } = range;
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw invalidArgument(`${name} must be a whole number${describe({ least, most })}, got ${show(value)}`);
}

/** One of the choices, or the default where it is undefined. */
export function choiceOption<T extends string, F extends string = T>(
  name: string,
  value: unknown,
  choices: readonly T[],
  fallback: F,
): T | F {
  if (value === undefined) return fallback;
  if (choices.includes(value as T)) return value as T;
  throw invalidArgument(`${name} must be one of ${choices.join(', ')}, got ${show(value)}`);
}

/** `cuda`, `cuda:N` or one of `others`. */
export function deviceOption(value: unknown, others: readonly string[], fallback: string): string {
  if (value === undefined) return fallback;
  if (typeof value === 'string' && (others.includes(value) || /^cuda(:(0|[1-9]\d{0,2}))?$/.test(value))) return value;
  throw invalidArgument(`device must be ${[...others, 'cuda'].join(', ')} or cuda:N, got ${show(value)}`);
}

export function booleanOption(name: string, value: unknown, fallback: boolean): boolean {
  if (value === undefined) return fallback;
  if (typeof value === 'boolean') return value;
  throw invalidArgument(`${name} must be true or false, got ${show(value)}`);
}

export function functionOption<F extends (...args: never[]) => unknown>(
  name: string,
  value: F | undefined,
): F | undefined {
  if (value === undefined || typeof value === 'function') return value;
  throw invalidArgument(`${name} must be a function, got ${show(value)}`);
}

export function signalOption(value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  // By its shape: a signal of another realm is no instance of this one's AbortSignal.
  const isSignal = reading('signal', () => {
    const signal = value as Partial<AbortSignal> | null;
    return typeof signal?.aborted === 'boolean' && typeof signal.addEventListener === 'function';
  });
  if (isSignal) return value as AbortSignal;
  throw invalidArgument(`signal must be an AbortSignal, got ${show(value)}`);
}

/** Windows' limit; other systems have shorter paths. */
const MOST_PATH = 32_767;

/** The text of a path that may also be a `file:` URL, as an object or a string, or UTF-8 bytes. */
export function toPath(name: string, value: unknown): string {
  const path = reading(name, () => {
    if (typeof value === 'string') return /^[a-z][a-z\d+.-]+:\/\//i.test(value) ? pathOfUrl(name, value) : value;
    // By what they are, not by their class: values of another realm are no instances of this one's.
    if (isBytes(value)) return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(value);
    const { href, protocol } = (value ?? {}) as Partial<URL>;
    if (typeof href === 'string' && typeof protocol === 'string') return pathOfUrl(name, href);
    return undefined;
  });
  if (path === undefined || path === '') {
    throw invalidArgument(`${name} must be the path of a file or directory, got ${show(value)}`);
  }
  if (path.length > MOST_PATH) throw invalidArgument(`${name} has ${path.length} characters; no path is that long`);
  if (path.includes('\0')) throw invalidArgument(`${name} has a null character, which no path has: ${show(path)}`);
  return path;
}

function isBytes(value: unknown): value is Uint8Array {
  return ArrayBuffer.isView(value) && Object.prototype.toString.call(value) === '[object Uint8Array]';
}

function pathOfUrl(name: string, url: string): string {
  if (/^file:/i.test(url)) return fileURLToPath(url);
  throw invalidArgument(`${name} must be a path or a file: URL, got ${show(url)}: download it first`);
}

/** No array of JavaScript's own is longer. */
const MOST_ELEMENTS = 2 ** 32 - 1;

/** The length of what should be an array of token ids, before anything is allocated for it. */
export function countOfIds(name: string, value: unknown): number {
  const length = reading(name, () => {
    if (value === null || typeof value !== 'object') return undefined;
    return (value as ArrayLike<unknown>).length;
  });
  if (typeof length !== 'number') throw invalidArgument(`${name} must be an array of token ids, got ${show(value)}`);
  if (Number.isInteger(length) && length >= 0 && length <= MOST_ELEMENTS) return length;
  throw invalidArgument(`${name} must be an array of token ids, got one of the length ${length}`);
}

/** Token ids as native code takes them. */
export function tokenIds(name: string, value: unknown, most = 0xffff_ffff): Uint32Array {
  const count = countOfIds(name, value);
  return reading(name, () => {
    const ids = value as ArrayLike<unknown>;
    const result = allocated(count * Uint32Array.BYTES_PER_ELEMENT, () => new Uint32Array(count));
    for (let i = 0; i < count; i++) {
      const id = ids[i];
      if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > most) {
        throw invalidArgument(`${name}[${i}] must be a token id from 0 to ${most}, got ${show(id)}`);
      }
      result[i] = id;
    }
    return result;
  });
}

/** What `allocate` makes; JavaScript's own refusal becomes ERR_OUT_OF_MEMORY. */
export function allocated<T>(bytes: number, allocate: () => T): T {
  try {
    return allocate();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new ChatGLMError(
      'ERR_OUT_OF_MEMORY',
      `no memory for an array of ${bytes} bytes`,
      { wantedBytes: bytes },
      error,
    );
  }
}

function describe({ least, most, above }: Range): string {
  const hasMost = most !== undefined && most !== Number.MAX_SAFE_INTEGER;
  if (least === undefined) return hasMost ? ` of at most ${most}` : '';
  if (above) return hasMost ? ` above ${least} and at most ${most}` : ` above ${least}`;
  return hasMost ? ` from ${least} to ${most}` : ` of at least ${least}`;
}

/** The beginning of a text that may have any length. */
function short(text: string): string {
  return shown(text.slice(0, 101));
}

/** A value as a message names it: short, whatever it is, and without running any code of it. */
export function show(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.length <= 100
        ? JSON.stringify(value)
        : `${JSON.stringify(short(value))} (${value.length} characters)`;
    case 'bigint':
      return BigInt.asIntN(64, value) === value ? `${value}n (a bigint)` : 'a bigint';
    case 'symbol':
    case 'function':
      return `a ${typeof value}`;
    case 'object':
      return value === null ? 'null' : showObject(value);
    default:
      return String(value);
  }
}

function showObject(value: object): string {
  try {
    if (Array.isArray(value)) return 'an array';
    if (isPlainObject(value)) return 'an object';
    // A getter is not called.
    const made: unknown = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(value), 'constructor')?.value;
    const name: unknown = typeof made === 'function' && Object.getOwnPropertyDescriptor(made, 'name')?.value;
    return typeof name === 'string' && name !== '' ? `an instance of ${short(name)}` : 'an object';
  } catch {
    return 'an object'; // a proxy that throws
  }
}
