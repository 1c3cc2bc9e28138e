import { constants, type FileHandle, open } from 'node:fs/promises';
import { relative, resolve } from 'node:path';
import { ChatGLMError } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { parseSentencePiece } from '../tokenizer/sentencepiece.js';

/** Headers are small and lie close together: reading this much at once saves most of the system calls. */
const WINDOW_BYTES = 16 << 10;

/** A file that is read in pieces. Every read is checked against the file's size, so that no length field in it allocates more. */
export class CheckpointFile {
  /** What was read last around a small read. */
  private window: Buffer = Buffer.alloc(0);
  private windowStart = 0;

  private constructor(
    readonly path: string,
    readonly size: number,
    private readonly handle: FileHandle,
  ) {}

  static async open(path: string): Promise<CheckpointFile> {
    const absolute = resolve(path);
    try {
      // Without O_NONBLOCK, opening a named pipe would wait for somebody to write to it. Windows has neither.
      const handle = await open(absolute, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
      try {
        const stats = await handle.stat();
        if (!stats.isFile()) throw invalid(absolute, 'is not a regular file');
        return new CheckpointFile(absolute, stats.size, handle);
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

  /** The first four bytes: they tell most formats apart. */
  async magic(): Promise<string> {
    return (await this.read(0, Math.min(4, this.size))).toString('latin1');
  }

  async readInto(target: Uint8Array, offset: number): Promise<void> {
    let done = 0;
    while (done < target.length) {
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

export async function withFile<T>(path: string, use: (file: CheckpointFile) => Promise<T>): Promise<T> {
  const file = await CheckpointFile.open(path);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

/** ChatGLM's tokenizer.model has 1 MB. */
const TOKENIZER_LIMIT = 64 << 20;

/** The pieces of a tokenizer.model. */
export async function readTokenizerModel(file: CheckpointFile): Promise<TokenizerData> {
  return parseSentencePiece(await file.readAll(TOKENIZER_LIMIT), file.path);
}

/** The whole of a file that is known to be small. */
export function readSmallFile(path: string, limit: number): Promise<Buffer> {
  return withFile(path, (file) => file.readAll(limit));
}

/** Whether the range lies in a file of `size` bytes, for numbers that may come from a damaged file. */
export function rangeFits(offset: number, length: number, size: number): boolean {
  return Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0
    ? offset <= size && length <= size - offset
    : false;
}

/** An error of the file system as this package reports it. */
export function readError(path: string, error: unknown): ChatGLMError {
  if (error instanceof ChatGLMError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ENOENT' || code === 'ENOTDIR') {
    const hint = /^[\w.-]+[\\/][\w.-]+$/.test(relative('.', path))
      ? '; a model of Hugging Face must be cloned first'
      : '';
    return new ChatGLMError('ERR_CHECKPOINT_NOT_FOUND', `There is no ${path}${hint}`, { file: path }, error);
  }
  return invalid(path, `cannot be read: ${message}`, {}, error);
}
