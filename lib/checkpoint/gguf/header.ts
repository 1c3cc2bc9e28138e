import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';
import { type CheckpointFile, rangeFits } from '../file.js';
import { TENSOR_LIMIT } from '../huggingface/raw-tensor.js';
import { checkOverlaps } from '../overlaps.js';
import { elementCount, rowsAndColumns, TYPE_LAYOUTS, tensorBytes, typeOfGgml } from '../tensor-types.js';
import type { TensorEntry } from '../types.js';
import { GgufStrings, LENGTH_BYTES } from './arrays.js';
import { alignUp, DEFAULT_ALIGNMENT, GGUF_MAGIC, VALUE_BYTES, ValueType } from './format.js';

export type GgufScalar = number | boolean | string;
/** A short array as plain values; one of many strings or numbers, of those that were asked for, in one piece. */
export type GgufValue = GgufScalar | readonly GgufScalar[] | GgufStrings | Float64Array;

export interface GgufHeader {
  /** Without the long arrays that nobody asked for. */
  metadata: ReadonlyMap<string, GgufValue>;
  /** By name; `data.file` is 0. */
  tensors: ReadonlyMap<string, TensorEntry>;
}

/** A 6B model's header has 2 MB, nearly all of it the tokenizer. */
const HEADER_LIMIT = 256 << 20;
/** The window on the header grows from the first to the second size: small headers should cost little, too. */
const WINDOW_BYTES = [4 << 10, 256 << 10] as const;
const NAME_LIMIT = 4096;
/** Bytes of a string; a chat template, the longest, has some 10 kB. */
const STRING_LIMIT = 1 << 20;
/** Bytes of all values that are kept together, the arrays that were asked for not counted. */
const KEPT_LIMIT = 4 << 20;
/** Bytes of the texts of a vocabulary; ChatGLM's have 1.2 MB. */
const VOCABULARY_LIMIT = 32 << 20;
/** llama.cpp's converter writes some 30 entries. */
const ENTRY_LIMIT = 4096;
/** Of all arrays of a file together: texts, scores and types of the largest vocabulary, and its merges. */
const ITEM_LIMIT = 4 << 20;
/** Longer arrays are kept only where they are asked for. */
const SHORT_ARRAY = 64;
/** Items between two looks at the clock. */
const ITEMS_PER_YIELD = 4096;
/** Names of the types that GGUF knows and this package does not, for messages. */
const OTHER_TYPES: Readonly<Record<number, string>> = {
  9: 'Q8_1',
  10: 'Q2_K',
  11: 'Q3_K',
  15: 'Q8_K',
  16: 'IQ2_XXS',
  17: 'IQ2_XS',
  18: 'IQ3_XXS',
  19: 'IQ1_S',
  20: 'IQ4_NL',
  21: 'IQ3_S',
  22: 'IQ2_S',
  23: 'IQ4_XS',
  24: 'I8',
  25: 'I16',
  26: 'I32',
  27: 'I64',
  28: 'F64',
  29: 'IQ1_M',
  31: 'Q4_0_4_4',
  32: 'Q4_0_4_8',
  33: 'Q4_0_8_8',
  34: 'TQ1_0',
  35: 'TQ2_0',
  39: 'MXFP4',
};
/** What to do with a file of another type. */
const READ_TYPES = Object.entries(TYPE_LAYOUTS)
  .filter(([, { ggml }]) => ggml !== undefined)
  .map(([type]) => type.toUpperCase())
  .join(', ');
const TYPE_HINT = `read are ${READ_TYPES}; open the f16 original, or a file that llama-quantize made of it as Q8_0 or Q4_0`;

/**
 * Reads metadata and tensor table of a GGUF file, versions 2 and 3, little-endian. Of long arrays only the `wanted` ones
 * are kept; the others are passed over.
 */
