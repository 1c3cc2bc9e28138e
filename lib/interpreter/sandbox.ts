import { readFileSync } from 'node:fs';
import { lstat, readlink } from 'node:fs/promises';
import { release } from 'node:os';
import path from 'node:path';
import type { SandboxProtections } from './executor.js';
import { type Interpreter, SYSTEM_DIRECTORIES } from './interpreter.js';
import type { Limits } from './options.js';

/** Where the working directory is in a sandbox: the path that ChatGLM3's prompt for the interpreter names. */
export const WORKING_DIRECTORY = '/mnt/data';

/** What of the system's settings programs need: to find libraries and programs, the time zone, fonts. */
const SETTINGS = [
  '/etc/ld.so.cache',
  '/etc/ld.so.conf',
  '/etc/ld.so.conf.d',
  '/etc/alternatives',
  '/etc/localtime',
  '/etc/fonts',
];

const DEVICES = ['null', 'zero', 'full', 'random', 'urandom'];
/** The size of /dev/shm, which multiprocessing needs for its locks. */
const SHARED_MEMORY_BYTES = 2 ** 24;
/** Where programs are looked for in a sandbox. */
export const SANDBOX_PATH = '/usr/local/bin:/usr/bin:/bin';
/** Whom the code runs as in a user namespace. */
const INNER_USER = '1000';

/** The file descriptor that bubblewrap reads the filter of system calls from. */
const FILTER_DESCRIPTOR = 4;

/** One way to hold code, and what it needs to be told. */
export interface Sandbox {
  kind: SandboxProtections['sandbox'];
  /**
   * With real root's rights, the code runs as a user of its own, whom the kernel's limit of processes binds; else as this
   * process's user in a user namespace, in which rights over the system count for nothing.
   */
  isRoot: boolean;
  /** Whether bubblewrap knows `--disable-userns`. */
  hasNoNestedUsers: boolean;
  /** Whether system calls are filtered: by bubblewrap, or by a runner that can do so itself. */
  hasFilter: boolean;
  /** Whether the code reaches no network, not even that of a virtual machine's host. */
  hidesNetwork: boolean;
  /** Whether prlimit is there; sandboxes need it. */
  hasLimits: boolean;
}

/** The places of a session on the host. */
export interface Places {
  /** The working directory. */
  data: string;
  /** An empty directory, where unshare's script builds what the code sees. */
  root: string;
  /** The number of the user that the code runs as where the sandbox is `isRoot`. */
  user: number;
}

/** What is run in a sandbox, and what it takes before any code of a model runs. */
export interface Command {
  interpreter: Interpreter;
  args: string[];
  /** What tells a runner to filter its system calls itself, where it can. */
  filterArgument: string | undefined;
  /** Threads of the interpreter itself. */
  ownThreads: number;
  /** Memory of the interpreter itself that its code never sees, in bytes. */
  ownBytes: number;
}

/** Whether this process is root over the whole system, and not only in a user namespace. */
export function isRealRoot(): boolean {
  if (process.getuid?.() !== 0) return false;
  try {
    return /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync('/proc/self/uid_map', 'latin1'));
  } catch {
    return false;
  }
}

/** Whether RLIMIT_NPROC counts by user namespace (Linux 5.14 on): before, all other processes of the user count as well. */
function countsByNamespace(): boolean {
  const [major = 0, minor = 0] = release().split('.').map(Number);
  return major > 5 || (major === 5 && minor >= 14);
}

/** prlimit's arguments: limits of the kernel for each process, which hold at once; the watchdog adds what goes by session. */
export function limitArguments(limits: Limits, command: Command, sandbox: Sandbox): string[] {
  const tasks = limits.processes + command.ownThreads;
  const hasTasks = sandbox.kind !== 'none' && (sandbox.isRoot || countsByNamespace());
  return [
    'prlimit',
    '--core=0',
    '--nofile=256',
    `--fsize=${limits.fileBytes}`,
    // Not the address space: Node.js reserves far more of that than it uses.
    `--data=${limits.memoryBytes + command.ownBytes}`,
    ...(hasTasks ? [`--nproc=${tasks}`] : []),
    '--',
    command.interpreter.program,
    ...command.args,
    ...(sandbox.kind === 'unshare' && sandbox.hasFilter && command.filterArgument ? [command.filterArgument] : []),
  ];
}

/** The directories on the way to a place, outermost first. */
function parentsOf(place: string): string[] {
  const parents: string[] = [];
  for (let parent = path.dirname(place); parent !== '/'; parent = path.dirname(parent)) parents.unshift(parent);
  return parents;
}

