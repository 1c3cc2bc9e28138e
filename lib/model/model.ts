import {
  callNative,
  loadNative,
  type NativeGrammar,
  type NativeModel,
  type NativeRequest,
  type NativeTrace,
} from '../addon/native.js';
import { Chat, type RestoreOptions } from '../chat/chat.js';
import { type ChatOnceOptions, type ChatOnceResult, chatOnce } from '../chat/chat-once.js';
import type { ChatOptions } from '../chat/chat-options.js';
import type { HeldPages, KvStore } from '../chat/session.js';
import { fingerprintOf } from '../checkpoint/fingerprint.js';
import { onAbort } from '../common/abort.js';
import { aborted, ChatGLMError, invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  countOfIds,
  type FilePath,
  integerOption,
  type Nullable,
  numberOption,
  readOptions,
  show,
  signalOption,
  tokenIds,
} from '../common/options.js';
import { type ModelFamily, stopTokens } from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import {
  type GenerateOptions,
  maxTokensOf,
  readGenerateOptions,
  type TokenLogprobs,
  toNativeOrder,
  toNativeSampling,
  toTimeLimits,
} from '../generation/options.js';
import { StopSequences } from '../generation/stop-sequences.js';
import { Generation, type RawGeneration } from '../generation/text-stream.js';
import { TokenStream, toTokenLogprobs } from '../generation/token-stream.js';
import { LogitsRequest, PinRequest, ScoreRequest } from '../generation/value-request.js';
import { readResponseFormat } from '../structured/response-format.js';
import { Tokenizer } from '../tokenizer/tokenizer.js';
import { IsolatedModel } from './isolated.js';
import { KvMemory } from './kv-memory.js';
import { type LoadOptions, type ModelSource, toNativeSpec, toRestartLimit } from './load-options.js';
import { Requests } from './requests.js';
import { isPromise, Submitter } from './submitter.js';
import { type StartModel, SupervisedModel } from './supervisor.js';

/** What a model is, and what it takes. */
export interface ModelInfo {
  /** What decides the format of prompts: `chatglm3`, say. */
  family: ModelFamily;
  /** A name for people, from the checkpoint. */
  name: string;
  /** The checkpoint's file or directory; undefined for random weights. */
  path: string | undefined;
  /** How many weights the checkpoint has. */
  parameters: number;
  /** The most tokens of one sequence. */
  contextLength: number;
  /** How many ids the logits have: rows of the output matrix, unused ones included. */
  vocabSize: number;
  /** Bytes of the weights in memory, by the type they are computed with. */
  weightTypes: Readonly<Record<string, number>>;
  /** Bytes of the weights in memory. */
  bytes: number;
  /** The part of `bytes` that is mapped from the checkpoint's files and shared with the system's file cache. */
  mappedBytes: number;
  /** Bytes of weights that are read to generate one token. */
  bytesPerToken: number;
  /** The type of keys and values. */
  kvCacheType: 'f16' | 'f32' | 'q8_0';
  /** Bytes of keys and values that each token of a sequence takes. */
  kvBytesPerToken: number;
  /** How many tokens the key/value cache holds. */
  kvCacheTokens: number;
  /** The most memory that keys and values take. A GPU gives it when the model is loaded, the CPU as it is first needed. */
  kvCacheBytes: number;
  /** Bytes of a GPU's memory that the model takes: weights, keys and values, and scratch space. 0 on the CPU. */
  deviceBytes: number;
  /** The device that computes: `cpu`, `cuda:0` and so on. */
  device: string;
  /** The kernels that compute, such as `avx512` or `sm_90a`. */
  kernels: string;
  /** Threads of the CPU that compute; 0 on a GPU. */
  threads: number;
}

/** What a model is doing at the moment. */
export interface ModelStats {
  /** Requests that are being computed: at most `maxSequences`. */
  activeSequences: number;
  /** Requests that wait: at most `maxQueue`. */
  queuedRequests: number;
  /** Tokens whose keys and values are kept for later requests that begin with them. */
  cachedTokens: number;
  /** Pages of the key/value cache in use, of `systemInfo().pageTokens` tokens each, by active sequences and by what is kept. */
  usedPages: number;
  /** Pages that there are in all. */
  totalPages: number;
  /** Steps that were computed since the model was loaded, as all that follows. */
  steps: number;
  /** Tokens of prompts that were computed. */
  prefillTokens: number;
  /** Tokens that were generated. */
  generatedTokens: number;
  /** Tokens that were guessed, and of these those that turned out to be right. */
  draftedTokens: number;
  /** Guessed tokens that turned out to be right. */
  acceptedTokens: number;
  /** How often a sequence paused since others needed its pages. */
  preemptions: number;
}

