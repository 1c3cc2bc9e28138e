import { basename } from 'node:path';
import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import { FAMILY_HINT, familyOfVocabulary } from '../../families/detect.js';
import { MODEL_FAMILIES, type ModelFamily } from '../../families/index.js';
import type { TokenizerData } from '../../tokenizer/data.js';
import type { CheckpointFile } from '../file.js';
import { EMBEDDING, OUTPUT, tensorLayout } from '../tensor-table.js';
import type { Checkpoint, ModelConfig, TensorEntry } from '../types.js';
import { type FieldNames, validateCheckpoint, validateConfig } from '../validate.js';
import { type GgufHeader, GgufStrings, readGgufHeader } from './header.js';
import { ggufTokenizer, hasToken } from './tokenizer.js';

export const ARCHITECTURE = 'chatglm';

/** This package's own key: the family in plain words. llama.cpp ignores it. */
export const FAMILY_KEY = 'chatglm.family';

/** GGUF's keys, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, as llama.cpp's converter writes them for ChatGLM. */
export const KEYS = {
  contextLength: 'chatglm.context_length',
  hiddenSize: 'chatglm.embedding_length',
  ffnHiddenSize: 'chatglm.feed_forward_length',
  layers: 'chatglm.block_count',
  heads: 'chatglm.attention.head_count',
  kvGroups: 'chatglm.attention.head_count_kv',
  normEpsilon: 'chatglm.attention.layer_norm_rms_epsilon',
  ropeDimension: 'chatglm.rope.dimension_count',
  ropeBase: 'chatglm.rope.freq_base',
  ropeScalingType: 'chatglm.rope.scaling.type',
  ropeScale: 'chatglm.rope.scaling.factor',
} as const;

const FIELD_NAMES: FieldNames = {
  ...KEYS,
  headSize: `${KEYS.hiddenSize} / ${KEYS.heads}`,
  vocabSize: `rows of ${EMBEDDING}`,
};

/** Longer arrays (the tokenizer's, above all) are left out of {@link Checkpoint.metadata}. */
const METADATA_ARRAY_LIMIT = 64;

export async function openGguf(file: CheckpointFile, wantedFamily: ModelFamily | undefined): Promise<Checkpoint> {
  const header = await readGgufHeader(file);
  refuseOtherModels(header, file);
  const config = parseConfig(header, wantedFamily ?? familyOf(header, file), file);
  return validateCheckpoint({
    format: 'gguf',
    path: file.path,
    files: [file.path],
    fileSizes: [file.size],
    config,
    tensors: completeTensors(header, config, file),
    tokenizer: ggufTokenizer(header, file.path),
    metadata: plainMetadata(header),
    nameInFile: (spec) => spec.name,
    tensorList: file.path,
  });
}

export async function readGgufTokenizer(
  file: CheckpointFile,
  wantedFamily?: ModelFamily,
): Promise<{ data: TokenizerData; family: ModelFamily }> {
  const header = await readGgufHeader(file);
  refuseOtherModels(header, file);
  const data = ggufTokenizer(header, file.path);
  if (data === undefined) throw invalid(file.path, 'holds no tokenizer');
  return { data, family: wantedFamily ?? familyOf(header, file) };
}

function refuseOtherModels({ metadata }: GgufHeader, file: CheckpointFile): void {
  const architecture = metadata.get('general.architecture');
  if (architecture !== ARCHITECTURE) {
    throw invalid(file.path, `holds a model of the architecture ${shown(String(architecture))}, not ${ARCHITECTURE}`);
  }
  const splits = metadata.get('split.count');
  if (splits !== undefined && splits !== 0 && splits !== 1) {
    throw invalid(file.path, 'is one part of a split model; merge the parts with llama-gguf-split --merge');
  }
}

function familyOf(header: GgufHeader, file: CheckpointFile): ModelFamily {
  const written = header.metadata.get(FAMILY_KEY);
  const known = MODEL_FAMILIES.find((family) => family === written);
  if (known !== undefined) return known;
  if (written !== undefined) throw invalid(file.path, `${FAMILY_KEY} is ${shown(String(written))}`);
  const name = header.metadata.get('general.name');
  const family = familyOfVocabulary((token) => hasToken(header, token), typeof name === 'string' ? name : '');
  if (family === undefined)
    throw invalid(file.path, `its tokenizer has none of ChatGLM's special tokens; ${FAMILY_HINT}`);
  return family;
}

