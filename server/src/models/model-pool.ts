import { statSync } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';
import type { FastifyBaseLogger } from 'fastify';
import { ChatGLMError, loadModel, type Model } from 'node-chatglm';
import { ApiError, toApiError } from '../http/errors.js';
import { tellAll } from '../observe/tracing.js';
import type { ModelEntry, ServerSettings } from '../options.js';
import type { ModelCard, ModelLease, ModelPool, ModelState } from './pool.js';

/** What the pool tells of. */
export interface PoolListener {
  onLoaded?(id: string, model: Model, tookMs: number): void;
  onUnloading?(id: string, model: Model): void;
  onFailed?(id: string, error: unknown): void;
  /** Hears the phases of a model's requests. */
  onTrace?(id: string): NonNullable<ModelEntry['load']['onTrace']>;
}

interface Loaded {
  model: Model;
  bytes: number;
  /** Whether it failed: whoever has it keeps it, and nobody else gets it. */
  isBroken: boolean;
  leases: number;
  usedAt: number;
  onFailed: (error: ChatGLMError) => void;
}

interface Entry extends ModelEntry {
  created: number;
  state: ModelState;
  loaded: Loaded | undefined;
  loading: Promise<Loaded> | undefined;
  /** Requests that wait for it to be loaded. */
  waiting: number;
  contextLength: number | undefined;
  /** What it took when it was last loaded. */
  bytes: number | undefined;
}

/**
 * Models that are loaded when they are first asked for, within a limit of memory.
 *
 * One load goes on at a time, in the order of the requests. A load that finds no room waits until models that answer are
 * idle; until then no request begins on a model that it would unload, or a busy model would keep others out for ever.
 */
export class Pool implements ModelPool {
  readonly #entries: readonly Entry[];
  readonly #maxMemory: number | undefined;
  readonly #anyModel: boolean;
  readonly #log: FastifyBaseLogger;
  readonly #listener: PoolListener;
  readonly #required: readonly string[];
  #clock = 0;
  /** The end of the last load that was begun. */
  #turn: Promise<unknown> = Promise.resolve();
  /** Set while a load waits for models to become idle. */
  #room: Promise<void> | undefined;
  #onIdle: (() => void) | undefined;
  readonly #closing = new AbortController();
  #broken: Promise<unknown> = Promise.resolve();

