import type { BatchStatus, Chunk, Counts, LineResult, StoredBatch, StoredFile } from './records.js';

/** Which part of a list is wanted. */
export interface PageQuery {
  /** The id of the last entry of the page before. */
  after: string | undefined;
  limit: number;
  order: 'asc' | 'desc';
  purpose?: string | undefined;
}

export interface Page<T> {
  data: T[];
  hasMore: boolean;
}

/** Bytes that are in the store and belong to no file yet. What no file is made of goes away by itself. */
export interface Staged {
  /** The id that its file will have. */
  id: string;
  bytes: number;
}

/** The right to work on a batch, which one process has at a time. */
export interface Lease {
  /** Fires when another process may have it: what is done afterwards must be harmless. */
  readonly lost: AbortSignal;
  release(): Promise<void>;
}

/**
 * Where files and batches are. Whatever a promise of these resolved for is there after `kill -9`; what was under way is there
 * whole or not at all.
 *
 * Answers to lines are kept while a batch is `in_progress`, and no longer taken afterwards, so that whoever writes the output
 * sees them all. The first answer to a line stays.
 */
export interface Store {
  /** Keeps bytes. Throws ApiError 413 where they are more than `most`, and 507 where the store has no room. */
  stage(source: AsyncIterable<Buffer>, most: number): Promise<Staged>;
  discard(staged: Staged): Promise<void>;
  /** Makes a file of what was staged under its id. */
  addFile(file: StoredFile): Promise<void>;
  file(id: string): Promise<StoredFile | undefined>;
  /** Throws ApiError 400 where there is no entry `after`. */
  files(owner: string, query: PageQuery): Promise<Page<StoredFile>>;
  /** Deletes a file that no unfinished batch reads. */
  deleteFile(id: string): Promise<'deleted' | 'in use' | 'absent'>;
  /** The bytes from `start` to before `end` of a file. Throws where it has gone. */
  read(id: string, start?: number, end?: number): AsyncIterable<Buffer>;

  /** Keeps a new batch; false where its input file has gone. */
  addBatch(batch: StoredBatch): Promise<boolean>;
  batch(id: string): Promise<StoredBatch | undefined>;
  batches(owner: string, query: PageQuery): Promise<Page<StoredBatch>>;
  /** Changes a batch as it is now; `change` gives undefined to leave it. Returns the batch afterwards. */
  update(id: string, change: (batch: StoredBatch) => StoredBatch | undefined): Promise<StoredBatch | undefined>;
  /**
   * Ends a batch that is still in the status `from`: its files, and its end, are there at once. The answers to its lines are
   * forgotten. False where the batch was changed by another.
   */
  finish(batch: StoredBatch, from: BatchStatus, files: readonly StoredFile[]): Promise<boolean>;
  /** The ids of batches that are not over, the oldest first. */
  unfinished(): Promise<string[]>;
  lease(id: string): Promise<Lease | undefined>;

  /** Keeps where the lines of a batch are, while it is `validating`. */
  setChunks(id: string, chunks: readonly Chunk[]): Promise<void>;
  chunks(id: string): Promise<Chunk[]>;
  /** Keeps answers, and returns whether the batch still takes any. */
  put(id: string, results: readonly LineResult[]): Promise<boolean>;
  /** The answers to so many lines, each undefined where there is none. */
  results(id: string, first: number, count: number): Promise<(LineResult | undefined)[]>;
  /** Which of so many lines have an answer. */
  answered(id: string, first: number, count: number): Promise<boolean[]>;
  counts(id: string): Promise<Counts>;

  /** Deletes what has expired. */
  sweep(): Promise<void>;
  close(): Promise<void>;
}
