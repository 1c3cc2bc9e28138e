import { basename, dirname, join } from 'node:path';
import { ChatGLMError } from '../../common/errors.js';
import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import { type CheckpointFile, withFile } from '../file.js';
import { isObject, type JsonObject } from './json.js';
import type { Directory } from './listing.js';
import { type RawTensorFile, TENSOR_LIMIT } from './raw-tensor.js';
import { readSafetensors } from './safetensors.js';
import { readTorchFile } from './torch.js';

export type WeightFormat = 'safetensors' | 'torch';

/** All weights of a model. */
export interface Weights {
  format: WeightFormat;
  files: RawTensorFile[];
  /** The file that lists the tensors: where a missing one would have been named. */
  list: string;
}

/** Files of weights that belong together: one file, or the shards that an index names. */
type WeightSet = { file: string } | { index: string };

/** The sets that a directory may have, by name, in the order of preference. */
const SETS: readonly WeightSet[] = [
  { file: 'model.safetensors' },
  { index: 'model.safetensors.index.json' },
  { file: 'pytorch_model.bin' },
  { index: 'pytorch_model.bin.index.json' },
];

const INDEX_LIMIT = 4 << 20;

/** Whether a directory has weights of the names that they usually have. */
export function hasWeights(directory: Directory): boolean {
  return SETS.some((set) => directory.has(nameOf(set)));
}

/**
 * Reads the weights of a directory: of the sets that are there, the first that is complete. A set is not where one of its
 * files is missing, or was not fetched and is a Git LFS pointer. Damage is an error, and no reason to take another set.
 */
export async function readWeights(directory: Directory): Promise<Weights> {
  const present = SETS.filter((set) => directory.has(nameOf(set)));
  const incomplete: ChatGLMError[] = [];
  for (const set of present) {
    try {
      for (const name of await filesOf(set, directory)) await (await directory.open(name)).close();
    } catch (error) {
      if (!isMissing(error)) throw error;
      incomplete.push(error);
      continue;
    }
    return readSet(set, directory);
  }
  const [first, ...others] = incomplete;
  if (first === undefined) {
    throw invalid(directory.path, `holds no weights: none of ${SETS.map(nameOf).join(', ')}`);
  }
  if (others.length === 0) throw first;
  const reasons = incomplete.map(({ message }) => message).join('; ');
  throw invalid(directory.path, `holds no complete weights: ${reasons}`, first.details);
}

/** Reads the set that a file belongs to: its own, or that of the index that names it as a shard. */
export async function readWeightsOf(file: string, directory: Directory): Promise<Weights> {
  const name = basename(file);
  if (name.endsWith('.index.json')) return readSet({ index: name }, directory);
  for (const index of directory.names.filter((other) => other.endsWith('.index.json'))) {
    const shards = Object.values(await readWeightMap(index, directory));
    if (shards.includes(name)) return readSet({ index }, directory);
  }
  return readSet({ file: name }, directory);
}

/** Whether a file is not there, or only a pointer of Git LFS to it. */
function isMissing(error: unknown): error is ChatGLMError {
  if (!(error instanceof ChatGLMError)) return false;
  return error.code === 'ERR_CHECKPOINT_NOT_FOUND' || 'shard' in error.details || 'lfsBytes' in error.details;
}

function nameOf(set: WeightSet): string {
  return 'file' in set ? set.file : set.index;
}

/** The names of a set's files. */
async function filesOf(set: WeightSet, directory: Directory): Promise<string[]> {
  if ('file' in set) return [set.file];
  const path = directory.file(set.index);
  const shards = new Set<string>();
  for (const shard of Object.values(await readWeightMap(set.index, directory))) {
    if (typeof shard !== 'string' || !/^[\w-][\w.-]*$/.test(shard)) {
      throw invalid(path, `names ${shown(shard)} as a shard`);
    }
    if (!directory.has(shard)) throw invalid(path, `the shard ${shown(shard)} is missing`, { shard: shown(shard) });
    shards.add(shard);
  }
  return [...shards];
}

async function readWeightMap(index: string, directory: Directory): Promise<JsonObject> {
  const path = directory.file(index);
  const weightMap = (await directory.json(index, INDEX_LIMIT))?.weight_map;
  if (!isObject(weightMap)) throw invalid(path, 'has no weight_map');
  if (Object.keys(weightMap).length > TENSOR_LIMIT) throw invalid(path, `names more than ${TENSOR_LIMIT} tensors`);
  return weightMap;
}

async function readSet(set: WeightSet, directory: Directory): Promise<Weights> {
  const list = directory.file(nameOf(set));
  const files: RawTensorFile[] = [];
  const formats: WeightFormat[] = [];
  for (const name of await filesOf(set, directory)) {
    const { format, file } = await withFile(directory.file(name), directory.signal, readWeightFile);
    files.push(file);
    formats.push(format);
  }
  const format = formats[0];
  if (format === undefined) throw invalid(list, 'names no shards');
  if ('index' in set) await checkIndex(set.index, files, directory);
  return { format, files, list };
}

/** By its content: whoever renames a file of weights may give it any ending. */
async function readWeightFile(file: CheckpointFile): Promise<{ format: WeightFormat; file: RawTensorFile }> {
  return (await weightFormat(file)) === 'torch'
    ? { format: 'torch', file: await readTorchFile(file) }
    : { format: 'safetensors', file: await readSafetensors(file) };
}

/** The format that a file's content has or, where the content is of no kind of weights, that its name promises. */
async function weightFormat(file: CheckpointFile): Promise<WeightFormat> {
  return (await formatOfContent(file)) ?? (/\.safetensors$/i.test(file.path) ? 'safetensors' : 'torch');
}

/** Whether the file begins as one of safetensors or torch does. */
export async function formatOfContent(file: CheckpointFile): Promise<WeightFormat | undefined> {
  const head = await file.head();
  // A zip file, or a pickle as torch before 1.6 wrote it.
  if (head.toString('latin1', 0, 4) === 'PK\x03\x04' || head[0] === 0x80) return 'torch';
  const isSafetensors = head.length > 8 && head[8] === 0x7b && head.readBigUInt64LE(0) < BigInt(file.size);
  return isSafetensors ? 'safetensors' : undefined;
}

/** Every tensor must be where the index says. */
async function checkIndex(index: string, files: readonly RawTensorFile[], directory: Directory): Promise<void> {
  const namesByFile = new Map(files.map(({ path, tensors }) => [path, new Set(tensors.map(({ name }) => name))]));
  for (const [tensor, shard] of Object.entries(await readWeightMap(index, directory))) {
    const path = join(dirname(directory.file(index)), String(shard));
    if (namesByFile.get(path)?.has(tensor) === false) {
      throw invalidTensor(path, tensor, `is missing, although ${shown(index)} says that it is here`);
    }
  }
}
