/** Who asks, as far as the server knows. */
export interface Caller {
  /** The name of the key that came with the request; undefined where the server has no keys. */
  key: string | undefined;
  /**
   * What the engine shares the machine by: each client gets the same number of tokens while requests wait, whatever number
   * of requests it has; with a weight, so many times as many.
   */
  client: { key: string; weight: number } | undefined;
  /** Tells what a request took, once it is over: tokens count against the key's limits, and in the metrics. */
  used(tokens: { prompt: number; generated: number }): void;
}
