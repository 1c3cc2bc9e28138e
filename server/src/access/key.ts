import { createHash, randomBytes } from 'node:crypto';
import { integerOption, invalidArgument, numberOption, readOptions, show, textsOption } from '../checks.js';

/** A key of a server. */
export interface KeyOptions {
  /** Whose it is: in logs, and what the engine shares the machine by. */
  name: string;
  /** The key itself, of at least 16 characters. The server keeps its hash only. Default: none, where `hash` is given. */
  key?: string | undefined;
  /** The SHA-256 of the key, in hexadecimal digits. Default: that of `key`. */
  hash?: string | undefined;
  /** So many times as many tokens as a key of weight 1 gets while requests wait, 0.001 to 1,000. Default: 1. */
  weight?: number | undefined;
  /** The most requests within a minute. Default: no limit. */
  requestsPerMinute?: number | undefined;
  /** The most tokens, of prompts and answers, within a minute. Default: no limit. */
  tokensPerMinute?: number | undefined;
  /** The most requests that are answered at a time. Default: no limit. */
  parallel?: number | undefined;
  /** The models that may be asked. Default: all. */
  models?: readonly string[] | undefined;
  /** When the key ends. Default: never. */
  expires?: Date | string | undefined;
}

/** A key as the server has it. */
export interface ServerKey {
  name: string;
  /**
   * SHA-256 of the key. Keys are 256 random bits: nobody finds one by trying, so that a slow hash, which passwords need,
   * would only cost time with each request.
   */
  hash: Buffer;
  weight: number;
  requestsPerMinute: number | undefined;
  tokensPerMinute: number | undefined;
  parallel: number | undefined;
  models: readonly string[] | undefined;
  /** Milliseconds since 1970. */
  expires: number | undefined;
}

const KEY_OPTIONS = [
  'name',
  'key',
  'hash',
  'weight',
  'requestsPerMinute',
  'tokensPerMinute',
  'parallel',
  'models',
  'expires',
] as const satisfies readonly (keyof KeyOptions)[];

export function hashOfKey(key: string): Buffer {
  return createHash('sha256').update(key, 'utf8').digest();
}

/** A new key: 256 random bits. */
export function createKey(): string {
  return `sk-chatglm-${randomBytes(32).toString('base64url')}`;
}

export function toServerKey(what: string, given: unknown): ServerKey {
  const set = readOptions<KeyOptions>(what, given, KEY_OPTIONS);
  const { name, key, hash } = set;
  if (typeof name !== 'string' || !/^[\w.@-]{1,100}$/.test(name)) {
    throw invalidArgument(`${what}: name must be 1 to 100 letters, digits, _ . @ or -, got ${show(name)}`);
  }
  if ((key === undefined) === (hash === undefined)) {
    throw invalidArgument(`${what} must have either key, the key itself, or hash, its SHA-256`);
  }
  // What is wrong is never shown: it may be most of a key.
  if (key !== undefined && (typeof key !== 'string' || !/^[\x21-\x7e]{16,512}$/.test(key))) {
    throw invalidArgument(`${what}: key must be 16 to 512 visible ASCII characters`);
  }
  if (hash !== undefined && (typeof hash !== 'string' || !/^[\da-f]{64}$/i.test(hash))) {
    throw invalidArgument(`${what}: hash must be the 64 hexadecimal digits of a SHA-256`);
  }
  return {
    name,
    hash: key === undefined ? Buffer.from(hash as string, 'hex') : hashOfKey(key),
    weight: numberOption(`${what}: weight`, set.weight, 1, { least: 1e-3, most: 1e3 }),
    requestsPerMinute: integerOption(`${what}: requestsPerMinute`, set.requestsPerMinute, undefined, { least: 1 }),
    tokensPerMinute: integerOption(`${what}: tokensPerMinute`, set.tokensPerMinute, undefined, { least: 1 }),
    parallel: integerOption(`${what}: parallel`, set.parallel, undefined, { least: 1 }),
    models: set.models === undefined ? undefined : textsOption(`${what}: models`, set.models),
    expires: expiryOf(what, set.expires),
  };
}

function expiryOf(what: string, value: unknown): number | undefined {
  if (value === undefined) return undefined;
  const time = value instanceof Date ? value.getTime() : typeof value === 'string' ? Date.parse(value) : Number.NaN;
  if (Number.isFinite(time)) return time;
  throw invalidArgument(`${what}: expires must be a date such as 2030-12-31, got ${show(value)}`);
}
