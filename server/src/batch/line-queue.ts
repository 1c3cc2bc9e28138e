import type { Chunk, StoredBatch } from './records.js';

/** Who answers the lines of batches. */
export interface LineQueue {
  /** How many lines are handed out together. */
  readonly chunkLines: number;
  /** Models, besides the server's own, that lines may name. */
  otherModels(): Promise<ReadonlySet<string>>;
  /**
   * Has the lines answered that have no answer yet. Resolves when all have one, when the batch takes no more answers, or when
   * the signal fires and nothing is under way here any more.
   */
  run(batch: StoredBatch, chunks: readonly Chunk[], signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
}
