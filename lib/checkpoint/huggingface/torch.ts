import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import type { CheckpointFile } from '../file.js';
import { contentOf } from '../foreign.js';
import { elementCount } from '../tensor-types.js';
import {
  type PickleCall,
  PickleDict,
  PickleGlobal,
  type PickleObject,
  PicklePersistent,
  PickleTuple,
  type PickleValue,
  parsePickle,
} from './pickle.js';
import { type RawTensor, type RawTensorFile, TENSOR_LIMIT } from './raw-tensor.js';
import { readZipDirectory, type ZipEntry, zipDataOffset } from './zip.js';

/** The pickle of a 6B model has 30 kB. */
const PICKLE_LIMIT = 4 << 20;
const MAX_DIMENSIONS = 8;

const REBUILD_TENSOR = 'torch._utils _rebuild_tensor_v2';
const REBUILD_PARAMETER = 'torch._utils _rebuild_parameter';
const ORDERED_DICT = 'collections OrderedDict';

/** torch's storage classes: safetensors' name of the type, bytes of one number. */
const STORAGES: ReadonlyMap<string, { dtype: string; bytes: number }> = new Map([
  ['torch DoubleStorage', { dtype: 'F64', bytes: 8 }],
  ['torch FloatStorage', { dtype: 'F32', bytes: 4 }],
  ['torch HalfStorage', { dtype: 'F16', bytes: 2 }],
  ['torch BFloat16Storage', { dtype: 'BF16', bytes: 2 }],
  ['torch LongStorage', { dtype: 'I64', bytes: 8 }],
  ['torch IntStorage', { dtype: 'I32', bytes: 4 }],
  ['torch ShortStorage', { dtype: 'I16', bytes: 2 }],
  ['torch CharStorage', { dtype: 'I8', bytes: 1 }],
  ['torch ByteStorage', { dtype: 'U8', bytes: 1 }],
  ['torch BoolStorage', { dtype: 'BOOL', bytes: 1 }],
]);

const GLOBALS: ReadonlySet<string> = new Set([REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, ...STORAGES.keys()]);

/** What `_rebuild_tensor_v2` would have made. */
class TorchTensor implements PickleObject {
  readonly kind = 'tensor';
  constructor(
    readonly storage: PicklePersistent,
    /** In numbers, not bytes. */
    readonly offset: number,
    readonly shape: number[],
    readonly strides: number[],
  ) {}
}

/**
 * Lists the tensors of a file that torch.save wrote for a state_dict: a zip file of `data.pkl` and one record for each
 * storage, https://github.com/pytorch/pytorch/blob/main/torch/serialization.py. Nothing in it is executed.
 */
export async function readTorchFile(file: CheckpointFile): Promise<RawTensorFile> {
  await checkMagic(file);
  const entries = await readZipDirectory(file);
  const root = findRoot(entries, file);
  await checkByteOrder(file, entries.get(`${root}/byteorder`));

  const pickle = await readEntry(file, entries.get(`${root}/data.pkl`), PICKLE_LIMIT);
  const stateDict = await file.inTurns(
    parsePickle(pickle, { file: file.path, globals: GLOBALS, call: (call) => rebuild(call, file.path) }),
  );
  if (!(stateDict instanceof PickleDict)) throw invalid(file.path, 'holds no dict of tensors');
  if (stateDict.entries.length > TENSOR_LIMIT) throw invalid(file.path, `has more than ${TENSOR_LIMIT} tensors`);

  const tensors: RawTensor[] = [];
  const dataOffsets = new Map<string, number>();
  const names = new Set<string>();
  for (const [name, value] of stateDict.entries) {
    if (typeof name !== 'string') throw invalid(file.path, 'holds something other than a dict of tensors by name');
    if (names.has(name)) throw invalidTensor(file.path, name, 'occurs twice');
    names.add(name);
    if (value instanceof PickleDict) throw invalid(file.path, `${shown(name)} in it is a dict, ${TRAINING_RUN}`);
    if (!(value instanceof TorchTensor)) throw invalid(file.path, `${shown(name)} in it is no tensor`);
    tensors.push(await locate(name, value, root, entries, dataOffsets, file));
    if (file.pace.isOver) await file.pace.rest();
  }
  return { path: file.path, size: file.size, tensors };
}

/** What torch.save of a whole training run's state gives. */
const TRAINING_RUN =
  "no tensor, as in checkpoints of training runs; save the model's weights alone, with save_pretrained()";

