import type { GenerationChunk, GenerationResult, TokenLogprobs } from './options.js';
import { PieceStream } from './piece-stream.js';
import type { StopSequences } from './stop-sequences.js';

/** One generated token, as the model gives it. Special tokens have no text; a character comes with its last token. */
export interface RawToken {
  token: number;
  text: string;
  logprobs?: TokenLogprobs;
}

/** How a generation of tokens ended. */
export type RawResult = Pick<GenerationResult, 'finishReason' | 'usage' | 'timings' | 'seed'>;

/** Tokens as they are generated. After `return()` the generation stops, and `result` tells what it took until then. */
export interface RawGeneration extends AsyncIterableIterator<RawToken, unknown, undefined> {
  readonly result: Promise<RawResult>;
  return(): Promise<IteratorResult<RawToken, unknown>>;
  /** Once all tokens have come: what was held back of a character that never became complete. */
  flush(): string;
}

/** Makes text of tokens. Generation begins at once and does not wait for the consumer. */
export abstract class TextStream<Result extends GenerationResult> extends PieceStream<GenerationChunk, Result> {
  readonly #raw: RawGeneration;
  readonly #stops: StopSequences;

  constructor(raw: RawGeneration, stops: StopSequences) {
    super();
    this.#raw = raw;
    this.#stops = stops;
  }

  /** The text to show once a token's text has passed the stop sequences, and what is to follow it at the end. */
  protected abstract show(text: string, token?: number): string;
  protected abstract showRest(): string;
  protected abstract toResult(result: GenerationResult): Result;
  /** Nothing runs any more, whatever the outcome. */
  protected onEnd(): void {}

  /** Called once, when the subclass is complete. */
  protected start(): void {
    this.#run().then(
      (result) => {
        this.onEnd();
        this.end(result);
      },
      (error) => {
        this.onEnd();
        this.fail(error, error?.code === 'ERR_ABORTED');
      },
    );
  }

  protected override stop(): void {
    void this.#raw.return();
  }

  /** The text that is held back because it may be the beginning of a stop sequence. */
  protected flushStops(): string {
    return this.#stops.flush();
  }

  protected get isStopped(): boolean {
    return this.#stops.matched !== undefined;
  }

  async #run(): Promise<Result> {
    const tokens: number[] = [];
    const logprobs: TokenLogprobs[] = [];
    let text = '';
    let given = 0;
    const give = (visible: string) => {
      text += visible;
      const chunk: GenerationChunk = { text: visible, tokens: tokens.slice(given) };
      if (logprobs.length > 0) chunk.logprobs = logprobs.slice(given);
      given = tokens.length;
      this.push(chunk);
    };
    for (;;) {
      const next = await this.#raw.next();
      if (next.done) break;
      const { value } = next;
      tokens.push(value.token);
      if (value.logprobs) logprobs.push(value.logprobs);
      const visible = this.show(this.#stops.push(value.text), value.token);
      if (visible !== '') give(visible);
      if (this.isStopped || this.isLeft) {
        await this.#raw.return();
        break;
      }
    }
    if (!this.isStopped) {
      const incomplete = this.#stops.push(this.#raw.flush()) + this.#stops.flush();
      if (incomplete !== '') give(this.show(incomplete));
    }
    const rest = this.showRest();
    if (rest !== '' || given < tokens.length) give(rest);

    const result: GenerationResult = { ...(await this.#raw.result), text, tokens };
    if (this.isStopped) result.finishReason = 'stop_sequence';
    if (logprobs.length > 0) result.logprobs = logprobs;
    return this.toResult(result);
  }
}

/**
 * Text on its way: iterate over it for its chunks, or await `result`, or both.
 *
 * @example
 * ```ts
 * const generation = model.generate('Once upon a time', { maxTokens: 100 });
 * for await (const { text } of generation) process.stdout.write(text);
 * const { usage, timings } = await generation.result;
 * console.log(usage.generatedTokens, timings.decodeTokensPerSecond);
 * ```
 */
export class Generation extends TextStream<GenerationResult> {
  /** @internal Use `model.generate()`. */
  constructor(raw: RawGeneration, stops: StopSequences) {
    super(raw, stops);
    this.start();
  }

  protected override show(text: string): string {
    return text;
  }

  protected override showRest(): string {
    return '';
  }

  protected override toResult(result: GenerationResult): GenerationResult {
    return result;
  }
}
