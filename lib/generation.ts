import { randomInt } from 'node:crypto';
import { invalidArgument } from './errors.js';
import type { NativeSampling } from './native.js';
import { booleanOption, integerOption, numberOption, refuseUnknown } from './options.js';

/**
 * How the next token is chosen, applied in this order: `logitBias`; `repetitionPenalty`; `presencePenalty` and
 * `frequencyPenalty`; `temperature`; `topK`; `topP`; `minP`; a draw. The defaults are those of THUDM's `chat()`, Hugging
 * Face's implicit `top_k` of 50 included.
 */
export interface SamplingOptions {
  /** `false`: always the likeliest token, like `temperature: 0`. Default: true. */
  doSample?: boolean;
  /** What logits are divided by; 0 takes the likeliest token. Default: 0.8. */
  temperature?: number;
  /** Draw among so many of the likeliest tokens; 0: among all. Default: 50. */
  topK?: number;
  /** Draw among the fewest likeliest tokens whose probabilities reach this sum, 0 to 1. Default: 0.8. */
  topP?: number;
  /** Leave out tokens that are less than so many times as likely as the likeliest, 0 to 1. Default: 0. */
  minP?: number;
  /**
   * Logits of tokens in the prompt and the answer are divided by this if positive and multiplied if negative, as in
   * Hugging Face's RepetitionPenaltyLogitsProcessor. Above 0. Default: 1, no penalty.
   */
  repetitionPenalty?: number;
  /** Taken off the logit of each token that the answer has already, as OpenAI defines it. Default: 0. */
  presencePenalty?: number;
  /** Taken off as many times as the answer has the token, as OpenAI defines it. Default: 0. */
  frequencyPenalty?: number;
  /** Added to the logits of single tokens, by id. Default: none. */
  logitBias?: Readonly<Record<number, number>>;
  /** The same seed, prompt and options give the same tokens. A whole number from 0. Default: drawn anew each time. */
  seed?: number;
  /** Give log-probabilities: of each chosen token and of this many of the likeliest, 0 to 100. Default: none. */
  logprobs?: number;
}

export interface GenerateOptions extends SamplingOptions {
  /** The most tokens to generate, a stop token included. Default: until the context is full. */
  maxTokens?: number;
  /** Texts that end the answer; they are not part of it. Default: none. */
  stop?: string | readonly string[];
  /** Ids that end the answer. Default: those that end a turn, which is `</s>` and for ChatGLM3 two of the role tokens. */
  stopTokens?: readonly number[];
  /** Ends the generation with ERR_ABORTED, also while the prompt is being computed. */
  signal?: AbortSignal;
}

/** Tokens, counted. */
export interface Usage {
  promptTokens: number;
  /** Of the prompt's, those that had been computed for an earlier request. */
  cachedTokens: number;
  /** A stop token included. */
  generatedTokens: number;
}

/** Milliseconds, and tokens a second. */
export interface Timings {
  /** From the request until work on it began. */
  queueMs: number;
  /** From the request to the first token; 0 without one. */
  firstTokenMs: number;
  prefillMs: number;
  /** From the first token to the last. */
  decodeMs: number;
  /** Of the tokens that were not cached. */
  prefillTokensPerSecond: number;
  /** 0 for fewer than two tokens. */
  decodeTokensPerSecond: number;
}

/**
 * Why an answer ended: `stop`: a stop token; `stop_sequence`: one of the texts in `stop`; `length`: `maxTokens`, or the
 * context is full; `tool_call`: the model wants a tool to be called (chats only); `cancelled`: the loop was left early.
 */
export type FinishReason = 'stop' | 'stop_sequence' | 'length' | 'tool_call' | 'cancelled';

/** Natural logarithms of the model's own probabilities, before any sampling option changes them. */
export interface TokenLogprobs {
  token: number;
  logprob: number;
  /** The likeliest tokens, the likeliest first. */
  top: { token: number; logprob: number }[];
}

export interface GenerationResult {
  /** What was generated, without special tokens and stop texts. */
  text: string;
  /** Ids of all generated tokens, a stop token included. */
  tokens: number[];
  finishReason: FinishReason;
  usage: Usage;
  timings: Timings;
  /** The seed that was used. */
  seed: number;
  /** One entry a token, where `logprobs` was asked for. */
  logprobs?: TokenLogprobs[];
}

/** A piece of what is generated. All texts, joined, are the result's text. */
export interface GenerationChunk {
  text: string;
  /** Ids generated since the last chunk: those of withheld text and special tokens too. */
  tokens: number[];
  logprobs?: TokenLogprobs[];
}

const SAMPLING_OPTIONS = [
  'doSample',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'seed',
  'logprobs',
] as const satisfies readonly (keyof SamplingOptions)[];

const GENERATE_OPTIONS: readonly string[] = [...SAMPLING_OPTIONS, 'maxTokens', 'stop', 'stopTokens', 'signal'];

/** Refuses what is no option of a generation. */
export function checkGenerateOptions(options: GenerateOptions): void {
  if (options === null || typeof options !== 'object') throw invalidArgument('the options must be an object');
  refuseUnknown(options, GENERATE_OPTIONS, 'generation');
}

/** Checks the sampling options and fills in the defaults. */
export function toNativeSampling(options: SamplingOptions): NativeSampling & { seedNumber: number } {
  const bias = Object.entries(options.logitBias ?? {}).map(([id, value]): [number, number] => [
    integerOption('logitBias: an id', Number(id), 0, { most: 0xffff_ffff }),
    numberOption(`logitBias[${id}]`, value, 0),
  ]);
  const doSample = booleanOption('doSample', options.doSample, true);
  const temperature = numberOption('temperature', options.temperature, 0.8, { least: 0, most: 100 });
  const seedNumber = integerOption('seed', options.seed, undefined) ?? randomInt(2 ** 47);
  return {
    // Below this, logits divided by it are too large for the arithmetic, and the likeliest token has it all anyway.
    temperature: doSample && temperature >= 1e-4 ? temperature : 0,
    topK: integerOption('topK', options.topK, 50, { most: 0x7fff_ffff }),
    topP: numberOption('topP', options.topP, 0.8, { least: 0, most: 1 }),
    minP: numberOption('minP', options.minP, 0, { least: 0, most: 1 }),
    repetitionPenalty: numberOption('repetitionPenalty', options.repetitionPenalty, 1, {
      least: 0,
      above: true,
      most: 100,
    }),
    presencePenalty: numberOption('presencePenalty', options.presencePenalty, 0, { least: -100, most: 100 }),
    frequencyPenalty: numberOption('frequencyPenalty', options.frequencyPenalty, 0, { least: -100, most: 100 }),
    biasIds: Uint32Array.from(bias, ([id]) => id),
    biasValues: Float32Array.from(bias, ([, value]) => value),
    seed: BigInt(seedNumber),
    seedNumber,
    logprobs: integerOption('logprobs', options.logprobs, -1, { most: 100 }),
  };
}