export async function readGgufHeader(file: CheckpointFile, wanted: readonly string[]): Promise<GgufHeader> {
  const reader = new HeaderReader(file);
  await checkVersion(reader, file);
  const tensorCount = await reader.count('tensors', TENSOR_LIMIT);
  const valueCount = await reader.count('metadata entries', ENTRY_LIMIT);

  const metadata = new Map<string, GgufValue>();
  const keys = new Set<string>();
  for (let i = 0; i < valueCount; i++) {
    const key = (await reader.bytes(NAME_LIMIT)).toString('utf8');
    if (keys.has(key)) throw invalid(file.path, `has the key ${shown(key)} twice`);
    keys.add(key);
    const value = await readValue(reader, key, wanted.includes(key), file);
    if (value !== undefined) metadata.set(key, value);
    if (file.pace.isOver) await file.pace.rest();
  }

  const alignment = metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (
    typeof alignment !== 'number' ||
    !(alignment >= 1 && alignment <= 1 << 20) ||
    !Number.isInteger(Math.log2(alignment))
  ) {
    throw invalid(file.path, `general.alignment is ${shown(alignment)}; it must be a power of two`);
  }
  const tensors = new Map<string, TensorEntry>();
  for (let i = 0; i < tensorCount; i++) {
    const tensor = await readTensorInfo(reader, alignment, file);
    if (tensors.has(tensor.name)) throw invalidTensor(file.path, tensor.name, 'occurs twice');
    tensors.set(tensor.name, tensor);
    if (file.pace.isOver) await file.pace.rest();
  }

  const dataStart = alignUp(reader.position, alignment);
  for (const { name, data } of tensors.values()) {
    data.offset += dataStart;
    if (!rangeFits(data.offset, data.length, file.size)) {
      throw invalidTensor(file.path, name, 'lies outside of the file, which may be cut short');
    }
  }
  checkOverlaps([...tensors.values()].map(({ name, data }) => ({ ...data, name, file: file.path })));
  return { metadata, tensors };
}

async function checkVersion(reader: HeaderReader, file: CheckpointFile): Promise<void> {
  if ((await reader.take(4)).toString('latin1') !== GGUF_MAGIC) throw invalid(file.path, 'is no GGUF file');
  const version = await reader.u32();
  if (version === 1) throw invalid(file.path, 'is of GGUF version 1, which is not supported; convert the model anew');
  if (version === 0x02000000 || version === 0x03000000) throw invalid(file.path, 'is a big-endian GGUF file');
  if (version !== 2 && version !== 3) throw invalid(file.path, `is of GGUF version ${version}; 2 and 3 are known`);
}

/** Undefined for a long array that nobody wants. */
async function readValue(
  reader: HeaderReader,
  key: string,
  isWanted: boolean,
  file: CheckpointFile,
): Promise<GgufValue | undefined> {
  const type = await reader.u32();
  if (type === ValueType.string) {
    const bytes = await reader.bytes(STRING_LIMIT);
    reader.keep(bytes.length);
    return bytes.toString('utf8');
  }
  if (type !== ValueType.array) return readScalar(await reader.take(valueBytes(type, key, file)), 0, type, key, file);

  const itemType = await reader.u32();
  const count = await reader.items(key);
  const isShort = count <= SHORT_ARRAY;
  if (itemType === ValueType.string) {
    if (!isWanted && !isShort) {
      await reader.skipStrings(count, STRING_LIMIT);
      return undefined;
    }
    const strings = await reader.strings(count, STRING_LIMIT, isWanted);
    return isWanted ? strings : Array.from({ length: count }, (_, i) => strings.at(i).toString('utf8'));
  }
  const itemBytes = valueBytes(itemType, key, file);
  if (!isWanted && !isShort) {
    await reader.skip(count * itemBytes);
    return undefined;
  }
  const bytes = await reader.take(count * itemBytes);
  if (!isWanted || itemType === ValueType.bool) {
    return Array.from({ length: isShort ? count : 0 }, (_, i) => readScalar(bytes, i * itemBytes, itemType, key, file));
  }
  return file.inTurns(readNumbers(bytes, itemBytes, itemType, key, file));
}