type Entry = { directory: string } | { link: string; target: string };

/** The system's directories as they are here: many are links into /usr. */
async function systemEntries(): Promise<Entry[]> {
  const entries: Entry[] = [];
  for (const directory of SYSTEM_DIRECTORIES) {
    const stats = await lstat(directory).catch(() => undefined);
    if (stats?.isSymbolicLink()) entries.push({ link: directory, target: await readlink(directory) });
    else if (stats?.isDirectory()) entries.push({ directory });
  }
  return entries;
}

async function bubblewrapCommand(
  sandbox: Sandbox,
  places: Places,
  limits: Limits,
  command: Command,
): Promise<string[]> {
  const { interpreter } = command;
  const made = new Set<string>(['/tmp']);
  // bubblewrap gives parents that it makes itself to its own user alone.
  const withParents = (place: string) =>
    parentsOf(place)
      .filter((parent) => !made.has(parent) && !SYSTEM_DIRECTORIES.includes(parent) && made.add(parent))
      .flatMap((parent) => ['--perms', '0755', '--dir', parent]);
  const args = ['bwrap', '--die-with-parent', '--new-session'];
  args.push('--unshare-net', '--unshare-pid', '--unshare-ipc', '--unshare-uts', '--unshare-cgroup-try');
  args.push('--hostname', 'sandbox', '--cap-drop', 'ALL');
  if (sandbox.isRoot) for (const name of ['SETUID', 'SETGID', 'SETPCAP']) args.push('--cap-add', `CAP_${name}`);
  else args.push('--unshare-user', '--uid', INNER_USER, '--gid', INNER_USER);
  if (!sandbox.isRoot && sandbox.hasNoNestedUsers) args.push('--disable-userns');
  if (sandbox.hasFilter) args.push('--seccomp', String(FILTER_DESCRIPTOR));
  for (const entry of await systemEntries()) {
    if ('link' in entry) args.push('--symlink', entry.target, entry.link);
    else args.push('--ro-bind', entry.directory, entry.directory);
  }
  for (const place of SETTINGS) args.push(...withParents(place), '--ro-bind-try', place, place);
  // Before the interpreter, which may be installed below it.
  args.push('--perms', '1777', '--size', String(limits.fileBytes), '--tmpfs', '/tmp');
  for (const place of interpreter.places) args.push(...withParents(place), '--ro-bind', place, place);
  args.push('--proc', '/proc', '--dev', '/dev');
  // bubblewrap's own process in the sandbox is the same user's in a user namespace, without the limits of the code.
  args.push('--tmpfs', '/proc/1', '--remount-ro', '/proc/1');
  args.push('--perms', '1777', '--size', String(SHARED_MEMORY_BYTES), '--tmpfs', '/dev/shm', '--remount-ro', '/dev');
  args.push(...withParents(WORKING_DIRECTORY), '--bind', places.data, WORKING_DIRECTORY);
  args.push('--remount-ro', '/');
  if (sandbox.isRoot) {
    // Without its rights root may not enter the directory of the user that the code runs as: that user goes there itself.
    const go = ['sh', '-c', 'cd "$0" && exec "$@"', WORKING_DIRECTORY];
    args.push('--chdir', '/', '--', ...userArguments(places), ...go);
  } else {
    args.push('--chdir', WORKING_DIRECTORY, '--');
  }
  return [...args, ...limitArguments(limits, command, sandbox)];
}

