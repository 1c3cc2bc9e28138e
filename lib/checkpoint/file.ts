import { constants, type FileHandle, open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { ChatGLMError, throwIfAborted } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import { isSystemError, systemError } from '../common/system-errors.js';
import { inTurns, Pace, type Work } from '../common/turns.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { parseSentencePiece } from '../tokenizer/sentencepiece.js';
import { contentOf, LFS_POINTER_LIMIT, lfsPointer } from './foreign.js';

/** Headers are small and lie close together: reading this much at once saves most of the system calls. */
const WINDOW_BYTES = 16 << 10;
const HEAD_BYTES = 512;

/** A file that is read in pieces. Every read is checked against the file's size, so that no length field in it allocates more. */
export class CheckpointFile {
  /** What was read last around a small read. */
  private window: Buffer = Buffer.alloc(0);
  private windowStart = 0;
  /** For loops over the file's content that do not wait for the file. */
  readonly pace: Pace;

  private constructor(
    readonly path: string,
    readonly size: number,
    private readonly handle: FileHandle,
    /** Ends reading with ERR_ABORTED. */
    private readonly signal: AbortSignal | undefined,
  ) {
    this.pace = new Pace(signal);
  }

  /** Opens a regular file. A pointer of Git LFS is refused here, so that it is named in place of any file. */
  static async open(path: string, signal?: AbortSignal | undefined): Promise<CheckpointFile> {
    const absolute = resolve(path);
    try {
      // Without O_NONBLOCK, opening a named pipe would wait for somebody to write to it. Windows has neither.
      const handle = await open(absolute, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
      try {
        const stats = await handle.stat();
        if (!stats.isFile()) throw invalid(absolute, 'is not a regular file');
        const file = new CheckpointFile(absolute, stats.size, handle, signal);
        const pointer = file.size <= LFS_POINTER_LIMIT ? lfsPointer(await file.read(0, file.size)) : undefined;
        if (pointer !== undefined) throw pointerError(absolute, pointer.fileBytes);
        return file;
      } catch (error) {
        await handle.close();
        throw error;
      }
    } catch (error) {
      throw readError(absolute, error);
    }
  }

  /** The bytes of a range. They may be part of a larger buffer that is shared: do not write to them. */
  async read(offset: number, length: number): Promise<Buffer> {
    if (!rangeFits(offset, length, this.size)) {
      throw invalid(this.path, `is cut short: ${length} bytes wanted at ${offset}, but it has ${this.size} bytes`);
    }
    if (length > WINDOW_BYTES) {
      const buffer = Buffer.allocUnsafe(length);
      await this.readInto(buffer, offset);
      return buffer;
    }
    if (!rangeFits(offset - this.windowStart, length, this.window.length)) {
      const window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, this.size - offset));
      await this.readInto(window, offset);
      this.window = window;
      this.windowStart = offset;
    }
    return this.window.subarray(offset - this.windowStart, offset - this.windowStart + length);
  }

  /** The whole file, where more than `limit` bytes would make no sense. */
  readAll(limit: number): Promise<Buffer> {
    if (this.size > limit) throw invalid(this.path, `has ${this.size} bytes; at most ${limit} are sensible`);
    return this.read(0, this.size);
  }

  /** The first bytes: they tell formats apart. */
  head(): Promise<Buffer> {
    return this.read(0, Math.min(HEAD_BYTES, this.size));
  }

  /** Does work on the file's content in turns with the event loop. */
  inTurns<T>(work: Work<T>): Promise<T> {
    return inTurns(work, this.signal);
  }

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    let done = 0;
    while (done < target.length) {
      throwIfAborted(this.signal);
      const { bytesRead } = await this.handle
        .read(target, done, target.length - done, offset + done)
        .catch((error: unknown) => {
          throw readError(this.path, error);
        });
      if (bytesRead === 0) throw invalid(this.path, 'was cut while it was read');
      done += bytesRead;
    }
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}

function pointerError(path: string, lfsBytes: number): ChatGLMError {
  const itself = lfsBytes === 0 ? 'the file itself' : `the file itself, which has ${lfsBytes} bytes`;
  const help = '"git lfs pull" in its directory fetches it';
  return invalid(path, `is a Git LFS pointer, not ${itself}; ${help}`, { lfsBytes });
}

export async function withFile<T>(
  path: string,
  signal: AbortSignal | undefined,
  use: (file: CheckpointFile) => Promise<T>,
): Promise<T> {
  const file = await CheckpointFile.open(path, signal);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

/** ChatGLM's tokenizer.model has 1 MB, GLM-4's 2.6 MB. */
const TOKENIZER_LIMIT = 16 << 20;

/** The pieces of a tokenizer.model. */
export async function readTokenizerModel(file: CheckpointFile): Promise<TokenizerData> {
  const content = contentOf(await file.head());
  if (content !== undefined) throw invalid(file.path, `is no tokenizer: it ${content}`);
  return file.inTurns(parseSentencePiece(await file.readAll(TOKENIZER_LIMIT), file.path));
}

/** Whether the range lies in a file of `size` bytes, for numbers that may come from a damaged file. */
export function rangeFits(offset: number, length: number, size: number): boolean {
  return Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0
    ? offset <= size && length <= size - offset
    : false;
}

/** Why there is nothing at a path. */
const NOTHING: Readonly<Record<string, string>> = {
  ENOENT: '',
  ENOTDIR: '',
  ELOOP: ': its symbolic links lead back to each other',
  ENAMETOOLONG: ': its name is longer than names of files are',
};

/** An error of the file system as this package reports it. */
export function readError(path: string, error: unknown): unknown {
  if (error instanceof ChatGLMError || !isSystemError(error)) return error;
  const nothing = Object.hasOwn(NOTHING, error.code) ? NOTHING[error.code] : undefined;
  return nothing === undefined
    ? systemError(path, 'read', error)
    : new ChatGLMError('ERR_CHECKPOINT_NOT_FOUND', `There is no ${path}${nothing}`, { file: path }, error);
}
