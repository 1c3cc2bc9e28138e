import { reading } from './options.js';

const callbacks = new WeakMap<AbortSignal, Set<() => void>>();

/**
 * Calls `callback` once if the signal fires. Returns a function that takes the callback back.
 *
 * However many requests share a signal, it gets one listener: a server's shutdown signal must not bring Node's warning of
 * a leak.
 */
export function onAbort(signal: AbortSignal | undefined, callback: () => void): () => void {
  if (signal === undefined) return () => {};
  let waiting = callbacks.get(signal);
  if (waiting === undefined) {
    const all = new Set<() => void>();
    const listener = () => {
      for (const call of [...all]) call();
      all.clear();
    };
    // What looks like a signal need not be one.
    reading('signal', () => signal.addEventListener('abort', listener, { once: true }));
    callbacks.set(signal, all);
    waiting = all;
  }
  waiting.add(callback);
  const set = waiting;
  return () => set.delete(callback);
}
