import type { FastifyBaseLogger } from 'fastify';
import { pause, unanswered } from './execute.js';
import type { LineQueue } from './line-queue.js';
import { linesOf } from './lines.js';
import {
  type BatchError,
  type BatchStatus,
  type Chunk,
  inStatus,
  isOver,
  nowSeconds,
  type StoredBatch,
  type StoredFile,
} from './records.js';
import type { Lease, Store } from './store.js';
import { type InputLimits, parseRequest, validateInput } from './validate.js';

/** How long the first wait is after a failure, such as of a full disk or a Redis that is away; it doubles up to the most. */
const RETRY_MS = 500;
const MOST_RETRY_MS = 15_000;

/** How many batches are worked on at a time; others wait. Each has a file open. */
const MOST_AT_A_TIME = 500;

/** How often what has expired is looked for. */
const SWEEP_MS = 600_000;

export interface CoordinatorOptions {
  store: Store;
  queue: LineQueue;
  log: FastifyBaseLogger;
  limits: Omit<InputLimits, 'chunkLines'>;
  /** What is wrong with a model for the owner of a batch; undefined where it may be used. */
  refuse(owner: string, model: string | undefined, others: ReadonlySet<string>): Omit<BatchError, 'line'> | undefined;
  /** How often other servers' batches are looked for that nobody works on; undefined where there is no other server. */
  pollMs: number | undefined;
}

/**
 * Takes batches from their status to the next until they are over. Whatever it does for a status can be done again: after a
 * crash, or by another server, work goes on from the status that was reached.
 */
export class Coordinator {
  readonly #options: CoordinatorOptions;
  readonly #driven = new Map<string, AbortController>();
  readonly #stopping = new AbortController();
  readonly #works = new Set<Promise<void>>();
  readonly #timers: NodeJS.Timeout[] = [];
  #isTold = false;

  constructor(options: CoordinatorOptions) {
    this.#options = options;
  }

  /** Goes on with the batches that there are. */
  start(): void {
    const { pollMs } = this.#options;
    const look = () => this.#track(this.#lookForWork());
    look();
    if (pollMs !== undefined) this.#timers.push(setInterval(look, pollMs).unref());
    this.#timers.push(setInterval(() => this.#track(this.#sweep()), SWEEP_MS).unref());
    this.#track(this.#sweep());
  }

  /** Tells that a batch is new or has changed. */
  wake(id: string): void {
    const driven = this.#driven.get(id);
    if (driven) driven.abort();
    else this.#begin(id);
  }

  /** Stops at once. Lines that are being answered are given up; they are answered by whoever goes on. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    for (const timer of this.#timers) clearInterval(timer);
    for (const driven of this.#driven.values()) driven.abort();
    while (this.#works.size > 0) await Promise.all(this.#works);
  }

  #track(work: Promise<void>): void {
    const tracked = work
      .then(() => {
        this.#isTold = false;
      })
      .catch((error) => {
        if (this.#stopping.signal.aborted || this.#isTold) return;
        this.#isTold = true;
        this.#options.log.warn({ err: error }, 'batches cannot be looked at; it is tried again');
      })
      .finally(() => this.#works.delete(tracked));
    this.#works.add(tracked);
  }

  async #sweep(): Promise<void> {
    if (!this.#stopping.signal.aborted) await this.#options.store.sweep();
  }

  async #lookForWork(): Promise<void> {
    if (this.#stopping.signal.aborted) return;
    for (const id of await this.#options.store.unfinished()) this.#begin(id);
  }

  #begin(id: string): void {
    if (this.#stopping.signal.aborted || this.#driven.has(id) || this.#driven.size >= MOST_AT_A_TIME) return;
    this.#driven.set(id, new AbortController());
    this.#track(
      this.#drive(id).finally(() => {
        this.#driven.delete(id);
        // One that had to wait for its turn.
        if (this.#driven.size === MOST_AT_A_TIME - 1) this.#track(this.#lookForWork());
      }),
    );
  }

  /** Works on a batch until it is over, another server has it, or this one stops. */
  async #drive(id: string): Promise<void> {
    const { store, log } = this.#options;
    const { signal: stopped } = this.#stopping;
    let lease: Lease | undefined;
    try {
      for (let wait = RETRY_MS; !stopped.aborted; ) {
        try {
          lease ??= await store.lease(id);
          if (!lease) return;
          if (lease.lost.aborted || !(await this.#step(id, lease.lost))) return;
          wait = RETRY_MS;
        } catch (error) {
          if (stopped.aborted) return;
          log.error({ err: error, batch: id }, 'work on a batch failed and is tried again');
          await pause(wait, stopped);
          wait = Math.min(wait * 2, MOST_RETRY_MS);
        }
      }
    } finally {
      await lease?.release().catch(() => {});
    }
  }

  /** Does what the status asks for. False where the batch is over. */
  async #step(id: string, lost: AbortSignal): Promise<boolean> {
    // A change is heard of from now on: what came before is in the batch that is read.
    const woken = new AbortController();
    this.#driven.set(id, woken);
    const batch = await this.#options.store.batch(id);
    if (!batch || isOver(batch)) return false;
    switch (batch.status) {
      case 'validating':
        await this.#validate(batch);
        return true;
      case 'in_progress':
        await this.#answerLines(batch, lost, woken.signal);
        return true;
      default:
        await this.#finish(batch);
        return true;
    }
  }

