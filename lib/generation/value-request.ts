import type { NativeFinish, NativeTokenLogprobs } from '../addon/native.js';
import { onAbort } from '../common/abort.js';
import { aborted, type ChatGLMError } from '../common/errors.js';
import { allocated } from '../common/options.js';
import type { RequestHandler } from './token-stream.js';

/** A native request that gives one value at its end. */
abstract class ValueRequest<Value> implements RequestHandler {
  readonly result: Promise<Value>;

  readonly #over: () => void;
  #resolve!: (value: Value) => void;
  #reject!: (error: unknown) => void;

  constructor(cancel: () => void, signal: AbortSignal | undefined) {
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#over = onAbort(signal, () => {
      cancel();
      this.onError(aborted(signal as AbortSignal));
    });
  }

  protected abstract value(finish: NativeFinish, request: number): Value;

  onFinish(finish: NativeFinish, request: number): void {
    this.#over();
    this.#resolve(this.value(finish, request));
  }

  onError(error: ChatGLMError): void {
    this.#over();
    this.#reject(error);
  }
}

/** The logits of one native request. */
export class LogitsRequest extends ValueRequest<Float32Array> {
  readonly #from: number;
  readonly #vocabulary: number;
  readonly #logits: Float32Array;

  /** @param from The position of the first row. */
  constructor(rows: number, from: number, vocabulary: number, cancel: () => void, signal: AbortSignal | undefined) {
    super(cancel, signal);
    this.#from = from;
    this.#vocabulary = vocabulary;
    const count = rows * vocabulary;
    this.#logits = allocated(count * Float32Array.BYTES_PER_ELEMENT, () => new Float32Array(count));
  }

  onLogits(position: number, values: Float32Array): void {
    this.#logits.set(values, (position - this.#from) * this.#vocabulary);
  }

  protected override value(): Float32Array {
    return this.#logits;
  }
}

/** The scores of the tokens of one native request. */
export class ScoreRequest extends ValueRequest<NativeTokenLogprobs[]> {
  readonly #scores: NativeTokenLogprobs[] = [];

  onScores(_position: number, scores: readonly NativeTokenLogprobs[]): void {
    for (const score of scores) this.#scores.push(score);
  }

  protected override value(): NativeTokenLogprobs[] {
    return this.#scores;
  }
}

/** A prompt whose pages stay held: the value is what release() takes, and how many tokens of the prompt were computed. */
export class PinRequest extends ValueRequest<{ pin: number; finish: NativeFinish }> {
  protected override value(finish: NativeFinish, request: number): { pin: number; finish: NativeFinish } {
    return { pin: request, finish };
  }
}
