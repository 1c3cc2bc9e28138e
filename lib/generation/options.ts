import { randomInt } from 'node:crypto';
import type { NativeSampling } from '../addon/native.js';
import { invalidArgument } from '../common/errors.js';
import {
  booleanOption,
  integerOption,
  isPlainObject,
  numberOption,
  reading,
  readOptions,
  type Settings,
  show,
  signalOption,
  tokenIds,
} from '../common/options.js';
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

export interface GenerateOptions extends SamplingOptions {
  /**
   * The most tokens to generate, a stop token included; 0 computes the prompt only, for a later request to find, and leaves
   * a chat's history as it was. Default: as many as the context has room for.
   */
  maxTokens?: number | undefined;
  /** Texts that end the answer; they are not part of it. Default: none. */
  stop?: string | readonly string[] | undefined;
  /**
   * Ids of tokens that end the answer. Default: those that end a turn, which are `</s>` and for ChatGLM3 two of the role
   * tokens. In a chat those always count, and the ids given here come on top of them.
   */
  stopTokens?: readonly number[] | undefined;
  /** Ends the generation with ERR_ABORTED, also while the prompt is being computed. */
  signal?: AbortSignal | undefined;
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

/** The names of {@link GenerateOptions}. */
export const GENERATE_OPTIONS = [
  ...SAMPLING_OPTIONS,
  'maxTokens',
  'stop',
  'stopTokens',
  'signal',
] as const satisfies readonly (keyof GenerateOptions)[];

/** The options of a generation that are set. Refuses what is no such option, and values that are not allowed. */
export function readGenerateOptions(options: unknown): Settings<GenerateOptions> {
  const set = readOptions<GenerateOptions>(options, GENERATE_OPTIONS, 'a generation');
  checkGenerateOptions(set);
  return set;
}

/** Refuses values that no model allows. */
export function checkGenerateOptions(options: GenerateOptions): void {
  toNativeSampling(options, 2 ** 32);
  maxTokensOf(options, 0);
  signalOption(options.signal);
  new StopSequences(options.stop ?? []);
  if (options.stopTokens !== undefined) tokenIds('stopTokens', options.stopTokens);
}

export function maxTokensOf(options: GenerateOptions, fallback: number): number {
  return integerOption('maxTokens', options.maxTokens, fallback, { most: 0x7fff_ffff });
}

/** A bias beyond this decides alone already, and float32 must hold its sum with a logit. */
const MOST_BIAS = 1e6;

function toBias(logitBias: unknown, vocabSize: number): [id: number, value: number][] {
  if (logitBias === undefined) return [];
  return reading('logitBias', () => {
    if (!isPlainObject(logitBias)) {
      throw invalidArgument(`logitBias must be an object of numbers by token id, got ${show(logitBias)}`);
    }
    const set = Object.entries(logitBias).filter(([, value]) => value !== undefined && value !== null);
    const bias = set.map(([key, value]): [number, number] => {
      const id = /^(0|[1-9]\d*)$/.test(key) ? Number(key) : key;
      return [
        integerOption('logitBias: a token id', id, 0, { most: vocabSize - 1 }),
        // Minus infinity bans a token.
        value === Number.NEGATIVE_INFINITY
          ? value
          : numberOption(`logitBias[${id}]`, value, 0, { least: -MOST_BIAS, most: MOST_BIAS }),
      ];
    });
    if (bias.filter(([, value]) => value === Number.NEGATIVE_INFINITY).length === vocabSize) {
      throw invalidArgument(`logitBias bans all ${vocabSize} tokens: none is left to generate`);
    }
    return bias;
  });
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
