import { type OpenOptions, openCheckpoint, readTokenizer } from '../checkpoint/open.js';
import {
  type ShapeName,
  SYNTHETIC_TYPES,
  type SyntheticType,
  syntheticConfig,
  syntheticTensors,
} from '../checkpoint/synth.js';
import type { Checkpoint } from '../checkpoint/types.js';
import { invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  choiceOption,
  type FilePath,
  integerOption,
  isPlainObject,
  type Nullable,
  readOptions,
  signalOption,
  toPath,
} from '../common/options.js';
import { DEFAULT_FAMILY, MODEL_FAMILIES, type ModelFamily } from '../families/index.js';
import { Tokenizer } from '../tokenizer/tokenizer.js';
import { embeddedModelPath } from './embedded.js';
import { checkLoadOptions, LOAD_OPTIONS, type LoadOptions, type ModelSource, readLoadOptions } from './load-options.js';
import { Model } from './model.js';

/**
 * Loads a checkpoint: a GGUF file, or a directory as THUDM published it. Without a path it loads the small model that comes
 * with this package.
 *
 * Most weights are copied into an order of the device's own, but on the CPU the embeddings may stay in the file: do not change
 * or shorten the file while the model is in use, unless `info.mappedBytes` is 0.
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE,
 *   ERR_ABORTED, ERR_INVALID_ARGUMENT.
 *
 * @example
 * ```ts
 * const model = await loadModel('./chatglm3-6b', {
 *   quantization: 'int4',
 *   contextLength: 8192,
 *   onProgress: ({ bytes, totalBytes }) => console.log(`${((100 * bytes) / totalBytes).toFixed(0)}%`),
 * });
 * console.log(model.info.device); // 'cuda:0' where there is a GPU, else 'cpu'
 * await model.dispose();
 * ```
 */
export async function loadModel(path?: FilePath | null, options: Nullable<LoadOptions> = {}): Promise<Model> {
  if (isPlainObject(path)) {
    throw invalidArgument(
      'path must be the path of a file or directory, got an object: the options come second, ' +
        'loadModel(path, options), or loadModel(undefined, options) for the embedded model',
    );
  }
  const file = path === undefined || path === null ? embeddedModelPath() : toPath('path', path);
  const set = readLoadOptions(options);
  const openOptions: OpenOptions = { family: set.family, signal: set.signal };
  const checkpoint: Checkpoint = await openCheckpoint(file, openOptions);
  return await Model.load({ ...checkpoint, seed: 0 }, set);
}

/** Options of `loadSyntheticModel()`. */
export interface SyntheticModelOptions extends LoadOptions {
  /** The shape. Default: `6b`. */
  shape?: ShapeName | undefined;
  /** The type of all matrices. Default: `q4_0`. */
  type?: SyntheticType | undefined;
  /** The same seed gives the same weights. Default: 0. */
  seed?: number | undefined;
  /** A tokenizer.model, a checkpoint's directory or a GGUF file, whose tokenizer the model gets. Default: none. */
  tokenizer?: FilePath | undefined;
}

/**
 * Makes a model of a given shape with random weights in memory, for benchmarks. Without the option `tokenizer` it takes
 * and gives token ids only.
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE, ERR_ABORTED.
 *
 * @example
 * ```ts
 * const model = await loadSyntheticModel({ shape: '6b', type: 'q4_0', contextLength: 4096 });
 * const { timings } = await model.generate([1, 2, 3], { maxTokens: 32, stopTokens: [] }).result;
 * console.log(timings.decodeTokensPerSecond);
 * await model.dispose();
 * ```
 */
export async function loadSyntheticModel(options: Nullable<SyntheticModelOptions> = {}): Promise<Model> {
  const known = [...LOAD_OPTIONS, 'shape', 'type', 'seed', 'tokenizer'] as const;
  const set = readOptions<SyntheticModelOptions>(options, known, 'loadSyntheticModel()');
  const { shape = '6b', type, seed, tokenizer, ...rest } = set;
  checkLoadOptions(rest);
  // A longer context than the shape's own costs nothing here, and benchmarks ask for it.
  const { contextLength, family } = rest;
  const changes = { ...(contextLength === undefined ? {} : { contextLength }), ...(family && { family }) };
  const config = syntheticConfig(shape, changes);
  const source: ModelSource = {
    path: undefined,
    files: [],
    tensors: syntheticTensors(config, choiceOption('type', type, SYNTHETIC_TYPES, 'q4_0')),
    config,
    tokenizer: tokenizer === undefined ? undefined : (await readTokenizer(toPath('tokenizer', tokenizer), family)).data,
    seed: integerOption('seed', seed, 0),
  };
  return await Model.load(source, rest);
}

/** Options of `loadTokenizer()`. */
export interface LoadTokenizerOptions {
  /** The family, where the files do not tell the right one. Default: the one they tell, or else `chatglm3`. */
  family?: ModelFamily | undefined;
  /** Ends reading with ERR_ABORTED. */
  signal?: AbortSignal | undefined;
}

/**
 * Reads a tokenizer alone: from a tokenizer.model, a checkpoint's directory or a GGUF file.
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_INVALID_ARGUMENT, ERR_ABORTED.
 *
 * @example
 * ```ts
 * const tokenizer = await loadTokenizer('./chatglm3-6b/tokenizer.model');
 * console.log(tokenizer.encode('你好').length, 'tokens');
 * ```
 */
export async function loadTokenizer(path: FilePath, options: Nullable<LoadTokenizerOptions> = {}): Promise<Tokenizer> {
  const file = toPath('path', path);
  const set = readOptions<LoadTokenizerOptions>(options, ['family', 'signal'], 'loadTokenizer()');
  const wanted = choiceOption('family', set.family, MODEL_FAMILIES, '') || undefined;
  throwIfAborted(signalOption(set.signal));
  const { data, family } = await readTokenizer(file, wanted);
  throwIfAborted(set.signal);
  return await Tokenizer.create(data, family ?? DEFAULT_FAMILY);
}
