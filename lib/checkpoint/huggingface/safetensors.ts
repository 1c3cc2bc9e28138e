import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';
import type { CheckpointFile } from '../file.js';
import { contentOf } from '../foreign.js';
import { checkOverlaps } from '../overlaps.js';
import { elementCount } from '../tensor-types.js';
import { isObject, parseJsonObject } from './json.js';
import { type RawTensor, type RawTensorFile, TENSOR_LIMIT } from './raw-tensor.js';

/** The header of a ChatGLM shard has some 60 kB. */
const HEADER_LIMIT = 16 << 20;
const MAX_DIMENSIONS = 8;

const DTYPE_BYTES: ReadonlyMap<unknown, number> = new Map([
  ['BOOL', 1],
  ['U8', 1],
  ['I8', 1],
  ['F8_E4M3', 1],
  ['F8_E5M2', 1],
  ['U16', 2],
  ['I16', 2],
  ['F16', 2],
  ['BF16', 2],
  ['U32', 4],
  ['I32', 4],
  ['F32', 4],
  ['U64', 8],
  ['I64', 8],
  ['F64', 8],
]);

/**
 * Lists the tensors of a safetensors file, https://github.com/huggingface/safetensors#format: the header's length as u64,
 * the header in JSON, the data.
 */
export async function readSafetensors(file: CheckpointFile): Promise<RawTensorFile> {
  if (file.size < 8) throw invalid(file.path, `is no safetensors file: it has ${file.size} bytes`);
  const head = await file.head();
  const length = head.readBigUInt64LE(0);
  if (length > BigInt(Math.min(HEADER_LIMIT, file.size - 8))) {
    const problem = contentOf(head) ?? `is damaged or no safetensors file: its header would have ${length} bytes`;
    throw invalid(file.path, problem);
  }
  const tensors = await file.inTurns(parseHeader(await file.read(8, Number(length)), file));
  return { path: file.path, size: file.size, tensors };
}

function* parseHeader(bytes: Buffer, file: CheckpointFile): Work<RawTensor[]> {
  const header = yield* parseJsonObject(bytes, file.path, 'its header');
  const tensors: RawTensor[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    if (tensors.length === TENSOR_LIMIT) throw invalid(file.path, `has more than ${TENSOR_LIMIT} tensors`);
    tensors.push(parseEntry(name, entry, file.path, 8 + bytes.length, file.size));
    if (tensors.length % 256 === 0) yield;
  }
  checkOverlaps(tensors);
  return tensors;
}

function parseEntry(name: string, entry: unknown, file: string, dataStart: number, fileSize: number): RawTensor {
  const fail = (problem: string) => invalidTensor(file, name, problem);
  if (!isObject(entry)) throw fail('is described by no object');
  const { dtype, shape, data_offsets: offsets } = entry;
  const itemBytes = DTYPE_BYTES.get(dtype);
  if (typeof dtype !== 'string' || itemBytes === undefined) throw fail(`has the unknown dtype ${shown(dtype)}`);
  if (!isNumbers(shape) || shape.length > MAX_DIMENSIONS) throw fail('has no valid shape');
  const elements = elementCount(shape);
  if (elements === undefined) throw fail(`has the shape [${shape.join(', ')}]`);
  const [begin = -1, end = -1] = isNumbers(offsets) && offsets.length === 2 ? offsets : [];
  if (!Number.isSafeInteger(begin) || !Number.isSafeInteger(end) || begin < 0 || end < begin) {
    throw fail('has no valid data_offsets');
  }
  if (end > fileSize - dataStart) throw fail('lies outside of the file, which may be cut short');
  if (end - begin !== elements * itemBytes) {
    throw fail(`has ${end - begin} bytes; its shape and dtype ask for ${elements * itemBytes}`);
  }
  return { name, dtype, shape, file, offset: dataStart + begin, length: end - begin };
}

function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === 'number');
}
