import path from 'node:path';
import load from 'node-gyp-build';
import type { FileRange, TensorEntry } from '../checkpoint/types.js';
import { ChatGLMError, type ErrorCode } from '../common/errors.js';
import type { TokenDecoder } from '../tokenizer/tokenizer.js';

// The addon's interface, typed by hand: what native/addon/ exports. Nothing here is public.

export interface NativeTokenizer {
  /** How many pieces there are. Ids from here on are ChatGLM's special tokens, which native code does not know. */
  readonly size: number;
  /** Ids of the text, dummy prefix included if there is one; never a special id. */
  encode(text: string): Uint32Array;
  /** Text of the ids. Ids that have no piece decode to nothing. */
  decode(ids: Uint32Array): string;
  createDecoder(): TokenDecoder;
  /** For a text of so many UTF-16 units. */
  createEncoding(units: number): NativeEncoding;
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
export interface NativeTensor extends Omit<TensorEntry, 'data'> {
  /** Without data the tensor is filled with random numbers (benchmarks). */
  data?: FileRange;
}

export interface NativeModelSpec {
  files: string[];
  tensors: NativeTensor[];
  config: {
    layers: number;
    hiddenSize: number;
    heads: number;
    kvGroups: number;
    headSize: number;
    ffnHiddenSize: number;
    vocabSize: number;
    normEpsilon: number;
    ropeDimension: number;
    ropeBase: number;
    ropeScale: number;
  };
  contextLength: number;
  maxSequences: number;
  maxQueue: number;
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
  seed: bigint;
  /** -1: none; else log-probabilities of the chosen token and of this many of the best. */
  logprobs: number;
}

export interface NativeRequest {
  prompt: Uint32Array;
  maxTokens: number;
  stopTokens: Uint32Array;
  sampling: NativeSampling;
  /** -1, or: give the logits of every prompt position from this one on, and generate nothing. */
  logitsFrom: number;
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
  kvCacheBytes: number;
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
  queueMs: number;
  /** From submission to the first token. */
  firstTokenMs: number;
  prefillMs: number;
  decodeMs: number;
}

export type NativeEvent =
  | { type: 'progress'; bytes: number; totalBytes: number }
  | { type: 'ready'; info: NativeModelInfo }
  | { type: 'failed'; error: NativeError }
  | { type: 'token'; request: number; id: number; logprobs?: NativeTokenLogprobs }
  | { type: 'logits'; request: number; row: number; values: Float32Array }
  | { type: 'finish'; request: number; finish: NativeFinish }
  | { type: 'error'; request: number; error: NativeError }
  | { type: 'disposed' };

export interface NativeModelStats {
  activeSequences: number;
  queuedRequests: number;
  cachedTokens: number;
  usedPages: number;
  totalPages: number;
}

export interface NativeModel {
  /** Returns the request's number, or throws ERR_QUEUE_FULL. Its events follow. */
  submit(request: NativeRequest): number;
  cancel(request: number): void;
  /** Forgets cached prefixes. */
  clearCache(): void;
  stats(): NativeModelStats;
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
  /** Cores, not hardware threads, that this process may use. */
  physicalCores(): number;
  /** The name of the kernels that this CPU gets, its cores, the GPUs, and 'available' or why there are none. */
  system(): { kernels: string; cores: number; gpus: NativeGpu[]; cuda: string };
}

// dist/addon/native.js -> the package's root, where prebuilds/ and build/ are.
export const native = load(path.join(__dirname, '..', '..')) as Native;

/** Runs `call`; what native code throws becomes a ChatGLMError of this realm. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    const { code, message, details } = error as Partial<NativeError>;
    if (code === undefined || message === undefined) throw error;
    throw new ChatGLMError(code, message, details);
  }
}
