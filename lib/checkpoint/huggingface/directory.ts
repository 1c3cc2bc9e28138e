import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { FileRange, TensorType } from '../../addon/native.js';
import { throwIfAborted } from '../../common/errors.js';
import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import { detectFamily, FAMILY_HINT } from '../../families/detect.js';
import type { ModelFamily } from '../../families/index.js';
import type { TokenizerData } from '../../tokenizer/data.js';
import { readError, readSmallFile, readTokenizerModel, withFile } from '../file.js';
import { EMBEDDING, OUTPUT, type TensorSpec, tensorLayout } from '../tensor-table.js';
import type { FloatType } from '../tensor-types.js';
import type { Checkpoint, TensorEntry } from '../types.js';
import { validateCheckpoint } from '../validate.js';
import { parseHuggingFaceConfig } from './config.js';
import { isObject, type JsonObject, parseJsonObject } from './json.js';
import type { RawTensor, RawTensorFile } from './raw-tensor.js';
import { readSafetensors } from './safetensors.js';
import { readTorchFile } from './torch.js';

const CONFIG_LIMIT = 1 << 20;
const TEXT_LIMIT = 16 << 20;

/** What THUDM's names begin with; base models have been published without. */
const PREFIX = 'transformer.';
/** Positions of the rotary embedding, which are computed instead. */
const IGNORED = new Set(['rotary_pos_emb.inv_freq']);

const FLOAT_TYPES: Readonly<Record<string, FloatType>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

interface Container {
  format: 'safetensors' | 'torch';
  single: string;
  index: string;
  read(path: string): Promise<RawTensorFile>;
}

/** In the order of preference. */
const CONTAINERS: readonly Container[] = [
  { format: 'safetensors', single: 'model.safetensors', index: 'model.safetensors.index.json', read: readSafetensors },
  { format: 'torch', single: 'pytorch_model.bin', index: 'pytorch_model.bin.index.json', read: readTorchFile },
];

/** Opens a directory as THUDM publishes it on Hugging Face. */
export async function openHuggingFace(
  path: string,
  wantedFamily: ModelFamily | undefined,
  signal: AbortSignal | undefined,
): Promise<Checkpoint> {
  const directory = await Directory.list(path);
  const config = await directory.json('config.json', CONFIG_LIMIT);
  if (config === undefined) throw invalid(path, 'has no config.json, so it is no checkpoint');
  const family = wantedFamily ?? (await familyOfDirectory(directory, config));
  if (family === undefined) {
    throw invalid(path, `nothing in this directory tells the model's family; ${FAMILY_HINT}`);
  }
  const configPath = join(path, 'config.json');
  const modelConfig = parseHuggingFaceConfig(config, family, configPath, path);

  const { format, files, list } = await readWeightFiles(directory, signal);
  const tensors = namedTensors(files);
  const quantizationBit = readQuantizationBit(config, configPath);
  const fileIndex = new Map(files.map((file, i) => [file.path, i]));
  const entries = new Map<string, TensorEntry>();
  for (const spec of tensorLayout(modelConfig)) {
    const entry = toEntry(spec, tensors, fileIndex, quantizationBit);
    if (entry !== undefined) entries.set(spec.name, entry);
  }
  const embedding = entries.get(EMBEDDING);
  if (config.tie_word_embeddings === true && !entries.has(OUTPUT) && embedding !== undefined) {
    entries.set(OUTPUT, { ...embedding, name: OUTPUT });
  }
  refuseUnknown(tensors);

  return validateCheckpoint({
    format,
    path,
    files: files.map((file) => file.path),
    fileSizes: files.map((file) => file.size),
    config: modelConfig,
    tensors: entries,
    tokenizer: await tokenizerOfDirectory(directory),
    metadata: config,
    nameInFile: (spec) => `${PREFIX}${spec.thudmName}`,
    tensorList: list,
  });
}

