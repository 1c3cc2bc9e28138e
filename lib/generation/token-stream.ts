import type { NativeFinish, NativeTokenLogprobs, TokenDecoder } from '../addon/native.js';
import { onAbort } from '../common/abort.js';
import { aborted, type ChatGLMError } from '../common/errors.js';
import { allocated } from '../common/options.js';
import type { TokenLogprobs } from './options.js';
import { PieceStream } from './piece-stream.js';
import type { RawGeneration, RawResult, RawToken } from './text-stream.js';

/** Where the events of one native request go. */
export interface RequestHandler {
  onToken(id: number, logprobs: NativeTokenLogprobs | undefined): void;
  onLogits(row: number, values: Float32Array): void;
  onFinish(finish: NativeFinish): void;
  onError(error: ChatGLMError): void;
}

/** The tokens of one native request as they are computed. */
export class TokenStream extends PieceStream<RawToken, RawResult> implements RawGeneration, RequestHandler {
  readonly #seed: number;
  readonly #decoder: TokenDecoder | undefined;
  readonly #cancel: () => void;
  readonly #over: () => void;

  /** @param cancel Asks for an early end of the native request. */
  constructor(seed: number, decoder: TokenDecoder | undefined, cancel: () => void, signal: AbortSignal | undefined) {
    super();
    this.#seed = seed;
    this.#decoder = decoder;
    this.#cancel = cancel;
    this.#over = onAbort(signal, () => {
      cancel();
      this.fail(aborted(signal as AbortSignal), true);
    });
  }

  onToken(id: number, logprobs: NativeTokenLogprobs | undefined): void {
    const piece: RawToken = { token: id, text: this.#decoder?.push(id) ?? '' };
    if (logprobs) piece.logprobs = toTokenLogprobs(id, logprobs);
    this.push(piece);
  }

  onLogits(): void {}

  onFinish(finish: NativeFinish): void {
    this.#over();
    this.end(toRawResult(finish, this.#seed));
  }

  onError(error: ChatGLMError): void {
    this.#over();
    this.fail(error);
  }

  flush(): string {
    return this.#decoder?.flush() ?? '';
  }

  protected override stop(): void {
    this.#cancel();
  }
}

function toTokenLogprobs(token: number, { logprob, topIds, topLogprobs }: NativeTokenLogprobs): TokenLogprobs {
  const top = Array.from(topIds, (id, i) => ({ token: id, logprob: topLogprobs[i] as number }));
  return { token, logprob, top };
}

function toRawResult(finish: NativeFinish, seed: number): RawResult {
  const { reason, promptTokens, cachedTokens, generatedTokens } = finish;
  const { queueMs, firstTokenMs, prefillMs, decodeMs } = finish;
  return {
    finishReason: reason,
    usage: { promptTokens, cachedTokens, generatedTokens },
    timings: {
      queueMs,
      firstTokenMs,
      prefillMs,
      decodeMs,
      prefillTokensPerSecond: perSecond(promptTokens - cachedTokens, prefillMs),
      decodeTokensPerSecond: perSecond(generatedTokens - 1, decodeMs),
    },
    seed,
  };
}

function perSecond(tokens: number, milliseconds: number): number {
  return tokens > 0 && milliseconds > 0 ? (tokens * 1000) / milliseconds : 0;
}

/** The logits of one native request. */
export class LogitsRequest implements RequestHandler {
  readonly result: Promise<Float32Array>;

  readonly #from: number;
  readonly #vocabulary: number;
  readonly #logits: Float32Array;
  readonly #over: () => void;
  #resolve!: (logits: Float32Array) => void;
  #reject!: (error: unknown) => void;

  /** @param from The position of the first row. */
  constructor(rows: number, from: number, vocabulary: number, cancel: () => void, signal: AbortSignal | undefined) {
    this.#from = from;
    this.#vocabulary = vocabulary;
    const count = rows * vocabulary;
    this.#logits = allocated(count * Float32Array.BYTES_PER_ELEMENT, () => new Float32Array(count));
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#over = onAbort(signal, () => {
      cancel();
      this.onError(aborted(signal as AbortSignal));
    });
  }

  onToken(): void {}

  onLogits(row: number, values: Float32Array): void {
    this.#logits.set(values, (row - this.#from) * this.#vocabulary);
  }

  onFinish(): void {
    this.#over();
    this.#resolve(this.#logits);
  }

  onError(error: ChatGLMError): void {
    this.#over();
    this.#reject(error);
  }
}
