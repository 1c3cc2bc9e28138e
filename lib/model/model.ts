import {
  callNative,
  type NativeEvent,
  type NativeModel,
  type NativeModelInfo,
  type NativeModelSpec,
  type NativeRequest,
  native,
} from '../addon/native.js';
import { Chat, type ChatOnceOptions, type ChatOnceResult, type ChatOptions, chatOnce } from '../chat/chat.js';
import { type OpenOptions, openCheckpoint } from '../checkpoint/open.js';
import { type ShapeName, type SyntheticType, syntheticConfig, syntheticTensors } from '../checkpoint/synth.js';
import type { Checkpoint, ModelConfig, ModelFamily, TokenizerData } from '../checkpoint/types.js';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  booleanOption,
  checkOptions,
  checkPath,
  choiceOption,
  deviceOption,
  integerOption,
  signalOption,
  tokenIds,
} from '../common/options.js';
import { specialTokens, stopTokens } from '../families/prompt.js';
import { checkGenerateOptions, type GenerateOptions, maxTokensOf, toNativeSampling } from '../generation/options.js';
import { StopSequences } from '../generation/stop-sequences.js';
import { Generation, type RawGeneration } from '../generation/text-stream.js';
import { LogitsRequest, type RequestHandler, TokenStream, toChatGLMError } from '../generation/token-stream.js';
import { Tokenizer } from '../tokenizer/tokenizer.js';
import { embeddedModelPath } from './embedded.js';

/** How far loading has come. */
export interface LoadProgress {
  /** Of the checkpoint's weights, read so far. */
  bytes: number;
  totalBytes: number;
}

/** Options of `loadModel()`. */
export interface LoadOptions {
  /**
   * Where to compute: `cuda`, which is `cuda:0`, or `cuda:1` and so on take that GPU or fail with ERR_DEVICE_UNAVAILABLE.
   * `auto` takes the first GPU and, where there is none, where the model does not fit into its memory or where only the CPU
   * has the asked-for kind of keys and values, the CPU: `model.info.device` tells. Default: `auto`.
   */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | undefined;
  /**
   * Quantize the layers' matrices while loading, as THUDM's `model.quantize(8)` and `model.quantize(4)` do: one scale a
   * row. Embedding and output matrix stay as they are. Default: as the checkpoint has them.
   */
  quantization?: 'int8' | 'int4' | undefined;
  /**
   * The most tokens of one sequence, prompt and answer together. At most what the model was made for. Default: that, but no
   * more than 32,768.
   */
  contextLength?: number | undefined;
  /** The most sequences that are computed at the same time; further requests wait. Default: 4. */
  maxSequences?: number | undefined;
  /** The most requests that wait; one more is refused with ERR_QUEUE_FULL. Default: 256. */
  maxQueue?: number | undefined;
  /**
   * Threads of the CPU that compute, or that read the weights for a GPU. Default: one for each core (not hardware thread)
   * that the process may use, and no more than its container is granted. Models that compute at the same time take turns
   * rather than use more threads than there are cores.
   */
  threads?: number | undefined;
  /**
   * How keys and values are kept. f32, on the CPU only, takes twice the memory of f16 and is nearer to THUDM's float32; q8_0
   * takes about half of it. Default: `f16` on a GPU and where weights are quantized, else `f32`.
   */
  kvCacheType?: 'f16' | 'f32' | 'q8_0' | undefined;
  /** Find again what was computed for earlier requests that begin with the same tokens. Default: true. */
  prefixCache?: boolean | undefined;
  /** The model's generation, where the checkpoint's files do not tell it rightly. Default: what they tell. */
  family?: ModelFamily | undefined;
  /** Called while loading, some times a second. */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Ends loading with ERR_ABORTED. */
  signal?: AbortSignal | undefined;
}