function* readNumbers(
  bytes: Buffer,
  itemBytes: number,
  type: number,
  key: string,
  file: CheckpointFile,
): Work<Float64Array> {
  const numbers = new Float64Array(bytes.length / itemBytes);
  for (let i = 0; i < numbers.length; i++) {
    if (i % ITEMS_PER_YIELD === 0) yield;
    numbers[i] = Number(readScalar(bytes, i * itemBytes, type, key, file));
  }
  return numbers;
}

function valueBytes(type: number, key: string, file: CheckpointFile): number {
  const bytes = VALUE_BYTES.get(type);
  if (bytes === undefined) throw invalid(file.path, `is damaged: ${shown(key)} has the unknown type ${type}`);
  return bytes;
}

function readScalar(bytes: Buffer, at: number, type: number, key: string, file: CheckpointFile): number | boolean {
  switch (type) {
    case ValueType.u8:
      return bytes.readUInt8(at);
    case ValueType.i8:
      return bytes.readInt8(at);
    case ValueType.u16:
      return bytes.readUInt16LE(at);
    case ValueType.i16:
      return bytes.readInt16LE(at);
    case ValueType.u32:
      return bytes.readUInt32LE(at);
    case ValueType.i32:
      return bytes.readInt32LE(at);
    case ValueType.f32:
      return bytes.readFloatLE(at);
    case ValueType.f64:
      return bytes.readDoubleLE(at);
    case ValueType.bool: {
      const value = bytes.readUInt8(at);
      if (value > 1) throw invalid(file.path, `is damaged: the boolean ${shown(key)} is ${value}`);
      return value === 1;
    }
    case ValueType.u64:
      return exact(bytes.readBigUInt64LE(at), key, file);
    default:
      return exact(bytes.readBigInt64LE(at), key, file);
  }
}

function exact(value: bigint, what: string, file: CheckpointFile): number {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw invalid(file.path, `is damaged: ${shown(what)} is ${value}`);
  return number;
}

async function readTensorInfo(reader: HeaderReader, alignment: number, file: CheckpointFile): Promise<TensorEntry> {
  const name = (await reader.bytes(NAME_LIMIT)).toString('utf8');
  const fail = (problem: string) => invalidTensor(file.path, name, problem);
  const dimensions = await reader.u32();
  if (dimensions !== 1 && dimensions !== 2) throw fail(`has ${dimensions} dimensions`);
  const shape: number[] = [];
  // GGUF lists the fastest dimension first.
  for (let i = 0; i < dimensions; i++) shape.unshift(await reader.u64('a dimension'));
  const elements = elementCount(shape);
  if (elements === undefined) throw fail(`has the shape ${shape.join(' x ')}`);
  const number = await reader.u32();
  const type = typeOfGgml(number);
  if (type === undefined) {
    throw fail(`has the type ${OTHER_TYPES[number] ?? number}, which is not supported; ${TYPE_HINT}`);
  }
  const offset = await reader.u64('an offset');
  if (offset % alignment !== 0) throw fail(`begins at ${offset}, which is no multiple of ${alignment}`);
  const length = tensorBytes(type, ...rowsAndColumns(shape));
  if (length === undefined) throw fail(`has rows of ${shape.at(-1)} weights, which are no whole blocks of ${type}`);
  if (!rangeFits(offset, length, file.size)) throw fail('lies outside of the file, which may be cut short');
  return { name, type, shape, data: { file: 0, offset, length } };
}

/** Walks through the header with a window on the file, so that no length field can make it read more than the file has. */
class HeaderReader {
  private window: Buffer = Buffer.alloc(0);
  /** Where the window begins in the file. */
  private start = 0;
  private at = 0;
  private windowBytes: number = WINDOW_BYTES[0];
  /** Of all arrays so far. */
  private itemCount = 0;
  /** Of all values so far that are kept. */
  private keptBytes = 0;

  constructor(private readonly file: CheckpointFile) {}

  get position(): number {
    return this.start + this.at;
  }

  async take(length: number): Promise<Buffer> {
    if (this.at + length > this.window.length) await this.fill(length);
    this.at += length;
    return this.window.subarray(this.at - length, this.at);
  }

