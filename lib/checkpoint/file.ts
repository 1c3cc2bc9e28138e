import { type FileHandle, open, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { ChatGLMError } from '../errors.js';
import { invalid } from './invalid.js';

/** A file that is read in pieces. Every read is checked against the file's size, so that no length field in it allocates more. */
export class CheckpointFile {
  private constructor(
    readonly path: string,
    readonly size: number,
    private readonly handle: FileHandle,
  ) {}

  static async open(path: string): Promise<CheckpointFile> {
    const absolute = resolve(path);
    try {
      // Looked at before it is opened: opening a named pipe would wait for a writer.
      if (!(await stat(absolute)).isFile()) throw invalid(absolute, 'is not a regular file');
      const handle = await open(absolute, 'r');
      try {
        return new CheckpointFile(absolute, (await handle.stat()).size, handle);
      } catch (error) {
        await handle.close();
        throw error;
      }
    } catch (error) {
      throw readError(absolute, error);
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    if (!rangeFits(offset, length, this.size)) {
      throw invalid(this.path, `is cut short: ${length} bytes wanted at ${offset}, but it has ${this.size} bytes`);
    }
    const buffer = Buffer.allocUnsafe(length);
    await this.readInto(buffer, offset);
    return buffer;
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

/** The whole of a file that is known to be small. */
export function readSmallFile(path: string, limit: number): Promise<Buffer> {
  return withFile(path, (file) => {
    if (file.size > limit) throw invalid(file.path, `has ${file.size} bytes; at most ${limit} are sensible`);
    return file.read(0, file.size);
  });
}

/** Like {@link readSmallFile}; undefined where there is no such file. */
export async function readSmallFileIfAny(path: string, limit: number): Promise<Buffer | undefined> {
  try {
    return await readSmallFile(path, limit);
  } catch (error) {
    if (error instanceof ChatGLMError && error.code === 'ERR_CHECKPOINT_NOT_FOUND') return undefined;
    throw error;
  }
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
    return new ChatGLMError('ERR_CHECKPOINT_NOT_FOUND', `There is no ${path}`, { file: path }, error);
  }
  return invalid(path, `cannot be read: ${message}`, {}, error);
}