async function checkMagic(file: CheckpointFile): Promise<void> {
  const head = await file.head();
  const magic = head.toString('latin1', 0, 4);
  if (magic.startsWith('\x80')) {
    throw invalid(
      file.path,
      'was written by a torch before 1.6, which is not supported; load and save it with a newer one',
    );
  }
  if (magic !== 'PK\x03\x04') throw invalid(file.path, contentOf(head) ?? 'is damaged or no file of torch.save');
}

/** The folder that all records lie in: torch names it after the file. */
function findRoot(entries: ReadonlyMap<string, ZipEntry>, file: CheckpointFile): string {
  const roots = [...entries.keys()].flatMap((name) =>
    /^[^/]+\/data\.pkl$/.test(name) ? [name.split('/')[0] ?? ''] : [],
  );
  const [root] = roots;
  if (root === undefined || roots.length > 1) throw invalid(file.path, 'is no file of torch.save: it has no data.pkl');
  if (entries.has(`${root}/constants.pkl`)) throw invalid(file.path, 'is a TorchScript program, not a file of weights');
  return root;
}

async function checkByteOrder(file: CheckpointFile, entry: ZipEntry | undefined): Promise<void> {
  if (entry === undefined) return;
  const order = (await readEntry(file, entry, 16)).toString('latin1');
  if (order !== 'little') throw invalid(file.path, `has the byte order "${shown(order)}"; only "little" is supported`);
}

async function readEntry(file: CheckpointFile, entry: ZipEntry | undefined, limit: number): Promise<Buffer> {
  if (entry === undefined || entry.size > limit) throw invalid(file.path, 'is damaged: a record in it has a wild size');
  return file.read(await zipDataOffset(file, entry), entry.size);
}

function rebuild({ callee, args }: PickleCall, file: string): PickleValue {
  if (callee.name === ORDERED_DICT && args.length === 0) return new PickleDict();
  const [first, offset, shape, strides] = args;
  if (callee.name === REBUILD_PARAMETER && first instanceof TorchTensor) return first;
  if (
    callee.name === REBUILD_TENSOR &&
    first instanceof PicklePersistent &&
    typeof offset === 'number' &&
    isNumbers(shape) &&
    isNumbers(strides)
  ) {
    return new TorchTensor(first, offset, shape.items, strides.items);
  }
  throw invalid(file, `is damaged: its pickle misuses ${callee.name.replace(' ', '.')}`);
}

function isNumbers(value: PickleValue | undefined): value is PickleTuple & { items: number[] } {
  return (
    value instanceof PickleTuple &&
    value.items.length <= MAX_DIMENSIONS &&
    value.items.every((item) => typeof item === 'number')
  );
}

async function locate(
  name: string,
  tensor: TorchTensor,
  root: string,
  entries: ReadonlyMap<string, ZipEntry>,
  dataOffsets: Map<string, number>,
  file: CheckpointFile,
): Promise<RawTensor> {
  const fail = (problem: string) => invalidTensor(file.path, name, problem);
  const id = tensor.storage.id;
  const [tag, type, key, , numbers] = id instanceof PickleTuple ? id.items : [];
  const storage = type instanceof PickleGlobal ? STORAGES.get(type.name) : undefined;
  if (tag !== 'storage' || storage === undefined || typeof key !== 'string' || typeof numbers !== 'number') {
    throw fail('has a storage of an unknown kind');
  }
  const entry = entries.get(`${root}/data/${key}`);
  if (entry === undefined) throw fail('has a storage that is not in the file');
  if (!Number.isSafeInteger(numbers) || numbers < 0 || numbers * storage.bytes > entry.size) {
    throw fail(`has a storage of ${entry.size} bytes instead of ${numbers} times ${storage.bytes}`);
  }

  const elements = elementCount(tensor.shape);
  if (elements === undefined) throw fail(`has the shape (${tensor.shape.join(', ')})`);
  if (!isContiguous(tensor.shape, tensor.strides)) throw fail('is not contiguous; save a contiguous copy of it');
  if (!Number.isSafeInteger(tensor.offset) || tensor.offset < 0 || tensor.offset + elements > numbers) {
    throw fail('lies outside of its storage');
  }
  let dataOffset = dataOffsets.get(key);
  if (dataOffset === undefined) {
    dataOffset = await zipDataOffset(file, entry);
    dataOffsets.set(key, dataOffset);
  }
  return {
    name,
    dtype: storage.dtype,
    shape: tensor.shape,
    file: file.path,
    offset: dataOffset + tensor.offset * storage.bytes,
    length: elements * storage.bytes,
  };
}

function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  if (strides.length !== shape.length) return false;
  let expected = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    const size = shape[i] ?? 0;
    if (size !== 1 && strides[i] !== expected) return false;
    expected *= size;
  }
  return true;
}
