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

/** The least and the most of each field. */
const INTEGER_LIMITS = {
  layers: [1, 1024],
  hiddenSize: [1, 65_536],
  heads: [1, 1024],
  kvGroups: [1, 1024],
  headSize: [1, 1024],
  ffnHiddenSize: [1, 524_288],
  vocabSize: [1, 1_048_576],
} as const;
const MOST_CONTEXT = 16_777_216;

/** What files say about a config's fields: other names in config.json than in GGUF. */
export type FieldNames = Readonly<
  Record<
    keyof typeof INTEGER_LIMITS | 'ropeDimension' | 'contextLength' | 'normEpsilon' | 'ropeBase' | 'ropeScale',
    string
  >
>;

/**
 * Why this runtime cannot compute a model of this shape, naming the field and its number; undefined if it can.
 *
 * Reading a checkpoint does without native code, so this repeats check_shape() of native/model/shape.cc: the same limits
 * and conditions in the same order and words. test/shape-limits.test.ts compares the two.
 */
export function shapeProblem(config: Omit<ModelConfig, 'family' | 'name' | 'contextLength'>, names: FieldNames) {
  type Field = keyof FieldNames & keyof typeof config;
  const outside = (field: Field, least: number, most: number) =>
    Number.isSafeInteger(config[field]) && config[field] >= least && config[field] <= most
      ? undefined
      : `${names[field]} is ${config[field]}; it must be an integer from ${least} to ${most}`;
  // Native code computes with float32, where numbers of JavaScript may become 0 or infinite.
  const notPositive = (field: Field) => {
    const value = Math.fround(config[field]);
    return Number.isFinite(value) && value > 0
      ? undefined
      : `${names[field]} gives ${config[field]}; it must be a positive number`;
  };
  const notMultiple = (field: Field, divisor: number) =>
    config[field] % divisor === 0
      ? undefined
      : `${names[field]} is ${config[field]}; it must be a multiple of ${divisor}`;
  const unless = (holds: boolean, problem: string) => (holds ? undefined : problem);

  for (const field of Object.keys(INTEGER_LIMITS) as (keyof typeof INTEGER_LIMITS)[]) {
    const [least, most] = INTEGER_LIMITS[field];
    const problem = outside(field, least, most);
    if (problem !== undefined) return problem;
  }
  const { heads, kvGroups, headSize, normEpsilon } = config;
  const width = heads * headSize;
  return (
    notPositive('normEpsilon') ??
    notPositive('ropeBase') ??
    notPositive('ropeScale') ??
    unless(Math.fround(normEpsilon) < 1, `${names.normEpsilon} is ${normEpsilon}; it must be below 1`) ??
    unless(heads % kvGroups === 0, `${names.heads} ${heads} is no multiple of ${names.kvGroups} ${kvGroups}`) ??
    notMultiple('headSize', 16) ??
    notMultiple('hiddenSize', 32) ??
    unless(
      width % 32 === 0,
      `${names.heads} ${heads} times ${names.headSize} ${headSize} is ${width}; it must be a multiple of 32`,
    ) ??
    notMultiple('ffnHiddenSize', 32) ??
    outside('ropeDimension', 0, headSize) ??
    notMultiple('ropeDimension', 2)
  );
}

/**
 * Checks that a config describes a ChatGLM that can be computed. `names` are the fields' names in `file`.
 *
 * Beyond what the runtime asks for, a ChatGLM's heads are as wide as its hidden state together, which GGUF files take for
 * granted, and half of each head is rotated.
 */
export function validateConfig(config: ModelConfig, file: string, names: FieldNames): void {
  const require = (holds: boolean, problem: string) => {
    if (!holds) throw invalid(file, problem);
  };
  const { heads, headSize, hiddenSize, ropeDimension, contextLength } = config;
  const problem = shapeProblem(config, names);
  if (problem !== undefined) throw invalid(file, problem);
  const contextFits = Number.isSafeInteger(contextLength) && contextLength >= 1 && contextLength <= MOST_CONTEXT;
  require(contextFits, `${names.contextLength} is ${contextLength}; it must be an integer from 1 to ${MOST_CONTEXT}`);
  require(hiddenSize === heads * headSize, `${names.hiddenSize} ${hiddenSize} is not ${heads} heads of ${headSize}`);
  const half = headSize / 2;
  require(ropeDimension ===
    half, `${names.ropeDimension} is ${ropeDimension}; ChatGLM rotates half of a head, here ${half}`);
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