/** The tokenizer alone; a config.json is not needed for it. */
export async function readDirectoryTokenizer(
  path: string,
): Promise<{ data: TokenizerData | undefined; family: ModelFamily | undefined }> {
  const directory = await Directory.list(path);
  const config = await directory.json('config.json', CONFIG_LIMIT);
  return { data: await tokenizerOfDirectory(directory), family: await familyOfDirectory(directory, config) };
}

async function tokenizerOfDirectory(directory: Directory): Promise<TokenizerData | undefined> {
  return directory.has('tokenizer.model') ? withFile(directory.file('tokenizer.model'), readTokenizerModel) : undefined;
}

async function familyOfDirectory(
  directory: Directory,
  config: JsonObject | undefined,
): Promise<ModelFamily | undefined> {
  const text = async (name: string) => (await directory.bytes(name, TEXT_LIMIT))?.toString('utf8');
  const tokenizerConfig = await text('tokenizer_config.json');
  // By a pattern: the file is evidence, and a defect of other parts of its JSON does not matter here.
  const written = /"_?name_or_path"\s*:\s*"([^"\\]*)"/.exec(tokenizerConfig ?? '')?.[1];
  return detectFamily({
    tokenizerCode: await text('tokenization_chatglm.py'),
    tokenizerConfig,
    names: [config?._name_or_path, written].filter((name) => typeof name === 'string'),
    directory: directory.path,
  });
}

async function readWeightFiles(
  directory: Directory,
  signal: AbortSignal | undefined,
): Promise<{ format: Container['format']; files: RawTensorFile[]; list: string }> {
  for (const container of CONTAINERS) {
    const { format, single, index, read } = container;
    if (directory.has(single)) {
      const path = directory.file(single);
      return { format, files: [await read(path)], list: path };
    }
    if (directory.has(index)) {
      return { format, files: await readShards(directory, container, signal), list: directory.file(index) };
    }
  }
  const wanted = CONTAINERS.map(({ single, index }) => `${single} or ${index}`).join(', ');
  throw invalid(directory.path, `holds no weights: none of ${wanted}`);
}

async function readShards(
  directory: Directory,
  { index, read }: Container,
  signal: AbortSignal | undefined,
): Promise<RawTensorFile[]> {
  const indexPath = directory.file(index);
  const weightMap = (await directory.json(index, TEXT_LIMIT))?.weight_map;
  if (!isObject(weightMap)) throw invalid(indexPath, 'has no weight_map');
  const shards = new Map<string, RawTensorFile>();
  for (const shard of new Set(Object.values(weightMap))) {
    throwIfAborted(signal);
    if (typeof shard !== 'string' || !/^[\w-][\w.-]*$/.test(shard)) {
      throw invalid(indexPath, `names ${shown(String(shard))} as a shard`);
    }
    if (!directory.has(shard)) throw invalid(indexPath, `the shard ${shard} is missing`, { shard });
    shards.set(shard, await read(directory.file(shard)));
  }
  for (const [tensor, shard] of Object.entries(weightMap)) {
    const file = shards.get(String(shard));
    if (file !== undefined && !file.tensors.some(({ name }) => name === tensor)) {
      throw invalidTensor(file.path, tensor, `is missing, although ${index} says that it is here`);
    }
  }
  return [...shards.values()];
}

/** All tensors by THUDM's name without its prefix. */
function namedTensors(files: readonly RawTensorFile[]): Map<string, RawTensor> {
  const tensors = new Map<string, RawTensor>();
  for (const file of files) {
    for (const tensor of file.tensors) {
      const name = tensor.name.startsWith(PREFIX) ? tensor.name.slice(PREFIX.length) : tensor.name;
      const before = tensors.get(name);
      if (before !== undefined) throw invalidTensor(tensor.file, tensor.name, `is in ${shown(before.file)} too`);
      tensors.set(name, tensor);
    }
  }
  return tensors;
}

