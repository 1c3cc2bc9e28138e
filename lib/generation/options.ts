import { randomInt } from 'node:crypto';
import type { NativeRequest, NativeSampling, NativeTrace } from '../addon/native.js';
import { invalidArgument } from '../common/errors.js';
import {
  booleanOption,
  functionOption,
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
import { type ResponseFormat, readResponseFormat } from '../structured/response-format.js';
import { StopSequences } from './stop-sequences.js';

/**
 * How the next token is chosen. The options apply in this order: `logitBias`; `repetitionPenalty`; `presencePenalty` and
 * `frequencyPenalty`; `temperature`; `topK`; `topP`; `minP`; a draw. The defaults are those of THUDM's `chat()`, Hugging
 * Face's implicit `top_k` of 50 included.
 */
export interface SamplingOptions {
  /** `false` takes the likeliest token always, as `temperature: 0` does. Default: true. */
  doSample?: boolean | undefined;
  /** The logits are divided by the temperature, 0 to 100; 0 takes the likeliest token always. Default: 0.8. */
  temperature?: number | undefined;
  /** The token is drawn from so many of the likeliest ones; 0 draws from all. Default: 50. */
  topK?: number | undefined;
  /** The token is drawn from the fewest likeliest ones whose probabilities add up to this, 0 to 1. Default: 0.8. */
  topP?: number | undefined;
  /** Tokens whose probability is less than this part of the likeliest one's, 0 to 1, are left out. Default: 0. */
  minP?: number | undefined;
  /**
   * The logits of tokens that the prompt or the answer has are divided by this where they are positive, and multiplied where
   * they are negative, as in Hugging Face's RepetitionPenaltyLogitsProcessor. 0.01 to 100. Default: 1, no penalty.
   */
  repetitionPenalty?: number | undefined;
  /** Subtracted from the logit of each token that the answer has, as OpenAI defines it. -100 to 100. Default: 0. */
  presencePenalty?: number | undefined;
  /** Subtracted once for each time that the answer has the token, as OpenAI defines it. -100 to 100. Default: 0. */
  frequencyPenalty?: number | undefined;
  /**
   * Numbers that are added to the logits of single tokens, by token id: -1,000,000 to 1,000,000, or minus infinity, which bans
   * the token. Default: none.
   */
  logitBias?: Readonly<Record<number, number>> | undefined;
  /**
   * Texts, or sequences of token ids, that the answer must not have. A text is banned as it is encoded at the beginning of a
   * word and within one; the same letters encoded in another way can still come. Default: none.
   */
  badWords?: readonly (string | readonly number[])[] | undefined;
  /** The ids of the only tokens that may be chosen. Default: all. */
  allowedTokens?: readonly number[] | undefined;
  /** The same seed, prompt and options give the same tokens. A whole number from 0. Default: a random one each time. */
  seed?: number | undefined;
  /** Log-probabilities are given of each chosen token and of so many of the likeliest, 0 to 100. Default: none are. */
  logprobs?: number | undefined;
}

/** Options of one generation. */
export interface GenerateOptions extends SamplingOptions {
  /**
   * The most tokens to generate, a stop token included; 0 computes the prompt only, for a later request to find, and leaves
   * a chat's history as it was. Default: as many as the context has room for.
   */
  maxTokens?: number | undefined;
  /** Texts that end the answer and are not part of it. Default: none. */
  stop?: string | readonly string[] | undefined;
  /**
   * Ids of tokens that end the answer. Default: those that end a turn, which are `</s>` and for ChatGLM3 two of the role
   * tokens. In a chat those always count, and the ids given here come on top of them.
   */
  stopTokens?: readonly number[] | undefined;
  /**
   * The form that the answer has to have: JSON of a schema, a regular expression, a grammar. Each token is chosen among those
   * that keep the answer valid, and the last of `maxTokens` are used to complete it; an answer whose shortest form needs more
   * tokens than it may have ends with `length`. Default: free text.
   */
  responseFormat?: ResponseFormat | undefined;
  /** Ends the generation with ERR_ABORTED, also while the prompt is being computed. Default: none. */
  signal?: AbortSignal | undefined;
  /** Ends the generation with ERR_TIMEOUT if it is not complete after so many milliseconds. Default: no limit. */
  timeoutMs?: number | undefined;
  /** Ends the generation with ERR_TIMEOUT if work on it has not begun after so many milliseconds. Default: no limit. */
  queueTimeoutMs?: number | undefined;
  /**
   * Requests of a higher priority are computed before others, which may pause for them. A whole number, negative ones
   * included. Default: 0.
   */
  priority?: number | undefined;
  /**
   * Whose request this is, such as a user's name: while requests wait, clients get the same number of tokens computed,
   * however many requests each has; with `weight`, so many times as many. Default: one client, of weight 1, for all requests
   * that name none.
   */
  client?: string | { key: string; weight?: number | undefined } | undefined;
  /** Hears each phase of the request, as it begins or ends: for logs and metrics. Default: none. */
  onTrace?: ((event: TraceEvent) => void) | undefined;
}

/** A phase of a request. */
export interface TraceEvent {
  /** The request's number, which its model gives once. */
  request: number;
  /** The request's client, `''` for none. */
  client: string;
  /**
   * `queued`; `admitted`: work begins, or begins again after `preempted`; `prefill`: a chunk of the prompt was computed;
   * `preempted`: the request pauses, since others need its memory; `decode`: the tokens after the first were generated;
   * `finished` and `failed`: the end.
   */
  phase: NativeTrace['phase'];
  /** Milliseconds since the request was made. */
  atMs: number;
  /** What the phase took in milliseconds, of `prefill` and `decode`; else 0. */
  tookMs: number;
  /** `admitted`: tokens that were kept from earlier requests; `prefill`: of the chunk; `decode`, `preempted`, `finished` and `failed`: generated. */
  tokens: number;
}

/** How many tokens a generation took. */
export interface Usage {
  /** Of the prompt, cached ones included. */
  promptTokens: number;
  /** Tokens of the prompt whose keys and values were kept from an earlier request. */
  cachedTokens: number;
  /** Tokens of the answer, a stop token included. */
  generatedTokens: number;
  /** Tokens of the answer that were guessed from what stood before, and computed several at a time: speculation. */
  speculatedTokens: number;
}

/** How long a generation took, in milliseconds, and its speed in tokens per second. */
export interface Timings {
  /** Time from the request until work on it began. */
  queueMs: number;
  /** Time from the request to the first token; 0 where there is none. */
  firstTokenMs: number;
  /** From the beginning of the work on the prompt to its end. */
  prefillMs: number;
  /** Time from the first token to the last. */
  decodeMs: number;
  /** Speed of the prompt, of its tokens that were not cached. */
  prefillTokensPerSecond: number;
  /** Speed of the tokens after the first; 0 for fewer than two tokens. */
  decodeTokensPerSecond: number;
}

/**
 * Why an answer ended: with a stop token (`stop`), before one of the texts in `stop` (`stop_sequence`), at `maxTokens` or the
 * end of the context (`length`), with a call of a tool (`tool_call`, in chats only), or because the loop was left early
 * (`cancelled`).
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

/** What a generation gave. */
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
  /** One entry for each token, where `logprobs` was asked for. */
  logprobs?: TokenLogprobs[];
}

