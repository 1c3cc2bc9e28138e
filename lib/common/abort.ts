const callbacks = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` once if the signal fires. Returns what takes that back.
 *
 * However many requests share a signal, it gets one listener: a server's shutdown signal must not bring Node's warning of
 * a leak.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (signal === undefined) return () => {};
  let waiting = callbacks.get(signal);
  if (waiting === undefined) {
    const all = new Set<() => void>();
    callbacks.set(signal, all);
    waiting = all;
    signal.addEventListener(
      'abort',
      () => {
        for (const call of [...all]) call();
        all.clear();
      },
      { once: true },
    );
  }
  waiting.add(callback);
  const set = waiting;
  return () => set.delete(callback);
}
