import { timingSafeEqual } from 'node:crypto';
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify';
import { ApiError } from '../http/errors.js';
import type { ServerSettings } from '../options.js';
import { Bucket } from './bucket.js';
import type { AnswerUsage, Caller } from './caller.js';
import { hashOfKey, type ServerKey } from './key.js';
import { readKeyFile } from './key-file.js';

/** What a key has used. It outlives the key's file being read again. */
interface Account {
  requests: Bucket | undefined;
  tokens: Bucket | undefined;
  running: number;
}

/** Who may ask, and how much. */
export class Access {
  readonly #file: string | undefined;
  readonly #perAddress: number | undefined;
  readonly #log: FastifyBaseLogger;
  #keys: readonly ServerKey[] | undefined;
  readonly #accounts = new Map<string, Account>();
  readonly #running = new Map<string, number>();

  constructor({ keys, limits }: Pick<ServerSettings, 'keys' | 'limits'>, log: FastifyBaseLogger) {
    this.#file = typeof keys === 'string' ? keys : undefined;
    this.#keys = typeof keys === 'string' ? readKeyFile(keys) : keys;
    this.#perAddress = limits.parallelPerAddress;
    this.#log = log;
  }

  get hasKeys(): boolean {
    return this.#keys !== undefined;
  }