  constructor(
    { models, maxMemory, anyModel, preload }: Pick<ServerSettings, 'models' | 'maxMemory' | 'anyModel' | 'preload'>,
    log: FastifyBaseLogger,
    listener: PoolListener = {},
  ) {
    const created = Math.floor(Date.now() / 1000);
    this.#log = log;
    this.#listener = listener;
    this.#maxMemory = maxMemory;
    this.#anyModel = anyModel;
    this.#required = preload;
    this.#entries = models.map((model): Entry => {
      const entry: Entry = {
        ...model,
        created: createdOf(model.path) ?? created,
        state: 'unloaded',
        loaded: undefined,
        loading: undefined,
        waiting: 0,
        contextLength: undefined,
        bytes: undefined,
      };
      if (model.model) this.#take(entry, model.model);
      return entry;
    });
  }

  list(): readonly ModelCard[] {
    return this.#entries.map(({ id, created, aliases, state, contextLength }) => ({
      id,
      created,
      aliases,
      state,
      isLoaded: state === 'loaded',
      isRequired: this.#required.includes(id),
      contextLength,
    }));
  }

  resolve(name: string | undefined): string {
    return this.#find(name).id;
  }

  /** The models that are in memory. */
  *loaded(): Iterable<{ id: string; model: Model }> {
    for (const { id, loaded } of this.#entries) if (loaded) yield { id, model: loaded.model };
  }

  async acquire(name: string | undefined, signal?: AbortSignal): Promise<ModelLease> {
    const entry = this.#find(name);
    for (;;) {
      signal?.throwIfAborted();
      if (this.#closing.signal.aborted) throw shuttingDown();
      // Behind a load that waits for room, even for a model that is there: else it may wait for ever.
      if (this.#room && this.#maxMemory !== undefined && !entry.loading) {
        await orAborted(this.#room, signal);
        continue;
      }
      if (entry.loaded && !entry.loaded.isBroken) return this.#lease(entry, entry.loaded);
      entry.loading ??= this.#load(entry);
      entry.waiting++;
      try {
        const loaded = await orAborted(entry.loading, signal);
        // At once: who has waited for the load is not to wait for room that another load wants of this very model.
        if (entry.loaded === loaded && !loaded.isBroken) return this.#lease(entry, loaded);
      } catch (error) {
        // Those before this request had gone, and the load was given up in the moment in which it came.
        if (!(error instanceof ApiError && error.code === 'canceled')) throw error;
      } finally {
        entry.waiting--;
        this.#onIdle?.();
      }
    }
  }

  /** Loads the models that have to be there. Rejects with the first failure. */
  async preload(): Promise<void> {
    for (const id of this.#required) (await this.acquire(id)).release();
  }

  async close(timeoutMs: number): Promise<void> {
    this.#closing.abort();
    this.#onIdle?.();
    const end = performance.now() + timeoutMs;
    for (const entry of this.#entries) {
      const loaded = entry.loaded ?? (await entry.loading?.catch(() => undefined));
      if (!loaded) continue;
      loaded.model.off('failed', loaded.onFailed);
      // A model that was given to the server goes on without it.
      if (entry.model) continue;
      await loaded.model.drain({ timeoutMs: Math.max(0, end - performance.now()) }).catch(() => {});
      this.#listener.onUnloading?.(entry.id, loaded.model);
      await loaded.model.dispose();
      entry.loaded = undefined;
      entry.state = 'unloaded';
    }
    await this.#broken;
  }

  #find(name: string | undefined): Entry {
    const entry =
      name === undefined || name === ''
        ? this.#entries[0]
        : this.#entries.find(({ id, aliases }) => id === name || aliases.includes(name));
    if (entry) return entry;
    if (this.#anyModel) return this.#entries[0] as Entry;
    throw noSuchModel(name as string);
  }

  #lease(entry: Entry, loaded: Loaded): ModelLease {
    loaded.leases++;
    loaded.usedAt = ++this.#clock;
    let isReleased = false;
    return {
      id: entry.id,
      created: entry.created,
      model: loaded.model,
      release: () => {
        if (isReleased) return;
        isReleased = true;
        loaded.leases--;
        loaded.usedAt = ++this.#clock;
        if (loaded.leases > 0) return;
        if (loaded.isBroken) this.#disposeBroken(entry, loaded);
        this.#onIdle?.();
      },
    };
  }

  async #load(entry: Entry): Promise<Loaded> {
    const before = this.#turn;
    const load = before.then(() => this.#loadNow(entry));
    this.#turn = load.catch(() => {});
    try {
      return await load;
    } finally {
      entry.loading = undefined;
    }
  }

  async #loadNow(entry: Entry): Promise<Loaded> {
    const began = performance.now();
    entry.state = 'loading';
    let model: Model | undefined;
    try {
      await this.#makeRoom(entry, entry.bytes ?? (await sizeOf(entry.path)));
      this.#log.info({ model: entry.id }, 'loading the model');
      const onTrace = this.#listener.onTrace?.(entry.id);
      const { onTrace: own } = entry.load;
      model = await loadModel(entry.path, {
        ...entry.load,
        onTrace: tellAll(own, onTrace),
        signal: entry.load.signal ? AbortSignal.any([entry.load.signal, this.#closing.signal]) : this.#closing.signal,
      });
      const loaded = this.#take(entry, model);
      // It may be more than its files are, or its keys and values.
      await this.#makeRoom(entry, 0);
      if (this.#closing.signal.aborted) throw shuttingDown();
      const tookMs = Math.round(performance.now() - began);
      const { device, contextLength } = model.info;
      this.#log.info({ model: entry.id, device, contextLength, bytes: loaded.bytes, tookMs }, 'the model is loaded');
      this.#listener.onLoaded?.(entry.id, model, tookMs);
      return loaded;
    } catch (error) {
      entry.loaded = undefined;
      if (model) await model.dispose();
      if (this.#closing.signal.aborted) {
        entry.state = 'unloaded';
        throw shuttingDown();
      }
      const isGivenUp = error instanceof ApiError && error.code === 'canceled';
      entry.state = isGivenUp ? 'unloaded' : 'failed';
      if (!isGivenUp) {
        this.#log.error({ model: entry.id, err: error }, 'the model could not be loaded');
        this.#listener.onFailed?.(entry.id, error);
      }
      throw loadError(entry.id, error);
    }
  }

  #take(entry: Entry, model: Model): Loaded {
    const { bytes, kvCacheBytes, deviceBytes, contextLength } = model.info;
    const loaded: Loaded = {
      model,
      bytes: Math.max(deviceBytes, bytes + kvCacheBytes),
      isBroken: false,
      leases: 0,
      usedAt: ++this.#clock,
      onFailed: (error) => this.#fail(entry, loaded, error),
    };
    entry.loaded = loaded;
    entry.bytes = loaded.bytes;
    entry.contextLength = contextLength;
    entry.state = 'loaded';
    model.on('failed', loaded.onFailed);
    return loaded;
  }

  /** The runtime of a model failed. Where the facade loads it again by itself, that is waited for; else it is done here. */
  #fail(entry: Entry, loaded: Loaded, error: ChatGLMError): void {
    if (entry.loaded !== loaded) return;
    this.#log.error({ model: entry.id, err: error }, 'the model failed');
    this.#listener.onFailed?.(entry.id, error);
    const { restart, isolate } = entry.load;
    entry.state = 'failed';
    const restarts = entry.model !== undefined || (restart ?? isolate ?? false) !== false;
    if (!restarts) {
      this.#giveUp(entry, loaded);
      return;
    }
    entry.state = 'loading';
    // A request of nothing: it waits until the model is there again, or fails with what stays.
    loaded.model.generate([0], { maxTokens: 0 }).result.then(
      () => {
        if (entry.loaded !== loaded) return;
        entry.state = 'loaded';
        this.#log.info({ model: entry.id }, 'the model is loaded again');
      },
      () => {
        // A model that was given to the server cannot be loaded by it.
        if (entry.model) entry.state = 'failed';
        else if (entry.loaded === loaded) this.#giveUp(entry, loaded);
      },
    );
  }

  /** Takes a model that failed for good out of use. The next request loads it anew, or it is done at once where it must be there. */
  #giveUp(entry: Entry, loaded: Loaded): void {
    loaded.isBroken = true;
    entry.loaded = undefined;
    entry.state = 'failed';
    if (loaded.leases === 0) this.#disposeBroken(entry, loaded);
    if (!this.#required.includes(entry.id) || this.#closing.signal.aborted) return;
    this.acquire(entry.id).then(
      (lease) => lease.release(),
      () => {}, // It is in the log; requests try again.
    );
  }

  #disposeBroken(entry: Entry, loaded: Loaded): void {
    this.#listener.onUnloading?.(entry.id, loaded.model);
    this.#broken = Promise.all([this.#broken, loaded.model.dispose()]);
  }

  /** Unloads idle models, the least recently used first, until there is room; waits where those that answer take it all. */
  async #makeRoom(entry: Entry, needed: number): Promise<void> {
    const most = this.#maxMemory;
    if (most === undefined) return;
    const own = entry.loaded?.bytes ?? 0;
    if (needed + own > most) throw tooLarge(entry.id, needed + own, most);
    try {
      for (;;) {
        const others = this.#entries.filter((other) => other !== entry && other.loaded && !other.model);
        const taken = this.#entries.reduce((sum, { loaded }) => sum + (loaded?.bytes ?? 0), 0);
        if (taken + needed <= most) return;
        if (this.#closing.signal.aborted) throw shuttingDown();
        if (entry.waiting === 0 && !entry.loaded) throw givenUp();
        const [idle] = others
          .filter(({ loaded, waiting }) => loaded?.leases === 0 && waiting === 0)
          .sort((a, b) => (a.loaded?.usedAt ?? 0) - (b.loaded?.usedAt ?? 0));
        if (idle?.loaded) {
          await this.#unload(idle, idle.loaded);
          continue;
        }
        if (others.length === 0) throw tooLarge(entry.id, needed + own, most - (taken - own));
        await this.#untilIdle();
      }
    } finally {
      this.#openRoom?.();
      this.#openRoom = undefined;
      this.#room = undefined;
    }
  }

  #openRoom: (() => void) | undefined;

  async #untilIdle(): Promise<void> {
    this.#room ??= new Promise((resolve) => {
      this.#openRoom = resolve;
    });
    await new Promise<void>((resolve) => {
      this.#onIdle = resolve;
    });
    this.#onIdle = undefined;
  }

  async #unload(entry: Entry, { model }: Loaded): Promise<void> {
    this.#log.info({ model: entry.id }, 'unloading the model to make room');
    this.#listener.onUnloading?.(entry.id, model);
    entry.loaded = undefined;
    entry.state = 'unloaded';
    await model.dispose();
  }
}

