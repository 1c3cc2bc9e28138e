import { invalid, invalidTensor, shown } from '../../common/invalid.js';
import { type CheckpointFile, rangeFits } from '../file.js';
import { checkOverlaps } from '../huggingface/safetensors.js';
import { elementCount, rowsAndColumns, tensorBytes, typeOfGgml } from '../tensor-types.js';
import type { TensorEntry } from '../types.js';
import { alignUp, DEFAULT_ALIGNMENT, GGUF_MAGIC, VALUE_BYTES, ValueType } from './format.js';

export type GgufScalar = number | boolean | string;
export type GgufArray = number[] | boolean[] | GgufStrings;
export type GgufValue = GgufScalar | GgufArray;

/** Strings of a metadata array. They stay bytes: pieces of a tokenizer need not be whole characters. */
export class GgufStrings {
  constructor(readonly items: readonly Uint8Array[]) {}
}

export interface GgufHeader {
  metadata: ReadonlyMap<string, GgufValue>;
  /** By name; `data.file` is 0. */
  tensors: ReadonlyMap<string, TensorEntry>;
}

/** A 6B model's header has 2 MB, nearly all of it the tokenizer. */
const HEADER_LIMIT = 256 << 20;
/** The window on the header grows from the first to the second size: small headers should cost little, too. */
const WINDOW_BYTES = [4 << 10, 512 << 10] as const;
const NAME_LIMIT = 4096;
const STRING_LIMIT = 8 << 20;
const ENTRY_LIMIT = 65_536;
const ARRAY_LIMIT = 2 << 20;
/** Names of the types that GGUF knows and this package does not, for messages. */
const OTHER_TYPES: Readonly<Record<number, string>> = {
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
  28: 'F64',
  29: 'IQ1_M',
  34: 'TQ1_0',
  35: 'TQ2_0',
  39: 'MXFP4',
};

/** Reads metadata and tensor table of a GGUF file, versions 2 and 3, little-endian. */
export async function readGgufHeader(file: CheckpointFile): Promise<GgufHeader> {
  const reader = new HeaderReader(file);
  await checkVersion(reader, file);
  const tensorCount = await reader.count('tensors', ENTRY_LIMIT);
  const valueCount = await reader.count('metadata entries', ENTRY_LIMIT);

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < valueCount; i++) {
    const key = (await reader.bytes(NAME_LIMIT)).toString('utf8');
    if (metadata.has(key)) throw invalid(file.path, `has the key ${shown(key)} twice`);
    metadata.set(key, await readValue(reader, key, file));
  }

  const alignment = metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
  if (
    typeof alignment !== 'number' ||
    !(alignment >= 1 && alignment <= 1 << 20) ||
    !Number.isInteger(Math.log2(alignment))
  ) {
    throw invalid(file.path, `general.alignment is ${shown(String(alignment))}; it must be a power of two`);
  }
  const tensors = new Map<string, TensorEntry>();
  for (let i = 0; i < tensorCount; i++) {
    const tensor = await readTensorInfo(reader, alignment, file);
    if (tensors.has(tensor.name)) throw invalidTensor(file.path, tensor.name, 'occurs twice');
    tensors.set(tensor.name, tensor);
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

async function readValue(reader: HeaderReader, key: string, file: CheckpointFile): Promise<GgufValue> {
  const type = await reader.u32();
  if (type === ValueType.string) return (await reader.bytes(STRING_LIMIT)).toString('utf8');
  if (type !== ValueType.array) return readScalar(await reader.take(valueBytes(type, key, file)), 0, type, key, file);

  const itemType = await reader.u32();
  const count = await reader.count(`values of ${shown(key)}`, ARRAY_LIMIT);
  if (itemType === ValueType.string) return new GgufStrings(await reader.strings(count, STRING_LIMIT));
  const itemBytes = valueBytes(itemType, key, file);
  const items: GgufScalar[] = [];
  const bytes = await reader.take(count * itemBytes);
  for (let i = 0; i < count; i++) items.push(readScalar(bytes, i * itemBytes, itemType, key, file));
  return items as number[] | boolean[];
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
  if (type === undefined) throw fail(`has the type ${OTHER_TYPES[number] ?? number}, which is not supported`);
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

  /** Like bytes(), `count` times, waiting only where the window ends: a vocabulary has 65,024 strings. */
  async strings(count: number, limit: number): Promise<Uint8Array[]> {
    const strings: Uint8Array[] = [];
    for (let i = 0; i < count; i++) {
      if (this.at + 8 > this.window.length) await this.fill(8);
      const length = exact(this.window.readBigUInt64LE(this.at), 'the length of a string', this.file);
      this.checkLength(length, limit);
      this.at += 8;
      if (this.at + length > this.window.length) await this.fill(length);
      strings.push(this.window.subarray(this.at, this.at + length));
      this.at += length;
    }
    return strings;
  }

  private checkLength(length: number, limit: number): void {
    if (length > limit) throw invalid(this.file.path, `is damaged: a string in its header would have ${length} bytes`);
  }

  private async fill(length: number): Promise<void> {
    const position = this.position;
    if (length > Math.min(HEADER_LIMIT, this.file.size) - position) {
      throw invalid(this.file.path, 'is damaged or cut short: its header ends too early');
    }
    this.windowBytes = Math.min(2 * this.windowBytes, WINDOW_BYTES[1]);
    const wanted = Math.min(Math.max(length, this.windowBytes), this.file.size - position);
    this.window = await this.file.read(position, wanted);
    this.start = position;
    this.at = 0;
  }
}
