import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CheckpointFile, readError, withFile } from '../file.js';
import { type JsonObject, parseJsonObject } from './json.js';

/** A directory and what is in it. */
export class Directory {
  private readonly all: ReadonlySet<string>;

  private constructor(
    readonly path: string,
    /** Of all files and directories in it. */
    readonly names: readonly string[],
    readonly signal: AbortSignal | undefined,
  ) {
    this.all = new Set(names);
  }

  static async list(path: string, signal: AbortSignal | undefined): Promise<Directory> {
    try {
      return new Directory(path, await readdir(path), signal);
    } catch (error) {
      throw readError(path, error);
    }
  }

  has(name: string): boolean {
    return this.all.has(name);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  open(name: string): Promise<CheckpointFile> {
    return CheckpointFile.open(this.file(name), this.signal);
  }

  /** Undefined where there is no such file. */
  async bytes(name: string, limit: number): Promise<Buffer | undefined> {
    if (!this.has(name)) return undefined;
    return withFile(this.file(name), this.signal, (file) => file.readAll(limit));
  }

  /** Undefined where there is no such file. */
  async json(name: string, limit: number): Promise<JsonObject | undefined> {
    if (!this.has(name)) return undefined;
    return withFile(this.file(name), this.signal, async (file) =>
      file.inTurns(parseJsonObject(await file.readAll(limit), file.path)),
    );
  }
}
