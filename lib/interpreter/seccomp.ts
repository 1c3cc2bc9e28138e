import { arch } from 'node:process';

// A filter of system calls as the kernel takes it: instructions of classic BPF over struct seccomp_data
// (linux/seccomp.h: nr at 0, arch at 4, args from 16, little-endian on both architectures here).
const NUMBER = 0;
const ARCHITECTURE = 4;
const FIRST_ARGUMENT = 16; // its low half
const LOAD = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_AT_LEAST = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN = 0x06; // BPF_RET | BPF_K
const ALLOW = 0x7fff0000;
const FAIL = 0x00050000; // SECCOMP_RET_ERRNO, with the error's number in the low half
const KILL = 0x80000000; // SECCOMP_RET_KILL_PROCESS
const EPERM = 1;
const ENOSYS = 38;
const EAFNOSUPPORT = 97;
/** CLONE_NEW*: new namespaces, users' among them, in which code would be root over much of the kernel. */
const NEW_NAMESPACES = 0x7e020000;
/** AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Others, as AF_VSOCK, which reaches a virtual machine's host, know no network namespace. */
const FAMILIES = [1, 2, 10, 16];
/** x32's calls have this bit: a second table of numbers for the same calls. */
const X32 = 0x40000000;

interface Numbers {
  audit: number;
  clone: number;
  socket: number;
  /** No call of these is needed by programs; each has been a way into kernels, or around a limit of this sandbox. */
  refused: number[];
}

/** Of calls that have the same number everywhere: io_uring, the new mount calls, pidfd_getfd, mount_setattr. */
const SHARED = [425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442];
/** The flags of clone3() lie in memory, where no filter sees them; the C libraries go on with clone(). */
const CLONE3 = 435;

const NUMBERS: Readonly<Record<string, Numbers>> = {
  x64: {
    audit: 0xc000003e,
    clone: 56,
    socket: 41,
    // ptrace, pivot_root, mount, umount2, init_module, delete_module, kexec_load, add_key, request_key, keyctl, unshare,
    // perf_event_open, open_by_handle_at, setns, process_vm_readv, process_vm_writev, finit_module, memfd_create,
    // kexec_file_load, bpf, userfaultfd, syslog, shmget, semget, msgget
    refused: [
      101, 155, 165, 166, 175, 176, 246, 248, 249, 250, 272, 298, 304, 308, 310, 311, 313, 319, 320, 321, 323, 103, 29,
      64, 68,
    ],
  },
  arm64: {
    audit: 0xc00000b7,
    clone: 220,
    socket: 198,
    refused: [
      117, 41, 40, 39, 105, 106, 104, 217, 218, 219, 97, 241, 265, 268, 270, 271, 273, 279, 294, 280, 282, 116, 194,
      190, 186,
    ],
  },
};

/** The filter for this machine's architecture, or undefined where its numbers are not known here. */
export function systemCallFilter(): Buffer | undefined {
  const numbers = NUMBERS[arch];
  if (numbers === undefined) return undefined;
  const program: [code: number, yes: number, no: number, value: number][] = [
    [LOAD, 0, 0, ARCHITECTURE],
    [JUMP_EQUAL, 1, 0, numbers.audit],
    [RETURN, 0, 0, KILL],
    [LOAD, 0, 0, NUMBER],
    [JUMP_AT_LEAST, 0, 1, X32],
    [RETURN, 0, 0, FAIL | ENOSYS],
    [JUMP_EQUAL, 0, 1, CLONE3],
    [RETURN, 0, 0, FAIL | ENOSYS],
  ];
  for (const number of [...numbers.refused, ...SHARED]) {
    program.push([JUMP_EQUAL, 0, 1, number], [RETURN, 0, 0, FAIL | EPERM]);
  }
  program.push(
    [JUMP_EQUAL, 0, 4, numbers.clone],
    [LOAD, 0, 0, FIRST_ARGUMENT],
    [JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES],
    [RETURN, 0, 0, FAIL | EPERM],
    [RETURN, 0, 0, ALLOW],
    [JUMP_EQUAL, 0, FAMILIES.length + 2, numbers.socket],
    [LOAD, 0, 0, FIRST_ARGUMENT],
    ...FAMILIES.map((family, i): [number, number, number, number] => [JUMP_EQUAL, FAMILIES.length - i, 0, family]),
    [RETURN, 0, 0, FAIL | EAFNOSUPPORT],
    [RETURN, 0, 0, ALLOW],
  );
  const bytes = Buffer.alloc(program.length * 8);
  for (const [i, [code, yes, no, value]] of program.entries()) {
    bytes.writeUInt16LE(code, i * 8);
    bytes.writeUInt8(yes, i * 8 + 2);
    bytes.writeUInt8(no, i * 8 + 3);
    bytes.writeUInt32LE(value >>> 0, i * 8 + 4);
  }
  return bytes;
}
