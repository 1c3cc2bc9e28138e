import { homedir } from 'node:os';
import path from 'node:path';

/** Files and batches of a server, read and checked. */
export interface BatchSettings {
  /** Where files and batches are, if not in Redis. Undefined: in a temporary directory, gone with the process. */
  directory: string | undefined;
  /** The Redis that has files and batches, and whose workers answer lines. */
  redis: string | undefined;
  /** The most lines that this process answers at a time. */
  concurrency: number;
  /** The most bytes of an uploaded file. */
  fileBytes: number;
  /** The most bytes of all files together. Default: by where they are. */
  totalBytes: number | undefined;
}

export const BATCH_DEFAULTS = {
  concurrency: 32,
  /** OpenAI's limit for the input of a batch. */
  fileBytes: 200 * 2 ** 20,
  diskBytes: 10 * 2 ** 30,
  redisBytes: 2 ** 30,
} as const;

/** OpenAI's limit for the requests of a batch. */
export const MOST_LINES = 50_000;

/**
 * The user's directory for data of this program: under `XDG_DATA_HOME` or `~/.local/share`, in macOS under
 * `~/Library/Application Support`, in Windows under `LOCALAPPDATA`.
 */
export function defaultDataDirectory(environment: NodeJS.ProcessEnv = process.env): string {
  const { XDG_DATA_HOME: xdg, LOCALAPPDATA: local } = environment;
  const name = 'chatglm-server';
  // Relative paths in XDG_DATA_HOME are to be ignored, as its specification says.
  if (xdg !== undefined && path.isAbsolute(xdg)) return path.join(xdg, name);
  if (process.platform === 'win32') return path.join(local ?? path.join(homedir(), 'AppData', 'Local'), name);
  if (process.platform === 'darwin') return path.join(homedir(), 'Library', 'Application Support', name);
  return path.join(homedir(), '.local', 'share', name);
}
