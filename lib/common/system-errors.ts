import { ChatGLMError, type ErrorCode } from './errors.js';

/** What the system's errors mean to a user, whether a file is read or written. */
const MEANINGS: Readonly<Record<string, { code: ErrorCode; problem: string }>> = {
  EACCES: { code: 'ERR_PERMISSION_DENIED', problem: 'this process has no permission' },
  EPERM: { code: 'ERR_PERMISSION_DENIED', problem: 'the system does not allow it' },
  EROFS: { code: 'ERR_PERMISSION_DENIED', problem: 'the file system is read-only' },
  ENOSPC: { code: 'ERR_DISK_FULL', problem: 'the disk is full' },
  EDQUOT: { code: 'ERR_DISK_FULL', problem: "the user's share of the disk is used up" },
  EMFILE: { code: 'ERR_TOO_MANY_FILES', problem: 'this process has as many files open as it may have' },
  ENFILE: { code: 'ERR_TOO_MANY_FILES', problem: 'the system has as many files open as it may have' },
  ENOMEM: { code: 'ERR_OUT_OF_MEMORY', problem: 'the system has no memory left' },
};

/** Whether the value is an error of a system call, such as Node's functions of the file system throw. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException & { code: string } {
  const { code, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  return typeof code === 'string' && typeof syscall === 'string';
}

/** The error of a system call while `file` was read or written, as this package reports it; ERR_IO is for the rest. */
export function systemError(file: string, what: 'read' | 'written', error: unknown): ChatGLMError {
  const { code, message } = error as NodeJS.ErrnoException;
  const meaning = Object.hasOwn(MEANINGS, code ?? '') ? MEANINGS[code ?? ''] : undefined;
  return new ChatGLMError(
    meaning?.code ?? 'ERR_IO',
    `${file} cannot be ${what}: ${meaning === undefined ? message : `${meaning.problem} (${code})`}`,
    { file },
    error,
  );
}
