import type { Model } from 'node-chatglm';

/** `failed`: its last load failed, or its runtime did and it is not loaded again yet; the next request tries again. */
export type ModelState = 'unloaded' | 'loading' | 'loaded' | 'failed';

/** What clients learn of a model. */
export interface ModelCard {
  /** What requests call it. */
  id: string;
  /** When its file was written, or else when it was made known to the server, in seconds since 1970. */
  created: number;
  /** Its other names. */
  aliases: readonly string[];
  /** Whether it is in memory, or on its way. */
  state: ModelState;
  /** Whether it is in memory. */
  isLoaded: boolean;
  /** Whether the server is ready only while it is loaded. */
  isRequired: boolean;
  /** The most tokens of prompt and answer; undefined before it was loaded once. */
  contextLength: number | undefined;
}

/** A model in use: it stays in memory until it is released. */
export interface ModelLease {
  /** The model's id, whatever name was asked for. */
  id: string;
  /** As {@link ModelCard.created}. */
  created: number;
  /** The model: to be used until {@link release} is called. */
  model: Model;
  /** To call it again does nothing. */
  release(): void;
}

/** The models of a server. */
export interface ModelPool {
  /** All that there are, in the order in which they were named. The first is the one for requests that name none. */
  list(): readonly ModelCard[];
  /** The id of the model of a name or alias, or of the first one. Throws ApiError 404 `model_not_found`. */
  resolve(name: string | undefined): string;
  /** The models that are in memory. */
  loaded(): Iterable<{ id: string; model: Model }>;
  /**
   * The model of a name, loaded if it is not in memory. Throws ApiError 404 `model_not_found` for a name that there is not,
   * and 500 or 503 where it cannot be loaded.
   *
   * @param name An id or an alias; undefined for the first model.
   * @param signal Ends the waiting. A load that has begun goes on.
   */
  acquire(name: string | undefined, signal?: AbortSignal): Promise<ModelLease>;
  /** Lets requests that run come to their end, or ends them after so many milliseconds, and frees all models. */
  close(timeoutMs: number): Promise<void>;
}
