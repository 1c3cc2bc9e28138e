import { invalidArgument } from '../common/errors.js';
import { choiceOption, integerOption, isPlainObject, reading, readOptions, show, toPath } from '../common/options.js';

/** What holds the code: `auto` takes bubblewrap, else unshare, and never none. */
export type SandboxChoice = 'auto' | 'bubblewrap' | 'unshare' | 'none';

/** How code is run, whatever its language. docs/interpreter.md says what each sandbox protects. */
export interface ExecutorOptions {
  /** How long a piece of code may run, in milliseconds. Default: 10,000. */
  timeoutMs?: number | undefined;
  /** The memory of all processes of a session together, in bytes. Default: 536,870,912; at least 67,108,864. */
  memoryBytes?: number | undefined;
  /** How much a piece of code may print, in bytes of UTF-8. Default: 65,536. */
  outputBytes?: number | undefined;
  /** How many processes and threads the code may have at a time besides the interpreter's own. Default: 32. */
  processes?: number | undefined;
  /** How much may be written: to the working directory as a whole, and to `/tmp`. In bytes; default: 67,108,864. */
  fileBytes?: number | undefined;
  /**
   * What holds the code. `auto` takes bubblewrap or else unshare, and refuses to run where neither protects files and
   * network. `none` runs the code with all rights of the user: for code that you trust. Default: `auto`.
   */
  sandbox?: SandboxChoice | undefined;
  /** Files that lie in the working directory when a session begins: names without folders, and bytes. Default: none. */
  files?: Readonly<Record<string, Uint8Array>> | undefined;
  /**
   * Names of this process's environment variables that the code may see. Default: none. `PATH` and `LANG` are always set, in a
   * sandbox to values of its own.
   */
  env?: readonly string[] | undefined;
}

/** How Python code is run. */
export interface PythonExecutorOptions extends ExecutorOptions {
  /** The interpreter: a path, or a name that is looked for in `PATH`. Default: `python3`, on Windows `python`. */
  python?: string | undefined;
}

/** How JavaScript code is run. */
export interface JavaScriptExecutorOptions extends ExecutorOptions {
  /** The interpreter: a path, or a name that is looked for in `PATH`. Default: the Node.js that runs this process. */
  node?: string | undefined;
}

/** Options that were read and completed. */
export interface Limits {
  timeoutMs: number;
  memoryBytes: number;
  outputBytes: number;
  processes: number;
  fileBytes: number;
}

export interface Settings extends Limits {
  sandbox: SandboxChoice;
  interpreter: string | undefined;
  files: ReadonlyMap<string, Uint8Array>;
  env: readonly string[];
}

const MEBIBYTE = 2 ** 20;
const SHARED_NAMES = [
  'timeoutMs',
  'memoryBytes',
  'outputBytes',
  'processes',
  'fileBytes',
  'sandbox',
  'files',
  'env',
] as const;
/** What setTimeout() can wait for. */
const MOST_TIMEOUT_MS = 2 ** 31 - 1;

/** A file's name that stands for a file of the working directory itself on every system. */
function isFileName(name: string): boolean {
  return name !== '' && name !== '.' && name !== '..' && name.length <= 255 && !/[/\\\0]/.test(name);
}

function filesOption(value: unknown): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>();
  if (value === undefined) return files;
  if (!isPlainObject(value)) throw invalidArgument(`files must be an object of names and bytes, got ${show(value)}`);
  reading('files', () => {
    for (const [name, data] of Object.entries(value)) {
      if (!isFileName(name)) throw invalidArgument(`files: ${show(name)} is no file's name without a folder`);
      if (!ArrayBuffer.isView(data)) throw invalidArgument(`files[${show(name)}] must be bytes, got ${show(data)}`);
      files.set(name, Uint8Array.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
    }
  });
  return files;
}

function envOption(value: unknown): string[] {
  if (value === undefined) return [];
  return reading('env', () => {
    if (!Array.isArray(value)) throw invalidArgument(`env must be an array of names of variables, got ${show(value)}`);
    return Array.from(value, (name: unknown) => {
      if (typeof name === 'string' && /^[A-Za-z_][A-Za-z\d_]*$/.test(name)) return name;
      throw invalidArgument(`env must be an array of names of variables, got ${show(name)} in it`);
    });
  });
}

export function readSettings(options: unknown, interpreter: 'python' | 'node', what: string): Settings {
  const read = readOptions<PythonExecutorOptions & JavaScriptExecutorOptions>(
    options,
    [...SHARED_NAMES, interpreter],
    what,
  );
  const settings: Settings = {
    timeoutMs: integerOption('timeoutMs', read.timeoutMs, 10_000, { least: 1, most: MOST_TIMEOUT_MS }),
    memoryBytes: integerOption('memoryBytes', read.memoryBytes, 512 * MEBIBYTE, { least: 64 * MEBIBYTE }),
    outputBytes: integerOption('outputBytes', read.outputBytes, 64 * 1024, { least: 1, most: 256 * MEBIBYTE }),
    processes: integerOption('processes', read.processes, 32, { least: 1, most: 4096 }),
    fileBytes: integerOption('fileBytes', read.fileBytes, 64 * MEBIBYTE, { least: 1024 }),
    sandbox: choiceOption('sandbox', read.sandbox, ['auto', 'bubblewrap', 'unshare', 'none'] as const, 'auto'),
    interpreter: read[interpreter] === undefined ? undefined : toPath(interpreter, read[interpreter]),
    files: filesOption(read.files),
    env: envOption(read.env),
  };
  const bytes = [...settings.files.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
  if (bytes > settings.fileBytes) {
    throw invalidArgument(`files have ${bytes} bytes; fileBytes allows ${settings.fileBytes}`);
  }
  return settings;
}
