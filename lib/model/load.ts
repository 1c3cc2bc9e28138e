import { type OpenOptions, openCheckpoint, readTokenizer } from '../checkpoint/open.js';
import { type ShapeName, type SyntheticType, syntheticConfig, syntheticTensors } from '../checkpoint/synth.js';
import type { Checkpoint } from '../checkpoint/types.js';
import { checkPath, integerOption } from '../common/options.js';
import { DEFAULT_FAMILY } from '../families/index.js';
import { Tokenizer } from '../tokenizer/tokenizer.js';
import { embeddedModelPath } from './embedded.js';
import { checkLoadOptions, type LoadOptions, type ModelSource } from './load-options.js';
import { Model } from './model.js';

/**
 * Loads a checkpoint: a GGUF file, or a directory as THUDM published it. Without a path: the small model that comes with
 * this package.
 *
 * The CPU and the GPU get their weights in an order of their own, but on the CPU the embeddings may stay in the file: do not
 * change or shorten it while the model is in use (`info.mappedBytes` is 0 where that does not matter).
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

/**
 * A model of a given shape with random weights, made in memory: for benchmarks. It has no tokenizer, so it takes and gives
 * token ids.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE, ERR_ABORTED.
 *
 * @example
 * ```ts
 * const model = await loadSyntheticModel({ shape: '6b', type: 'q4_0', contextLength: 4096 });
 * const { timings } = await model.generate([1, 2, 3], { maxTokens: 32, stopTokens: [] }).result;
 * console.log(timings.decodeTokensPerSecond);
 * await model.dispose();
 * ```
 */
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

/**
 * Reads a tokenizer alone: from a tokenizer.model, a checkpoint's directory or a GGUF file.
 *
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID.
 *
 * @example
 * ```ts
 * const tokenizer = await loadTokenizer('./chatglm3-6b/tokenizer.model');
 * console.log(tokenizer.encode('你好').length, 'tokens');
 * ```
 */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  const { data, family } = await readTokenizer(path);
  return new Tokenizer(data, family ?? DEFAULT_FAMILY);
}
