import { callNative, loadNative, type NativeTensor } from '../addon/native.js';
import { ChatGLMError, invalidArgument } from '../common/errors.js';
import {
  choiceOption,
  type FilePath,
  integerOption,
  isPlainObject,
  type Nullable,
  numberOption,
  reading,
  readOptions,
  show,
  toPath,
} from '../common/options.js';
import type { WrittenFile } from '../common/written-file.js';
import { DEFAULT_FAMILY, familyNamed, MODEL_FAMILIES } from '../families/index.js';
import { syntheticTokenizer } from '../tokenizer/synthetic.js';
import { type GgufFileType, ggufMetadata } from './gguf/metadata.js';
import { checkWriteOptions, WRITE_OPTIONS, type WriteOptions, writeGguf } from './gguf/writer.js';
import { type TensorRole, type TensorSpec, tensorLayout } from './tensor-table.js';
import { rowsAndColumns, tensorBytes } from './tensor-types.js';
import type { ModelConfig } from './types.js';
import { type FieldNames, validateConfig } from './validate.js';

const COMMON = { family: DEFAULT_FAMILY, normEpsilon: 1e-5, ropeBase: 10_000, ropeScale: 1 } as const;
/** Pieces of THUDM's tokenizer.model. The rows after its special tokens are padding. */
const CHATGLM_PIECES = 64_789;
const CHATGLM_VOCABULARY = 65_024;

/** Shapes by name. */
export const shapes = {
  /** THUDM/chatglm3-6b: 6.2 billion parameters. */
  '6b': {
    ...COMMON,
    name: 'ChatGLM3-6B shape, random weights',
    layers: 28,
    hiddenSize: 4096,
    heads: 32,
    kvGroups: 2,
    headSize: 128,
    ffnHiddenSize: 13_696,
    vocabSize: CHATGLM_VOCABULARY,
    ropeDimension: 64,
    contextLength: 8192,
  },
  /** The model that comes with this package: 30 million parameters. */
  tiny: {
    ...COMMON,
    name: 'chatglm-tiny shape, random weights',
    layers: 8,
    hiddenSize: 512,
    heads: 4,
    kvGroups: 2,
    headSize: 128,
    ffnHiddenSize: 1280,
    vocabSize: 8192,
    ropeDimension: 64,
    contextLength: 1024,
  },
  /** The smallest that has everything: for tests. */
  micro: {
    ...COMMON,
    name: 'micro shape, random weights',
    layers: 2,
    hiddenSize: 64,
    heads: 4,
    kvGroups: 2,
    headSize: 16,
    ffnHiddenSize: 96,
    vocabSize: 384,
    ropeDimension: 8,
    contextLength: 256,
  },
} as const satisfies Record<string, ModelConfig>;

/** One of the names of {@link shapes}. */
export type ShapeName = keyof typeof shapes;

/** Types that random weights can be stored in. */
export const SYNTHETIC_TYPES = ['f32', 'f16', 'q8_0', 'q4_0'] as const satisfies readonly GgufFileType[];
/** One of {@link SYNTHETIC_TYPES}. */
export type SyntheticType = (typeof SYNTHETIC_TYPES)[number];

/** Options of `synthesize()`. */
export interface SynthesizeOptions extends WriteOptions {
  /** The name of a shape, or a shape of your own. Default: `6b`. */
  shape?: ShapeName | ModelConfig | undefined;
  /** The type of all matrices. Default: `q4_0`. */
  type?: SyntheticType | undefined;
  /** The same seed gives the same file. Default: 0. */
  seed?: number | undefined;
}

/** What an error about an own shape calls its fields: as they are called in ModelConfig. */
const FIELD_NAMES: FieldNames = {
  layers: 'layers',
  hiddenSize: 'hiddenSize',
  heads: 'heads',
  kvGroups: 'kvGroups',
  headSize: 'headSize',
  ffnHiddenSize: 'ffnHiddenSize',
  vocabSize: 'vocabSize',
  ropeDimension: 'ropeDimension',
  contextLength: 'contextLength',
  normEpsilon: 'normEpsilon',
  ropeBase: 'ropeBase',
  ropeScale: 'ropeScale',
};

/** Weights that are drawn at a time. The addon draws from a pool that it makes anew for each call, so not too few. */
const CHUNK_WEIGHTS = 1 << 22;
/** fillRandom() fills whole blocks. */
const BLOCK = 32;

/** The config of a shape, with changes. */
export function syntheticConfig(shape: ShapeName, overrides: Partial<ModelConfig> = {}): ModelConfig {
  const known: ModelConfig = shapes[choiceOption('shape', shape, Object.keys(shapes) as ShapeName[], '6b')];
  const config: ModelConfig = { ...known, ...overrides };
  checkConfig(config);
  return config;
}