  async u32(): Promise<number> {
    return (await this.take(4)).readUInt32LE(0);
  }

  async u64(what: string): Promise<number> {
    return exact((await this.take(8)).readBigUInt64LE(0), what, this.file);
  }

  /** The length of a list. Every item takes at least a byte. */
  async count(what: string, limit: number): Promise<number> {
    const count = await this.u64(`the number of ${what}`);
    if (count > Math.min(limit, this.file.size))
      throw invalid(this.file.path, `is damaged: it would have ${count} ${what}`);
    return count;
  }

  /** The bytes of a string. */
  async bytes(limit: number): Promise<Buffer> {
    const length = await this.u64('the length of a string');
    this.checkLength(length, limit);
    return this.take(length);
  }

  /** The length of an array, which counts towards what a file may have of items. */
  async items(key: string): Promise<number> {
    const count = await this.count(`values of ${shown(key)}`, ITEM_LIMIT);
    this.itemCount += count;
    if (this.itemCount > ITEM_LIMIT) {
      throw invalid(this.file.path, `is damaged: its arrays would have more than ${ITEM_LIMIT} items`);
    }
    return count;
  }

  /** Counts bytes of a value that is kept. */
  keep(bytes: number): void {
    this.keptBytes += bytes;
    if (this.keptBytes > KEPT_LIMIT) {
      throw invalid(this.file.path, `is damaged: its metadata would have more than ${KEPT_LIMIT} bytes`);
    }
  }

  /** The strings of an array. They are passed over first, and then read in one piece. */
  async strings(count: number, limit: number, isWanted: boolean): Promise<GgufStrings> {
    if (count * LENGTH_BYTES > this.file.size - this.position) throw this.endsTooEarly();
    const offsets = new Uint32Array(count + 1);
    const begin = this.position;
    await this.skipStrings(count, limit, offsets);
    const length = this.position - begin;
    if (!isWanted) this.keep(length);
    if (length > VOCABULARY_LIMIT)
      throw invalid(this.file.path, `is damaged: its vocabulary would have ${length} bytes`);
    return new GgufStrings(await this.file.read(begin, length), offsets);
  }

  /** Passes over strings, waiting only where the window ends: a vocabulary has 65,024. Fills in where each begins. */
  async skipStrings(count: number, limit: number, offsets?: Uint32Array): Promise<void> {
    const begin = this.position;
    for (let i = 0; i < count; i++) {
      if (this.at + LENGTH_BYTES > this.window.length) await this.fill(LENGTH_BYTES);
      const low = this.window.readUInt32LE(this.at);
      const high = this.window.readUInt32LE(this.at + 4);
      const length = high * 2 ** 32 + low;
      this.checkLength(length, limit);
      this.at += LENGTH_BYTES;
      if (this.at + length > this.window.length) await this.skip(length);
      else this.at += length;
      if (offsets !== undefined) offsets[i + 1] = this.position - begin;
    }
  }

  /** Passes over bytes without reading those that do not lie in the window. */
  async skip(length: number): Promise<void> {
    this.checkEnd(length);
    if (this.at + length <= this.window.length) {
      this.at += length;
      return;
    }
    this.start = this.position + length;
    this.at = 0;
    this.window = Buffer.alloc(0);
  }

  private checkLength(length: number, limit: number): void {
    if (length > limit) throw invalid(this.file.path, `is damaged: a string in its header would have ${length} bytes`);
  }

  private async fill(length: number): Promise<void> {
    const position = this.position;
    this.checkEnd(length);
    this.windowBytes = Math.min(2 * this.windowBytes, WINDOW_BYTES[1]);
    const wanted = Math.min(Math.max(length, this.windowBytes), this.file.size - position);
    this.window = await this.file.read(position, wanted);
    this.start = position;
    this.at = 0;
  }

  private checkEnd(length: number): void {
    if (length > Math.min(HEADER_LIMIT, this.file.size) - this.position) throw this.endsTooEarly();
  }

  private endsTooEarly() {
    return invalid(this.file.path, 'is damaged or cut short: its header ends too early');
  }
}
