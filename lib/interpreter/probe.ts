import { execFile } from 'node:child_process';
import { access, type FileHandle, open, readFile } from 'node:fs/promises';
import path from 'node:path';
import { ChatGLMError } from '../common/errors.js';
import { plainText } from '../common/invalid.js';
import { Child } from './child.js';
import type { Interpreter } from './interpreter.js';
import type { Settings } from './options.js';
import { isRealRoot, type Sandbox, sandboxed } from './sandbox.js';
import { systemCallFilter } from './seccomp.js';
import { WorkingDirectory } from './working-directory.js';

/** How long the trial of a sandbox may take, in milliseconds. */
const MOST_PROBE_MS = 60_000;

/** Numbers of users that no user and no range of subordinate users has, usually. Each session gets one of its own. */
const FIRST_USER = 0x7000_0000;
const USERS = 0x0fff_ffff;

export function someUser(): number {
  return FIRST_USER + Math.floor(Math.random() * USERS);
}

/** The environment of what builds a sandbox. The code sees it as well, so nothing of this process's own is in it. */
export function baseEnv(): Record<string, string> {
  return { PATH: '/usr/local/bin:/usr/bin:/bin', LANG: 'C.UTF-8' };
}

/** A file with the filter of system calls, open for one child to read from its beginning. */
export async function openFilter(sandbox: Sandbox, directory: WorkingDirectory): Promise<FileHandle | undefined> {
  const filter = sandbox.hasFilter ? systemCallFilter() : undefined;
  if (filter === undefined) return undefined;
  const file = path.join(directory.outer, 'filter');
  const written = await open(file, 'w', 0o600);
  await written.writeFile(filter);
  await written.close();
  return open(file, 'r');
}

function output(program: string, args: string[]): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 60_000 }, (error, stdout) => resolve(error === null ? stdout : undefined));
  });
}

/**
 * Code of a shell that says what it reaches: a file of the host, an interface of the network, the host's processes. Told by the
 * program that the sandbox is for, it shows that the sandbox does what it is to do on this machine, not only that it starts.
 */
function probeScript(file: string): string {
  return [
    `if [ -e '${file}' ]; then echo sees-files; fi`,
    'while read -r name rest; do case $name in lo:*|Inter-*|face) ;; *) echo sees-network ;; esac; done < /proc/net/dev',
    `if [ -e /proc/${process.pid} ] && [ ${process.pid} -gt 64 ]; then echo sees-processes; fi`,
    'touch /usr/node-chatglm-probe /node-chatglm-probe 2>/dev/null && echo writes-system',
    'echo done',
  ].join('\n');
}

/** Why the sandbox cannot be used, or undefined where it holds. */
async function problemOf(sandbox: Sandbox, settings: Settings, interpreter: Interpreter): Promise<string | undefined> {
  const user = sandbox.isRoot ? someUser() : undefined;
  const directory = await WorkingDirectory.create(new Map(), user);
  let filter: FileHandle | undefined;
  try {
    filter = await openFilter(sandbox, directory);
    const places = { data: directory.data, root: directory.root, user: user ?? 0 };
    const shell = { program: '/bin/sh', places: interpreter.places, env: {} };
    const args = ['-c', probeScript(directory.outer)];
    const command = await sandboxed(sandbox, places, settings, {
      interpreter: shell,
      args,
      filterArgument: undefined,
      ownThreads: 16,
      ownBytes: 0,
    });
    const child = new Child({
      command,
      env: baseEnv(),
      cwd: directory.data,
      descriptor: filter?.fd,
      hasNamespace: true,
      memoryBytes: Number.MAX_SAFE_INTEGER,
      tasks: 4096,
      outputBytes: 65_536,
      fileBytes: Number.MAX_SAFE_INTEGER,
      isDiskOver: async () => false,
    });
    const timer = setTimeout(() => child.end('start'), MOST_PROBE_MS);
    await child.start();
    clearTimeout(timer);
    const text = child.takeOutput().toString();
    await child.end('disposed');
    if (text === 'done\n') return undefined;
    return plainText(text.trim().slice(0, 300)) || `the command ${child.how}`;
  } catch (error) {
    return plainText(String(error).slice(0, 300));
  } finally {
    await filter?.close();
    await directory.remove();
  }
}

/** Whether programs may reach a virtual machine's host by sockets of AF_VSOCK, which no namespace holds. */
async function hasHostSockets(): Promise<boolean> {
  const protocols = await readFile('/proc/net/protocols', 'latin1').catch(() => 'AF_VSOCK');
  if (protocols.includes('AF_VSOCK')) return true;
  return access('/dev/vsock').then(
    () => true,
    () => false,
  );
}

/** The sandboxes that this system may have, best first. */
async function candidates(settings: Settings, canFilterItself: boolean): Promise<Sandbox[]> {
  const canFilter = systemCallFilter() !== undefined;
  const help = (await output('bwrap', ['--help'])) ?? '';
  const hasNoNestedUsers = help.includes('--disable-userns');
  const hasNoHost = !(await hasHostSockets());
  const all: Sandbox[] = [];
  for (const kind of ['bubblewrap', 'unshare'] as const) {
    if (settings.sandbox !== 'auto' && settings.sandbox !== kind) continue;
    const hasFilter = canFilter && (kind === 'bubblewrap' || canFilterItself);
    const hidesNetwork = hasFilter || hasNoHost;
    for (const isRoot of isRealRoot() ? [true, false] : [false]) {
      all.push({ kind, isRoot, hasNoNestedUsers, hasFilter, hidesNetwork, hasLimits: true });
    }
  }
  return all;
}

/** Tries what this system has; nothing weaker than was asked for is taken. */
export async function findSandbox(
  settings: Settings,
  interpreter: Interpreter,
  canFilterItself: boolean,
): Promise<Sandbox> {
  const { sandbox: choice } = settings;
  if (choice === 'none') {
    const hasLimits = process.platform === 'linux' && (await output('prlimit', ['--version'])) !== undefined;
    return {
      kind: 'none',
      isRoot: false,
      hasNoNestedUsers: false,
      hasFilter: false,
      hidesNetwork: false,
      hasLimits,
    };
  }
  const instead = "sandbox: 'none' runs the code with all rights of the user";
  const wanted = choice === 'auto' ? 'no sandbox' : `no ${choice} sandbox`;
  if (process.platform !== 'linux') {
    const why = `sandboxes need Linux, and this system is ${process.platform}`;
    throw new ChatGLMError('ERR_UNSUPPORTED', `this system has ${wanted} for code: ${why}; ${instead}`);
  }
  const problems: string[] = [];
  for (const sandbox of await candidates(settings, canFilterItself)) {
    if (choice === 'auto' && !sandbox.hidesNetwork) {
      problems.push(`${sandbox.kind}: the host of this virtual machine could be reached`);
      continue;
    }
    const problem = await problemOf(sandbox, settings, interpreter);
    if (problem === undefined) return sandbox;
    problems.push(`${sandbox.kind}: ${problem}`);
  }
  throw new ChatGLMError(
    'ERR_UNSUPPORTED',
    `this system has ${wanted} for code (${problems.join('; ')}): install bubblewrap; ${instead}`,
  );
}