  /** Reads the file of keys again. One that is wrong changes nothing, and is told in the log. */
  reload(): void {
    if (this.#file === undefined) return;
    try {
      this.#keys = readKeyFile(this.#file);
      this.#log.info({ keys: this.#keys.length }, 'the file of keys was read again');
    } catch (error) {
      this.#log.error({ err: error }, 'the file of keys is wrong: the keys stay as they were');
    }
  }

  /** Who a key's name stands for, for work that goes on after the request; undefined where the key is not valid any more. */
  callerOf(name: string): Caller | undefined {
    if (this.#keys === undefined) return NOBODY;
    const key = this.#keys.find((each) => each.name === name);
    if (!key || (key.expires !== undefined && key.expires <= Date.now())) return undefined;
    return this.#toCaller(key);
  }

  /** How many milliseconds a key has to wait until it may use more tokens. */
  msUntilTokens(name: string): number {
    const key = this.#keys?.find((each) => each.name === name);
    return (key && this.#accountOf(key).tokens?.msUntil(1, Date.now())) ?? 0;
  }

  /** Whose request it is. Throws ApiError 401. */
  identify(request: FastifyRequest): Caller {
    if (this.#keys === undefined) return NOBODY;
    const given = keyOf(request);
    if (given === undefined) {
      throw unauthorized(
        'You did not provide an API key: send it as the header `Authorization: Bearer KEY` or `x-api-key`.',
      );
    }
    const key = this.#find(given);
    if (!key) throw unauthorized('Incorrect API key provided.');
    if (key.expires !== undefined && key.expires <= Date.now()) throw unauthorized('The API key has expired.');
    return this.#toCaller(key);
  }

  #toCaller(key: ServerKey): Caller {
    const account = this.#accountOf(key);
    return {
      key: key.name,
      client: { key: key.name, weight: key.weight },
      allows: (model) => key.models === undefined || key.models.includes(model),
      used: ({ prompt, generated }: AnswerUsage) => account.tokens?.take(prompt + generated, Date.now()),
    };
  }

  /** Counts a request that computes, until its answer is over. Throws ApiError 429. */
  enter(request: FastifyRequest, reply: FastifyReply): void {
    const { key: name } = request.caller;
    if (name === undefined) {
      this.#enterAddress(request.ip, reply);
      return;
    }
    const key = this.#keys?.find((each) => each.name === name);
    if (!key) return;
    const account = this.#accountOf(key);
    const now = Date.now();
    if (key.parallel !== undefined && account.running >= key.parallel) {
      throw tooMany(`${key.parallel} requests of this key are being answered already, which is its limit.`, 1000);
    }
    const { requests, tokens } = account;
    if (requests && requests.left(now) < 1) {
      describe(reply, 'requests', requests, now);
      throw tooMany(`Rate limit reached for requests: ${requests.limit} a minute.`, requests.msUntil(1, now));
    }
    if (tokens && tokens.left(now) < 1) {
      describe(reply, 'tokens', tokens, now);
      throw tooMany(`Rate limit reached for tokens: ${tokens.limit} a minute.`, tokens.msUntil(1, now));
    }
    requests?.take(1, now);
    if (requests) describe(reply, 'requests', requests, now);
    if (tokens) describe(reply, 'tokens', tokens, now);
    account.running++;
    reply.raw.once('close', () => {
      account.running--;
    });
  }

  /** All keys are looked at, each in constant time: how long it takes tells nothing about where one is alike. */
  #find(given: string): ServerKey | undefined {
    const hash = hashOfKey(given);
    let found: ServerKey | undefined;
    for (const key of this.#keys ?? []) if (timingSafeEqual(key.hash, hash)) found = key;
    return found;
  }

  #enterAddress(address: string, reply: FastifyReply): void {
    const most = this.#perAddress;
    if (most === undefined) return;
    const running = this.#running.get(address) ?? 0;
    if (running >= most) {
      throw tooMany(`${most} requests of this address are being answered already, which is the limit.`, 1000);
    }
    this.#running.set(address, running + 1);
    reply.raw.once('close', () => {
      const left = (this.#running.get(address) ?? 1) - 1;
      if (left > 0) this.#running.set(address, left);
      else this.#running.delete(address);
    });
  }

  #accountOf({ name, requestsPerMinute, tokensPerMinute }: ServerKey): Account {
    let account = this.#accounts.get(name);
    if (!account) {
      account = { requests: undefined, tokens: undefined, running: 0 };
      this.#accounts.set(name, account);
    }
    account.requests = resized(account.requests, requestsPerMinute);
    account.tokens = resized(account.tokens, tokensPerMinute);
    return account;
  }
}

/** Everybody, where there are no keys. */
const NOBODY: Caller = { key: undefined, client: undefined, allows: () => true, used: () => {} };

function keyOf({ headers }: FastifyRequest): string | undefined {
  const { authorization } = headers;
  const bearer = authorization === undefined ? undefined : /^Bearer +(\S+) *$/i.exec(authorization)?.[1];
  const other = headers['x-api-key'];
  return bearer ?? (typeof other === 'string' && other !== '' ? other : undefined);
}

function resized(bucket: Bucket | undefined, limit: number | undefined): Bucket | undefined {
  if (limit === undefined) return undefined;
  if (!bucket) return new Bucket(limit, Date.now());
  if (bucket.limit !== limit) bucket.resize(limit);
  return bucket;
}

function unauthorized(message: string): ApiError {
  return new ApiError(message, { status: 401, code: 'invalid_api_key' });
}

function tooMany(message: string, ms: number): ApiError {
  const seconds = Math.max(1, Math.ceil(ms / 1000));
  return new ApiError(`${message} Try again in ${seconds} s.`, {
    status: 429,
    code: 'rate_limit_exceeded',
    retryAfter: seconds,
  });
}

/** OpenAI's headers, which clients slow down by. */
function describe(reply: FastifyReply, what: 'requests' | 'tokens', bucket: Bucket, now: number): void {
  reply.header(`x-ratelimit-limit-${what}`, String(bucket.limit));
  reply.header(`x-ratelimit-remaining-${what}`, String(Math.max(0, Math.floor(bucket.left(now)))));
  reply.header(`x-ratelimit-reset-${what}`, duration(bucket.msUntil(bucket.limit, now)));
}

/** `850ms`, `1.2s`, `2m3s` */
export function duration(ms: number): string {
  if (ms < 1000) return `${Math.ceil(ms)}ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${Math.round(seconds * 10) / 10}s`;
  const whole = Math.ceil(seconds);
  return `${Math.floor(whole / 60)}m${whole % 60}s`;
}
