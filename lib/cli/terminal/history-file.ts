import { randomBytes } from 'node:crypto';
import { mkdir, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';

const MOST_ENTRIES = 1000;
/** Of the whole file, in characters; a longer message than a quarter of it is not kept. */
const MOST_CHARACTERS = 1 << 20;

/** The messages and commands that were typed, also in earlier runs. The file has a JSON string on each line. */
export class HistoryFile {
  readonly #file: string | undefined;
  #entries: string[] = [];
  #writing: Promise<void> = Promise.resolve();
  #problem: string | undefined;

  /** @param file Undefined: nothing is kept. */
  constructor(file: string | undefined) {
    this.#file = file;
  }

  /** The oldest comes first. */
  get entries(): readonly string[] {
    return this.#entries;
  }

  /** Why the file cannot be read or written, if so. */
  get problem(): string | undefined {
    return this.#problem;
  }

  async load(): Promise<void> {
    if (this.#file === undefined) return;
    try {
      this.#entries = await readEntries(this.#file);
    } catch (error) {
      this.#problem = (error as Error).message;
    }
  }

  /** Appends an entry, and writes the file in the background. */
  add(entry: string): void {
    if (entry.trim() === '' || entry === this.#entries.at(-1)) return;
    this.#entries = bounded([...this.#entries, entry]);
    const file = this.#file;
    if (file === undefined || entry.length > MOST_CHARACTERS / 4) return;
    this.#writing = this.#writing
      .then(() => append(file, entry))
      .catch((error: Error) => {
        this.#problem = error.message;
      });
  }

  /** Resolves when everything is written. */
  async flush(): Promise<void> {
    await this.#writing;
  }
}

/** Where the history is: `CHATGLM_HISTORY`, which turns it off when it is empty, or the user's folder for states. */
export function historyPath(env: NodeJS.ProcessEnv, home: string): string | undefined {
  if (env.CHATGLM_HISTORY !== undefined) return env.CHATGLM_HISTORY || undefined;
  if (process.platform === 'win32' && env.LOCALAPPDATA) return path.join(env.LOCALAPPDATA, 'chatglm', 'history');
  return path.join(env.XDG_STATE_HOME || path.join(home, '.local', 'state'), 'chatglm', 'history');
}

async function readEntries(file: string): Promise<string[]> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return bounded(text.split('\n').flatMap(parseEntry));
}

/** A line that is damaged is left out: it is no reason to lose the others. */
function parseEntry(line: string): string[] {
  try {
    const entry: unknown = JSON.parse(line);
    return typeof entry === 'string' ? [entry] : [];
  } catch {
    return [];
  }
}

function bounded(entries: readonly string[]): string[] {
  let characters = 0;
  const tooOld = entries.findLastIndex((entry) => {
    characters += entry.length;
    return characters > MOST_CHARACTERS;
  });
  return entries.slice(Math.max(tooOld + 1, entries.length - MOST_ENTRIES));
}

/** Reads the file anew, since another chat may have written it, and replaces it by a whole one. */
async function append(file: string, entry: string): Promise<void> {
  await mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  // A link stays a link.
  const target = await realpath(file).catch(() => file);
  const entries = bounded([...(await readEntries(target)), entry]);
  const temporary = `${target}.${process.pid}.${randomBytes(4).toString('hex')}`;
  try {
    await writeFile(temporary, entries.map((each) => `${JSON.stringify(each)}\n`).join(''), {
      mode: 0o600,
      flag: 'wx',
    });
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}
