import type { GenerateOptions, Model } from '../index.js';

/** Random prompts: no two share a beginning, so that nothing is found in the prefix cache. */
export class RandomIds {
  readonly #vocabSize: number;
  #state: number;

  constructor(vocabSize: number, seed: number) {
    this.#vocabSize = vocabSize;
    this.#state = seed >>> 0;
  }

  next(length: number): number[] {
    return Array.from({ length }, () => this.#id());
  }

  /** mulberry32 */
  #id(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * this.#vocabSize);
  }
}

// Greedy, and through to the end: what random weights say does not matter.
const options: GenerateOptions = { doSample: false, stopTokens: [] };

/** Tokens per second of the evaluation of one prompt. */
export async function measurePrefill(model: Model, ids: RandomIds, tokens: number): Promise<number> {
  const { timings } = await model.generate(ids.next(tokens), { ...options, maxTokens: 1 }).result;
  return timings.prefillTokensPerSecond;
}

/** Puts the prompts into the prefix cache: then all generations behind them begin at about the same time. */
export async function evaluatePrompts(model: Model, prompts: readonly number[][]): Promise<void> {
  for (const prompt of prompts) await model.generate(prompt, { ...options, maxTokens: 1 }).result;
}

/**
 * Tokens per second that the generations behind all prompts, which are in the prefix cache, give together, from the first
 * one's first token to the last one's last: where they do not run side by side all the time, the figure is smaller than it
 * could be, never larger.
 */
export async function measureDecode(model: Model, prompts: readonly number[][], tokens: number): Promise<number> {
  const runs = await Promise.all(
    prompts.map(async (prompt) => {
      const submitted = performance.now();
      const { timings, usage } = await model.generate(prompt, { ...options, maxTokens: tokens }).result;
      // The engine's own times: those at which JavaScript sees tokens come in bunches.
      const first = submitted + timings.firstTokenMs;
      return { first, last: first + timings.decodeMs, tokens: usage.generatedTokens - 1 };
    }),
  );
  const total = runs.reduce((sum, run) => sum + run.tokens, 0);
  const milliseconds = Math.max(...runs.map(({ last }) => last)) - Math.min(...runs.map(({ first }) => first));
  return (total * 1000) / milliseconds;
}
