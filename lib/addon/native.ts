import path from 'node:path';
import load from 'node-gyp-build';
import { ChatGLMError, ERROR_CODES, type ErrorCode } from '../common/errors.js';

// The addon's interface, typed by hand: what native/addon/ exports. Public are only the types that index.ts names.

/** How a tensor's numbers are stored. `int8` and `int4` are THUDM's rows with one scale each, the others GGUF's types. */
export type TensorType =
  | 'f32'
  | 'f16'
  | 'bf16'
  | 'q8_0'
  | 'q4_0'
  | 'q4_1'
  | 'q5_0'
  | 'q5_1'
  | 'q4_k'
  | 'q5_k'
  | 'q6_k'
  | 'int8'
  | 'int4';

/** Bytes of a file, which is given by its index in a list of files. */
export interface FileRange {
  file: number;
  offset: number;
  length: number;
}

/** The numbers that make a model's shape. Beside each field: its name in THUDM's config.json. */
export interface ModelShape {
  /** num_layers */
  layers: number;
  /** hidden_size */
  hiddenSize: number;
  /** num_attention_heads */
  heads: number;
  /** multi_query_group_num: heads of the key/value cache. */
  kvGroups: number;
  /** kv_channels */
  headSize: number;
  /** ffn_hidden_size */
  ffnHiddenSize: number;
  /** padded_vocab_size */
  vocabSize: number;
  /** layernorm_epsilon */
  normEpsilon: number;
  /** Dimensions of a head that are rotated: half of headSize. */
  ropeDimension: number;
  /** Base of the rotary frequencies: 10,000, times rope_ratio in ChatGLM3. */
  ropeBase: number;
  /** What positions are divided by before rotation: 1, or rope_ratio in ChatGLM2-32k (position interpolation). */
  ropeScale: number;
}

/**
 * How the layers of a family compute: what backends see in place of the family's name (native/model/shape.h). Native code
 * refuses other values.
 */
export interface Architecture {
  /** Of the layers' inputs. `rms`: x / sqrt(mean(x^2) + epsilon) * weight. */
  norm: 'rms';
  /** Of the feed-forward network. `swiglu`: silu(gate) * up; the gate's rows come first in `ffn_up`. */
  activation: 'swiglu';
  /** `interleaved`: the first ropeDimension dimensions of a head are rotated, in pairs (2j, 2j + 1). */
  rotary: 'interleaved';
  /** `causal`: a token sees the tokens before it and itself. */
  mask: 'causal';
  /** Whether the query, key and value product has a bias. */
  qkvBias: boolean;
}

/** Decodes ids as they come: the texts, joined, are `decode()` of all ids, and no text ends within a character. */
export interface TokenDecoder {
  /** The text that is complete with this id; nothing for a special token. */
  push(id: number): string;
  /** What was held back of a character that never became complete, as U+FFFD. */
  flush(): string;
}

export interface NativeTokenizer {
  /** How many pieces there are. Ids from here on are ChatGLM's special tokens, which native code does not know. */
  readonly size: number;
  /** Builds the tables on a thread, once; without it the first use does so, which takes 50 ms of 65,024 pieces. */
  prepare(onEnd: (error?: NativeError) => void): void;
  /** Ids of the text, dummy prefix included if there is one; never a special id. */
  encode(text: string): Uint32Array;
  /** Text of the ids. Ids that have no piece decode to nothing. */
  decode(ids: Uint32Array): string;
  createDecoder(): TokenDecoder;
  /** For a text of so many UTF-16 units. */
  createEncoding(units: number): NativeEncoding;
  /** Where a model of so many ids, which these pieces and the special tokens behind them are, keeps its grammars. */
  createGrammars(vocabSize: number): NativeGrammars;
}

/** An opaque object: a model takes it. */
export interface NativeGrammars {
  readonly grammars: never;
}

/** What an answer has to follow. */
export interface NativeGrammar {
  /** GBNF; `<[id]>` is a special token. */
  text: string;
  /** What the answer begins with, before the grammar's root. */
  prefix: string;
  /** Whether a space may stand before the root that is not part of it: the dummy prefix. */
  dummySpace: boolean;
}

/** A text that is encoded on a thread of its own. */
export interface NativeEncoding {
  /** Copies a part of the text, which follows those before. A surrogate pair may be cut. */
  append(part: string): void;
  /** Begins, once. The thread ends before `onEnd` is called, and keeps the process alive until then. */
  start(onEnd: (error?: NativeError) => void): void;
  /** Lets it end soon, with ERR_ABORTED. */
  cancel(): void;
  /** How many ids there are. This and `read` are for after the end. */
  readonly length: number;
  /** Copies `count` ids from `begin` on, or those that are left, to the same place in `target`. */
  read(target: Uint32Array, begin: number, count: number): void;
}

/** Native code checks each range against the file's size, and the shapes against the config. */
export interface NativeTensor {
  /** As GGUF names it. */
  name: string;
  type: TensorType;
  /** (rows, columns) of a matrix, (length) of a vector. */
  shape: readonly number[];
  /** Without data the tensor is filled with random numbers (benchmarks). */
  data?: FileRange;
  /** `int8` and `int4` only: the scales, one a row. */
  scale?: FileRange & { type: 'f32' | 'f16' | 'bf16' };
}