/** A piece of what is generated. All texts, joined, are the result's text. */
export interface GenerationChunk {
  /** What can be shown; it never ends within a character. */
  text: string;
  /** Ids generated since the last chunk, those of withheld text and of special tokens included. */
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
  'badWords',
  'allowedTokens',
  'seed',
  'logprobs',
] as const satisfies readonly (keyof SamplingOptions)[];

/** The names of {@link GenerateOptions}. */
export const GENERATE_OPTIONS = [
  ...SAMPLING_OPTIONS,
  'maxTokens',
  'stop',
  'stopTokens',
  'responseFormat',
  'signal',
  'timeoutMs',
  'queueTimeoutMs',
  'priority',
  'client',
  'onTrace',
] as const satisfies readonly (keyof GenerateOptions)[];

/** The options of a generation that are set. Refuses what is no such option, and values that are not allowed. */
export function readGenerateOptions(options: unknown): Settings<GenerateOptions> {
  const set = readOptions<GenerateOptions>(options, GENERATE_OPTIONS, 'a generation');
  checkGenerateOptions(set);
  return set;
}

/** Refuses values that no model allows. */
export function checkGenerateOptions(options: GenerateOptions): void {
  toNativeSampling(options, ANY_VOCABULARY);
  maxTokensOf(options, 0);
  signalOption(options.signal);
  new StopSequences(options.stop ?? []);
  readResponseFormat(options.responseFormat);
  if (options.stopTokens !== undefined) tokenIds('stopTokens', options.stopTokens);
  toNativeOrder(options);
  toTimeLimits(options);
  functionOption('onTrace', options.onTrace);
}