function userArguments({ user }: Places): string[] {
  const own = `${user}`;
  return ['setpriv', '--reuid', own, '--regid', own, '--clear-groups', '--inh-caps=-all', '--bounding-set=-all', '--'];
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A script that builds what the code sees, and leaves everything else behind. Its shell is the namespace's first process. */
async function unshareCommand(sandbox: Sandbox, places: Places, limits: Limits, command: Command): Promise<string[]> {
  const { interpreter } = command;
  const root = places.root;
  // Relative to the new root, so that a script that runs on by itself makes nothing where the root was.
  const at = (place: string) => quoted(`.${place}`);
  const lines = ['set -eu', 'PATH=$PATH:/usr/sbin:/sbin'];
  const bind = (place: string, readOnly: boolean, target = place) => {
    lines.push(`mount --rbind ${quoted(place)} ${at(target)}`);
    // A namespace may not take back what forbids more: where a mount is without devices and set-user-ids, the new one must be.
    const remount = (flags: string) => `mount -o remount,bind,${flags} ${at(target)}`;
    if (readOnly) lines.push(`${remount('ro')} 2>/dev/null || ${remount('ro,nosuid,nodev')}`);
  };
  lines.push(`mount -t tmpfs -o size=1m,mode=0755 tmpfs ${quoted(root)}`, `cd ${quoted(root)}`);
  for (const entry of await systemEntries()) {
    if ('link' in entry) {
      lines.push(`ln -s ${quoted(entry.target)} ${at(entry.link)}`);
    } else {
      lines.push(`mkdir -p ${at(entry.directory)}`);
      bind(entry.directory, true);
    }
  }
  // Before the interpreter, which may be installed below it.
  lines.push(`mkdir ${at('/tmp')}`);
  lines.push(`mount -t tmpfs -o size=${limits.fileBytes},mode=1777,nosuid,nodev tmpfs ${at('/tmp')}`);
  for (const place of [...SETTINGS, ...interpreter.places]) {
    const stats = await lstat(place).catch(() => undefined);
    if (stats === undefined) continue;
    lines.push(`mkdir -p ${at(path.dirname(place))}`);
    if (stats.isSymbolicLink()) {
      lines.push(`ln -s ${quoted(await readlink(place))} ${at(place)}`);
    } else {
      lines.push(`${stats.isDirectory() ? 'mkdir -p' : 'touch'} ${at(place)}`);
      bind(place, true);
    }
  }
  lines.push(`mkdir -p ${at('/proc')} ${at('/dev/shm')} ${at(WORKING_DIRECTORY)} ${at('/old')}`);
  for (const device of DEVICES) {
    lines.push(`touch ${at(`/dev/${device}`)}`);
    bind(`/dev/${device}`, false);
  }
  for (const [i, name] of ['stdin', 'stdout', 'stderr'].entries()) {
    lines.push(`ln -s /proc/self/fd/${i} ${at(`/dev/${name}`)}`);
  }
  lines.push(`ln -s /proc/self/fd ${at('/dev/fd')}`);
  lines.push(`mount -t proc -o nosuid,nodev,noexec proc ${at('/proc')}`);
  // The code may have the number of the system's root, to whom settings of the kernel belong.
  for (const part of ['sys', 'irq', 'bus', 'sysrq-trigger']) {
    const place = at(`/proc/${part}`);
    lines.push(
      `if [ -e ${place} ]; then mount --bind ${place} ${place}; mount -o remount,bind,ro,nosuid,nodev,noexec ${place}; fi`,
    );
  }
  lines.push(`mount -t tmpfs -o ro,size=4k,mode=0755 tmpfs ${at('/proc/1')}`);
  // System V's shared memory is no process's own; the setting belongs to the new namespace.
  lines.push(`echo ${SHARED_MEMORY_BYTES / 4096} > /proc/sys/kernel/shmall`);
  if (!sandbox.isRoot) lines.push(`echo 0 > /proc/sys/user/max_user_namespaces`);
  lines.push(`mount -t tmpfs -o size=${SHARED_MEMORY_BYTES},mode=1777,nosuid,nodev tmpfs ${at('/dev/shm')}`);
  bind(places.data, false, WORKING_DIRECTORY);
  lines.push('pivot_root . old', 'cd /', 'umount -l /old', 'rmdir /old');
  lines.push('mount -o remount,bind,ro /', `cd ${WORKING_DIRECTORY}`);
  const rights = sandbox.isRoot
    ? userArguments(places).slice(0, -1)
    : ['setpriv', '--inh-caps=-all', '--ambient-caps=-all', '--bounding-set=-all'];
  const inner = [...rights, '--no-new-privs', '--', ...limitArguments(limits, command, sandbox)];
  lines.push('code=0', `${inner.map(quoted).join(' ')} || code=$?`, 'exit $code');
  const users = sandbox.isRoot ? [] : ['--user', '--map-root-user'];
  const namespaces = ['--net', '--pid', '--fork', '--mount', '--ipc', '--uts', '--kill-child'];
  return ['setpriv', '--pdeathsig', 'KILL', '--', 'unshare', ...users, ...namespaces, 'sh', '-c', lines.join('\n')];
}

/** The command that runs the interpreter in the sandbox. Its first word is looked for in this process's PATH. */
export async function sandboxed(sandbox: Sandbox, places: Places, limits: Limits, command: Command): Promise<string[]> {
  switch (sandbox.kind) {
    case 'bubblewrap':
      return bubblewrapCommand(sandbox, places, limits, command);
    case 'unshare':
      return unshareCommand(sandbox, places, limits, command);
    case 'none':
      return sandbox.hasLimits
        ? limitArguments(limits, command, sandbox)
        : [command.interpreter.program, ...command.args];
  }
}
