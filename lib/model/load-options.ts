import { callNative, loadNative, type NativeModelSpec } from '../addon/native.js';
import type { ModelConfig } from '../checkpoint/types.js';
import type { ChatGLMError } from '../common/errors.js';
import {
  booleanOption,
  choiceOption,
  deviceOption,
  functionOption,
  integerOption,
  numberOption,
  readOptions,
  type Settings,
  signalOption,
} from '../common/options.js';
import { DEFAULT_FAMILY, familyNamed, MODEL_FAMILIES, type ModelFamily } from '../families/index.js';
import type { GenerateOptions } from '../generation/options.js';
import type { TokenizerData } from '../tokenizer/data.js';
import type { RestartLimit } from './supervisor.js';

/** How far loading has come. */
export interface LoadProgress {
  /** Bytes of the checkpoint's weights that have been read. */
  bytes: number;
  /** Bytes of all weights of the checkpoint. */
  totalBytes: number;
}

/** Options of `loadModel()`. */
export interface LoadOptions {
  /**
   * The device to compute on. `cuda`, which is `cuda:0`, `cuda:1` and so on take that GPU or fail with ERR_DEVICE_UNAVAILABLE.
   * `auto` takes the first GPU and, where there is none, where the model does not fit into its memory or where only the CPU
   * has the asked-for kind of keys and values, the CPU: `model.info.device` tells. Default: `auto`.
   */
  device?: 'auto' | 'cpu' | 'cuda' | `cuda:${number}` | undefined;
  /**
   * Quantize the layers' matrices while loading, as THUDM's `model.quantize(8)` and `model.quantize(4)` do: one scale a
   * row. Embedding and output matrix stay as they are. Default: all matrices stay as the checkpoint has them.
   */
  quantization?: 'int8' | 'int4' | undefined;
  /**
   * The most tokens of one sequence, prompt and answer together: at most the context length that the model was made for.
   * Default: that, but no more than 32,768.
   */
  contextLength?: number | undefined;
  /** The most sequences that are computed at the same time, 1 to 256; further requests wait. Default: 256. */
  maxSequences?: number | undefined;
  /**
   * How many tokens the key/value cache holds, of all running sequences and of what is kept for later requests; at least
   * `contextLength`. Sequences take what they need as they grow, and when nothing is left, the youngest one of the lowest
   * priority pauses. Default: `contextLength` for each of the `maxSequences`, but at most four of them, and where a GPU has
   * not memory for these, as many as fit.
   */
  kvCacheTokens?: number | undefined;
  /** The most requests that wait; one more is refused with ERR_QUEUE_FULL. Default: 256. */
  maxQueue?: number | undefined;
  /**
   * Threads of the CPU that compute, or that read the weights for a GPU; 1 to 1,024. Default: one for each core (not hardware thread)
   * that the process may use, and no more than its container is granted. Models that compute at the same time take turns
   * rather than use more threads than there are cores.
   */
  threads?: number | undefined;
  /**
   * The type of keys and values. f32, on the CPU only, takes twice the memory of f16 and is nearer to THUDM's float32; q8_0
   * takes about half the memory of f16. Default: `f16` on a GPU and where weights are quantized, else `f32`.
   */
  kvCacheType?: 'f16' | 'f32' | 'q8_0' | undefined;
  /** Keys and values are kept for later requests that begin with the same tokens. Default: true. */
  prefixCache?: boolean | undefined;
  /**
   * Guess the next tokens from what stood before in the prompt and the answer, and verify several guesses in one step, where
   * that pays: when an answer repeats what was said. The tokens are the same without it. Default: true.
   */
  speculation?: boolean | undefined;
  /**
   * The most milliseconds that a chunk of a prompt adds to a step in which other requests generate. Less gives running
   * answers an even pace, more gives new requests a sooner first token. Default: nearly as long as the step takes anyway for
   * each request that waits for its first token, up to 100 ms for all: while one prompt is computed, the gap between two
   * tokens of the others at most doubles.
   */
  prefillBudgetMs?: number | undefined;
  /** Hears the phases of all requests that have no `onTrace` of their own. Default: none. */
  onTrace?: GenerateOptions['onTrace'];
  /**
   * Run the model in a process of its own, so that a crash of the runtime does not end this one: requests that run then end
   * with ERR_RUNTIME_CRASHED, and the model is loaded again as with `restart`, which is on where nothing else is said. In Electron
   * it is a utility process. Default: false.
   */
  isolate?: boolean | undefined;
  /**
   * Load the model again by itself when it fails, such as by an error of a GPU: at most `most` times within `withinMs`
   * milliseconds. Requests that run when it fails end with the cause; those that come before it is loaded again wait. `true` is
   * three times a minute. Default: false; with `isolate` true.
   */
  restart?: boolean | { most?: number | undefined; withinMs?: number | undefined } | undefined;
  /**
   * Hears what is no error but should be known, such as that `auto` takes the CPU because a GPU has not memory enough.
   * Default: `process.emitWarning()`.
   */
  onWarning?: ((warning: ChatGLMError) => void) | undefined;
  /** The model's family, where the checkpoint's files do not tell the right one. Default: the one they tell. */
  family?: ModelFamily | undefined;
  /** Called while loading, at most ten times a second, and when all weights are read. */
  onProgress?: ((progress: LoadProgress) => void) | undefined;
  /** Ends loading with ERR_ABORTED. */
  signal?: AbortSignal | undefined;
}