/** All tensors of a random model in memory. They have no data: native code draws it. */
export function syntheticTensors(config: ModelConfig, type: SyntheticType): NativeTensor[] {
  checkConfig(config);
  return tensorLayout(config).map(({ name, shape }) => ({ name, shape, type: shape.length === 1 ? 'f32' : type }));
}

/**
 * Writes a GGUF file of random weights whose activations stay in a model's usual range: for benchmarks and tests.
 *
 * @example
 * ```ts
 * await synthesize('6b-q4_0.gguf', { shape: '6b', type: 'q4_0', seed: 1 });
 * await synthesize('small.gguf', { shape: { ...shapes.micro, layers: 3 }, type: 'f32', overwrite: true });
 * ```
 */
export async function synthesize(target: FilePath, options: Nullable<SynthesizeOptions> = {}): Promise<WrittenFile> {
  const path = toPath('target', target);
  const known = [...WRITE_OPTIONS, 'shape', 'type', 'seed'] as const;
  const set = readOptions<SynthesizeOptions>(options, known, 'synthesize()');
  const { shape = '6b' } = set;
  const config = isPlainObject(shape) ? ownConfig(shape) : syntheticConfig(shape as ShapeName);
  const type = choiceOption('type', set.type, SYNTHETIC_TYPES, 'q4_0');
  const seed = integerOption('seed', set.seed, 0);
  checkWriteOptions(set);
  const native = loadNative();
  const tensors = tensorLayout(config).map(
    (spec) => ({ ...spec, type: spec.shape.length === 1 ? 'f32' : type }) as const,
  );
  return writeGguf(
    path,
    {
      metadata: ggufMetadata(config, syntheticTokenizer(pieceCount(config)), type),
      tensors,
      fill: async (tensor, write) => {
        const [rows, columns] = rowsAndColumns(tensor.shape);
        const { mean, deviation } = distribution(tensor, columns);
        const weights = rows * columns;
        for (let first = 0; first < weights; first += CHUNK_WEIGHTS) {
          const count = Math.min(CHUNK_WEIGHTS, weights - first);
          const bytes = Buffer.alloc(tensorBytes(tensor.type, 1, Math.ceil(count / BLOCK) * BLOCK) ?? 0);
          callNative(() => native.fillRandom(tensor.type, bytes, tensor.name, seed, first, mean, deviation));
          await write(bytes.subarray(0, tensorBytes(tensor.type, 1, count)));
        }
      },
    },
    set,
  );
}

const DISTRIBUTIONS: Readonly<Record<Exclude<TensorRole, 'linear' | 'output'>, { mean: number; deviation: number }>> = {
  norm: { mean: 1, deviation: 0.1 },
  bias: { mean: 0, deviation: 0.2 },
  embedding: { mean: 0, deviation: 1 },
};

function distribution({ role }: TensorSpec, columns: number): { mean: number; deviation: number } {
  return role === 'linear' || role === 'output'
    ? { mean: 0, deviation: 1.28 / Math.sqrt(columns) }
    : DISTRIBUTIONS[role];
}

/** As many pieces as the vocabulary has room for; in the published one, as many as there are. */
function pieceCount(config: ModelConfig): number {
  const count = config.vocabSize - familyNamed(config.family).specialTokens.length;
  return config.vocabSize === CHATGLM_VOCABULARY ? CHATGLM_PIECES : count;
}

/** A copy of a caller's own shape. */
function ownConfig(shape: Record<string, unknown>): ModelConfig {
  const config = reading('shape', () => ({ ...shape })) as unknown as ModelConfig;
  choiceOption('shape.family', config.family ?? null, MODEL_FAMILIES, DEFAULT_FAMILY);
  for (const field of Object.keys(FIELD_NAMES) as (keyof FieldNames)[]) {
    numberOption(`shape.${field}`, config[field] ?? null, 0);
  }
  if (typeof config.name !== 'string') throw invalidArgument(`shape.name must be a string, got ${show(config.name)}`);
  checkConfig(config);
  return config;
}

function checkConfig(config: ModelConfig): void {
  try {
    validateConfig(config, 'shape', FIELD_NAMES);
  } catch (error) {
    throw error instanceof ChatGLMError ? invalidArgument(error.message) : error;
  }
  const least = familyNamed(config.family).specialTokens.length + 3 + 256;
  if (config.vocabSize < least) throw invalidArgument(`shape: vocabSize is ${config.vocabSize}; ${least} is the least`);
}
