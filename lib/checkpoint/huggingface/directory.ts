import { basename, dirname, join } from 'node:path';
import type { FileRange, TensorType } from '../../addon/native.js';
import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import { detectFamily, FAMILY_HINT } from '../../families/detect.js';
import type { ModelFamily } from '../../families/index.js';
import type { TokenizerData } from '../../tokenizer/data.js';
import { type CheckpointFile, readTokenizerModel, withFile } from '../file.js';
import { adapterProblem, contentOf, directoryProblem, tensorProblem } from '../foreign.js';
import { EMBEDDING, OUTPUT, type TensorSpec, tensorLayout } from '../tensor-table.js';
import type { FloatType } from '../tensor-types.js';
import type { Checkpoint, TensorEntry } from '../types.js';
import { validateCheckpoint } from '../validate.js';
import { parseHuggingFaceConfig } from './config.js';
import type { JsonObject } from './json.js';
import { Directory } from './listing.js';
import type { RawTensor, RawTensorFile } from './raw-tensor.js';
import { hasWeights, readWeights, readWeightsOf } from './weights.js';

/** Of every text beside the weights; THUDM's tokenization_chatglm.py, the longest, has 12 kB. */
const TEXT_LIMIT = 1 << 20;

/** What THUDM's names begin with; base models have been published without. */
const PREFIX = 'transformer.';
/** Positions of the rotary embedding, which are computed instead. */
const IGNORED = new Set(['rotary_pos_emb.inv_freq']);

const FLOAT_TYPES: Readonly<Record<string, FloatType>> = { F32: 'f32', F16: 'f16', BF16: 'bf16' };

export interface DirectoryOptions {
  /** Overrides what the files tell. */
  family?: ModelFamily | undefined;
  signal?: AbortSignal | undefined;
}

/** Opens a directory as THUDM publishes it on Hugging Face; of its weights the set that the file belongs to, if one is given. */
export async function openHuggingFace(
  path: string,
  { family: wantedFamily, signal }: DirectoryOptions,
  weightFile?: string | undefined,
): Promise<Checkpoint> {
  const directory = await Directory.list(path, signal);
  await refuseForeignDirectory(directory, weightFile);
  const config = await directory.json('config.json', TEXT_LIMIT);
  if (config === undefined) throw invalid(path, 'has no config.json, so it is no checkpoint');
  const family = wantedFamily ?? (await familyOfDirectory(directory, config));
  if (family === undefined) {
    throw invalid(path, `nothing in this directory tells the model's family; ${FAMILY_HINT}`);
  }
  const configPath = join(path, 'config.json');
  const modelConfig = parseHuggingFaceConfig(config, family, configPath, path);

  const weights = weightFile === undefined ? readWeights(directory) : readWeightsOf(weightFile, directory);
  const { format, files, list } = await weights;
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

/** Opens the checkpoint that a file of weights, an index or another file of a directory belongs to. */
export async function openFileOfDirectory(file: CheckpointFile, options: DirectoryOptions): Promise<Checkpoint> {
  const name = basename(file.path);
  const isWeights = !name.endsWith('.json') || name.endsWith('.index.json');
  return openHuggingFace(dirname(file.path), options, isWeights ? file.path : undefined);
}

/** Refuses directories of other tools, and what downloads left behind, before something in them is found to be missing. */
async function refuseForeignDirectory(directory: Directory, weightFile: string | undefined): Promise<void> {
  const { path } = directory;
  const isAdapterFile = weightFile !== undefined && basename(weightFile).startsWith('adapter_model.');
  if (directory.has('adapter_config.json') && (isAdapterFile || (weightFile === undefined && !hasWeights(directory)))) {
    const json = await directory.json('adapter_config.json', TEXT_LIMIT);
    throw invalid(path, adapterProblem({ peftType: json?.peft_type, base: json?.base_model_name_or_path }));
  }
  if (directory.has('config.json') && (weightFile !== undefined || hasWeights(directory))) return;
  const problem = weightFile === undefined ? (directoryProblem(directory.names) ?? (await fileProblem(directory))) : '';
  if (problem) throw invalid(path, problem);
}

/** What the first file of a directory whose content is of a known other kind is. */
async function fileProblem(directory: Directory): Promise<string | undefined> {
  const candidates = directory.names.filter((name) => /\.(bin|pt|safetensors|dat)$/i.test(name)).sort();
  for (const name of candidates.slice(0, 4)) {
    const content = contentOf(await withFile(directory.file(name), directory.signal, (file) => file.head()));
    if (content !== undefined) return `holds ${shown(name)}, which ${content}`;
  }
  return undefined;
}

/** The tokenizer alone; a config.json is not needed for it. */
export async function readDirectoryTokenizer(
  path: string,
  { family, signal }: DirectoryOptions,
): Promise<{ data: TokenizerData | undefined; family: ModelFamily | undefined }> {
  const directory = await Directory.list(path, signal);
  const data = await tokenizerOfDirectory(directory);
  if (family !== undefined) return { data, family };
  return { data, family: await familyOfDirectory(directory, await directory.json('config.json', TEXT_LIMIT)) };
}

async function tokenizerOfDirectory(directory: Directory): Promise<TokenizerData | undefined> {
  return directory.has('tokenizer.model')
    ? withFile(directory.file('tokenizer.model'), directory.signal, readTokenizerModel)
    : undefined;
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

/** All tensors by THUDM's name without its prefix. */
function namedTensors(files: readonly RawTensorFile[]): Map<string, RawTensor> {
  const tensors = new Map<string, RawTensor>();
  for (const file of files) {
    for (const tensor of file.tensors) {
      const problem = tensorProblem(tensor.name);
      if (problem !== undefined) throw invalidTensor(tensor.file, tensor.name, problem);
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
  throw invalid(file, `quantization_bit is ${shown(bits)}; 4 and 8 are known`);
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
  if (raw.dtype !== 'I8' && raw.dtype !== 'U8') {
    const read = Object.keys(FLOAT_TYPES).join(', ');
    throw invalidTensor(raw.file, raw.name, `has the dtype ${raw.dtype}; ${read} and THUDM's int8 and int4 are read`);
  }
  const config = quantizationBit === 0 ? 'names no quantization_bit' : `has quantization_bit ${quantizationBit}`;
  throw invalidTensor(raw.file, raw.name, `has the dtype ${raw.dtype}, but config.json ${config}`);
}

/** What is left after the model's own tensors were taken. */
function refuseUnknown(tensors: ReadonlyMap<string, RawTensor>): void {
  for (const [name, { file, name: nameInFile }] of tensors) {
    if (IGNORED.has(name)) continue;
    throw invalidTensor(file, nameInFile, 'is not part of a model of this config');
  }
}
