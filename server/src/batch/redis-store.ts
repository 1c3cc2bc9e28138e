import { randomBytes } from 'node:crypto';
import { once } from 'node:events';

import type { FastifyBaseLogger } from 'fastify';
import { Redis, type RedisOptions } from 'ioredis';
import { ApiError } from '../http/errors.js';
import { KEEP_BATCH, noRoom, noSuchEntry, tooLarge } from './disk-store.js';
import {
  type BatchStatus,
  type Chunk,
  type Counts,
  type LineResult,
  nowSeconds,
  type StoredBatch,
  type StoredFile,
} from './records.js';
import type { Lease, Page, PageQuery, Staged, Store } from './store.js';

/** In braces, so that a cluster keeps all keys in one place, which scripts need. */
export const PREFIX = '{chatglm}';

/** How large the pieces of a file are. */
const PIECE_BYTES = 256 * 1024;

/** How long bytes are kept that no file was made of yet, in seconds. */
const KEEP_STAGED = 3600;

/** How long a server has a batch after it was last heard of. */
const LEASE_MS = 10_000;

/** How long a file stays after it has expired, in seconds: a batch that reads it may be under way. */
const KEEP_EXPIRED = 31 * 86_400;

const COMMIT_FILE = `
local function commit(json)
  local file = cjson.decode(json)
  local until_ = file.expires + ${KEEP_EXPIRED}
  redis.call('SET', '${PREFIX}:file:' .. file.id, json, 'EXAT', until_)
  for i = 0, math.ceil(file.bytes / ${PIECE_BYTES}) - 1 do
    redis.call('EXPIREAT', '${PREFIX}:data:' .. file.id .. ':' .. i, until_)
  end
  redis.call('ZADD', '${PREFIX}:files:' .. file.owner, redis.call('INCR', '${PREFIX}:seq'), file.id)
  redis.call('HSET', '${PREFIX}:sizes', file.id, file.bytes)
end
`;

/** Each runs as a whole, and nothing runs beside it. */
const SCRIPTS = {
  addFile: `${COMMIT_FILE} commit(ARGV[1])`,
  deleteFile: `
    local file = redis.call('GET', '${PREFIX}:file:' .. ARGV[1])
    if not file then return 'absent' end
    for _, id in ipairs(redis.call('ZRANGE', '${PREFIX}:unfinished', 0, -1)) do
      local batch = redis.call('GET', '${PREFIX}:batch:' .. id)
      if batch and cjson.decode(batch).input == ARGV[1] then return 'in use' end
    end
    redis.call('DEL', '${PREFIX}:file:' .. ARGV[1])
    redis.call('ZREM', '${PREFIX}:files:' .. cjson.decode(file).owner, ARGV[1])
    redis.call('HDEL', '${PREFIX}:sizes', ARGV[1])
    return 'deleted'`,
  addBatch: `
    local batch = cjson.decode(ARGV[1])
    if redis.call('EXISTS', '${PREFIX}:file:' .. batch.input) == 0 then return 0 end
    local seq = redis.call('INCR', '${PREFIX}:seq')
    redis.call('SET', '${PREFIX}:batch:' .. batch.id, ARGV[1])
    redis.call('ZADD', '${PREFIX}:batches:' .. batch.owner, seq, batch.id)
    redis.call('ZADD', '${PREFIX}:unfinished', seq, batch.id)
    return 1`,
  /** Keeps a batch if it still is what it was, and opens or closes it for answers. */
  replaceBatch: `
    local key = '${PREFIX}:batch:' .. ARGV[1]
    if redis.call('GET', key) ~= ARGV[2] then return 0 end
    redis.call('SET', key, ARGV[3])
    if ARGV[4] == '1' then redis.call('SET', '${PREFIX}:open:' .. ARGV[1], 1)
    else redis.call('DEL', '${PREFIX}:open:' .. ARGV[1]) end
    return 1`,
  setChunks: `
    local batch = redis.call('GET', '${PREFIX}:batch:' .. ARGV[1])
    if batch and cjson.decode(batch).status == 'validating' then
      redis.call('SET', '${PREFIX}:chunks:' .. ARGV[1], ARGV[2])
    end`,
  finish: `${COMMIT_FILE}
    local key = '${PREFIX}:batch:' .. ARGV[1]
    local now = redis.call('GET', key)
    if not now or cjson.decode(now).status ~= ARGV[2] then return 0 end
    for i = 5, #ARGV do commit(ARGV[i]) end
    redis.call('SET', key, ARGV[3], 'EX', ARGV[4])
    redis.call('ZREM', '${PREFIX}:unfinished', ARGV[1])
    for _, what in ipairs({'open', 'chunks', 'results', 'counts'}) do
      redis.call('UNLINK', '${PREFIX}:' .. what .. ':' .. ARGV[1])
    end
    return 1`,
  put: `
    if redis.call('EXISTS', '${PREFIX}:open:' .. ARGV[1]) == 0 then return 0 end
    for i = 2, #ARGV, 2 do
      if redis.call('HSETNX', '${PREFIX}:results:' .. ARGV[1], ARGV[i], ARGV[i + 1]) == 1 then
        local kind = string.sub(ARGV[i + 1], 1, 1) == '+' and 'completed' or 'failed'
        redis.call('HINCRBY', '${PREFIX}:counts:' .. ARGV[1], kind, 1)
      end
    end
    return 1`,
  renewLease: `
    if redis.call('GET', '${PREFIX}:lease:' .. ARGV[1]) ~= ARGV[2] then return 0 end
    return redis.call('PEXPIRE', '${PREFIX}:lease:' .. ARGV[1], ARGV[3])`,
  releaseLease: `
    if redis.call('GET', '${PREFIX}:lease:' .. ARGV[1]) ~= ARGV[2] then return 0 end
    return redis.call('DEL', '${PREFIX}:lease:' .. ARGV[1])`,
} as const;

