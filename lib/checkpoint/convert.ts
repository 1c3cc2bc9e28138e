import { callNative, loadNative, type Native, type TensorType } from '../addon/native.js';
import { invalidArgument, throwIfAborted } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import {
  choiceOption,
  type FilePath,
  isPlainObject,
  type Nullable,
  reading,
  readOptions,
  show,
  toPath,
} from '../common/options.js';
import type { WrittenFile } from '../common/written-file.js';
import { MODEL_FAMILIES, type ModelFamily } from '../families/index.js';
import { CheckpointFile } from './file.js';
import { ggufMetadata } from './gguf/metadata.js';
import { checkWriteOptions, WRITE_OPTIONS, type WriteOptions, writeGguf } from './gguf/writer.js';
import { openCheckpoint } from './open.js';
import { rowsAndColumns, tensorBytes } from './tensor-types.js';
import type { Checkpoint, TensorEntry } from './types.js';

/** Types that a checkpoint's matrices can be converted to. */
export const CONVERSION_TYPES = ['f16', 'q8_0', 'q4_0'] as const;
/** One of {@link CONVERSION_TYPES}. */
export type ConversionType = (typeof CONVERSION_TYPES)[number];

/** Options of `convertCheckpoint()`. */
export interface ConvertOptions extends WriteOptions {
  /** The type of the matrices. */
  type: ConversionType;
  /** What the new file calls the model. Default: the checkpoint's name. */
  name?: string | undefined;
  /** The family, which the new file states, where the checkpoint's files do not tell the right one. Default: theirs. */
  family?: ModelFamily | undefined;
}

/** Weights that are converted at a time: few enough that nobody waits for the event loop, enough for the disk. */
const CHUNK_WEIGHTS = 1 << 19;

interface Conversion {
  name: string;
  shape: readonly number[];
  /** The type in the new file. */
  type: TensorType;
  source: TensorEntry;
}

/**
 * Writes any readable checkpoint as one GGUF file, which llama.cpp opens too. Vectors become f32, matrices `type`. What
 * is quantized already is kept as it is where that is exact and no larger: THUDM's int4 rows and q4_0 in files of q8_0
 * and q4_0, int8 rows and q8_0 in files of q8_0.
 *
 * @param source A path, or what `openCheckpoint()` gave, which stands for the files at its path: they are read anew.
 * @param target The new file. It gets its name when it is complete: until then it is `target.part`.
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID, ERR_INVALID_ARGUMENT (also for a target that
 *   exists, unless `overwrite` is set), ERR_ABORTED, and the codes of the system for what cannot be read or written.
 * @see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the format
 *
 * @example
 * ```ts
 * const { path, bytes } = await convertCheckpoint('./chatglm3-6b', 'chatglm3-6b-q4_0.gguf', { type: 'q4_0' });
 * console.log(path, bytes);
 * ```
 */
export async function convertCheckpoint(
  source: FilePath | Checkpoint,
  target: FilePath,
  options: Nullable<ConvertOptions>,
): Promise<WrittenFile> {
  const known = [...WRITE_OPTIONS, 'type', 'name', 'family'] as const;
  const set = readOptions<ConvertOptions>(options, known, 'convertCheckpoint()');
  const type = choiceOption('type', set.type ?? null, CONVERSION_TYPES, 'f16');
  if (set.name !== undefined && typeof set.name !== 'string') {
    throw invalidArgument(`name must be a string, got ${show(set.name)}`);
  }
  checkWriteOptions(set);
  const family = choiceOption('family', set.family, MODEL_FAMILIES, '') || undefined;
  const targetPath = toPath('target', target);
  const opened = isPlainObject(source) ? openedAs(source) : undefined;
  const sourcePath = toPath('source', opened?.path ?? source);
  const signal = set.signal;
  throwIfAborted(signal);
  const checkpoint = await openCheckpoint(sourcePath, { family: family ?? opened?.family, signal });
  const { tokenizer, path } = checkpoint;
  const config = { ...checkpoint.config, name: set.name ?? opened?.name ?? checkpoint.config.name };
  if (tokenizer === undefined) throw invalid(path, 'has no tokenizer, and a GGUF file needs one');
  const native = loadNative();
  const files: CheckpointFile[] = [];
  try {
    for (const file of checkpoint.files) files.push(await CheckpointFile.open(file, signal));
    const tensors = checkpoint.tensors.map((entry): Conversion => {
      return { name: entry.name, shape: entry.shape, type: targetType(entry, type), source: entry };
    });
    return await writeGguf(
      targetPath,
      {
        metadata: ggufMetadata(config, tokenizer, type),
        tensors,
        fill: (tensor, write) => convertTensor(tensor, files, native, write),
      },
      set,
    );
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}

/** What an opened checkpoint says of how it was opened. */
function openedAs(source: unknown): { path: string; family: ModelFamily | undefined; name: string | undefined } {
  return reading('source', () => {
    const { path, config } = source as Partial<Checkpoint>;
    if (typeof path !== 'string' || !isPlainObject(config)) {
      throw invalidArgument(`source must be a path or what openCheckpoint() gave, got ${show(source)}`);
    }
    const { family, name } = config as Partial<Checkpoint['config']>;
    return { path, family, name: typeof name === 'string' ? name : undefined };
  });
}

function targetType({ type, shape }: TensorEntry, wanted: ConversionType): TensorType {
  if (shape.length === 1) return 'f32';
  return wanted === 'q8_0' && (type === 'int4' || type === 'q4_0') ? 'q4_0' : wanted;
}

async function convertTensor(
  { type, source }: Conversion,
  files: readonly CheckpointFile[],
  native: Native,
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<void> {
  const [rows, columns] = rowsAndColumns(source.shape);
  const sourceRow = tensorBytes(source.type, 1, columns) ?? 0;
  const targetRow = tensorBytes(type, 1, columns) ?? 0;
  const file = fileOf(source.data.file, files);
  const scales = await readScales(source, rows, files, native);
  const chunk = Math.min(rows, Math.max(1, Math.floor(CHUNK_WEIGHTS / columns)));
  const sourceBytes = Buffer.allocUnsafe(chunk * sourceRow);
  const targetBytes = Buffer.allocUnsafe(chunk * targetRow);
  for (let row = 0; row < rows; row += chunk) {
    const count = Math.min(chunk, rows - row);
    const from = sourceBytes.subarray(0, count * sourceRow);
    const to = targetBytes.subarray(0, count * targetRow);
    await file.readInto(from, source.data.offset + row * sourceRow);
    if (source.type === type) {
      await write(from);
      continue;
    }
    const rowScales = scales?.subarray(row, row + count);
    callNative(() => native.convertRows(source.type, from, rowScales, count, columns, type, to));
    await write(to);
  }
}

/** The rows' scales as f32: (rows) */
async function readScales(
  { scale }: TensorEntry,
  rows: number,
  files: readonly CheckpointFile[],
  native: Native,
): Promise<Float32Array | undefined> {
  if (scale === undefined) return undefined;
  const bytes = await fileOf(scale.file, files).read(scale.offset, scale.length);
  const scales = new Float32Array(rows);
  callNative(() => native.convertRows(scale.type, bytes, undefined, 1, rows, 'f32', new Uint8Array(scales.buffer)));
  return scales;
}

function fileOf(index: number, files: readonly CheckpointFile[]): CheckpointFile {
  const file = files[index];
  if (file === undefined) throw new RangeError(`the checkpoint has no file ${index}`);
  return file;
}
