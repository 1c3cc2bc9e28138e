import type { NativeFinish, NativeTokenLogprobs, NativeTrace, TokenDecoder } from '../addon/native.js';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError } from '../common/errors.js';
import type { TimeLimits, TokenLogprobs } from './options.js';
import { PieceStream } from './piece-stream.js';
import type { RawGeneration, RawResult, RawToken } from './text-stream.js';

/** Where the events of one native request go. Of the values, a request gets those that its kind has. */
export interface RequestHandler {
  onAdmitted?(): void;
  onToken?(id: number, logprobs: NativeTokenLogprobs | undefined): void;
  onLogits?(position: number, values: Float32Array): void;
  onScores?(position: number, scores: readonly NativeTokenLogprobs[]): void;
  onTrace?(request: number, trace: NativeTrace): void;
  onFinish(finish: NativeFinish, request: number): void;
  onError(error: ChatGLMError): void;
}

/** What a token stream needs of its request. */
export interface TokenStreamOptions {
  seed: number;
  decoder: TokenDecoder | undefined;
  /** Asks for an early end of the native request. */
  cancel: () => void;
  signal: AbortSignal | undefined;
  limits: TimeLimits;
  onTrace: ((request: number, trace: NativeTrace) => void) | undefined;
}

/** The tokens of one native request as they are computed. */
export class TokenStream extends PieceStream<RawToken, RawResult> implements RawGeneration, RequestHandler {
  readonly #options: TokenStreamOptions;
  readonly #notAborted: () => void;
  readonly #timer: NodeJS.Timeout | undefined;
  readonly #queueTimer: NodeJS.Timeout | undefined;

  constructor(options: TokenStreamOptions) {
    super();
    const { cancel, signal, limits } = options;
    this.#options = options;
    this.#notAborted = onAbort(signal, () => {
      cancel();
      this.#over();
      this.fail(aborted(signal as AbortSignal), true);
    });
    this.#timer = this.#after(limits.timeoutMs, 'the answer is not complete');
    this.#queueTimer = this.#after(limits.queueTimeoutMs, 'work on the request has not begun');
  }

  /** The request itself keeps the process alive, so its timers need not. */
  #after(timeoutMs: number | undefined, what: string): NodeJS.Timeout | undefined {
    if (timeoutMs === undefined) return undefined;
    const expire = () => {
      this.#options.cancel();
      this.#over();
      this.fail(new ChatGLMError('ERR_TIMEOUT', `${what} after ${timeoutMs} ms`, { timeoutMs }));
    };
    return setTimeout(expire, timeoutMs).unref();
  }

  #over(): void {
    this.#notAborted();
    clearTimeout(this.#timer);
    clearTimeout(this.#queueTimer);
  }

  onAdmitted(): void {
    clearTimeout(this.#queueTimer);
  }

  onTrace(request: number, trace: NativeTrace): void {
    this.#options.onTrace?.(request, trace);
  }

  onToken(id: number, logprobs: NativeTokenLogprobs | undefined): void {
    const piece: RawToken = { token: id, text: this.#options.decoder?.push(id) ?? '' };
    if (logprobs) piece.logprobs = toTokenLogprobs(id, logprobs);
    this.push(piece);
  }

  onFinish(finish: NativeFinish): void {
    this.#over();
    this.end(toRawResult(finish, this.#options.seed));
  }

  onError(error: ChatGLMError): void {
    this.#over();
    this.fail(error);
  }

  flush(): string {
    return this.#options.decoder?.flush() ?? '';
  }

  protected override stop(): void {
    this.#options.cancel();
  }
}

export function toTokenLogprobs(token: number, { logprob, topIds, topLogprobs }: NativeTokenLogprobs): TokenLogprobs {
  const top = Array.from(topIds, (id, i) => ({ token: id, logprob: topLogprobs[i] as number }));
  return { token, logprob, top };
}

function toRawResult(finish: NativeFinish, seed: number): RawResult {
  const { reason, promptTokens, cachedTokens, generatedTokens, acceptedTokens } = finish;
  const { queueMs, firstTokenMs, prefillMs, decodeMs } = finish;
  return {
    finishReason: reason,
    usage: { promptTokens, cachedTokens, generatedTokens, speculatedTokens: acceptedTokens },
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
