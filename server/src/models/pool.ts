import type { Model } from 'node-chatglm';

/** What clients learn of a model. */
export interface ModelCard {
  /** What requests call it. */
  id: string;
  /** When it was made known to the server, in seconds since 1970. */
  created: number;
  /** Whether it is in memory. */
  isLoaded: boolean;
  /** The most tokens of prompt and answer; undefined before it was loaded once. */
  contextLength: number | undefined;
}

/** A model in use: it stays in memory until it is released. */
export interface ModelLease {
  id: string;
  created: number;
  model: Model;
  /** To call it again does nothing. */
  release(): void;
}

/** The models of a server. */
export interface ModelPool {
  /** All that there are, in the order in which they were named. The first is the one for requests that name none. */
  list(): readonly ModelCard[];
  /**
   * The model of a name, loaded if it is not in memory. Throws ApiError 404 `model_not_found` for a name that there is not.
   *
   * @param id Undefined for the first model.
   */
  acquire(id: string | undefined, signal?: AbortSignal): Promise<ModelLease>;
  /** Lets requests that run come to their end, or ends them after so many milliseconds, and frees all models. */
  close(timeoutMs: number): Promise<void>;
}