/** The most milliseconds that a timer of Node's waits. */
const MOST_MS = 0x7fff_ffff;

/** How long a request may take. */
export interface TimeLimits {
  timeoutMs: number | undefined;
  queueTimeoutMs: number | undefined;
}

export function toTimeLimits(options: GenerateOptions): TimeLimits {
  const limit = (name: 'timeoutMs' | 'queueTimeoutMs') =>
    options[name] === undefined ? undefined : numberOption(name, options[name], 0, { least: 0, most: MOST_MS });
  return { timeoutMs: limit('timeoutMs'), queueTimeoutMs: limit('queueTimeoutMs') };
}

/** A client may get so many times more, or less, than another one. */
const WEIGHTS = { least: 1e-3, most: 1e3 };

/** What decides when a request's turn comes. */
export function toNativeOrder(options: GenerateOptions): Pick<NativeRequest, 'priority' | 'client' | 'weight'> {
  const priority = integerOption('priority', options.priority, 0, { least: -1e6, most: 1e6 });
  const { client = '' } = options;
  if (typeof client === 'string') return { priority, client, weight: 1 };
  if (!isPlainObject(client)) throw invalidArgument(`client must be a string or { key, weight }, got ${show(client)}`);
  const { key, weight } = readOptions<{ key: string; weight?: number }>(client, ['key', 'weight'], 'client');
  if (typeof key !== 'string') throw invalidArgument(`client.key must be a string, got ${show(key)}`);
  return { priority, client: key, weight: numberOption('client.weight', weight, 1, WEIGHTS) };
}

const ANY_VOCABULARY = 2 ** 32;

function checkedMask(allowed: unknown): Uint32Array {
  if (allowed !== undefined) tokenIds('allowedTokens', allowed);
  return new Uint32Array();
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

/** The token ids of a text, where the model has a tokenizer. */
export type Encode = (text: string) => readonly number[];

function toBanned(badWords: unknown, vocabSize: number, encode: Encode | undefined): Uint32Array[] {
  if (badWords === undefined) return [];
  if (!Array.isArray(badWords)) {
    throw invalidArgument(`badWords must be an array of texts and of arrays of token ids, got ${show(badWords)}`);
  }
  const banned = badWords.flatMap((word: unknown, i): ArrayLike<number>[] => {
    const name = `badWords[${i}]`;
    if (typeof word !== 'string') return [tokenIds(name, word, vocabSize - 1)];
    if (word === '') throw invalidArgument(`${name} is empty`);
    if (!encode) return [];
    // A line break is a token of its own, so what follows it is encoded as within a word.
    const within = encode(`\n${word}`).slice(encode('\n').length);
    return [encode(word), within];
  });
  for (const [i, { length }] of banned.entries()) {
    if (length === 0) throw invalidArgument(`badWords[${i}] has no tokens`);
  }
  const distinct = new Map(banned.map((ids) => [Array.from(ids).join(), Uint32Array.from(ids)]));
  return [...distinct.values()];
}

function toMask(allowed: unknown, vocabSize: number): Uint32Array {
  if (allowed === undefined) return new Uint32Array();
  const ids = tokenIds('allowedTokens', allowed, vocabSize - 1);
  if (ids.length === 0) throw invalidArgument('allowedTokens is empty: no token is left to generate');
  const mask = new Uint32Array(Math.ceil(vocabSize / 32));
  for (const id of ids) mask[id >>> 5] = (mask[id >>> 5] as number) | (1 << (id & 31));
  return mask;
}

/** Checks the sampling options and fills in the defaults. */
export function toNativeSampling(
  options: SamplingOptions,
  vocabSize: number,
  encode?: Encode,
): NativeSampling & { seedNumber: number } {
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
    banned: toBanned(options.badWords, vocabSize, encode),
    // What is only checked here may be for a model of any vocabulary.
    mask: vocabSize === ANY_VOCABULARY ? checkedMask(options.allowedTokens) : toMask(options.allowedTokens, vocabSize),
    seed: BigInt(seedNumber),
    seedNumber,
    logprobs: integerOption('logprobs', options.logprobs, -1, { most: 100 }),
  };
}
