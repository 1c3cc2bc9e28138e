import { invalidArgument } from './errors.js';

/** Refuses what is no object of options, and options that do not exist: a misspelt one must not be silently without effect. */
export function checkOptions(options: unknown, known: readonly string[], what: string): void {
  const prototype = options !== null && typeof options === 'object' ? Object.getPrototypeOf(options) : undefined;
  // An object of another realm has another Object.prototype, which has no prototype either.
  if (prototype === undefined || (prototype !== null && Object.getPrototypeOf(prototype) !== null)) {
    throw invalidArgument(`the options of ${what} must be an object, got ${show(options)}`);
  }
  for (const name of Object.keys(options as object)) {
    if (!known.includes(name)) throw invalidArgument(`${what} has no option ${name}; there are ${known.join(', ')}`);
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

export function signalOption(value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined;
  // By its shape: a signal of another realm is no instance of this one's AbortSignal.
  const signal = value as Partial<AbortSignal> | null;
  if (typeof signal?.aborted === 'boolean' && typeof signal.addEventListener === 'function')
    return value as AbortSignal;
  throw invalidArgument(`signal must be an AbortSignal, got ${show(value)}`);
}

export function checkPath(name: string, value: unknown): void {
  if (typeof value === 'string' && value !== '') return;
  throw invalidArgument(`${name} must be the path of a file or directory, got ${show(value)}`);
}

/** Token ids as native code takes them. */
export function tokenIds(name: string, value: unknown, most = 0xffff_ffff): Uint32Array {
  if (value === null || typeof value !== 'object' || typeof (value as ArrayLike<number>).length !== 'number') {
    throw invalidArgument(`${name} must be an array of token ids, got ${show(value)}`);
  }
  const ids = value as ArrayLike<unknown>;
  const result = new Uint32Array(ids.length);
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i];
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id > most) {
      throw invalidArgument(`${name}[${i}] must be a token id from 0 to ${most}, got ${show(id)}`);
    }
    result[i] = id;
  }
  return result;
}

function describe({ least, most, above }: Range): string {
  const hasMost = most !== undefined && most !== Number.MAX_SAFE_INTEGER;
  if (least === undefined) return hasMost ? ` of at most ${most}` : '';
  if (above) return hasMost ? ` above ${least} and at most ${most}` : ` above ${least}`;
  return hasMost ? ` from ${least} to ${most}` : ` of at least ${least}`;
}

export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  if (Array.isArray(value)) return 'an array';
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}
