import { setMaxListeners } from 'node:events';
import type { FastifyInstance } from 'fastify';
import type { Access } from '../access/access.js';
import { executeLine, pause, unanswered } from './execute.js';
import type { LineQueue } from './line-queue.js';
import { linesOf } from './lines.js';
import type { Chunk, LineResult, StoredBatch } from './records.js';
import { Slots } from './slots.js';
import type { Store } from './store.js';
import { parseRequest } from './validate.js';

/** How long answers are collected for one transaction. */
const FLUSH_MS = 50;

/** Lines are answered by this process. All batches share its slots, and each gets the next in turn. */
export class LocalQueue implements LineQueue {
  readonly chunkLines = 64;
  readonly #app: FastifyInstance;
  readonly #store: Store;
  readonly #access: Access;
  readonly #slots: Slots;

  constructor(app: FastifyInstance, store: Store, access: Access, concurrency: number) {
    this.#app = app;
    this.#store = store;
    this.#access = access;
    this.#slots = new Slots(concurrency);
  }

  async otherModels(): Promise<ReadonlySet<string>> {
    return new Set();
  }

  async run(batch: StoredBatch, chunks: readonly Chunk[], signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    // Each line that is being answered listens.
    setMaxListeners(0, stop.signal);
    const onAbort = () => stop.abort();
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) stop.abort();
    let failure: unknown;
    const fail = (error: unknown) => {
      failure ??= error;
      stop.abort();
    };
    const writer = new Writer(async (results) => {
      if (!(await this.#store.put(batch.id, results))) stop.abort();
    }, fail);
    const running = new Set<Promise<void>>();
    try {
      for (const { first, count, start, end } of chunks) {
        if (stop.signal.aborted) break;
        const answered = await this.#store.answered(batch.id, first, count);
        if (answered.every(Boolean)) continue;
        let index = 0;
        // A chunk was validated: none of its lines is too long.
        for await (const { bytes } of linesOf(this.#store.read(batch.input, start, end), Number.MAX_SAFE_INTEGER)) {
          const line = first + index;
          if (answered[index++]) continue;
          await this.#allowed(batch.owner, stop.signal);
          await this.#slots.take(batch.owner);
          if (stop.signal.aborted) {
            this.#slots.give();
            break;
          }
          const work = this.#answer(batch, line, bytes, stop.signal, writer)
            .catch(fail)
            .finally(() => {
              this.#slots.give();
              running.delete(work);
            });
          running.add(work);
        }
      }
    } catch (error) {
      fail(error);
    } finally {
      await Promise.all(running);
      await writer.close();
      signal.removeEventListener('abort', onAbort);
    }
    if (failure !== undefined) throw failure;
  }

  /** Waits until the key may use tokens: a batch goes as fast as the limits of its key let it. */
  async #allowed(owner: string, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const wait = this.#access.msUntilTokens(owner);
      if (wait === 0) return;
      await pause(wait, signal);
    }
  }

  async #answer(
    batch: StoredBatch,
    line: number,
    bytes: Buffer | undefined,
    signal: AbortSignal,
    writer: Writer,
  ): Promise<void> {
    const request = parseRequest(bytes);
    const caller = this.#access.callerOf(batch.owner);
    const answer = caller
      ? await executeLine(this.#app, batch.endpoint, request, caller, signal)
      : unanswered(request.customId, 'invalid_api_key', 'The API key that made this batch is not valid any more.');
    if (answer) writer.add({ line, ...answer });
  }

  async close(): Promise<void> {}
}

/** Collects answers, so that many are one transaction. */
class Writer {
  readonly #write: (results: LineResult[]) => Promise<void>;
  readonly #fail: (error: unknown) => void;
  #collected: LineResult[] = [];
  #timer: NodeJS.Timeout | undefined;

  constructor(write: (results: LineResult[]) => Promise<void>, fail: (error: unknown) => void) {
    this.#write = write;
    this.#fail = fail;
  }

  add(result: LineResult): void {
    this.#collected.push(result);
    this.#timer ??= setTimeout(() => {
      void this.#flush();
    }, FLUSH_MS);
  }

  async close(): Promise<void> {
    await this.#flush();
  }

  async #flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const results = this.#collected;
    if (results.length === 0) return;
    this.#collected = [];
    await this.#write(results).catch(this.#fail);
  }
}
