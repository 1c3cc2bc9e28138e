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

/** Tokens per second that the generations behind all prompts give together, once each has its first token. */
export async function measureDecode(model: Model, prompts: readonly number[][], tokens: number): Promise<number> {
  const [only] = prompts;
  if (only && prompts.length === 1) {
    const { timings } = await model.generate(only, { ...options, maxTokens: tokens }).result;
    return timings.decodeTokensPerSecond;
  }
  // With their prompts in the prefix cache, all generations begin at about the same time.
  for (const prompt of prompts) await model.generate(prompt, { ...options, maxTokens: 1 }).result;
  const times = await Promise.all(prompts.map((prompt) => arrivalTimes(model, prompt, tokens)));
  const begins = times.map((of) => of[0] as number);
  const ends = times.map((of) => of.at(-1) as number);
  const all = times.flat();

  // While all of them generate. Where the first is through before the last begins, the batch was never full: then all of
  // it counts, prompts included, which makes the figure smaller than it could be and never larger.
  const [full, end] = [Math.max(...begins), Math.min(...ends)];
  const within = all.filter((time) => time > full && time <= end).length;
  if (within >= all.length / 2) return (within / (end - full)) * 1000;
  const [first, last] = [Math.min(...begins), Math.max(...ends)];
  return ((all.length - 1) / (last - first)) * 1000;
}

/** When each token came, in milliseconds: (tokens) */
async function arrivalTimes(model: Model, prompt: readonly number[], tokens: number): Promise<number[]> {
  const times: number[] = [];
  for await (const chunk of model.generate(prompt, { ...options, maxTokens: tokens })) {
    const now = performance.now();
    for (const _ of chunk.tokens) times.push(now);
  }
  return times;
}