/** What was loaded. */
export interface ModelInfo {
  family: ModelFamily;
  /** A name for people, from the checkpoint. */
  name: string;
  /** The checkpoint's file or directory; none for random weights. */
  path: string | undefined;
  parameters: number;
  /** The most tokens of one sequence. */
  contextLength: number;
  vocabSize: number;
  /** Bytes of the weights in memory, by type. */
  weightTypes: Readonly<Record<string, number>>;
  /** Bytes of the weights in memory. */
  bytes: number;
  /** Of `bytes`, those that are mapped from the checkpoint's files and shared with the system's file cache. */
  mappedBytes: number;
  /** Bytes of weights that are read to generate one token. */
  bytesPerToken: number;
  /** How keys and values are kept. */
  kvCacheType: 'f16' | 'f32' | 'q8_0';
  /** Bytes of keys and values that each token of a sequence takes. */
  kvBytesPerToken: number;
  /** The most memory that keys and values take. A GPU gives it when the model is loaded, the CPU as it is first needed. */
  kvCacheBytes: number;
  /** All that the model takes of a GPU's memory: weights, keys and values, and what computing needs. 0 on the CPU. */
  deviceBytes: number;
  /** `cpu` or `cuda:0`. */
  device: string;
  /** The device's kernels, such as `avx512` or `sm_90a`. */
  kernels: string;
  /** Threads of the CPU that compute; 0 on a GPU. */
  threads: number;
}

/** What a model is doing. */
export interface ModelStats {
  activeSequences: number;
  queuedRequests: number;
  /** Tokens whose keys and values are kept for later requests that begin with them. */
  cachedTokens: number;
  /** Pages of `pageTokens` tokens of the key/value cache in use, by active sequences and by what is kept. */
  usedPages: number;
  totalPages: number;
}

/** Options of `model.logits()`. */
export interface LogitsOptions {
  /** Leave out the positions before this one; they may then come from the prefix cache. Default: 0. */
  from?: number | undefined;
  signal?: AbortSignal | undefined;
}

const LOAD_OPTIONS = [
  'device',
  'quantization',
  'contextLength',
  'maxSequences',
  'maxQueue',
  'threads',
  'kvCacheType',
  'prefixCache',
  'family',
  'onProgress',
  'signal',
] as const satisfies readonly (keyof LoadOptions)[];

const FAMILIES = ['chatglm2', 'chatglm3', 'codegeex2'] as const satisfies readonly ModelFamily[];
/** What all supported families compute. */
const ARCHITECTURE = {
  norm: 'rms',
  activation: 'swiglu',
  rotary: 'interleaved',
  mask: 'causal',
  qkvBias: true,
} as const satisfies NativeModelSpec['architecture'];
const MOST_DEFAULT_CONTEXT = 32_768;
const DEFAULT_SEQUENCES = 4;
const DEFAULT_QUEUE = 256;

/** The requests of one model that are under way, and where its events go. It must not hold the model itself. */
class Requests {
  readonly handlers = new Map<number, RequestHandler>();
  onProgress: LoadOptions['onProgress'];
  readonly ready: Promise<NativeModelInfo>;
  readonly disposed: Promise<void>;
  #resolveReady!: (info: NativeModelInfo) => void;
  #rejectReady!: (error: unknown) => void;
  #resolveDisposed!: () => void;

  constructor(onProgress: LoadOptions['onProgress']) {
    this.onProgress = onProgress;
    this.ready = new Promise((resolve, reject) => {
      this.#resolveReady = resolve;
      this.#rejectReady = reject;
    });
    this.ready.catch(() => {});
    this.disposed = new Promise((resolve) => {
      this.#resolveDisposed = resolve;
    });
  }

  failLoading(error: unknown): void {
    this.onProgress = undefined;
    this.#rejectReady(error);
  }

  handle = (events: NativeEvent[]): void => {
    for (const event of events) {
      switch (event.type) {
        case 'progress':
          this.#progress(event);
          break;
        case 'ready':
          this.onProgress = undefined;
          this.#resolveReady(event.info);
          break;
        case 'failed':
          this.failLoading(toChatGLMError(event.error));
          break;
        case 'token':
          this.handlers.get(event.request)?.onToken(event.id, event.logprobs);
          break;
        case 'logits':
          this.handlers.get(event.request)?.onLogits(event.row, event.values);
          break;
        case 'finish':
          this.#take(event.request)?.onFinish(event.finish);
          break;
        case 'error':
          this.#take(event.request)?.onError(toChatGLMError(event.error));
          break;
        case 'disposed':
          this.failLoading(new ChatGLMError('ERR_DISPOSED', 'the model was disposed'));
          this.#resolveDisposed();
      }
    }
  };

