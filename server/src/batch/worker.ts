import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Job, Worker } from 'bullmq';
import type { FastifyBaseLogger, FastifyInstance } from 'fastify';
import type { Redis } from 'ioredis';
import type { Caller } from '../access/caller.js';
import { type ChunkJob, queueNameOf } from './bull-queue.js';
import { executeLine } from './execute.js';
import { linesOf } from './lines.js';
import type { StoredBatch } from './records.js';
import { connectRedis, disconnect, PREFIX, RedisStore } from './redis-store.js';
import { Slots } from './slots.js';
import { parseRequest } from './validate.js';

/** A worker that was not heard of for so long has lost its lines, which others get. */
const LOCK_MS = 10_000;
const LOOK_FOR_LOST_MS = 5_000;

/** Lines that workers ended with so many times are not tried again. */
const MOST_LOSSES = 20;

/** How often a worker tells which models it has, and how long that holds. */
const TELL_MS = 5_000;
const TOLD_MS = 20_000;

/** How often it is looked whether a batch still wants its answers. */
const LOOK_MS = 1_000;

export interface WorkerOptions {
  /** Has the routes that answer. */
  app: FastifyInstance;
  redis: string;
  /** All names of the models that this worker has. */
  models: readonly string[];
  /** The most lines that are answered at a time. */
  concurrency: number;
  log: FastifyBaseLogger;
}

/** Answers lines of batches that it gets from a Redis. */
export class BatchWorker {
  readonly #options: WorkerOptions;
  readonly #store: RedisStore;
  readonly #redis: Redis;
  readonly #slots: Slots;
  readonly #workers: Worker<ChunkJob>[] = [];
  readonly #closing = new AbortController();
  readonly #cut = new AbortController();
  #telling: NodeJS.Timeout | undefined;

  constructor(options: WorkerOptions) {
    this.#options = options;
    this.#store = new RedisStore(options.redis, 0, options.log);
    this.#redis = connectRedis(options.redis, options.log, { maxRetriesPerRequest: null });
    this.#slots = new Slots(options.concurrency);
    setMaxListeners(0, this.#cut.signal);
  }

  /** Begins to take lines. */
  start(): void {
    const { models, concurrency, log } = this.#options;
    const tell = () => this.#store.tellModels(models, TOLD_MS).catch(() => {});
    void tell();
    this.#telling = setInterval(tell, TELL_MS);
    for (const model of [null, ...models]) {
      const worker = new Worker<ChunkJob>(queueNameOf(model), (job) => this.#process(job), {
        connection: this.#redis,
        prefix: PREFIX,
        // Each has several lines; all share the slots, and there is a next one when the last lines of another are left.
        concurrency: Math.max(2, Math.ceil(concurrency / 8)),
        lockDuration: LOCK_MS,
        stalledInterval: LOOK_FOR_LOST_MS,
        maxStalledCount: MOST_LOSSES,
      });
      // The connection's own errors are told already.
      worker.on('error', () => {});
      worker.on('stalled', (job) => log.warn({ job }, 'lines of a worker that is gone are tried again'));
      this.#workers.push(worker);
    }
  }

  async #process({ data: { batch: id, chunk } }: Job<ChunkJob>): Promise<void> {
    const batch = await this.#store.batch(id);
    if (batch?.status !== 'in_progress') return;
    const answered = await this.#store.answered(id, chunk.first, chunk.count);
    if (answered.every(Boolean)) return;
    const unwanted = new AbortController();
    setMaxListeners(0, unwanted.signal);
    const cut = () => unwanted.abort();
    this.#cut.signal.addEventListener('abort', cut, { once: true });
    const look = setInterval(async () => {
      const now = await this.#store.batch(id).catch(() => batch);
      if (now?.status !== 'in_progress') cut();
    }, LOOK_MS);
    const works: Promise<void>[] = [];
    let failure: unknown;
    try {
      let index = 0;
      const source = this.#store.read(batch.input, chunk.start, chunk.end);
      for await (const { bytes } of linesOf(source, Number.MAX_SAFE_INTEGER)) {
        const line = chunk.first + index;
        if (answered[index++]) continue;
        await this.#slots.take(batch.owner);
        if (this.#closing.signal.aborted || unwanted.signal.aborted) {
          this.#slots.give();
          break;
        }
        const work = this.#answer(batch, line, bytes, unwanted.signal)
          .catch((error) => {
            failure ??= error;
          })
          .finally(() => this.#slots.give());
        works.push(work);
      }
    } catch (error) {
      failure ??= error;
    } finally {
      await Promise.all(works);
      clearInterval(look);
      this.#cut.signal.removeEventListener('abort', cut);
    }
    // The queue gives the lines that are left to another worker.
    if (failure !== undefined) throw failure;
    if (this.#closing.signal.aborted) throw new Error('the worker was shut down');
  }

  async #answer(batch: StoredBatch, line: number, bytes: Buffer | undefined, signal: AbortSignal): Promise<void> {
    const { app, log } = this.#options;
    const answer = await executeLine(app, batch.endpoint, parseRequest(bytes), callerOf(batch), signal);
    // An answer is not computed again for a Redis that is away for a while.
    for (let attempt = 0; answer && !this.#cut.signal.aborted; attempt++) {
      try {
        await this.#store.put(batch.id, [{ line, ...answer }]);
        return;
      } catch (error) {
        if (attempt === 0) log.warn({ err: error, batch: batch.id }, 'an answer cannot be kept yet');
        await sleep(500);
      }
    }
  }

  /** Takes no more lines; those that are being answered are, or are given back after so many milliseconds. */
  async close(timeoutMs: number): Promise<void> {
    this.#closing.abort();
    clearInterval(this.#telling);
    const timer = setTimeout(() => this.#cut.abort(), timeoutMs);
    await Promise.all(this.#workers.map((worker) => worker.close().catch(() => {})));
    clearTimeout(timer);
    await this.#store.close();
    await disconnect(this.#redis);
  }
}

/** The server that took the batch has looked at its key; workers have none. */
function callerOf({ owner }: StoredBatch): Caller {
  return {
    key: owner === '' ? undefined : owner,
    client: owner === '' ? undefined : { key: owner, weight: 1 },
    allows: () => true,
    used: () => {},
  };
}