/** Options of `model.logits()`. */
export interface LogitsOptions {
  /** The first position whose logits are wanted; those before it may come from the prefix cache. Default: 0. */
  from?: number | undefined;
  /** Ends the computation with ERR_ABORTED. Default: none. */
  signal?: AbortSignal | undefined;
}

/**
 * The beginning of prompts that is kept in memory: see `model.cachePrompt()`.
 *
 * @example
 * ```ts
 * const kept: CachedPrompt = await model.cachePrompt('# language: Python\n');
 * console.log(kept.tokens);
 * kept.release();
 * ```
 */
export class CachedPrompt implements Disposable {
  /** How many tokens are kept. */
  readonly tokens: number;
  readonly #held: HeldPages;

  /** @internal Use `model.cachePrompt()`. */
  constructor(tokens: number, held: HeldPages) {
    this.tokens = tokens;
    this.#held = held;
  }

  /**
   * Lets the memory go: from now on others may take it. To call it again does nothing.
   *
   * @example
   * ```ts
   * const kept = await model.cachePrompt('# language: Python\n');
   * kept.release();
   * ```
   */
  release(): void {
    this.#held.release();
  }

  /**
   * Lets the memory go at the end of the block of a `using`.
   *
   * @example
   * ```ts
   * using kept = await model.cachePrompt('# language: Python\n');
   * console.log(kept.tokens);
   * ```
   */
  [Symbol.dispose](): void {
    this.release();
  }
}

/** Options of `model.drain()`. */
export interface DrainOptions {
  /** Requests that have not ended after so many milliseconds end with ERR_DRAINING. Default: no limit. */
  timeoutMs?: number | undefined;
}

/** Options of `model.score()`. */
export interface ScoreOptions {
  /** The position of the first token whose score is wanted, from 1; tokens before it may come from the prefix cache. Default: 1. */
  from?: number | undefined;
  /** How many of the likeliest tokens of each place are given too, 0 to 100. Default: 0. */
  logprobs?: number | undefined;
  /** Ends the computation with ERR_ABORTED. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Ends models that nobody holds any more. */
const forgotten = new FinalizationRegistry<NativeModel>((handle) => handle.dispose());

interface ModelParts {
  native: NativeModel;
  requests: Requests;
  tokenizer: Tokenizer | undefined;
  onTrace: LoadOptions['onTrace'];
  kv: Pick<KvStore, 'pageTokens' | 'pageBytes' | 'layout' | 'fingerprint'>;
}

/** A request that asks for nothing. What it says of sampling matters to those that generate. */
const PLAIN_REQUEST: Omit<NativeRequest, 'prompt'> = {
  kind: 'generate',
  maxTokens: 0,
  stopTokens: new Uint32Array(),
  sampling: toNativeSampling({ seed: 0 }, 1),
  from: 0,
  top: 0,
  ...toNativeOrder({}),
  pin: false,
  trace: false,
};

/**
 * A loaded model. It answers any number of requests at once and keeps no process alive while it has none.
 *
 * @example
 * ```ts
 * const model = await loadModel();
 * const answers = await Promise.all(
 *   ['你好', 'What is 7 times 8?'].map((question) => model.createChat().send(question)), // computed together
 * );
 * console.log(answers.map(({ text }) => text));
 * await model.dispose();
 * ```
 */
export class Model implements AsyncDisposable {
  /** What was loaded, and what it takes. */
  readonly info: Readonly<ModelInfo>;

  readonly #native: NativeModel;
  readonly #requests: Requests;
  readonly #tokenizer: Tokenizer | undefined;
  /** @internal What sessions read and write. */
  readonly kv: KvStore;
  readonly #onTrace: LoadOptions['onTrace'];
  readonly #submitter: Submitter;

  private constructor(info: ModelInfo, { native, requests, tokenizer, onTrace, kv }: ModelParts) {
    this.info = info;
    this.#native = native;
    this.#requests = requests;
    this.#submitter = new Submitter(native, requests);
    this.#tokenizer = tokenizer;
    this.#onTrace = onTrace;
    const pin = (ids: ArrayLike<number>, signal: AbortSignal | undefined) => {
      const prompt = this.#promptOf('prompt', ids, '');
      const request = prompt instanceof ChatGLMError ? prompt : { ...PLAIN_REQUEST, prompt, pin: true };
      return this.#submitter.submit(request, signal, (cancel) => new PinRequest(cancel, signal));
    };
    this.kv = new KvMemory({ native, requests, ...kv }, pin);
  }

