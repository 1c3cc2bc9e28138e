import { loadNative, type Native, type TensorType } from '../addon/native.js';
import { throwIfAborted } from '../common/errors.js';
import { invalid } from '../common/invalid.js';
import { checkOptions, checkPath, choiceOption } from '../common/options.js';
import { CheckpointFile } from './file.js';
import { ggufMetadata } from './gguf/metadata.js';
import { WRITE_OPTIONS, type WriteOptions, type WrittenFile, writeGguf } from './gguf/writer.js';
import { openCheckpoint } from './open.js';
import { rowsAndColumns, tensorBytes } from './tensor-types.js';
import type { Checkpoint, TensorEntry } from './types.js';

/** Types that a checkpoint's matrices can be converted to. */
export const CONVERSION_TYPES = ['f16', 'q8_0', 'q4_0'] as const;
export type ConversionType = (typeof CONVERSION_TYPES)[number];

export interface ConvertOptions extends WriteOptions {
  /** Of the matrices. */
  type: ConversionType;
  /** What the new file calls the model. Default: as the checkpoint does. */
  name?: string | undefined;
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
 */
export async function convertCheckpoint(
  source: string | Checkpoint,
  target: string,
  options: ConvertOptions,
): Promise<WrittenFile> {
  checkOptions(options, [...WRITE_OPTIONS, 'type', 'name'], 'convertCheckpoint()');
  const type = choiceOption('type', options.type ?? null, CONVERSION_TYPES, 'f16');
  checkPath('target', target);
  throwIfAborted(options.signal);
  const checkpoint = typeof source === 'string' ? await openCheckpoint(source, { signal: options.signal }) : source;
  const { tokenizer, path } = checkpoint;
  const config = { ...checkpoint.config, name: options.name ?? checkpoint.config.name };
  if (tokenizer === undefined) throw invalid(path, 'has no tokenizer, and a GGUF file needs one');
  const native = loadNative();
  const files: CheckpointFile[] = [];
  try {
    for (const file of checkpoint.files) files.push(await CheckpointFile.open(file, options.signal));
    const tensors = checkpoint.tensors.map((entry): Conversion => {
      return { name: entry.name, shape: entry.shape, type: targetType(entry, type), source: entry };
    });
    return await writeGguf(
      target,
      {
        metadata: ggufMetadata(config, tokenizer, type),
        tensors,
        fill: (tensor, write) => convertTensor(tensor, files, native, write),
      },
      options,
    );
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
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
    native.convertRows(source.type, from, scales?.subarray(row, row + count), count, columns, type, to);
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
  native.convertRows(scale.type, bytes, undefined, 1, rows, 'f32', new Uint8Array(scales.buffer));
  return scales;
}

function fileOf(index: number, files: readonly CheckpointFile[]): CheckpointFile {
  const file = files[index];
  if (file === undefined) throw new RangeError(`the checkpoint has no file ${index}`);
  return file;
}
