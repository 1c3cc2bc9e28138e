import { createHash } from 'node:crypto';
import { type JobsOptions, Queue } from 'bullmq';
import type { FastifyBaseLogger } from 'fastify';
import type { Redis } from 'ioredis';
import { pause, unanswered } from './execute.js';
import type { LineQueue } from './line-queue.js';
import { linesOf } from './lines.js';
import { type Chunk, isOver, type StoredBatch } from './records.js';
import { connectRedis, disconnect, PREFIX, type RedisStore } from './redis-store.js';
import { parseRequest } from './validate.js';

/** What a job of the queue is: lines that a worker takes together. */
export interface ChunkJob {
  batch: string;
  chunk: Chunk;
}

/** How often a batch's progress is looked at. */
const LOOK_MS = 500;

/** After this time without progress it is made sure that all lines without an answer are in the queue. */
const QUIET_MS = 10_000;

/** How many jobs go to Redis in one round trip. */
const JOBS_AT_ONCE = 250;

/** BullMQ's largest priority: the later a job's turn. */
const MOST_PRIORITY = 2 ** 21 - 1;

/** The queue for the lines that name a model: workers take from those of the models that they have. */
export function queueNameOf(model: string | null): string {
  return model === null ? 'lines' : `lines-${createHash('sha256').update(model).digest('hex').slice(0, 32)}`;
}

/** Lines are answered by workers, which get them through BullMQ. */
export class BullQueue implements LineQueue {
  readonly chunkLines = 16;
  readonly #store: RedisStore;
  readonly #log: FastifyBaseLogger;
  readonly #redis: Redis;
  readonly #queues = new Map<string, Queue<ChunkJob>>();

  constructor(url: string, store: RedisStore, log: FastifyBaseLogger) {
    this.#store = store;
    this.#log = log;
    this.#redis = connectRedis(url, log, { maxRetriesPerRequest: 3 });
  }

  async otherModels(): Promise<ReadonlySet<string>> {
    return new Set(await this.#store.models());
  }

  async run(batch: StoredBatch, chunks: readonly Chunk[], signal: AbortSignal): Promise<void> {
    let answered = -1;
    let moved = 0;
    while (!signal.aborted) {
      const { completed, failed } = await this.#store.counts(batch.id);
      if (completed + failed === batch.total) return;
      const now = performance.now();
      const isFirst = answered < 0;
      if (completed + failed > answered) {
        answered = completed + failed;
        moved = now;
      }
      if (isFirst || now - moved > QUIET_MS) {
        await this.#enqueue(batch, chunks, signal);
        moved = performance.now();
      }
      await pause(LOOK_MS, signal);
      if ((await this.#store.batch(batch.id))?.status !== 'in_progress') return;
    }
  }

  /** Puts lines without an answer into the queue, those that are there already left alone. */
  async #enqueue(batch: StoredBatch, chunks: readonly Chunk[], signal: AbortSignal): Promise<void> {
    const queue = this.#queueOf(batch.model);
    const { completed, failed } = await this.#store.counts(batch.id);
    let jobs: { name: string; data: ChunkJob; opts: JobsOptions }[] = [];
    for (const [index, chunk] of chunks.entries()) {
      if (signal.aborted) return;
      const { first, count } = chunk;
      if (completed + failed > 0 && (await this.#store.answered(batch.id, first, count)).every(Boolean)) continue;
      jobs.push({
        name: 'lines',
        data: { batch: batch.id, chunk },
        opts: {
          jobId: `${batch.id}-${index}`,
          // The first lines of a short batch come before the last ones of a long batch.
          priority: Math.min(index + 1, MOST_PRIORITY),
          attempts: 1_000_000,
          backoff: { type: 'fixed', delay: 500 },
          removeOnComplete: true,
          removeOnFail: false,
        },
      });
      if (jobs.length < JOBS_AT_ONCE) continue;
      await queue.addBulk(jobs);
      jobs = [];
    }
    await queue.addBulk(jobs);
    await this.#giveUpFailed(queue, batch);
  }

  /** Lines whose workers ended again and again, which may be because of them, get an error. */
  async #giveUpFailed(queue: Queue<ChunkJob>, batch: StoredBatch): Promise<void> {
    for (const job of await queue.getFailed(0, JOBS_AT_ONCE)) {
      if (job.data.batch !== batch.id) {
        const other = await this.#store.batch(job.data.batch);
        if (!other || isOver(other)) await job.remove();
        continue;
      }
      const { first, count, start, end } = job.data.chunk;
      const answered = await this.#store.answered(batch.id, first, count);
      let index = 0;
      for await (const { bytes } of linesOf(this.#store.read(batch.input, start, end), Number.MAX_SAFE_INTEGER)) {
        const line = first + index;
        if (answered[index++]) continue;
        const message = 'The workers that had this request ended before they answered it, again and again.';
        const { customId } = parseRequest(bytes);
        await this.#store.put(batch.id, [{ line, ...unanswered(customId, 'worker_lost', message) }]);
      }
      this.#log.error({ batch: batch.id, lines: [first, first + count - 1] }, 'workers end with these lines');
      await job.remove();
    }
  }

  #queueOf(model: string | null): Queue<ChunkJob> {
    const name = queueNameOf(model);
    let queue = this.#queues.get(name);
    if (!queue) {
      queue = new Queue<ChunkJob>(name, { connection: this.#redis, prefix: PREFIX });
      // The connection's own errors are told already.
      queue.on('error', () => {});
      this.#queues.set(name, queue);
    }
    return queue;
  }

  async close(): Promise<void> {
    await disconnect(this.#redis);
    await Promise.all([...this.#queues.values()].map((queue) => queue.close().catch(() => {})));
  }
}