export interface NativeModelSpec {
  files: string[];
  tensors: NativeTensor[];
  config: ModelShape;
  architecture: Architecture;
  contextLength: number;
  maxSequences: number;
  maxQueue: number;
  /** Tokens that the key/value cache is to hold; at least contextLength. */
  kvCacheTokens: number;
  /** Whether a cache of fewer tokens, down to contextLength, is taken where a GPU has not memory for all. */
  kvCacheShrinks: boolean;
  speculation: boolean;
  /** The most time that chunks of prompts add to a step in which others generate; 0: as long as the step takes anyway. */
  prefillBudgetMs: number;
  threads: number;
  /** '', 'int8' or 'int4': quantize the linears of the layers while loading. */
  quantization: string;
  /** 'f16', 'f32', 'q8_0', or '': what suits the device */
  kvCacheType: string;
  prefixCache: boolean;
  /** 'auto', 'cpu', 'cuda' or 'cuda:N' */
  device: string;
  seed: number;
}

export interface NativeSampling {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  /** Token ids and what is added to their logits, pairwise. */
  biasIds: Uint32Array;
  biasValues: Float32Array;
  /** Sequences of token ids that the answer must not have; one of a single id bans that token. */
  banned: Uint32Array[];
  /** Bit id % 32 of word id / 32 says whether the token is allowed. Empty: all are. */
  mask: Uint32Array;
  seed: bigint;
  /** -1: none; else log-probabilities of the chosen token and of this many of the best. */
  logprobs: number;
}

export interface NativeRequest {
  /** `logits`: the rows of the prompt's positions from `from` on. `score`: the log-probabilities of its tokens from `from` on. */
  kind: 'generate' | 'logits' | 'score';
  prompt: Uint32Array;
  maxTokens: number;
  stopTokens: Uint32Array;
  sampling: NativeSampling;
  from: number;
  /** `score`: of so many of the likeliest tokens too. */
  top: number;
  priority: number;
  /** Whose request this is: clients get their shares by `weight`. */
  client: string;
  weight: number;
  /** The prompt's pages stay held after the end, until release() of the request's number. */
  pin: boolean;
  /** Whether 'trace' events come. */
  trace: boolean;
  /** `generate`: what the tokens' texts have to follow; stop tokens come where they may end. */
  grammar?: NativeGrammar;
}

/** A phase of a request that has begun or ended. */
export interface NativeTrace {
  phase: 'queued' | 'admitted' | 'prefill' | 'decode' | 'preempted' | 'finished' | 'failed';
  atMs: number;
  tookMs: number;
  tokens: number;
}

export interface NativeTokenLogprobs {
  logprob: number;
  topIds: Uint32Array;
  topLogprobs: Float32Array;
}

export interface NativeError {
  code: ErrorCode;
  message: string;
  details: Record<string, string | number>;
}

export interface NativeModelInfo {
  device: string;
  kernels: string;
  threads: number;
  /** Bytes of the weights as the device holds them; mapped ones are shared with the system's page cache. */
  weightBytes: number;
  /** The same by type. */
  weightTypes: Record<string, number>;
  /** Bytes of weights that are read to generate one token: all but the embeddings of the others. */
  bytesPerToken: number;
  mappedBytes: number;
  /** 'f16', 'f32' or 'q8_0' */
  kvCacheType: string;
  /** Pages of the key/value cache, and the bytes of one. */
  pages: number;
  pageBytes: number;
  /** Names the order of a page's bytes: pages of equal layouts can be exchanged. */
  pageLayout: string;
  /** Of a GPU's memory, all that the model takes; 0 on the CPU. */
  deviceBytes: number;
}

export interface NativeGpu {
  name: string;
  computeCapability: string;
  totalBytes: number;
  freeBytes: number;
}

export interface NativeFinish {
  /** 'stop': a stop token, which is the last one given; 'length': maxTokens or the context is used up. */
  reason: 'stop' | 'length' | 'cancelled';
  promptTokens: number;
  cachedTokens: number;
  generatedTokens: number;
  /** Tokens that were guessed, and of these those that turned out to be right. */
  draftedTokens: number;
  acceptedTokens: number;
  preemptions: number;
  queueMs: number;
  /** From submission to the first token. */
  firstTokenMs: number;
  prefillMs: number;
  decodeMs: number;
}

export type NativeEvent =
  | { type: 'progress'; bytes: number; totalBytes: number }
  | { type: 'ready'; info: NativeModelInfo }
  | { type: 'warning'; error: NativeError }
  /** Loading failed, or the backend while it computed: after the 'error' of each request. */
  | { type: 'failed'; error: NativeError }
  | { type: 'admitted'; request: number }
  | { type: 'token'; request: number; id: number; logprobs?: NativeTokenLogprobs }
  | { type: 'logits'; request: number; position: number; values: Float32Array }
  | { type: 'scores'; request: number; position: number; scores: NativeTokenLogprobs[] }
  | { type: 'trace'; request: number; trace: NativeTrace }
  /** `request` is the number that readPages() or writePages() returned. */
  | { type: 'pages'; request: number; data: Uint8Array; error?: NativeError }
  | { type: 'finish'; request: number; finish: NativeFinish }
  | { type: 'error'; request: number; error: NativeError }
  | { type: 'disposed' };

