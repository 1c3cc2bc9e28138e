/** The stable codes of {@link ChatGLMError}. docs/errors.md says of each what helps. */
export const ERROR_CODES = [
  /** A file is damaged, incomplete, of an unknown kind, or its parts do not fit together. */
  'ERR_CHECKPOINT_INVALID',
  /** There is nothing at the given path. */
  'ERR_CHECKPOINT_NOT_FOUND',
  /** The prompt leaves no room for an answer in the context. Details: `tokens`, `limit`. */
  'ERR_CONTEXT_OVERFLOW',
  /** As many requests as `maxQueue` allows are waiting already. Details: `limit`. */
  'ERR_QUEUE_FULL',
  /** There is not enough memory. Details: `wantedBytes` and, where the system tells, `freeBytes`. */
  'ERR_OUT_OF_MEMORY',
  /** The system does not allow this process to read or write a file. Details: `file`. */
  'ERR_PERMISSION_DENIED',
  /** The disk, or the user's share of it, is full. Details: `file`. */
  'ERR_DISK_FULL',
  /** A file is no saved chat, or not what was written. Details: `file`. */
  'ERR_SESSION_INVALID',
  /** A saved chat belongs to another model or another kind of keys and values. Details: `file`, `what`: `model` or `layout`. */
  'ERR_SESSION_MISMATCH',
  /** The process, or the system, has as many files open as it may have. Details: `file`. */
  'ERR_TOO_MANY_FILES',
  /** The system gave no thread. */
  'ERR_THREAD_UNAVAILABLE',
  /** The system failed to read or write a file for another reason. Details: `file`. */
  'ERR_IO',
  /** The chat is answering already, or a stored conversation is open already. Details of the latter: `file`, `pid`, `host`. */
  'ERR_BUSY',
  /** The asked-for device cannot be used. The message says why. */
  'ERR_DEVICE_UNAVAILABLE',
  /**
   * The package cannot run here: its native addon is missing or does not load, or Node is too old; or a code executor finds
   * no sandbox or no interpreter. The message says which.
   */
  'ERR_UNSUPPORTED',
  /** A request took longer than its `timeoutMs` or `queueTimeoutMs`, or a tool than its `timeoutMs`. Details: `timeoutMs`. */
  'ERR_TIMEOUT',
  /** The model takes no new requests: `drain()` was called. */
  'ERR_DRAINING',
  /** The process that ran an isolated model ended. Details: `signal` or `exitCode`. */
  'ERR_RUNTIME_CRASHED',
  /** A tool threw, or gave what cannot be told to a model. `cause` is what was thrown. Details: `tool`. */
  'ERR_TOOL_FAILED',
  /** The model called a tool that there is not, or with arguments that the tool does not take. Details: `tool`. */
  'ERR_TOOL_CALL_INVALID',
  /** The caller's `signal` fired. `cause` is the signal's reason; the error's `name` is `AbortError`. */
  'ERR_ABORTED',
  /** The model was disposed before or during the call, or a stored conversation was closed. */
  'ERR_DISPOSED',
  /** An argument or option is of the wrong type or out of range. The message names it. */
  'ERR_INVALID_ARGUMENT',
  /** The model computed NaN or infinite logits: damaged weights or an overflow. Details: `position`. */
  'ERR_INVALID_LOGITS',
  /** A defect in this package. */
  'ERR_INTERNAL',
] as const;

/** The stable codes of {@link ChatGLMError}. */
export type ErrorCode = (typeof ERROR_CODES)[number];

/** Numbers and names that explain an error, such as `{ tokens: 9000, limit: 8192 }` or `{ file, tensor }`. */
export type ErrorDetails = Readonly<Record<string, string | number>>;

/** What `error.toJSON()` gives: plain data, which `postMessage()` and JSON carry whole. */
export interface SerializedError {
  /** `ChatGLMError` or `AbortError`. */
  name: string;
  /** The error's code. */
  code: ErrorCode;
  /** The error's message. */
  message: string;
  /** The error's details. */
  details: ErrorDetails;
}

/**
 * Every error that this package raises. Decide by `code`; the message is for people.
 *
 * `postMessage()` and `structuredClone()` keep only the message of an error: to send one to another thread, send
 * `error.toJSON()` and make an error of it again with `ChatGLMError.fromJSON()`.
 *
 * @example
 * ```ts
 * try {
 *   await chat.send('word '.repeat(100_000));
 * } catch (error) {
 *   if (!(error instanceof ChatGLMError)) throw error;
 *   if (error.code === 'ERR_CONTEXT_OVERFLOW') console.log(error.details.tokens, error.details.limit);
 * }
 * ```
 */
export class ChatGLMError extends Error {
  /** What went wrong. It stays the same from version to version. */
  readonly code: ErrorCode;
  /** What the message is made of; the codes tell which fields there are. Empty where nothing is to be told. */
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = code === 'ERR_ABORTED' ? 'AbortError' : 'ChatGLMError';
    this.code = code;
    this.details = details;
  }

  /**
   * The error as plain data, without its stack and its cause.
   *
   * @example
   * ```ts
   * const { parentPort } = await import('node:worker_threads');
   * chat.send('你好').catch((error: ChatGLMError) => parentPort?.postMessage({ error: error.toJSON() }));
   * ```
   */
  toJSON(): SerializedError {
    const { name, code, message, details } = this;
    return { name, code, message, details };
  }

  /**
   * The error that `toJSON()` made plain data of, with a stack that begins here.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the value is nothing that `toJSON()` gives.
   *
   * @example
   * ```ts
   * const { Worker } = await import('node:worker_threads');
   * const worker = new Worker('./answers.mjs');
   * worker.on('message', ({ error }) => {
   *   if (error) console.error(ChatGLMError.fromJSON(error).code);
   * });
   * ```
   */
  static fromJSON(value: SerializedError): ChatGLMError {
    try {
      const { code, message, details } = value;
      const isDetails = typeof details === 'object' && details !== null && !Array.isArray(details);
      if (ERROR_CODES.includes(code) && typeof message === 'string' && isDetails) {
        return new ChatGLMError(code, message, { ...details });
      }
    } catch {
      // A value without properties, or a getter that throws: no more an error's data than any other value.
    }
    throw invalidArgument('fromJSON() takes what toJSON() of a ChatGLMError gave');
  }
}

export function invalidArgument(message: string, cause?: unknown): ChatGLMError {
  return new ChatGLMError('ERR_INVALID_ARGUMENT', message, {}, cause);
}

export function aborted(signal: AbortSignal): ChatGLMError {
  return new ChatGLMError('ERR_ABORTED', 'The operation was aborted', {}, signal.reason);
}

export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw aborted(signal);
}