/** A connection that tells of trouble in the log, once for each time that it is lost. */
export function connectRedis(url: string, log: FastifyBaseLogger, options: RedisOptions = {}): Redis {
  const redis = new Redis(url, { retryStrategy: (times) => Math.min(50 * 2 ** times, 2000), ...options });
  let isTold = false;
  redis.on('error', (error) => {
    if (!isTold) log.warn({ err: error }, 'Redis cannot be reached; it is tried again');
    isTold = true;
  });
  redis.on('ready', () => {
    isTold = false;
  });
  return redis;
}

/** Ends a connection, and waits until it has ended. */
export async function disconnect(redis: Redis): Promise<void> {
  // Between two attempts there is no connection that could end.
  const hasConnection = redis.status !== 'end' && redis.status !== 'reconnecting';
  const ended = hasConnection ? once(redis, 'end') : undefined;
  redis.disconnect();
  await ended;
}

/** Files and batches in a Redis that several servers and workers share. */
export class RedisStore implements Store {
  readonly #redis: Redis;
  readonly #most: number;

  /** @param most How many bytes all files together may have. */
  constructor(url: string, most: number, log: FastifyBaseLogger) {
    // A request learns soon that Redis is away; work that goes on by itself tries again.
    this.#redis = connectRedis(url, log, { maxRetriesPerRequest: 3 });
    this.#most = most;
  }

  async #call<T>(run: (redis: Redis) => Promise<T>): Promise<T> {
    try {
      return await run(this.#redis);
    } catch (cause) {
      if (cause instanceof ApiError) throw cause;
      throw new ApiError('Files and batches are not available: their store cannot be reached.', {
        status: 503,
        code: 'store_unavailable',
        retryAfter: 5,
        cause,
      });
    }
  }