  /** @internal Use `loadModel()`. */
  static async load(source: ModelSource, options: LoadOptions): Promise<Model> {
    const { config, tokenizer: data } = source;
    const tokenizer = data && (await Tokenizer.create(data, config.family));
    const spec = toNativeSpec(source, options);
    const { signal } = options;
    throwIfAborted(signal);
    const requests = new Requests(options);
    // What is loaded again is to be what was loaded first, so that `info` stays true.
    let chosen = spec;
    const start: StartModel = (onEvents) =>
      options.isolate
        ? new IsolatedModel(chosen, data, onEvents)
        : new (loadNative().Model)(chosen, onEvents, tokenizer?.createGrammars(config.vocabSize));
    const limit = toRestartLimit(options);
    const handle = callNative(() =>
      limit || options.isolate
        ? new SupervisedModel(
            start,
            { ...(limit ?? { most: 0, withinMs: 1 }), mostWaiting: spec.maxSequences + spec.maxQueue },
            requests.handle,
          )
        : start(requests.handle),
    );
    const over = onAbort(signal, () => requests.failLoading(aborted(signal as AbortSignal)));
    try {
      const { weightBytes, pages, pageBytes, pageLayout: layout, ...facts } = await requests.ready;
      const { pageTokens } = loadNative();
      const { device, kvCacheType } = facts;
      chosen = { ...spec, device, kvCacheType, kvCacheTokens: pages * pageTokens, kvCacheShrinks: false };
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
        kvBytesPerToken: pageBytes / pageTokens,
        kvCacheTokens: pages * pageTokens,
        kvCacheBytes: pages * pageBytes,
      };
      const fingerprint = () => fingerprintOf(source, [spec.quantization]);
      const kv = { pageTokens, pageBytes, layout, fingerprint };
      const model = new Model(Object.freeze(info), {
        native: handle,
        requests,
        tokenizer,
        onTrace: options.onTrace,
        kv,
      });
      // A native model ends with its object; one that is loaded again is held by its events.
      if (handle instanceof SupervisedModel) forgotten.register(model, handle);
      return model;
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
   *
   * @example
   * ```ts
   * console.log(model.tokenizer.encode('你好'));
   * ```
   */
  get tokenizer(): Tokenizer {
    if (this.#tokenizer) return this.#tokenizer;
    throw new ChatGLMError(
      'ERR_CHECKPOINT_INVALID',
      `${this.info.path ?? this.info.name} has no tokenizer.model: this model takes and gives token ids only`,
    );
  }

  /**
   * Continues a text or token ids, without a chat format. A text gets `[gMASK]` and `sop` before it, as in THUDM's
   * tokenizer; ids are taken as they are. The generation begins at once and does not wait for the loop.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT; while iterating ERR_CONTEXT_OVERFLOW, ERR_QUEUE_FULL, ERR_ABORTED,
   *   ERR_DISPOSED, ERR_INVALID_LOGITS.
   *
   * @example
   * ```ts
   * const generation = model.generate('# language: Python\n# quicksort\n', { temperature: 0, maxTokens: 200, stop: '\n#' });
   * for await (const { text } of generation) process.stdout.write(text);
   * const { finishReason, tokens } = await generation.result;
   * console.log(finishReason, tokens.length);
   * ```
   */
  generate(prompt: string | ArrayLike<number>, options: Nullable<GenerateOptions> = {}): Generation {
    const { stop = [], responseFormat, ...rest } = readGenerateOptions(options);
    const format = readResponseFormat(responseFormat);
    const stops = new StopSequences(stop);
    if (typeof prompt !== 'string' && (typeof prompt !== 'object' || prompt === null)) {
      throw invalidArgument(`prompt must be a text or an array of token ids, got ${show(prompt)}`);
    }
    const ids =
      typeof prompt === 'string'
        ? (this.overflowOf(prompt.length) ??
          this.tokenizer.encodePrompted(this.tokenizer.promptParts(prompt), this.info.family, rest.signal))
        : this.#promptOf('prompt', prompt, ', the answer included');
    const { addsDummyPrefix: dummySpace } = format ? this.tokenizer : { addsDummyPrefix: false };
    const grammar = format && { text: format.grammar, prefix: '', dummySpace };
    return new Generation(this.generateIds(ids, rest, grammar), stops);
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

  /**
   * @internal Generates tokens, special ones included. A promise of a prompt is waited for; an error in place of a prompt is
   * the error that the generation ends with.
   */
  generateIds(
    given: ArrayLike<number> | ChatGLMError | Promise<ArrayLike<number>>,
    options: GenerateOptions,
    grammar?: NativeGrammar | Promise<NativeGrammar>,
  ): RawGeneration {
    const signal = signalOption(options.signal);
    const tokenizer = this.#tokenizer;
    const { seedNumber: seed, ...sampling } = toNativeSampling(
      options,
      this.info.vocabSize,
      options.badWords && ((text) => this.tokenizer.encode(text)),
    );
    const order = toNativeOrder(options);
    const hear = options.onTrace ?? this.#onTrace;
    const settings: Omit<NativeRequest, 'prompt'> = {
      ...PLAIN_REQUEST,
      ...order,
      maxTokens: maxTokensOf(options, this.info.contextLength),
      stopTokens: options.stopTokens === undefined ? this.#stopTokens() : tokenIds('stopTokens', options.stopTokens),
      sampling,
      trace: hear !== undefined,
    };
    const onTrace =
      hear && ((request: number, trace: NativeTrace) => hear({ request, client: order.client, ...trace }));
    const limits = toTimeLimits(options);
    const create = (cancel: () => void) =>
      new TokenStream({ seed, decoder: tokenizer?.createDecoder(), cancel, signal, limits, onTrace });
    const toRequest = (ids: ArrayLike<number>): NativeRequest | ChatGLMError => {
      const prompt = this.#promptOf('prompt', ids, ', the answer included');
      return prompt instanceof ChatGLMError ? prompt : { ...settings, prompt };
    };
    if (given instanceof ChatGLMError) return this.#submitter.submit(given, signal, create);
    if (grammar) {
      const ready = this.#submitter.prepared(grammar);
      // Both run at the same time, and an error of either ends the request.
      const request = Promise.all([given, ready]).then(([ids, held]) => {
        const plain = toRequest(ids);
        return plain instanceof ChatGLMError ? plain : { ...plain, grammar: held };
      });
      return this.#submitter.submit(request, signal, create);
    }
    return this.#submitter.submit(isPromise(given) ? given.then(toRequest) : toRequest(given), signal, create);
  }

  /**
   * Begins a conversation, or goes on with one. A chat costs nothing until it is asked something, and what its prompts have
   * in common with earlier ones is not computed again.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT.
   *
   * @example
   * ```ts
   * const chat = model.createChat({ system: 'Answer briefly.', temperature: 0.5, seed: 1 });
   * const { text } = await chat.send('What is the capital of France?');
   * console.log(text, chat.history.length);
   * ```
   */
  createChat(options: Nullable<ChatOptions> = {}): Chat {
    return new Chat(this, options);
  }

  /**
   * Goes on with a chat that `chat.save()` wrote, without computing its history again. Every byte of the file is compared
   * with what was written before any of it is used.
   *
   * @throws {ChatGLMError} ERR_SESSION_INVALID; ERR_SESSION_MISMATCH for a file of another model, device or `kvCacheType`;
   *   ERR_OUT_OF_MEMORY if the key/value cache has no room for it; ERR_INVALID_ARGUMENT, ERR_ABORTED; the codes of the system.
   *
   * @example
   * ```ts
   * const chat = await model.restoreChat('./anna.chat', { temperature: 0.5 });
   * const { text, usage } = await chat.send('Where were we?');
   * console.log(text, usage.cachedTokens); // nearly all tokens of the prompt
   * ```
   */
  async restoreChat(path: FilePath, options: Nullable<RestoreOptions> = {}): Promise<Chat> {
    return await Chat.restore(this, path, options);
  }

  /**
   * Computes the beginning of prompts, such as a long system prompt, and keeps it in memory, whatever else is computed, until
   * it is given back: later requests that begin with it find it. What is kept so takes from the `kvCacheTokens` that all
   * requests share.
   *
   * @param prompt A text, as `generate()` takes it; token ids; or messages, such as `[{ role: 'system', content }]`.
   * @throws {ChatGLMError} as {@link generate}.
   *
   * @example
   * ```ts
   * const system = 'You are a patient teacher of mathematics. ...';
   * const kept = await model.cachePrompt([{ role: 'system', content: system }]);
   * const chat = model.createChat({ system }); // its first answer does not wait for the system prompt
   * console.log((await chat.send('What is 7 times 8?')).usage.cachedTokens, kept.tokens);
   * kept.release();
   * ```
   */
  async cachePrompt(
    prompt: string | ArrayLike<number> | readonly ChatMessage[],
    options: Nullable<{ signal?: AbortSignal | undefined }> = {},
  ): Promise<CachedPrompt> {
    const { signal } = readOptions<{ signal?: AbortSignal }>(options, ['signal'], 'cachePrompt()');
    signalOption(signal);
    const ids = await this.#idsOf(prompt, signal);
    return new CachedPrompt(ids.length, await this.kv.hold(ids, signal));
  }

  async #idsOf(
    prompt: string | ArrayLike<number> | readonly ChatMessage[],
    signal: AbortSignal | undefined,
  ): Promise<ArrayLike<number>> {
    if (typeof prompt === 'string') {
      const tooLong = this.overflowOf(prompt.length);
      if (tooLong) throw tooLong;
      return await this.tokenizer.encodePrompted(this.tokenizer.promptParts(prompt), this.info.family, signal);
    }
    if (!Array.isArray(prompt) || typeof prompt[0] === 'number' || prompt.length === 0) {
      return prompt as ArrayLike<number>;
    }
    return this.createChat({ history: prompt as readonly ChatMessage[] }).promptIds(signal);
  }

  /**
   * Answers one question, in the shape of THUDM's `chat()`.
   *
   * @param query The text of the message, whose role is `user` unless `options.role` says `observation`.
   * @throws {ChatGLMError} as {@link generate}.
   *
   * @example
   * ```ts
   * const first = await model.chat('你好', { history: [] });
   * const second = await model.chat('What is 7 times 8?', { history: first.history, temperature: 0 });
   * console.log(second.response, second.history.length);
   * ```
   */
  async chat(query: string, options: Nullable<ChatOnceOptions> = {}): Promise<ChatOnceResult> {
    return await chatOnce(this, query, options);
  }

  /**
   * Computes the logits of each position, row by row: (positions, vocabulary), float32. Row i is what the model expects after ids[i].
   *
   * @throws {ChatGLMError} ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT, ERR_QUEUE_FULL, ERR_ABORTED, ERR_DISPOSED.
   *
   * @example
   * ```ts
   * const ids = model.tokenizer.encodePrompt('The capital of France is');
   * const row = await model.logits(ids, { from: ids.length - 1 }); // (1, vocabulary)
   * const likeliest = row.indexOf(row.reduce((a, b) => Math.max(a, b)));
   * console.log(model.tokenizer.decode([likeliest]));
   * ```
   */
  async logits(ids: ArrayLike<number>, options: Nullable<LogitsOptions> = {}): Promise<Float32Array> {
    const set = readOptions<LogitsOptions>(options, ['from', 'signal'], 'logits()');
    const signal = signalOption(set.signal);
    const prompt = this.#promptOf('ids', ids, '');
    if (prompt instanceof ChatGLMError) throw prompt;
    const from = integerOption('from', set.from, 0, { most: Math.max(0, prompt.length - 1) });
    const handler = this.#submitter.submit(
      { ...PLAIN_REQUEST, kind: 'logits', prompt, from },
      signal,
      (cancel) => new LogitsRequest(prompt.length - from, from, this.info.vocabSize, cancel, signal),
    );
    return await handler.result;
  }

  /**
   * The log-probabilities that the model gives the tokens of a text, each after the tokens before it: what perplexity and the
   * comparison of answers are made of. The first token has none before it, so there is no score of it.
   *
   * @returns One entry for each token from `from` on.
   * @throws {ChatGLMError} ERR_CONTEXT_OVERFLOW, ERR_INVALID_ARGUMENT, ERR_QUEUE_FULL, ERR_ABORTED, ERR_DISPOSED,
   *   ERR_INVALID_LOGITS.
   *
   * @example
   * ```ts
   * const ids = model.tokenizer.encodePrompt('The capital of France is Paris.');
   * const scores = await model.score(ids, { from: 2 }); // not of [gMASK] and sop
   * const mean = scores.reduce((sum, { logprob }) => sum + logprob, 0) / scores.length;
   * console.log('perplexity', Math.exp(-mean));
   * ```
   */
  async score(ids: ArrayLike<number>, options: Nullable<ScoreOptions> = {}): Promise<TokenLogprobs[]> {
    const set = readOptions<ScoreOptions>(options, ['from', 'logprobs', 'signal'], 'score()');
    const signal = signalOption(set.signal);
    const prompt = this.#promptOf('ids', ids, '');
    if (prompt instanceof ChatGLMError) throw prompt;
    if (prompt.length < 2) throw invalidArgument(`ids must have at least 2 tokens to score, got ${prompt.length}`);
    const from = integerOption('from', set.from, 1, { least: 1, most: prompt.length - 1 });
    const top = integerOption('logprobs', set.logprobs, 0, { most: 100 });
    const handler = this.#submitter.submit(
      { ...PLAIN_REQUEST, kind: 'score', prompt, from, top },
      signal,
      (cancel) => new ScoreRequest(cancel, signal),
    );
    const scores = await handler.result;
    return scores.map((score, i) => toTokenLogprobs(prompt[from + i] as number, score));
  }

