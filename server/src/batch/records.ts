import { randomBytes } from 'node:crypto';

/** A file that was uploaded, or that a batch made. Times are seconds since 1970. */
export interface StoredFile {
  id: string;
  /** The name of the key that made the file; empty where there are no keys. */
  owner: string;
  /** What its maker calls the file. Nothing is ever opened by this name. */
  filename: string;
  purpose: 'batch' | 'batch_output';
  bytes: number;
  created: number;
  expires: number;
}

export type BatchStatus =
  | 'validating'
  | 'failed'
  | 'in_progress'
  | 'finalizing'
  | 'completed'
  | 'expired'
  | 'cancelling'
  | 'cancelled';

/** What is wrong with a line of an input file, or with the file. */
export interface BatchError {
  code: string;
  message: string;
  param: string | null;
  /** From 1; null where it is the whole file. */
  line: number | null;
}

/** How many lines have got which answer. */
export interface Counts {
  completed: number;
  failed: number;
}

/** A batch as stores keep it. Times are seconds since 1970. */
export interface StoredBatch {
  id: string;
  owner: string;
  endpoint: string;
  input: string;
  window: string;
  metadata: Record<string, string> | null;
  status: BatchStatus;
  /** How the batch ends when its files are written: set once no line is answered any more. */
  outcome: 'completed' | 'expired' | 'cancelled' | null;
  created: number;
  expires: number;
  /** When the batch reached which status. */
  times: Partial<Record<BatchStatus, number>>;
  /** The model that all lines name; null where they name none. */
  model: string | null;
  total: number;
  /** Final once the outcome is set; before, the store's own counts are newer. */
  counts: Counts;
  errors: BatchError[];
  output: string | null;
  errorFile: string | null;
  /** How many seconds output files are kept. */
  keepOutput: number;
}

/** Lines of an input file that are handed out together. */
export interface Chunk {
  /** The number of the first request, from 0; empty lines are not counted. */
  first: number;
  count: number;
  /** Where its bytes begin and end in the file. */
  start: number;
  end: number;
}

/** The answer to one line: what stands in the output or error file, without the newline. */
export interface LineResult {
  line: number;
  /** Whether the line belongs to the output file. */
  isOk: boolean;
  text: string;
}

/** Whether a batch will not change any more. */
export function isOver({ status }: StoredBatch): boolean {
  return status === 'completed' || status === 'failed' || status === 'expired' || status === 'cancelled';
}

export function newId(prefix: string): string {
  return `${prefix}${randomBytes(16).toString('hex')}`;
}

export function nowSeconds(): number {
  return Math.floor(Date.now() / 1000);
}

/** OpenAI's file object. */
export function toFile(file: StoredFile): object {
  return {
    id: file.id,
    object: 'file',
    bytes: file.bytes,
    created_at: file.created,
    expires_at: file.expires,
    filename: file.filename,
    purpose: file.purpose,
    status: 'processed',
    status_details: null,
  };
}

/** OpenAI's batch object. */
export function toBatch(batch: StoredBatch, counts: Counts): object {
  const at = (status: BatchStatus) => batch.times[status] ?? null;
  return {
    id: batch.id,
    object: 'batch',
    endpoint: batch.endpoint,
    model: batch.model,
    errors: batch.errors.length > 0 ? { object: 'list', data: batch.errors } : null,
    input_file_id: batch.input,
    completion_window: batch.window,
    status: batch.status,
    output_file_id: batch.output,
    error_file_id: batch.errorFile,
    created_at: batch.created,
    in_progress_at: at('in_progress'),
    expires_at: batch.expires,
    finalizing_at: at('finalizing'),
    completed_at: at('completed'),
    failed_at: at('failed'),
    expired_at: at('expired'),
    cancelling_at: at('cancelling'),
    cancelled_at: at('cancelled'),
    request_counts: { total: batch.total, completed: counts.completed, failed: counts.failed },
    metadata: batch.metadata,
  };
}

/** The batch in another status, since now. */
export function inStatus(batch: StoredBatch, status: BatchStatus, change: Partial<StoredBatch> = {}): StoredBatch {
  return { ...batch, ...change, status, times: { ...batch.times, [status]: nowSeconds() } };
}
