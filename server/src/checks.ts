import { ChatGLMError } from 'node-chatglm';

/** An option that is wrong, in the words of the facade's own errors. */
export function invalidArgument(message: string, cause?: unknown): ChatGLMError {
  return new ChatGLMError('ERR_INVALID_ARGUMENT', message, {}, cause);
}

/** A value as a message names it: short, and without running any code of it. */
export function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value.length > 100 ? `${value.slice(0, 100)}…` : value);
  if (Array.isArray(value)) return 'an array';
  if (value === null) return 'null';
  return typeof value === 'object' || typeof value === 'function' ? `a value of type ${typeof value}` : String(value);
}

export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

/** The options that are set. One that does not exist is refused: a misspelt one must not be silently without effect. */
export function readOptions<T extends object>(
  what: string,
  options: unknown,
  known: readonly (keyof T & string)[],
): { [K in keyof T]?: NonNullable<T[K]> } {
  if (!isPlainObject(options)) throw invalidArgument(`${what} must be an object, got ${show(options)}`);
  const set: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null) continue;
    if (!(known as readonly string[]).includes(name)) {
      throw invalidArgument(`${what} has no option ${show(name)}; there are ${known.join(', ')}`);
    }
    set[name] = value;
  }
  return set as { [K in keyof T]?: NonNullable<T[K]> };
}

interface Range {
  least?: number;
  most?: number;
}

/** A whole number, or the default where it is undefined. */
export function integerOption<T>(name: string, value: unknown, fallback: T, range: Range = {}): number | T {
  if (value === undefined) return fallback;
  const { least = 0, most = Number.MAX_SAFE_INTEGER } = range;
  if (Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most) return value as number;
  const limits = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
  throw invalidArgument(`${name} must be a whole number ${limits}, got ${show(value)}`);
}

/** A number, or the default where it is undefined. */
export function numberOption(name: string, value: unknown, fallback: number, { least = 0, most = 1e9 }: Range): number {
  if (value === undefined) return fallback;
  if (typeof value === 'number' && value >= least && value <= most) return value;
  throw invalidArgument(`${name} must be a number from ${least} to ${most}, got ${show(value)}`);
}

export function booleanOption(name: string, value: unknown, fallback: boolean): boolean {
  if (value === undefined) return fallback;
  if (typeof value === 'boolean') return value;
  throw invalidArgument(`${name} must be true or false, got ${show(value)}`);
}

export function textOption<T>(name: string, value: unknown, fallback: T): string | T {
  if (value === undefined) return fallback;
  if (typeof value === 'string' && value !== '') return value;
  throw invalidArgument(`${name} must be a text that is not empty, got ${show(value)}`);
}

/** Texts, each not empty. */
export function textsOption(name: string, value: unknown): readonly string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw invalidArgument(`${name} must be an array of texts, got ${show(value)}`);
  return value.map((text, i) => textOption(`${name}[${i}]`, text ?? '', ''));
}