export const LOAD_OPTIONS = [
  'device',
  'quantization',
  'contextLength',
  'maxSequences',
  'maxQueue',
  'kvCacheTokens',
  'speculation',
  'prefillBudgetMs',
  'onTrace',
  'isolate',
  'restart',
  'onWarning',
  'threads',
  'kvCacheType',
  'prefixCache',
  'family',
  'onProgress',
  'signal',
] as const satisfies readonly (keyof LoadOptions)[];

const MOST_DEFAULT_CONTEXT = 32_768;
const MOST_SEQUENCES = 256;
/** Contexts whose tokens the key/value cache holds by default. */
const DEFAULT_CONTEXTS = 4;
const DEFAULT_QUEUE = 256;

/** What a model is made from: a checkpoint, or a shape to be filled with random numbers. */
export interface ModelSource {
  path: string | undefined;
  files: string[];
  tensors: NativeModelSpec['tensors'];
  config: ModelConfig;
  tokenizer: TokenizerData | undefined;
  seed: number;
}

/** The options of `loadModel()` that are set. Refuses whatever no checkpoint allows, before one is looked at. */
export function readLoadOptions(options: unknown): Settings<LoadOptions> {
  const set = readOptions<LoadOptions>(options, LOAD_OPTIONS, 'loadModel()');
  checkLoadOptions(set);
  return set;
}

/** Refuses values that no checkpoint allows. */
export function checkLoadOptions(options: LoadOptions): void {
  toNativeOptions(options, Number.MAX_SAFE_INTEGER);
  if (options.family !== undefined) choiceOption('family', options.family, MODEL_FAMILIES, DEFAULT_FAMILY);
  functionOption('onProgress', options.onProgress);
  functionOption('onTrace', options.onTrace);
  functionOption('onWarning', options.onWarning);
  booleanOption('isolate', options.isolate, false);
  toRestartLimit(options);
  signalOption(options.signal);
}

/** When a model that fails is loaded again; undefined for one that is not. */
export function toRestartLimit({ restart, isolate }: LoadOptions): RestartLimit | undefined {
  const set = restart ?? isolate ?? false;
  if (typeof set === 'boolean') return set ? { most: 3, withinMs: 60_000 } : undefined;
  const { most, withinMs } = readOptions<{ most?: number; withinMs?: number }>(set, ['most', 'withinMs'], 'restart');
  return {
    most: integerOption('restart.most', most, 3, { least: 0, most: 1e6 }),
    withinMs: numberOption('restart.withinMs', withinMs, 60_000, { least: 1, most: 1e12 }),
  };
}

/** What native code takes of the options. `most`: the most tokens that the model was made for. */
function toNativeOptions(options: LoadOptions, most: number) {
  const contextLength = integerOption('contextLength', options.contextLength, Math.min(most, MOST_DEFAULT_CONTEXT), {
    least: 1,
    most,
  });
  const maxSequences = integerOption('maxSequences', options.maxSequences, MOST_SEQUENCES, {
    least: 1,
    most: MOST_SEQUENCES,
  });
  return {
    contextLength,
    maxSequences,
    kvCacheTokens: integerOption(
      'kvCacheTokens',
      options.kvCacheTokens,
      contextLength * Math.min(maxSequences, DEFAULT_CONTEXTS),
      // Where the model's context is not known, only the type is checked.
      { least: most === Number.MAX_SAFE_INTEGER ? 1 : contextLength, most: 2 ** 36 },
    ),
    kvCacheShrinks: options.kvCacheTokens === undefined,
    speculation: booleanOption('speculation', options.speculation, true),
    prefillBudgetMs: numberOption('prefillBudgetMs', options.prefillBudgetMs, 0, { least: 0.01, most: 1e6 }),
    maxQueue: integerOption('maxQueue', options.maxQueue, DEFAULT_QUEUE, { most: 1 << 20 }),
    threads: integerOption('threads', options.threads, undefined, { least: 1, most: 1024 }),
    quantization: choiceOption('quantization', options.quantization, ['int8', 'int4'], ''),
    kvCacheType: choiceOption('kvCacheType', options.kvCacheType, ['f16', 'f32', 'q8_0'], ''),
    prefixCache: booleanOption('prefixCache', options.prefixCache, true),
    device: deviceOption(options.device, ['auto', 'cpu'], 'auto'),
  };
}

export function toNativeSpec({ files, tensors, config, seed }: ModelSource, options: LoadOptions): NativeModelSpec {
  const { threads, ...rest } = toNativeOptions(options, config.contextLength);
  return {
    files,
    tensors,
    config,
    architecture: familyNamed(config.family).architecture,
    ...rest,
    threads: threads ?? callNative(() => loadNative().physicalCores()),
    seed,
  };
}