  /**
   * What the model is doing at the moment.
   *
   * @example
   * ```ts
   * const { activeSequences, queuedRequests, usedPages, totalPages } = model.stats();
   * console.log(`${activeSequences} running, ${queuedRequests} waiting, ${usedPages} of ${totalPages} pages in use`);
   * ```
   */
  stats(): ModelStats {
    return callNative(() => this.#native.stats());
  }

  /**
   * Forgets the keys and values that are kept for later requests. Running requests are not touched.
   *
   * @example
   * ```ts
   * model.clearCache(); // so that a measurement computes the whole prompt
   * const { usage } = await model.generate('Hello').result;
   * console.log(usage.cachedTokens); // 0
   * ```
   */
  clearCache(): void {
    callNative(() => this.#native.clearCache());
  }

  /**
   * Hears of failures: the runtime failed while it computed, such as by an error of a GPU, or the process of an isolated model
   * ended. Requests that ran have ended with the same error. Without `restart`, all later requests do as well.
   *
   * @example
   * ```ts
   * model.on('failed', (error) => console.error('the model failed:', error.code, error.message));
   * ```
   */
  on(event: 'failed', listener: (error: ChatGLMError) => void): this {
    this.#requests.failures.on(event, listener);
    return this;
  }

  /**
   * As {@link on}, for the next failure only.
   *
   * @example
   * ```ts
   * model.once('failed', ({ message }) => console.error(message));
   * ```
   */
  once(event: 'failed', listener: (error: ChatGLMError) => void): this {
    this.#requests.failures.once(event, listener);
    return this;
  }

  /**
   * Takes a listener back.
   *
   * @example
   * ```ts
   * const listener = (error: Error) => console.error(error.message);
   * model.on('failed', listener);
   * model.off('failed', listener);
   * ```
   */
  off(event: 'failed', listener: (error: ChatGLMError) => void): this {
    this.#requests.failures.off(event, listener);
    return this;
  }

  /**
   * Takes no new requests: these end with ERR_DRAINING. Requests that run or wait are completed; the promise resolves when
   * all have ended. The model stays loaded until it is disposed of.
   *
   * @example
   * ```ts
   * process.once('SIGTERM', async () => {
   *   await model.drain({ timeoutMs: 30_000 }); // what is not complete then ends with ERR_DRAINING
   *   await model.dispose();
   * });
   * ```
   */
  async drain(options: Nullable<DrainOptions> = {}): Promise<void> {
    const { timeoutMs } = readOptions<DrainOptions>(options, ['timeoutMs'], 'drain()');
    const limit =
      timeoutMs === undefined ? undefined : numberOption('timeoutMs', timeoutMs, 0, { least: 0, most: 2 ** 31 - 1 });
    await this.#submitter.drain(limit);
  }

  /**
   * Gives all memory back. Requests under way end with ERR_DISPOSED; nothing is waited for but the end of a kernel. The
   * promise resolves when the memory is free, also when `dispose()` is called more than once.
   *
   * @example
   * ```ts
   * process.once('SIGTERM', () => void model.dispose()); // answers under way end with ERR_DISPOSED
   * ```
   */
  async dispose(): Promise<void> {
    await this.#submitter.dispose();
  }

  /**
   * Disposes of the model at the end of the block of an `await using`.
   *
   * @example
   * ```ts
   * await using model = await loadModel();
   * console.log((await model.createChat().send('你好')).text);
   * ```
   */
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
}
