import { setImmediate } from 'node:timers/promises';
import { throwIfAborted } from './errors.js';

/** A computation that may be interrupted wherever it yields. */
export type Work<T> = Generator<undefined, T, undefined>;

/** The longest that work on a file holds the event loop, in milliseconds of the clock. */
const TURN_MS = 5;

/** Measures how long the caller has held the event loop. */
export class Pace {
  private end = performance.now() + TURN_MS;

  constructor(private readonly signal?: AbortSignal | undefined) {}

  /** Whether the event loop should have its turn now. */
  get isOver(): boolean {
    return performance.now() >= this.end;
  }

  /** Lets everybody else have a turn. Throws ERR_ABORTED if the signal has fired. */
  async rest(): Promise<void> {
    throwIfAborted(this.signal);
    await setImmediate();
    throwIfAborted(this.signal);
    this.end = performance.now() + TURN_MS;
  }
}

/** Does the work in slices of a few milliseconds, between which the event loop has its turn and the signal counts. */
export async function inTurns<T>(work: Work<T>, signal?: AbortSignal | undefined): Promise<T> {
  const pace = new Pace(signal);
  for (;;) {
    const step = work.next();
    if (step.done) return step.value;
    if (pace.isOver) await pace.rest();
  }
}
