/**
 * After a first Ctrl-C that does not help, a second one ends the process; one that comes within so many milliseconds was a
 * slip.
 */
export const PATIENCE_MS = 1500;

/** Runs `handler` on Ctrl-C instead of ending the process. Returns what takes that back. */
export function onInterrupt(handler: () => void): () => void {
  process.on('SIGINT', handler);
  return () => {
    process.off('SIGINT', handler);
  };
}

/** Runs `work` with a signal that the first Ctrl-C fires; a second one ends the process. */
export async function withInterruptSignal<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const release = onInterrupt(() => {
    release();
    controller.abort();
  });
  try {
    return await work(controller.signal);
  } finally {
    release();
  }
}