function parseConfig(header: GgufHeader, family: ModelFamily, file: CheckpointFile): ModelConfig {
  const { metadata } = header;
  const number = (key: string, otherwise?: number): number => {
    const value = metadata.get(key) ?? otherwise;
    if (typeof value !== 'number')
      throw invalid(file.path, value === undefined ? `has no ${key}` : `${key} is no number`);
    return value;
  };
  const hiddenSize = number(KEYS.hiddenSize);
  const heads = number(KEYS.heads);
  const headSize = hiddenSize / heads;
  const config: ModelConfig = {
    family,
    name: nameOf(header, file),
    layers: number(KEYS.layers),
    hiddenSize,
    heads,
    kvGroups: number(KEYS.kvGroups),
    headSize,
    ffnHiddenSize: number(KEYS.ffnHiddenSize),
    vocabSize: header.tensors.get(EMBEDDING)?.shape[0] ?? 0,
    normEpsilon: decimalOfFloat32(number(KEYS.normEpsilon)),
    ropeDimension: number(KEYS.ropeDimension, headSize / 2),
    ropeBase: decimalOfFloat32(number(KEYS.ropeBase, 10_000)),
    ropeScale: ropeScale(header, file),
    contextLength: number(KEYS.contextLength),
  };
  if (config.vocabSize === 0) throw invalidTensor(file.path, EMBEDDING, 'is missing');
  validateConfig(config, file.path, FIELD_NAMES);
  return config;
}

function ropeScale({ metadata }: GgufHeader, file: CheckpointFile): number {
  const type = metadata.get(KEYS.ropeScalingType) ?? 'none';
  const factor = metadata.get(KEYS.ropeScale) ?? 1;
  if (type === 'none') return 1;
  if (type !== 'linear')
    throw invalid(file.path, `${KEYS.ropeScalingType} is ${shown(String(type))}; "linear" is known`);
  if (typeof factor !== 'number') throw invalid(file.path, `${KEYS.ropeScale} is no number`);
  return decimalOfFloat32(factor);
}

function nameOf({ metadata }: GgufHeader, file: CheckpointFile): string {
  const name = metadata.get('general.name');
  return typeof name === 'string' && name !== '' ? name : basename(file.path);
}

/** The tensors of the model, its output matrix in particular: under tied embeddings the file has none. */
function completeTensors({ tensors }: GgufHeader, config: ModelConfig, file: CheckpointFile): Map<string, TensorEntry> {
  const known = new Set(tensorLayout(config).map((spec) => spec.name));
  for (const name of tensors.keys()) {
    if (/\.attn_[qkv]\./.test(name)) {
      throw invalidTensor(
        file.path,
        name,
        'is one of separate query, key and value matrices; only attn_qkv is supported',
      );
    }
    if (!known.has(name)) throw invalidTensor(file.path, name, 'is not part of a model of this config');
  }
  const complete = new Map(tensors);
  const embedding = tensors.get(EMBEDDING);
  if (embedding !== undefined && !complete.has(OUTPUT)) complete.set(OUTPUT, { ...embedding, name: OUTPUT });
  return complete;
}

function plainMetadata({ metadata }: GgufHeader): Record<string, unknown> {
  const plain: [string, unknown][] = [];
  for (const [key, value] of metadata) {
    if (value instanceof GgufStrings) {
      if (value.items.length <= METADATA_ARRAY_LIMIT)
        plain.push([key, value.items.map((item) => Buffer.from(item).toString())]);
    } else if (!Array.isArray(value) || value.length <= METADATA_ARRAY_LIMIT) {
      plain.push([key, value]);
    }
  }
  return Object.fromEntries(plain);
}

/** The shortest decimal that rounds to the given float32: what the file's author wrote, such as 1e-5. */
export function decimalOfFloat32(value: number): number {
  for (let digits = 1; digits <= 9; digits++) {
    const decimal = Number(value.toPrecision(digits));
    if (Math.fround(decimal) === Math.fround(value)) return decimal;
  }
  return value;
}
