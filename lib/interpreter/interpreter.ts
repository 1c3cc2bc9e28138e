import { execFile } from 'node:child_process';
import { realpath } from 'node:fs/promises';
import { homedir } from 'node:os';
import path from 'node:path';
import { ChatGLMError } from '../common/errors.js';
import { messageOf, show } from '../common/options.js';

/** An interpreter on this machine, and what must be visible for it to run. */
export interface Interpreter {
  /** The program's absolute path. */
  program: string;
  /** Files and directories outside of the system's that belong to it, all of them absolute. */
  places: string[];
  /** Variables that it needs to be an interpreter at all. */
  env: Readonly<Record<string, string>>;
}

/** What every sandbox shows of the system, read-only. */
export const SYSTEM_DIRECTORIES = ['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32'];

/** How long an interpreter may take to tell where it lies, in milliseconds. */
const MOST_LOOKUP_MS = 60_000;

function isWithin(file: string, directory: string): boolean {
  return file === directory || file.startsWith(directory.endsWith('/') ? directory : `${directory}/`);
}

function ask(program: string, args: string[]): Promise<unknown> {
  return new Promise((resolve, reject) => {
    execFile(program, args, { timeout: MOST_LOOKUP_MS, windowsHide: true }, (error, stdout) => {
      if (error === null) {
        try {
          resolve(JSON.parse(stdout));
          return;
        } catch (cause) {
          error = cause as Error;
        }
      }
      const { code } = error as NodeJS.ErrnoException;
      const why = code === 'ENOENT' ? 'there is no such program' : messageOf(error);
      reject(new ChatGLMError('ERR_UNSUPPORTED', `the interpreter ${show(program)} does not run: ${why}`, {}, error));
    });
  });
}

/** The places that are not of the system's directories. None of them may be a directory that holds a user's own files. */
async function placesOf(program: string, wanted: string[]): Promise<string[]> {
  const all = new Set<string>();
  for (const place of wanted) {
    const real = await realpath(place).catch(() => undefined);
    for (const each of [place, real]) {
      if (each === undefined || SYSTEM_DIRECTORIES.some((directory) => isWithin(each, directory))) continue;
      // Programs of this store are made of many packages of it, and nobody keeps files of their own there.
      all.add(isWithin(each, '/nix/store') ? '/nix/store' : path.normalize(each));
    }
  }
  const home = homedir();
  for (const place of all) {
    if (isWithin(home, place) || isWithin('/tmp', place) || isWithin('/proc', place)) {
      throw new ChatGLMError(
        'ERR_UNSUPPORTED',
        `the interpreter ${show(program)} is installed in ${place}: a sandbox would show the user's files`,
      );
    }
  }
  return [...all].filter((place) => ![...all].some((other) => other !== place && isWithin(place, other)));
}

/** Where the Python interpreter lies: behind a launcher such as pyenv's, and in a virtual environment. */
export async function findPython(name: string | undefined): Promise<Interpreter> {
  const asked = name ?? (process.platform === 'win32' ? 'python' : 'python3');
  const code =
    'import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, *sys.version_info[:2]]))';
  const told = await ask(asked, ['-I', '-c', code]);
  const [program, prefix, base, major, minor] = Array.isArray(told) ? told : [];
  const isTold = [program, prefix, base].every((it) => typeof it === 'string' && path.isAbsolute(it));
  if (!isTold || typeof major !== 'number' || typeof minor !== 'number') {
    throw new ChatGLMError('ERR_UNSUPPORTED', `${show(asked)} is no Python that tells where it lies`);
  }
  if (major < 3 || (major === 3 && minor < 8)) {
    throw new ChatGLMError('ERR_UNSUPPORTED', `${show(asked)} is Python ${major}.${minor}; 3.8 or newer is needed`);
  }
  const places = process.platform === 'linux' ? await placesOf(asked, [prefix, base, program]) : [];
  return { program, places, env: {} };
}

/** Where the Node.js interpreter lies. Its modules are in the program. */
export async function findNode(name: string | undefined): Promise<Interpreter> {
  let program: unknown = process.execPath;
  if (name !== undefined) program = await ask(name, ['-p', 'JSON.stringify(process.execPath)']);
  if (typeof program !== 'string' || !path.isAbsolute(program)) {
    throw new ChatGLMError('ERR_UNSUPPORTED', `${show(name)} is no Node.js that tells where it lies`);
  }
  const isElectron = name === undefined && process.versions.electron !== undefined;
  // Electron's program needs the libraries beside it.
  const wanted = isElectron ? [path.dirname(program)] : [program];
  const places = process.platform === 'linux' ? await placesOf(program, wanted) : [];
  return { program, places, env: isElectron ? { ELECTRON_RUN_AS_NODE: '1' } : {} };
}
