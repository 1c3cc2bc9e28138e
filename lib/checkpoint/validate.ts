import type { FileRange } from '../addon/native.js';
import { invalid, invalidTensor } from '../common/invalid.js';
import { familyNamed } from '../families/index.js';
import type { TokenizerData } from '../tokenizer/data.js';
import { rangeFits } from './file.js';
import { type TensorSpec, tensorLayout } from './tensor-table.js';
import { isFloatType, rowsAndColumns, tensorBytes } from './tensor-types.js';
import type { Checkpoint, ModelConfig, TensorEntry } from './types.js';

/** The published vocabularies are padded by 226 to 230 unused rows. */
const MAX_UNUSED_TOKENS = 1024;

const INTEGER_LIMITS = {
  layers: 1024,
  hiddenSize: 65_536,
  heads: 1024,
  kvGroups: 1024,
  headSize: 1024,
  ffnHiddenSize: 524_288,
  vocabSize: 1_048_576,
  ropeDimension: 1024,
  contextLength: 16_777_216,
} as const;

/** What files say about a config's fields: other names in config.json than in GGUF. */
export type FieldNames = Readonly<
  Record<keyof typeof INTEGER_LIMITS | 'normEpsilon' | 'ropeBase' | 'ropeScale', string>
>;

/** Checks that a config describes a model that can be computed. `names` are the fields' names in `file`. */
export function validateConfig(config: ModelConfig, file: string, names: FieldNames): void {
  for (const field of Object.keys(INTEGER_LIMITS) as (keyof typeof INTEGER_LIMITS)[]) {
    const value = config[field];
    const limit = INTEGER_LIMITS[field];
    if (!Number.isSafeInteger(value) || value < 1 || value > limit) {
      throw invalid(file, `${names[field]} is ${value}; it must be an integer from 1 to ${limit}`);
    }
  }
  for (const field of ['normEpsilon', 'ropeBase', 'ropeScale'] as const) {
    if (!(Number.isFinite(config[field]) && config[field] > 0)) {
      throw invalid(file, `${names[field]} gives ${config[field]}; it must be a positive number`);
    }
  }
  const require = (holds: boolean, problem: string) => {
    if (!holds) throw invalid(file, problem);
  };
  const { heads, kvGroups, headSize, hiddenSize, ffnHiddenSize } = config;
  require(config.normEpsilon < 1, `${names.normEpsilon} is ${config.normEpsilon}; it must be below 1`);
  require(heads % kvGroups === 0, `${names.heads} ${heads} is no multiple of ${names.kvGroups} ${kvGroups}`);
  require(headSize % 4 === 0, `${names.headSize} is ${headSize}; it must be a multiple of 4`);
  require(hiddenSize === heads * headSize, `${names.hiddenSize} ${hiddenSize} is not ${heads} heads of ${headSize}`);
  require(hiddenSize % 32 === 0, `${names.hiddenSize} is ${hiddenSize}; it must be a multiple of 32`);
  require(ffnHiddenSize % 32 === 0, `${names.ffnHiddenSize} is ${ffnHiddenSize}; it must be a multiple of 32`);
  require(config.ropeDimension ===
    headSize /
      2, `${names.ropeDimension} is ${config.ropeDimension}; ChatGLM rotates half of a head, here ${headSize / 2}`);
}

/** A checkpoint as a reader found it, before its tensors are known to fit the config. */
export interface UncheckedCheckpoint extends Omit<Checkpoint, 'tensors'> {
  /** Of each of `files`. */
  fileSizes: number[];
  /** By GGUF's name. */
  tensors: ReadonlyMap<string, TensorEntry>;
  /** Turns GGUF's name into the one that this checkpoint's files use. */
  nameInFile(spec: TensorSpec): string;
  /** The file that lists the tensors: where a missing one would have been named. */
  tensorList: string;
}

/** The one place that checks tensors and tokenizer against the config, whatever container they came from. */
export function validateCheckpoint(found: UncheckedCheckpoint): Checkpoint {
  const { fileSizes, nameInFile, tensorList, ...checkpoint } = found;
  const tensors = tensorLayout(found.config).map((spec) => {
    const entry = found.tensors.get(spec.name);
    if (entry === undefined) throw invalidTensor(tensorList, nameInFile(spec), 'is missing');
    validateTensor(entry, spec, nameInFile(spec), found);
    return entry;
  });
  if (found.tokenizer !== undefined) validateVocabulary(found.tokenizer, found.config, found.path);
  return { ...checkpoint, tensors };
}

function validateTensor(entry: TensorEntry, spec: TensorSpec, name: string, found: UncheckedCheckpoint): void {
  const file = found.files[entry.data.file] ?? found.path;
  const wanted = spec.shape.join(' x ');
  if (entry.shape.length !== spec.shape.length || entry.shape.some((size, i) => size !== spec.shape[i])) {
    throw invalidTensor(file, name, `has the shape ${entry.shape.join(' x ')}; the config asks for ${wanted}`);
  }
  const isMatrix = spec.role !== 'norm' && spec.role !== 'bias';
  if (!isMatrix && !isFloatType(entry.type)) throw invalidTensor(file, name, `is a vector of type ${entry.type}`);
  const perRow = entry.type === 'int8' || entry.type === 'int4';
  if (perRow && spec.role !== 'linear') throw invalidTensor(file, name, `is of type ${entry.type}`);
  if (perRow !== (entry.scale !== undefined)) throw invalidTensor(file, name, 'has no scales');

  const [rows, columns] = rowsAndColumns(entry.shape);
  const bytes = tensorBytes(entry.type, rows, columns);
  if (bytes === undefined) {
    throw invalidTensor(file, name, `has rows of ${columns} weights, which are no whole blocks of ${entry.type}`);
  }
  const require = (range: FileRange, length: number) => {
    if (range.length !== length) throw invalidTensor(file, name, `has ${range.length} bytes instead of ${length}`);
    if (!rangeFits(range.offset, range.length, found.fileSizes[range.file] ?? -1)) {
      throw invalidTensor(file, name, 'lies outside of the file');
    }
  };
  require(entry.data, bytes);
  if (entry.scale !== undefined) require(entry.scale, tensorBytes(entry.scale.type, 1, rows) ?? -1);
}

function validateVocabulary(tokenizer: TokenizerData, config: ModelConfig, path: string): void {
  const pieces = tokenizer.types.length;
  const used = pieces + familyNamed(config.family).specialTokens.length;
  if (used > config.vocabSize || config.vocabSize >= used + MAX_UNUSED_TOKENS) {
    throw invalid(
      path,
      `the tokenizer does not belong to this model: it has ${pieces} pieces, the model ${config.vocabSize} tokens`,
      { pieces, vocabSize: config.vocabSize },
    );
  }
}
