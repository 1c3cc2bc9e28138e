import { existsSync, mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { FastifyInstance } from 'fastify';
import type { ServerContext } from '../context.js';
import { ApiError, toApiError } from '../http/errors.js';
import { Coordinator } from './coordinator.js';
import { DirectoryInUseError, DiskStore } from './disk-store.js';
import type { LineQueue } from './line-queue.js';
import { LocalQueue } from './local-queue.js';
import type { BatchError } from './records.js';
import { BATCH_DEFAULTS, type BatchSettings, defaultDataDirectory, MOST_LINES } from './settings.js';
import type { Store } from './store.js';

/** How often servers that share a Redis look for batches that nobody works on. */
const POLL_MS = 1000;

export interface OpenBatches {
  store: Store;
  coordinator: Coordinator;
}

/** Files and batches of one server: opened when the server starts, or when they are first used. */
export class BatchService {
  readonly #app: FastifyInstance;
  readonly #context: ServerContext;
  readonly #settings: BatchSettings;
  #opening: Promise<OpenBatches> | undefined;
  #queue: LineQueue | undefined;
  #temporary: string | undefined;
  #isClosed = false;

  constructor(app: FastifyInstance, context: ServerContext, settings: BatchSettings) {
    this.#app = app;
    this.#context = context;
    this.#settings = settings;
  }

  /** Goes on with the batches of before. Throws where the directory that was named cannot be used. */
  async start(): Promise<void> {
    const { directory, redis } = this.#settings;
    if (redis !== undefined) {
      await this.open();
      return;
    }
    // Nothing is written for a server that nobody uploads to.
    if (directory === undefined || (this.#isDefault && !existsSync(directory))) return;
    try {
      await this.open();
    } catch (error) {
      if (!this.#isDefault) throw error instanceof ApiError ? (error.cause ?? error) : error;
      this.#context.log.warn({ err: error }, 'there are no batches: their directory cannot be used');
    }
  }

  /** What is left to be done, of all servers that share the store; undefined where that is not known. */
  async backlog(): Promise<{ batches: number; lines: number } | undefined> {
    try {
      const { store } = (await this.#opening) ?? {};
      if (!store) return { batches: 0, lines: 0 };
      const ids = await store.unfinished();
      let lines = 0;
      for (const id of ids) {
        const batch = await store.batch(id);
        if (batch?.status !== 'in_progress') continue;
        const { completed, failed } = await store.counts(id);
        lines += Math.max(0, batch.total - completed - failed);
      }
      return { batches: ids.length, lines };
    } catch {
      return undefined;
    }
  }

  get #isDefault(): boolean {
    return this.#settings.directory === defaultDataDirectory();
  }

  /** Throws ApiError 503 where files and batches cannot be used. */
  async open(): Promise<OpenBatches> {
    if (this.#isClosed) {
      throw new ApiError('The server is shutting down.', { status: 503, code: 'shutting_down', retryAfter: 1 });
    }
    this.#opening ??= this.#open();
    try {
      return await this.#opening;
    } catch (error) {
      this.#opening = undefined;
      const why =
        error instanceof DirectoryInUseError
          ? 'another server of this machine has their directory'
          : 'their directory cannot be used';
      throw new ApiError(`Files and batches are not available: ${why}.`, {
        status: 503,
        code: 'batches_unavailable',
        cause: error,
      });
    }
  }

  async #open(): Promise<OpenBatches> {
    const { access, log, settings } = this.#context;
    const { redis, concurrency, totalBytes } = this.#settings;
    let store: Store;
    if (redis !== undefined) {
      // Loaded where it is needed: it takes a fifth of a second.
      const { openRedis } = require('./redis.js') as typeof import('./redis.js');
      ({ store, queue: this.#queue } = openRedis(redis, totalBytes ?? BATCH_DEFAULTS.redisBytes, log));
    } else {
      store = new DiskStore(this.#directory(), totalBytes ?? BATCH_DEFAULTS.diskBytes);
      this.#queue = new LocalQueue(this.#app, store, access, concurrency);
    }
    const coordinator = new Coordinator({
      store,
      queue: this.#queue,
      log,
      limits: { lines: MOST_LINES, lineBytes: settings.limits.bodyBytes },
      refuse: (owner, model, others) => this.#refuse(owner, model, others),
      pollMs: redis === undefined ? undefined : POLL_MS,
    });
    coordinator.start();
    return { store, coordinator };
  }

  #directory(): string {
    const { directory } = this.#settings;
    if (directory !== undefined) return directory;
    this.#temporary = mkdtempSync(path.join(tmpdir(), 'chatglm-batches-'));
    return this.#temporary;
  }

  #refuse(owner: string, name: string | undefined, others: ReadonlySet<string>): Omit<BatchError, 'line'> | undefined {
    const caller = this.#context.access.callerOf(owner);
    try {
      if (name === undefined || !others.has(name)) {
        const id = this.#context.models.resolve(name);
        if (caller?.allows(id)) return undefined;
      } else if (caller?.allows(name)) {
        return undefined;
      }
    } catch (error) {
      return { code: 'model_not_found', message: toApiError(error).message, param: 'body.model' };
    }
    const message = `The key \`${owner}\` does not have access to the model \`${name ?? ''}\`.`;
    return { code: 'model_not_found', message, param: 'body.model' };
  }

  /** Gives up lines that are being answered, so that the server can end; a later start goes on with them. */
  async stop(): Promise<void> {
    this.#isClosed = true;
    const opened = await this.#opening?.catch(() => undefined);
    await opened?.coordinator.stop();
  }

  async close(): Promise<void> {
    await this.stop();
    const opened = await this.#opening?.catch(() => undefined);
    await this.#queue?.close();
    await opened?.store.close();
    if (this.#temporary !== undefined) await rm(this.#temporary, { recursive: true, force: true });
  }
}
