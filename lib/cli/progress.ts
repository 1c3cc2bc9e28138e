import { formatBytes, formatMilliseconds } from './format.js';

/** How far something is. */
export interface Progress {
  bytes: number;
  totalBytes: number;
}

const barWidth = 24;
const redrawMs = 100;

/** A progress bar on stderr. Nothing is drawn where stderr is no terminal, or when the work is done at once. */
export class ProgressBar {
  readonly #label: string;
  readonly #began = performance.now();
  #drawnAt = this.#began;
  #isDrawn = false;

  constructor(label: string) {
    this.#label = label;
  }

  /** An arrow function, so that it can be handed over as `onProgress`. */
  readonly update = ({ bytes, totalBytes }: Progress): void => {
    const now = performance.now();
    if (!process.stderr.isTTY || now - this.#drawnAt < redrawMs) return;
    this.#drawnAt = now;
    this.#isDrawn = true;
    const part = totalBytes > 0 ? Math.min(1, bytes / totalBytes) : 0;
    const bar = '█'.repeat(Math.round(part * barWidth)).padEnd(barWidth, '░');
    const seconds = (now - this.#began) / 1000;
    const left = part > 0 ? formatMilliseconds(((now - this.#began) / part) * (1 - part)) : '?';
    const text = `${this.#label} ${bar} ${Math.floor(part * 100)}%  ${formatBytes(bytes)} of ${formatBytes(totalBytes)}  ${formatBytes(bytes / seconds)}/s  ${left} left`;
    process.stderr.write(`\r${text.slice(0, (process.stderr.columns ?? 80) - 1)}\x1b[K`);
  };

  /** Takes the bar away. */
  end(): void {
    if (this.#isDrawn) process.stderr.write('\r\x1b[K');
    this.#isDrawn = false;
  }
}

/** Shows a bar while `work` runs, however it ends. */
export async function withProgress<T>(
  label: string,
  work: (onProgress: (progress: Progress) => void) => Promise<T>,
): Promise<T> {
  const bar = new ProgressBar(label);
  try {
    return await work(bar.update);
  } finally {
    bar.end();
  }
}