export interface NativeModelStats {
  activeSequences: number;
  queuedRequests: number;
  cachedTokens: number;
  usedPages: number;
  totalPages: number;
  steps: number;
  prefillTokens: number;
  generatedTokens: number;
  draftedTokens: number;
  acceptedTokens: number;
  preemptions: number;
}

export interface NativeModel {
  /** Compiles a grammar on a thread, so that submit() of a request that has it need not. */
  prepareGrammar(grammar: NativeGrammar, onEnd: (error?: NativeError) => void): void;
  /** Returns the request's number, or throws ERR_QUEUE_FULL. Its events follow. */
  submit(request: NativeRequest): number;
  cancel(request: number): void;
  /** Forgets cached prefixes. */
  clearCache(): void;
  stats(): NativeModelStats;
  /** Copies `count` pages of a pin, from `first` on. Returns the number of the 'pages' event that follows. */
  readPages(pin: number, first: number, count: number): number;
  /** Takes pages for these tokens, which writePages() fills and release() gives to the prefix cache. Returns the pin. */
  importPages(tokens: Uint32Array): number;
  /** Fills whole pages from `first` on. Returns the number of the 'pages' event that follows. */
  writePages(pin: number, first: number, data: Uint8Array): number;
  /** Gives the pages of a pin back. */
  release(pin: number): void;
  /** Stops whatever runs; the event 'disposed' tells when all memory is free. */
  dispose(): void;
}

export interface Native {
  readonly Tokenizer: new (
    pieces: Uint8Array,
    offsets: Uint32Array,
    scores: Float32Array,
    types: Uint8Array,
    addDummyPrefix: boolean,
  ) => NativeTokenizer;
  /** Loading begins at once, in the model's own thread. */
  readonly Model: new (
    spec: NativeModelSpec,
    onEvents: (events: NativeEvent[]) => void,
    grammars?: NativeGrammars,
  ) => NativeModel;
  /**
   * Converts whole rows between types, rounding as GGUF's reference quantizers do. `scales` holds the rows' scales of
   * `int8` and `int4` sources as float32. `target` has room for the result; returns the bytes written.
   * Targets: f32, f16, bf16, q8_0, q4_0.
   */
  convertRows(
    sourceType: string,
    source: Uint8Array,
    scales: Float32Array | undefined,
    rows: number,
    columns: number,
    targetType: string,
    target: Uint8Array,
  ): number;
  /**
   * Fills whole blocks with random numbers of mean 0 and the given standard deviation. The same tensor name and seed
   * give the same numbers wherever they are cut: `firstElement` is the position of target[0] in the tensor.
   * Types: f32, f16, bf16, q8_0, q4_0.
   */
  fillRandom(
    type: string,
    target: Uint8Array,
    name: string,
    seed: number,
    firstElement: number,
    mean: number,
    deviation: number,
  ): void;
  /**
   * Bytes per second of a plain read of `bytes` of memory: what bounds decoding. Blocks meanwhile. `device`: 'cpu', which
   * `threads` threads read, 'cuda' or 'cuda:N'.
   */
  measureBandwidth(threads: number, bytes: number, device: string): number;
  /** Tokens of one page of the key/value cache. */
  readonly pageTokens: number;
  /** Cores, not hardware threads, that this process may use. */
  physicalCores(): number;
  /** The name of the kernels that this CPU gets, its cores, the GPUs, and 'available' or why there are none. */
  system(): { kernels: string; cores: number; gpus: NativeGpu[]; cuda: string };
}

let loaded: Native | undefined;

/** The addon, loaded when it is first wanted: reading checkpoints does without it. */
export function loadNative(): Native {
  try {
    // dist/addon/native.js -> the package's root, where prebuilds/ and build/ are.
    loaded ??= load(path.join(__dirname, '..', '..')) as Native;
    return loaded;
  } catch (cause) {
    const { message } = cause as Error;
    throw new ChatGLMError(
      'ERR_UNSUPPORTED',
      `the native addon for ${process.platform}-${process.arch} is missing or does not load; \`npm rebuild node-chatglm\` ` +
        `builds it, which needs CMake 3.21 and a C++20 compiler (${String(message).split('\n')[0]})`,
      {},
      cause,
    );
  }
}

/** Runs `call`; what native code throws becomes a ChatGLMError of this realm. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}

export function fromNative(error: unknown): ChatGLMError {
  if (error instanceof ChatGLMError) return error;
  const { code, message, details } = error as Partial<NativeError>;
  if (code !== undefined && ERROR_CODES.includes(code)) return new ChatGLMError(code, message ?? '', details);
  // Node-API's own errors, of a wrong type or in an environment that ends, have no code of this package.
  return new ChatGLMError('ERR_INTERNAL', `the native addon failed: ${message}`, {}, error);
}