  async #validate(batch: StoredBatch): Promise<void> {
    const { store, queue, limits, refuse, log } = this.#options;
    const others = await queue.otherModels();
    const { errors, total, chunks, model } = await validateInput(
      store.read(batch.input),
      batch.endpoint,
      { ...limits, chunkLines: queue.chunkLines },
      (name) => refuse(batch.owner, name, others),
    );
    if (errors.length > 0) {
      log.info({ batch: batch.id, errors: errors.length }, 'the input of a batch is wrong');
      const failed = inStatus(batch, 'failed', { errors, total: 0, model });
      await store.finish(failed, 'validating', []);
      return;
    }
    await store.setChunks(batch.id, chunks);
    await store.update(batch.id, (now) =>
      now.status === 'validating' ? inStatus(now, 'in_progress', { total, model }) : undefined,
    );
    log.info({ batch: batch.id, lines: total }, 'a batch has begun');
  }

  async #answerLines(batch: StoredBatch, lost: AbortSignal, woken: AbortSignal): Promise<void> {
    const { store, queue } = this.#options;
    const { signal: stopped } = this.#stopping;
    const msLeft = batch.expires * 1000 - Date.now();
    const ended = new AbortController();
    const end = () => ended.abort();
    const signals = [lost, woken, stopped];
    for (const signal of signals) {
      if (signal.aborted) end();
      signal.addEventListener('abort', end, { once: true });
    }
    // A timer waits for 24 days at most; then the same is done again.
    const timer = setTimeout(end, Math.min(Math.max(msLeft, 0), 2 ** 31 - 1));
    try {
      if (msLeft > 0) await queue.run(batch, await store.chunks(batch.id), ended.signal);
    } finally {
      clearTimeout(timer);
      for (const signal of signals) signal.removeEventListener('abort', end);
    }
    if (lost.aborted || stopped.aborted) return;
    const { completed, failed } = await store.counts(batch.id);
    const isDone = completed + failed === batch.total;
    const isExpired = batch.expires * 1000 <= Date.now();
    if (!isDone && !isExpired) return;
    await store.update(batch.id, (now) =>
      now.status === 'in_progress'
        ? inStatus(now, 'finalizing', { outcome: isDone ? 'completed' : 'expired', counts: { completed, failed } })
        : undefined,
    );
  }

  /** Writes the files of a batch whose lines get no more answers. */
  async #finish(batch: StoredBatch): Promise<void> {
    const { store, log } = this.#options;
    const outcome: BatchStatus = batch.status === 'cancelling' ? 'cancelled' : (batch.outcome ?? 'completed');
    const chunks = await store.chunks(batch.id);
    const files: StoredFile[] = [];
    const write = async (isOk: boolean): Promise<string | null> => {
      const staged = await store.stage(this.#linesOf(batch, chunks, isOk, outcome), Number.POSITIVE_INFINITY);
      if (staged.bytes === 0) {
        await store.discard(staged);
        return null;
      }
      const created = nowSeconds();
      files.push({
        ...staged,
        owner: batch.owner,
        filename: `${batch.id}_${isOk ? 'output' : 'error'}.jsonl`,
        purpose: 'batch_output',
        created,
        expires: created + batch.keepOutput,
      });
      return staged.id;
    };
    const counts = await store.counts(batch.id);
    const output = await write(true);
    const errorFile = await write(false);
    const ended = inStatus(batch, outcome, { output, errorFile, counts });
    if (await store.finish(ended, batch.status, files)) {
      log.info({ batch: batch.id, status: outcome, ...counts }, 'a batch is over');
    } else {
      for (const file of files) await store.discard(file);
    }
  }

  /** The lines of the output file, or of the error file, in the order of the input. */
  async *#linesOf(
    batch: StoredBatch,
    chunks: readonly Chunk[],
    isOk: boolean,
    outcome: BatchStatus,
  ): AsyncGenerator<Buffer, void, void> {
    const { store } = this.#options;
    for (const { first, count, start, end } of chunks) {
      const results = await store.results(batch.id, first, count);
      const texts: string[] = [];
      if (isOk || results.every((result) => result !== undefined)) {
        for (const result of results) if (result?.isOk === isOk) texts.push(result.text, '\n');
      } else {
        let index = 0;
        for await (const { bytes } of linesOf(store.read(batch.input, start, end), Number.MAX_SAFE_INTEGER)) {
          const result = results[index++];
          if (result === undefined) texts.push(withoutAnswer(parseRequest(bytes).customId, outcome), '\n');
          else if (!result.isOk) texts.push(result.text, '\n');
        }
      }
      if (texts.length > 0) yield Buffer.from(texts.join(''));
    }
  }
}

/** The line of a request that the end of its batch came before. */
function withoutAnswer(customId: string, outcome: BatchStatus): string {
  const { text } =
    outcome === 'expired'
      ? unanswered(
          customId,
          'batch_expired',
          'This request could not be executed before the completion window expired.',
        )
      : unanswered(customId, 'batch_cancelled', 'This request was not executed: the batch was cancelled.');
  return text;
}