function readQuantizationBit(config: JsonObject, file: string): 0 | 4 | 8 {
  const bits = config.quantization_bit ?? 0;
  if (bits === 0 || bits === 4 || bits === 8) return bits;
  throw invalid(file, `quantization_bit is ${shown(String(bits))}; 4 and 8 are known`);
}

/** Takes the spec's tensor, and its scales, out of `tensors`. */
function toEntry(
  spec: TensorSpec,
  tensors: Map<string, RawTensor>,
  fileIndex: ReadonlyMap<string, number>,
  quantizationBit: 0 | 4 | 8,
): TensorEntry | undefined {
  const take = (name: string) => {
    const tensor = tensors.get(name);
    tensors.delete(name);
    return tensor;
  };
  const range = ({ file, offset, length }: RawTensor): FileRange => ({
    file: fileIndex.get(file) ?? -1,
    offset,
    length,
  });
  const raw = take(spec.thudmName);
  if (raw === undefined) return undefined;
  const float = FLOAT_TYPES[raw.dtype];
  if (float !== undefined) return { name: spec.name, type: float, shape: raw.shape, data: range(raw) };

  const type = quantizedType(raw, quantizationBit);
  const scales = take(`${spec.thudmName}_scale`);
  if (scales === undefined) throw invalidTensor(raw.file, `${raw.name}_scale`, 'is missing');
  const scaleType = FLOAT_TYPES[scales.dtype];
  if (scaleType === undefined) throw invalidTensor(scales.file, scales.name, `has the dtype ${scales.dtype}`);
  if (scales.shape.length !== 1 || scales.shape[0] !== raw.shape[0]) {
    throw invalidTensor(
      scales.file,
      scales.name,
      `has the shape ${scales.shape.join(' x ')}; one scale a row is needed`,
    );
  }
  // Two weights of int4 share a byte.
  const shape = raw.shape.map((size, i) => (type === 'int4' && i === raw.shape.length - 1 ? 2 * size : size));
  return { name: spec.name, type, shape, data: range(raw), scale: { ...range(scales), type: scaleType } };
}

/** THUDM's quantization.py: int8 tensors; for 4 bits, two weights in each of their bytes. */
function quantizedType(raw: RawTensor, quantizationBit: 0 | 4 | 8): TensorType {
  if (raw.dtype === 'I8' && quantizationBit === 8) return 'int8';
  if ((raw.dtype === 'I8' || raw.dtype === 'U8') && quantizationBit === 4) return 'int4';
  const config = quantizationBit === 0 ? 'names no quantization_bit' : `has quantization_bit ${quantizationBit}`;
  throw invalidTensor(raw.file, raw.name, `has the dtype ${raw.dtype}, but config.json ${config}`);
}

/** What is left after the model's own tensors were taken. */
function refuseUnknown(tensors: ReadonlyMap<string, RawTensor>): void {
  for (const [name, { file, name: nameInFile }] of tensors) {
    if (IGNORED.has(name)) continue;
    if (name.startsWith('prefix_encoder.')) {
      throw invalidTensor(file, nameInFile, 'belongs to a P-tuning prefix, which is not supported');
    }
    throw invalidTensor(file, nameInFile, 'is not part of a model of this config');
  }
}

/** A directory and what is in it. */
class Directory {
  private constructor(
    readonly path: string,
    private readonly names: ReadonlySet<string>,
  ) {}

  static async list(path: string): Promise<Directory> {
    try {
      return new Directory(path, new Set(await readdir(path)));
    } catch (error) {
      throw readError(path, error);
    }
  }

  has(name: string): boolean {
    return this.names.has(name);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** Undefined where there is no such file. */
  async bytes(name: string, limit: number): Promise<Buffer | undefined> {
    return this.has(name) ? readSmallFile(this.file(name), limit) : undefined;
  }

  async json(name: string, limit: number): Promise<JsonObject | undefined> {
    const bytes = await this.bytes(name, limit);
    return bytes === undefined ? undefined : parseJsonObject(bytes, this.file(name));
  }
}