  #take(request: number): RequestHandler | undefined {
    const handler = this.handlers.get(request);
    this.handlers.delete(request);
    return handler;
  }

  /** An error in the caller's function ends loading; it must not end the process. */
  #progress({ bytes, totalBytes }: LoadProgress): void {
    try {
      this.onProgress?.({ bytes, totalBytes });
    } catch (error) {
      this.failLoading(error);
    }
  }
}

/** A loaded model. It answers any number of requests at once and keeps no process alive while it has none. */
export class Model implements AsyncDisposable {
  readonly info: Readonly<ModelInfo>;

  readonly #native: NativeModel;
  readonly #requests: Requests;
  readonly #tokenizer: Tokenizer | undefined;
  #isDisposed = false;

  private constructor(info: ModelInfo, handle: NativeModel, requests: Requests, tokenizer: Tokenizer | undefined) {
    this.info = info;
    this.#native = handle;
    this.#requests = requests;
    this.#tokenizer = tokenizer;
  }

  /** @internal Use `loadModel()`. */
  static async load(source: ModelSource, options: LoadOptions): Promise<Model> {
    const { config, tokenizer: data } = source;
    const tokenizer = data && new Tokenizer(data, config.family);
    const spec = toNativeSpec(source, options);
    const { signal, onProgress } = options;
    throwIfAborted(signal);
    const requests = new Requests(onProgress);
    const handle = callNative(() => new native.Model(spec, requests.handle));
    const over = onAbort(signal, () => requests.failLoading(aborted(signal as AbortSignal)));
    try {
      const { weightBytes, ...facts } = await requests.ready;
      const info: ModelInfo = {
        family: config.family,
        name: config.name,
        path: source.path,
        parameters: source.tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0),
        contextLength: spec.contextLength,
        vocabSize: config.vocabSize,
        ...facts,
        bytes: weightBytes,
        kvCacheType: facts.kvCacheType as ModelInfo['kvCacheType'],
        kvBytesPerToken:
          facts.kvCacheBytes /
          (spec.maxSequences * Math.ceil(spec.contextLength / native.pageTokens) * native.pageTokens),
      };
      return new Model(Object.freeze(info), handle, requests, tokenizer);
    } catch (error) {
      handle.dispose();
      await requests.disposed;
      throw error;
    } finally {
      over();
    }
  }

  /**
   * The checkpoint's tokenizer.
   *
   * @throws {ChatGLMError} ERR_CHECKPOINT_INVALID if the checkpoint has none: then only token ids can be used.
   */
  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new ChatGLMError(
      'ERR_CHECKPOINT_INVALID',
      `${this.info.path ?? this.info.name} has no tokenizer.model: this model takes and gives token ids only`,
    );
  }

  /**
   * Continues a text or token ids, without a chat format. Text goes behind `[gMASK]` and `sop`, as THUDM's tokenizer puts
   * it; ids are taken as they are. It begins at once and does not wait for the loop.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; while iterating ERR_CONTEXT_OVERFLOW, ERR_QUEUE_FULL, ERR_ABORTED,
   *   ERR_DISPOSED, ERR_INVALID_LOGITS.
   */
  generate(prompt: string | ArrayLike<number>, options: GenerateOptions = {}): Generation {
    checkGenerateOptions(options);
    const { stop = [], ...rest } = options;
    const stops = new StopSequences(stop);
    const ids =
      typeof prompt === 'string' ? (this.overflowOf(prompt.length) ?? this.tokenizer.encodePrompt(prompt)) : prompt;
    return new Generation(this.generateIds(ids, rest), stops);
  }

  /**
   * @internal The error for a text of so many UTF-16 units that it cannot fit the context, whatever its tokens are: to
   * find them would hold up the event loop for nothing.
   */
  overflowOf(length: number): ChatGLMError | undefined {
    const tokens = this.tokenizer.leastTokens(length);
    const limit = this.info.contextLength;
    if (tokens <= limit) return undefined;
    const message = `the prompt has at least ${tokens} tokens; the context holds ${limit}, the answer included`;
    return new ChatGLMError('ERR_CONTEXT_OVERFLOW', message, { tokens, limit });
  }

  /** @internal The tokens of a continuation, special ones included. An error instead of a prompt is what it ends with. */
  generateIds(prompt: ArrayLike<number> | ChatGLMError, options: GenerateOptions): RawGeneration {
    checkGenerateOptions(options);
    const signal = signalOption(options.signal);
    const { seedNumber, ...sampling } = toNativeSampling(options, this.info.vocabSize);
    const request: NativeRequest = {
      prompt: prompt instanceof ChatGLMError ? new Uint32Array() : tokenIds('prompt', prompt, this.info.vocabSize - 1),
      maxTokens: maxTokensOf(options, this.info.contextLength),
      stopTokens: options.stopTokens === undefined ? this.#stopTokens() : tokenIds('stopTokens', options.stopTokens),
      sampling,
      logitsFrom: -1,
    };
    const decoder = this.#tokenizer?.createDecoder();
    const create = (cancel: () => void) => new TokenStream(seedNumber, decoder, cancel, signal);
    return this.#submit(prompt instanceof ChatGLMError ? prompt : request, signal, create);
  }

  /** A conversation. */
  createChat(options: ChatOptions = {}): Chat {
    return new Chat(this, options);
  }

  /**
   * One question and its answer, in the shape of THUDM's `chat()`.
   *
   * @param query The text of the message, whose role is `user` unless `options.role` says `observation`.
   * @throws {ChatGLMError} as {@link generate}.
   */
  async chat(query: string, options: ChatOnceOptions = {}): Promise<ChatOnceResult> {
    return await chatOnce(this, query, options);
  }

  /**
   * The logits of each position, row by row: (positions, vocabulary), float32.
   *
   * @throws {ChatGLMError} ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT, ERR_QUEUE_FULL, ERR_ABORTED, ERR_DISPOSED.
   */
  async logits(ids: ArrayLike<number>, options: LogitsOptions = {}): Promise<Float32Array> {
    checkOptions(options, ['from', 'signal'], 'logits()');
    const signal = signalOption(options.signal);
    const prompt = tokenIds('ids', ids, this.info.vocabSize - 1);
    const from = integerOption('from', options.from, 0, { most: Math.max(0, prompt.length - 1) });
    const { seedNumber: _, ...sampling } = toNativeSampling({ seed: 0 }, this.info.vocabSize);
    const request: NativeRequest = { prompt, maxTokens: 0, stopTokens: new Uint32Array(), sampling, logitsFrom: from };
    const handler = this.#submit(
      request,
      signal,
      (cancel) => new LogitsRequest(prompt.length - from, from, this.info.vocabSize, cancel, signal),
    );
    return await handler.result;
  }

  /** What the model is doing. */
  stats(): ModelStats {
    return callNative(() => this.#native.stats());
  }

  /** Forgets the keys and values that are kept for later requests. Running requests are not touched. */
  clearCache(): void {
    callNative(() => this.#native.clearCache());
  }

  /**
   * Gives all memory back. Requests under way end with ERR_DISPOSED; nothing is waited for but the end of a kernel. Resolves
   * when the memory is free; again and again if called again.
   */
  async dispose(): Promise<void> {
    if (!this.#isDisposed) {
      this.#isDisposed = true;
      this.#native.dispose();
    }
    await this.#requests.disposed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }

  #stopTokens(): Uint32Array {
    if (!this.#tokenizer) return Uint32Array.of(2);
    return Uint32Array.from(stopTokens(specialTokens(this.#tokenizer.size, this.info.family)));
  }

  #submit<H extends RequestHandler>(
    request: NativeRequest | ChatGLMError,
    signal: AbortSignal | undefined,
    create: (cancel: () => void) => H,
  ): H {
    let id: number | undefined;
    const handler = create(() => {
      // A request that has ended is no longer known, and a disposed model has none.
      if (id !== undefined && this.#requests.handlers.has(id) && !this.#isDisposed) this.#native.cancel(id);
    });
    try {
      throwIfAborted(signal);
      if (request instanceof ChatGLMError) throw request;
      id = callNative(() => this.#native.submit(request));
      this.#requests.handlers.set(id, handler);
    } catch (error) {
      handler.onError(error as ChatGLMError);
    }
    return handler;
  }
}

/** What a model is made from: a checkpoint, or a shape to be filled with random numbers. */
interface ModelSource {
  path: string | undefined;
  files: string[];
  tensors: NativeModelSpec['tensors'];
  config: ModelConfig;
  tokenizer: TokenizerData | undefined;
  seed: number;
}

function toNativeSpec({ files, tensors, config, seed }: ModelSource, options: LoadOptions): NativeModelSpec {
  const most = config.contextLength;
  return {
    files,
    tensors,
    config,
    architecture: ARCHITECTURE,
    contextLength: integerOption('contextLength', options.contextLength, Math.min(most, MOST_DEFAULT_CONTEXT), {
      least: 1,
      most,
    }),
    maxSequences: integerOption('maxSequences', options.maxSequences, DEFAULT_SEQUENCES, { least: 1, most: 256 }),
    maxQueue: integerOption('maxQueue', options.maxQueue, DEFAULT_QUEUE, { most: 1 << 20 }),
    threads: integerOption('threads', options.threads, native.physicalCores(), { least: 1, most: 1024 }),
    quantization: choiceOption('quantization', options.quantization, ['int8', 'int4'], ''),
    kvCacheType: choiceOption('kvCacheType', options.kvCacheType, ['f16', 'f32', 'q8_0'], ''),
    prefixCache: booleanOption('prefixCache', options.prefixCache, true),
    device: deviceOption(options.device, ['auto', 'cpu'], 'auto'),
    seed,
  };
}

function checkLoadOptions(options: LoadOptions): LoadOptions {
  checkOptions(options, LOAD_OPTIONS, 'loadModel()');
  if (options.onProgress !== undefined && typeof options.onProgress !== 'function') {
    throw invalidArgument('onProgress must be a function');
  }
  if (options.family !== undefined) choiceOption('family', options.family, FAMILIES, 'chatglm3');
  signalOption(options.signal);
  return options;
}

/**
 * Loads a checkpoint: a GGUF file, or a directory as THUDM published it. Without a path: the small model that comes with
 * this package.
 *
 * The CPU and the GPU get their weights in an order of their own, but on the CPU the embeddings may stay in the file: do not
 * change or shorten it while the model is in use (`info.mappedBytes` is 0 where that does not matter).
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE,
 *   ERR_ABORTED, ERR_INVALID_ARGUMENT.
 */
export async function loadModel(path?: string, options: LoadOptions = {}): Promise<Model> {
  if (path !== undefined) checkPath('path', path);
  checkLoadOptions(options);
  const { family, signal } = options;
  const openOptions: OpenOptions = { family, signal };
  const checkpoint: Checkpoint = await openCheckpoint(path ?? embeddedModelPath(), openOptions);
  return await Model.load({ ...checkpoint, seed: 0 }, options);
}

/** Options of `loadSyntheticModel()`. */
export interface SyntheticModelOptions extends LoadOptions {
  /** Default: `6b`. */
  shape?: ShapeName | undefined;
  /** Of all matrices. Default: `q4_0`. */
  type?: SyntheticType | undefined;
  /** Default: 0. The same seed gives the same weights. */
  seed?: number | undefined;
}

/** A model of a given shape with random weights, made in memory: for benchmarks. It has no tokenizer. */
export async function loadSyntheticModel(options: SyntheticModelOptions = {}): Promise<Model> {
  const { shape = '6b', type = 'q4_0', seed, ...rest } = options;
  checkLoadOptions(rest);
  // A longer context than the shape's own costs nothing here, and benchmarks ask for it.
  const overrides = rest.contextLength === undefined ? {} : { contextLength: rest.contextLength };
  const config = syntheticConfig(shape, overrides);
  const source: ModelSource = {
    path: undefined,
    files: [],
    tensors: syntheticTensors(config, type),
    config,
    tokenizer: undefined,
    seed: integerOption('seed', seed, 0),
  };
  return await Model.load(source, rest);
}
