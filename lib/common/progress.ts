/** Milliseconds between two reports of progress. */
const INTERVAL_MS = 100;

/** Passes reports of progress on, ten a second at most: always the first, and always that all is done. */
export function throttled<P extends { bytes: number; totalBytes: number }>(
  onProgress: (progress: P) => void,
): (progress: P) => void {
  let toldAt = Number.NEGATIVE_INFINITY;
  let isDone = false;
  return (progress) => {
    const now = performance.now();
    const completes = progress.bytes >= progress.totalBytes;
    if (isDone || (!completes && now - toldAt < INTERVAL_MS)) return;
    isDone = completes;
    toldAt = now;
    onProgress(progress);
  };
}
