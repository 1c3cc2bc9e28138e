import { randomInt } from 'node:crypto';
import type { NativeSampling } from '../addon/native.js';
import { invalidArgument } from '../common/errors.js';
import { booleanOption, checkOptions, integerOption, numberOption, show, signalOption } from '../common/options.js';
import { StopSequences } from './stop-sequences.js';

/**
 * How the next token is chosen, applied in this order: `logitBias`; `repetitionPenalty`; `presencePenalty` and
 * `frequencyPenalty`; `temperature`; `topK`; `topP`; `minP`; a draw. The defaults are those of THUDM's `chat()`, Hugging
 * Face's implicit `top_k` of 50 included.
 */
export interface SamplingOptions {
  /** `false`: always the likeliest token, like `temperature: 0`. Default: true. */
  doSample?: boolean | undefined;
  /** What logits are divided by; 0 takes the likeliest token. Default: 0.8. */
  temperature?: number | undefined;
  /** Draw among so many of the likeliest tokens; 0: among all. Default: 50. */
  topK?: number | undefined;
  /** Draw among the fewest likeliest tokens whose probabilities reach this sum, 0 to 1. Default: 0.8. */
  topP?: number | undefined;
  /** Leave out tokens that are less than so many times as likely as the likeliest, 0 to 1. Default: 0. */
  minP?: number | undefined;
  /**
   * Logits of tokens in the prompt and the answer are divided by this if positive and multiplied if negative, as in
   * Hugging Face's RepetitionPenaltyLogitsProcessor. 0.01 to 100. Default: 1, no penalty.
   */
  repetitionPenalty?: number | undefined;
  /** Taken off the logit of each token that the answer has already, as OpenAI defines it. Default: 0. */
  presencePenalty?: number | undefined;
  /** Taken off as many times as the answer has the token, as OpenAI defines it. Default: 0. */
  frequencyPenalty?: number | undefined;
  /** Added to the logits of single tokens, by id; minus infinity bans a token. Default: none. */
  logitBias?: Readonly<Record<number, number>> | undefined;
  /** The same seed, prompt and options give the same tokens. A whole number from 0. Default: drawn anew each time. */
  seed?: number | undefined;
  /** Give log-probabilities: of each chosen token and of this many of the likeliest, 0 to 100. Default: none. */
  logprobs?: number | undefined;
}

/** Options of one generation. */
export interface GenerateOptions extends SamplingOptions {
  /** The most tokens to generate, a stop token included. Default: until the context is full. */
  maxTokens?: number | undefined;
  /** Texts that end the answer; they are not part of it. Default: none. */
  stop?: string | readonly string[] | undefined;
  /** Ids that end the answer. Default: those that end a turn, which is `</s>` and for ChatGLM3 two of the role tokens. */
  stopTokens?: readonly number[] | undefined;
  /** Ends the generation with ERR_ABORTED, also while the prompt is being computed. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Tokens, counted. */
export interface Usage {
  /** Of the prompt, cached ones included. */
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
  /** From the beginning of the work on the prompt to its end. */
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
  /** The id of the token that was chosen. */
  token: number;
  /** Its own. */
  logprob: number;
  /** The likeliest tokens, the likeliest first. */
  top: { token: number; logprob: number }[];
}

/** A whole generation. */
export interface GenerationResult {
  /** What was generated, without special tokens and stop texts. */
  text: string;
  /** Ids of all generated tokens, a stop token included. */
  tokens: number[];
  /** Why it ended. */
  finishReason: FinishReason;
  /** Tokens, counted. */
  usage: Usage;
  /** What it took. */
  timings: Timings;
  /** The seed that was used. */
  seed: number;
  /** One entry a token, where `logprobs` was asked for. */
  logprobs?: TokenLogprobs[];
}

/** A piece of what is generated. All texts, joined, are the result's text. */
export interface GenerationChunk {
  /** What can be shown; it never ends within a character. */
  text: string;
  /** Ids generated since the last chunk: those of withheld text and special tokens too. */
  tokens: number[];
  /** One entry for each of `tokens`, where `logprobs` was asked for. */
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

/** Refuses what is no option of a generation, and values that are not allowed. */
export function checkGenerateOptions(options: GenerateOptions): void {
  checkOptions(options, GENERATE_OPTIONS, 'a generation');
  toNativeSampling(options, 2 ** 32);
  maxTokensOf(options, 0);
  signalOption(options.signal);
  new StopSequences(options.stop ?? []);
}

export function maxTokensOf(options: GenerateOptions, fallback: number): number {
  return integerOption('maxTokens', options.maxTokens, fallback, { most: 0x7fff_ffff });
}

function toBias(logitBias: unknown, vocabSize: number): [id: number, value: number][] {
  if (logitBias === undefined) return [];
  if (logitBias === null || typeof logitBias !== 'object' || Symbol.iterator in logitBias) {
    throw invalidArgument(`logitBias must be an object of numbers by token id, got ${show(logitBias)}`);
  }
  return Object.entries(logitBias).map(([id, value]) => [
    integerOption('logitBias: a token id', Number(id), 0, { most: vocabSize - 1 }),
    // Minus infinity bans a token.
    value === Number.NEGATIVE_INFINITY ? value : numberOption(`logitBias[${id}]`, value, 0),
  ]);
}

/** Checks the sampling options and fills in the defaults. */
export function toNativeSampling(options: SamplingOptions, vocabSize: number): NativeSampling & { seedNumber: number } {
  const bias = toBias(options.logitBias, vocabSize);
  const doSample = booleanOption('doSample', options.doSample, true);
  const temperature = numberOption('temperature', options.temperature, 0.8, { least: 0, most: 100 });
  const seedNumber = integerOption('seed', options.seed, undefined) ?? randomInt(2 ** 47);
  return {
    // Below this, logits divided by it are too large for the arithmetic, and the likeliest token has it all anyway.
    temperature: doSample && temperature >= 1e-4 ? temperature : 0,
    topK: integerOption('topK', options.topK, 50, { most: 0x7fff_ffff }),
    topP: numberOption('topP', options.topP, 0.8, { least: 0, most: 1 }),
    minP: numberOption('minP', options.minP, 0, { least: 0, most: 1 }),
    repetitionPenalty: numberOption('repetitionPenalty', options.repetitionPenalty, 1, { least: 0.01, most: 100 }),
    presencePenalty: numberOption('presencePenalty', options.presencePenalty, 0, { least: -100, most: 100 }),
    frequencyPenalty: numberOption('frequencyPenalty', options.frequencyPenalty, 0, { least: -100, most: 100 }),
    biasIds: Uint32Array.from(bias, ([id]) => id),
    biasValues: Float32Array.from(bias, ([, value]) => value),
    seed: BigInt(seedNumber),
    seedNumber,
    logprobs: integerOption('logprobs', options.logprobs, -1, { most: 100 }),
  };
}