function createdOf(file: string): number | undefined {
  const found = statSync(file, { throwIfNoEntry: false });
  return found && Math.floor(found.mtimeMs / 1000);
}

/** The bytes of a checkpoint's files: what its weights take at least. */
async function sizeOf(file: string): Promise<number> {
  try {
    const found = await stat(file);
    if (!found.isDirectory()) return found.size;
    const names = await readdir(file);
    const sizes = await Promise.all(names.map(async (name) => (await stat(path.join(file, name))).size));
    return sizes.reduce((sum, size) => sum + size, 0);
  } catch {
    return 0; // loadModel() tells what is wrong
  }
}

/** The promise's value; a signal that fires ends the waiting, and nothing else. */
async function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return await promise;
  signal.throwIfAborted();
  let stop: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
  });
  promise.catch(() => {}); // nobody may be left to hear of it
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    if (stop) signal.removeEventListener('abort', stop);
  }
}

export function noSuchModel(name: string): ApiError {
  return new ApiError(
    `The model \`${name.slice(0, 200)}\` does not exist or you do not have access to it. GET /v1/models lists those that there are.`,
    {
      status: 404,
      code: 'model_not_found',
      param: 'model',
    },
  );
}

function shuttingDown(): ApiError {
  return new ApiError('The server is shutting down.', { status: 503, code: 'shutting_down', retryAfter: 1 });
}

function givenUp(): ApiError {
  return new ApiError('Nobody waits for the model any more.', { status: 503, code: 'canceled' });
}

function tooLarge(id: string, needed: number, room: number): ApiError {
  return new ApiError(`The model \`${id}\` does not fit into the memory that the server may use.`, {
    status: 503,
    code: 'out_of_memory',
    cause: new Error(`it takes ${needed} bytes, and maxMemory leaves ${room}`),
  });
}

/** What clients are told of a load that failed: not where the model lies. */
function loadError(id: string, error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  const known = toApiError(error);
  const isMemory = error instanceof ChatGLMError && error.code === 'ERR_OUT_OF_MEMORY';
  return new ApiError(`The model \`${id}\` could not be loaded. The server's log tells why.`, {
    status: isMemory || known.status === 503 ? 503 : 500,
    code: 'model_load_failed',
    retryAfter: isMemory ? 5 : undefined,
    cause: error,
  });
}