  async #script(name: keyof typeof SCRIPTS, ...values: (string | number)[]): Promise<unknown> {
    return await this.#call((redis) => redis.eval(SCRIPTS[name], 0, ...values));
  }

  async stage(source: AsyncIterable<Buffer>, most: number): Promise<Staged> {
    const staged = { id: `file-${randomBytes(16).toString('hex')}`, bytes: 0 };
    const sizes = await this.#call((redis) => redis.hvals(`${PREFIX}:sizes`));
    const used = sizes.reduce((sum, size) => sum + Number(size), 0);
    let pieces = 0;
    const write = (piece: Buffer) =>
      this.#call((redis) => redis.set(`${PREFIX}:data:${staged.id}:${pieces++}`, piece, 'EX', KEEP_STAGED));
    try {
      let kept: Buffer[] = [];
      let length = 0;
      for await (const buffer of source) {
        staged.bytes += buffer.length;
        if (staged.bytes > most) throw tooLarge(most);
        if (used + staged.bytes > this.#most) throw noRoom(this.#most);
        kept.push(buffer);
        length += buffer.length;
        if (length < PIECE_BYTES) continue;
        let whole = Buffer.concat(kept);
        for (; whole.length >= PIECE_BYTES; whole = whole.subarray(PIECE_BYTES)) {
          await write(whole.subarray(0, PIECE_BYTES));
        }
        kept = [whole];
        length = whole.length;
      }
      if (length > 0) await write(Buffer.concat(kept));
    } catch (error) {
      await this.discard(staged).catch(() => {});
      throw error;
    }
    return staged;
  }

  async discard(staged: Staged): Promise<void> {
    await this.#call((redis) => this.#unlinkData(redis, staged));
  }

  async #unlinkData(redis: Redis, { id, bytes }: Staged): Promise<void> {
    const pieces = Math.ceil(bytes / PIECE_BYTES);
    for (let i = 0; i < pieces; i++) await redis.unlink(`${PREFIX}:data:${id}:${i}`);
  }

  async addFile(file: StoredFile): Promise<void> {
    await this.#script('addFile', JSON.stringify(file));
  }

  async file(id: string): Promise<StoredFile | undefined> {
    const text = await this.#call((redis) => redis.get(`${PREFIX}:file:${id}`));
    const file = text === null ? undefined : (JSON.parse(text) as StoredFile);
    return file && file.expires > nowSeconds() ? file : undefined;
  }

  async files(owner: string, query: PageQuery): Promise<Page<StoredFile>> {
    const now = nowSeconds();
    const { purpose } = query;
    return await this.#page<StoredFile>(
      'file',
      `${PREFIX}:files:${owner}`,
      query,
      (file) => file.expires > now && (purpose === undefined || file.purpose === purpose),
    );
  }

  async #page<T>(
    what: 'file' | 'batch',
    index: string,
    { after, limit, order }: PageQuery,
    isWanted: (record: T) => boolean,
  ): Promise<Page<T>> {
    return await this.#call(async (redis) => {
      let rank = 0;
      if (after !== undefined) {
        const found = order === 'asc' ? await redis.zrank(index, after) : await redis.zrevrank(index, after);
        if (found === null) throw noSuchEntry(after);
        rank = found + 1;
      }
      const data: T[] = [];
      for (;;) {
        const last = rank + limit;
        const ids = order === 'asc' ? await redis.zrange(index, rank, last) : await redis.zrevrange(index, rank, last);
        if (ids.length === 0) return { data, hasMore: false };
        const texts = await redis.mget(ids.map((id) => `${PREFIX}:${what}:${id}`));
        for (const [i, text] of texts.entries()) {
          if (text === null) {
            await redis.zrem(index, ids[i] as string);
            continue;
          }
          const record = JSON.parse(text) as T;
          if (!isWanted(record)) continue;
          if (data.length === limit) return { data, hasMore: true };
          data.push(record);
        }
        rank += texts.filter((text) => text !== null).length;
      }
    });
  }

  async deleteFile(id: string): Promise<'deleted' | 'in use' | 'absent'> {
    const file = await this.file(id);
    const outcome = (await this.#script('deleteFile', id)) as 'deleted' | 'in use' | 'absent';
    if (outcome === 'deleted' && file) await this.discard(file);
    return outcome;
  }

  async *read(id: string, start = 0, end = Number.MAX_SAFE_INTEGER): AsyncIterable<Buffer> {
    const text = await this.#call((redis) => redis.get(`${PREFIX}:file:${id}`));
    if (text === null) throw new Error(`the file ${id} has gone`);
    const last = Math.min(end, (JSON.parse(text) as StoredFile).bytes);
    for (let at = start; at < last; ) {
      const piece = Math.floor(at / PIECE_BYTES);
      const from = at - piece * PIECE_BYTES;
      const to = Math.min(PIECE_BYTES, last - piece * PIECE_BYTES);
      const bytes = await this.#call((redis) => redis.getrangeBuffer(`${PREFIX}:data:${id}:${piece}`, from, to - 1));
      if (bytes.length !== to - from) throw new Error(`a part of the file ${id} has gone`);
      yield bytes;
      at += bytes.length;
    }
  }

  async addBatch(batch: StoredBatch): Promise<boolean> {
    return (await this.#script('addBatch', JSON.stringify(batch))) === 1;
  }

  async batch(id: string): Promise<StoredBatch | undefined> {
    const text = await this.#call((redis) => redis.get(`${PREFIX}:batch:${id}`));
    return text === null ? undefined : (JSON.parse(text) as StoredBatch);
  }

  async batches(owner: string, query: PageQuery): Promise<Page<StoredBatch>> {
    return await this.#page<StoredBatch>('batch', `${PREFIX}:batches:${owner}`, query, () => true);
  }

  async update(id: string, change: (batch: StoredBatch) => StoredBatch | undefined): Promise<StoredBatch | undefined> {
    for (;;) {
      const text = await this.#call((redis) => redis.get(`${PREFIX}:batch:${id}`));
      const batch = text === null ? undefined : (JSON.parse(text) as StoredBatch);
      const next = batch && change(batch);
      if (!next) return batch;
      const isOpen = next.status === 'in_progress' ? '1' : '0';
      const isDone = await this.#script('replaceBatch', id, text as string, JSON.stringify(next), isOpen);
      if (isDone === 1) return next;
    }
  }

  async finish(batch: StoredBatch, from: BatchStatus, files: readonly StoredFile[]): Promise<boolean> {
    const texts = files.map((file) => JSON.stringify(file));
    if ((await this.#script('finish', batch.id, from, JSON.stringify(batch), KEEP_BATCH, ...texts)) === 1) return true;
    // A connection that was lost behind the first attempt sends it once more: then this end is the one that is there.
    const now = await this.batch(batch.id);
    return now?.status === batch.status && now.output === batch.output && now.errorFile === batch.errorFile;
  }

  async unfinished(): Promise<string[]> {
    return await this.#call((redis) => redis.zrange(`${PREFIX}:unfinished`, 0, -1));
  }

  async lease(id: string): Promise<Lease | undefined> {
    const token = randomBytes(16).toString('hex');
    const key = `${PREFIX}:lease:${id}`;
    if ((await this.#call((redis) => redis.set(key, token, 'PX', LEASE_MS, 'NX'))) !== 'OK') return undefined;
    const lost = new AbortController();
    let renewed = performance.now();
    const renew = setInterval(async () => {
      const asked = performance.now();
      try {
        if ((await this.#script('renewLease', id, token, LEASE_MS)) === 1) renewed = asked;
        else lost.abort();
      } catch {
        // Redis is away, and nobody can take the lease meanwhile; when it is back, the lease may be another's.
        if (performance.now() - renewed > LEASE_MS) lost.abort();
      }
      if (lost.signal.aborted) clearInterval(renew);
    }, LEASE_MS / 4).unref();
    const release = async () => {
      clearInterval(renew);
      await this.#script('releaseLease', id, token);
    };
    return { lost: lost.signal, release };
  }

  async setChunks(id: string, chunks: readonly Chunk[]): Promise<void> {
    await this.#script('setChunks', id, JSON.stringify(chunks));
  }

  async chunks(id: string): Promise<Chunk[]> {
    const text = await this.#call((redis) => redis.get(`${PREFIX}:chunks:${id}`));
    return text === null ? [] : (JSON.parse(text) as Chunk[]);
  }

  async put(id: string, results: readonly LineResult[]): Promise<boolean> {
    const values = results.flatMap(({ line, isOk, text }) => [line, (isOk ? '+' : '-') + text]);
    return (await this.#script('put', id, ...values)) === 1;
  }

  async results(id: string, first: number, count: number): Promise<(LineResult | undefined)[]> {
    const lines = Array.from({ length: count }, (_, i) => String(first + i));
    const found = await this.#call((redis) => redis.hmget(`${PREFIX}:results:${id}`, ...lines));
    return found.map((value, i) =>
      value === null ? undefined : { line: first + i, isOk: value.startsWith('+'), text: value.slice(1) },
    );
  }

  async answered(id: string, first: number, count: number): Promise<boolean[]> {
    const replies = await this.#call(async (redis) => {
      const pipeline = redis.pipeline();
      for (let i = 0; i < count; i++) pipeline.hexists(`${PREFIX}:results:${id}`, String(first + i));
      return await pipeline.exec();
    });
    return (replies ?? []).map(([error, found]) => {
      if (error) throw error;
      return found === 1;
    });
  }

  async counts(id: string): Promise<Counts> {
    const { completed = '0', failed = '0' } = await this.#call((redis) => redis.hgetall(`${PREFIX}:counts:${id}`));
    return { completed: Number(completed), failed: Number(failed) };
  }

  /** Tells which models a worker has, for as long as it does so every few seconds. */
  async tellModels(models: readonly string[], ms: number): Promise<void> {
    const until = Date.now() + ms;
    if (models.length === 0) return;
    await this.#call((redis) => redis.zadd(`${PREFIX}:models`, ...models.flatMap((model) => [until, model])));
  }

  /** The models that workers have. */
  async models(): Promise<string[]> {
    return await this.#call((redis) => redis.zrangebyscore(`${PREFIX}:models`, Date.now(), '+inf'));
  }

  /** Redis deletes by itself what has expired; what remains is to count it no more, and to free its room at once. */
  async sweep(): Promise<void> {
    const now = nowSeconds();
    await this.#call(async (redis) => {
      await redis.zremrangebyscore(`${PREFIX}:models`, '-inf', Date.now() - 86_400_000);
      for (const id of await redis.hkeys(`${PREFIX}:sizes`)) {
        const text = await redis.get(`${PREFIX}:file:${id}`);
        if (text === null) await redis.hdel(`${PREFIX}:sizes`, id);
        else if ((JSON.parse(text) as StoredFile).expires <= now) await this.deleteFile(id);
      }
    });
  }

  async close(): Promise<void> {
    await disconnect(this.#redis);
  }
}
