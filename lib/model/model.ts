import { callNative, loadNative, type NativeModel, type NativeRequest } from '../addon/native.js';
import { Chat, type ChatOnceOptions, type ChatOnceResult, type ChatOptions, chatOnce } from '../chat/chat.js';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  countOfIds,
  integerOption,
  type Nullable,
  readOptions,
  show,
  signalOption,
  tokenIds,
} from '../common/options.js';
import { type ModelFamily, stopTokens } from '../families/index.js';
import { type GenerateOptions, maxTokensOf, readGenerateOptions, toNativeSampling } from '../generation/options.js';
import { StopSequences } from '../generation/stop-sequences.js';
import { Generation, type RawGeneration } from '../generation/text-stream.js';
import { LogitsRequest, type RequestHandler, TokenStream } from '../generation/token-stream.js';
import { Tokenizer } from '../tokenizer/tokenizer.js';
import { type LoadOptions, type ModelSource, toNativeSpec } from './load-options.js';
import { Requests } from './requests.js';

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
  /** Pages of the key/value memory in use, by active sequences and by what is kept. */
  usedPages: number;
  totalPages: number;
}

/** Options of `model.logits()`. */
export interface LogitsOptions {
  /** Leave out the positions before this one; they may then come from the prefix cache. Default: 0. */
  from?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** Keys and values are kept in pages of so many tokens: kPageTokens of native/engine/backend.h. */
const PAGE_TOKENS = 64;
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
    const handle = callNative(() => new (loadNative().Model)(spec, requests.handle));
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
          facts.kvCacheBytes / (spec.maxSequences * Math.ceil(spec.contextLength / PAGE_TOKENS) * PAGE_TOKENS),
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
  generate(prompt: string | ArrayLike<number>, options: Nullable<GenerateOptions> = {}): Generation {
    const { stop = [], ...rest } = readGenerateOptions(options);
    const stops = new StopSequences(stop);
    if (typeof prompt !== 'string' && (typeof prompt !== 'object' || prompt === null)) {
      throw invalidArgument(`prompt must be a text or an array of token ids, got ${show(prompt)}`);
    }
    const ids =
      typeof prompt === 'string'
        ? (this.overflowOf(prompt.length) ?? this.tokenizer.encodePrompt(prompt))
        : this.#promptOf('prompt', prompt, ', the answer included');
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
  generateIds(given: ArrayLike<number> | ChatGLMError, options: GenerateOptions): RawGeneration {
    const signal = signalOption(options.signal);
    const prompt = given instanceof ChatGLMError ? given : this.#promptOf('prompt', given, ', the answer included');
    const { seedNumber, ...sampling } = toNativeSampling(options, this.info.vocabSize);
    const request: NativeRequest = {
      prompt: prompt instanceof ChatGLMError ? new Uint32Array() : prompt,
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
  createChat(options: Nullable<ChatOptions> = {}): Chat {
    return new Chat(this, options);
  }

  /**
   * One question and its answer, in the shape of THUDM's `chat()`.
   *
   * @param query The text of the message, whose role is `user` unless `options.role` says `observation`.
   * @throws {ChatGLMError} as {@link generate}.
   */
  async chat(query: string, options: Nullable<ChatOnceOptions> = {}): Promise<ChatOnceResult> {
    return await chatOnce(this, query, options);
  }

  /**
   * The logits of each position, row by row: (positions, vocabulary), float32.
   *
   * @throws {ChatGLMError} ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT, ERR_QUEUE_FULL, ERR_ABORTED, ERR_DISPOSED.
   */
  async logits(ids: ArrayLike<number>, options: Nullable<LogitsOptions> = {}): Promise<Float32Array> {
    const set = readOptions<LogitsOptions>(options, ['from', 'signal'], 'logits()');
    const signal = signalOption(set.signal);
    const prompt = this.#promptOf('ids', ids, '');
    if (prompt instanceof ChatGLMError) throw prompt;
    const from = integerOption('from', set.from, 0, { most: Math.max(0, prompt.length - 1) });
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
   * Gives all memory back. Requests under way end with ERR_DISPOSED; nothing is waited for but the end of a kernel. The
   * promise resolves when the memory is free, also when `dispose()` is called more than once.
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

  /** Token ids as native code takes them, or the error for more of them than the context holds. */
  #promptOf(name: string, ids: ArrayLike<number>, remark: string): Uint32Array | ChatGLMError {
    const tokens = countOfIds(name, ids);
    const limit = this.info.contextLength;
    if (tokens <= limit) return tokenIds(name, ids, this.info.vocabSize - 1);
    const message = `the prompt has ${tokens} tokens; the context holds ${limit}${remark}`;
    return new ChatGLMError('ERR_CONTEXT_OVERFLOW', message, { tokens, limit });
  }

  #stopTokens(): Uint32Array {
    if (!this.#tokenizer) return Uint32Array.of(2);
    return Uint32Array.from(stopTokens(this.#tokenizer.size, this.info.family));
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
