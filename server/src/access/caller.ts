import type { FinishReason, Timings } from 'node-chatglm';

/** What an answer took. */
export interface AnswerUsage {
  /** Tokens of the prompt, cached ones included. */
  prompt: number;
  /** Tokens of the answer. */
  generated: number;
  /** Tokens of the prompt that were kept from earlier requests. Default: none are known of. */
  cached?: number | undefined;
  /** Why it ended. Default: not told. */
  finishReason?: FinishReason | string | null | undefined;
  /** How long it took. Default: not told. */
  timings?: Timings | undefined;
}

/** Who asks, as far as the server knows. */
export interface Caller {
  /** The name of the key that came with the request; undefined where the server has no keys. */
  key: string | undefined;
  /**
   * What the engine shares the machine by: each client gets the same number of tokens while requests wait, whatever number
   * of requests it has; with a weight, so many times as many.
   */
  client: { key: string; weight: number } | undefined;
  /** The engine's priority of the caller's requests: batches are computed after others. Default: 0. */
  priority?: number | undefined;
  /** Whether the caller may ask the model of this id. */
  allows(model: string): boolean;
  /**
   * Tells what an answer took, once it is over: tokens count against the key's limits, and the rest goes to the log and to
   * traces. A request with several answers tells of each.
   */
  used(usage: AnswerUsage): void;
}
