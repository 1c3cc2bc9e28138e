import { crc32 } from 'node:zlib';
import type { TensorBytes } from './small-checkpoints';

/** One record of a zip file. */
export interface ZipRecord {
  name: string;
  data: Uint8Array;
  /** Default: 0, stored. */
  method?: number;
}

const STORAGES: Readonly<Record<string, string>> = {
  F32: 'FloatStorage',
  F16: 'HalfStorage',
  BF16: 'BFloat16Storage',
  I8: 'CharStorage',
  U8: 'ByteStorage',
};

const BYTES: Readonly<Record<string, number>> = { F32: 4, F16: 2, BF16: 2, I8: 1, U8: 1 };

/** What torch.save would write for the tensors. */
export function torchFile(tensors: readonly TensorBytes[], root = 'archive'): Buffer {
  return zipFile([
    { name: `${root}/data.pkl`, data: stateDictPickle(tensors) },
    { name: `${root}/byteorder`, data: Buffer.from('little') },
    ...tensors.map(({ data }, i) => ({ name: `${root}/data/${i}`, data })),
    { name: `${root}/version`, data: Buffer.from('3\n') },
  ]);
}

/** A zip file of records as they are, each beginning at a multiple of 64 bytes, as torch lays them out. */
export function zipFile(records: readonly ZipRecord[]): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, method = 0 } of records) {
    const nameBytes = Buffer.from(name);
    const padding = Buffer.alloc((64 - ((offset + 34 + nameBytes.length) % 64)) % 64);
    const extra = Buffer.concat([Buffer.from('FB'), u16(padding.length), padding]);
    const common = [u16(0), u16(0), u16(method), u16(0), u16(0), u32(crc32(data)), u32(data.length), u32(data.length)];
    const names = [u16(nameBytes.length), u16(extra.length), nameBytes, extra];
    parts.push(Buffer.concat([Buffer.from('PK\x03\x04'), ...common, ...names, data]));
    directory.push(
      Buffer.concat([
        Buffer.from('PK\x01\x02'),
        u16(0), // unlike a local header, an entry says who made it
        ...common,
        u16(nameBytes.length),
        ...Array.from({ length: 4 }, () => u16(0)),
        u32(0),
        u32(offset),
        nameBytes,
      ]),
    );
    offset += parts.at(-1)?.length ?? 0;
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  const count = u16(records.length);
  const end = Buffer.concat([Buffer.from('PK\x05\x06'), u32(0), count, count, u32(size), u32(offset), u16(0)]);
  return Buffer.concat([...parts, ...directory, end]);
}

/** The pickle of an OrderedDict of tensors, with the opcodes that torch's pickler uses. */
export function stateDictPickle(tensors: readonly TensorBytes[]): Buffer {
  let memo = 0;
  const put = () => Buffer.from([0x71, memo++ & 0xff]);
  const text = (value: string) =>
    Buffer.concat([Buffer.from('X'), u32(Buffer.byteLength(value)), Buffer.from(value), put()]);
  const global = (name: string) => Buffer.concat([Buffer.from(`c${name}\n`), put()]);
  const integer = (value: number) => Buffer.concat([Buffer.from('J'), u32(value)]);
  const tuple = (items: Buffer[]) => Buffer.concat([Buffer.from('('), ...items, Buffer.from('t'), put()]);
  const dict = Buffer.concat([global('collections\nOrderedDict'), Buffer.from(')R'), put()]);

  const entries = tensors.map(({ name, dtype, shape }, i) => {
    const elements = shape.reduce((product, size) => product * size, 1);
    const strides = shape.map((_, at) => shape.slice(at + 1).reduce((product, size) => product * size, 1));
    const storage = tuple([
      text('storage'),
      global(`torch\n${STORAGES[dtype] ?? dtype}`),
      text(String(i)),
      text('cpu'),
      integer(elements),
    ]);
    return Buffer.concat([
      text(name),
      global('torch._utils\n_rebuild_tensor_v2'),
      tuple([
        storage,
        Buffer.from('Q'),
        integer(0),
        tuple(shape.map(integer)),
        tuple(strides.map(integer)),
        Buffer.from([0x89]),
        dict,
      ]),
      Buffer.from('R'),
      put(),
    ]);
  });
  const metadata = Buffer.concat([Buffer.from('}'), put(), text('_metadata'), dict, Buffer.from('sb')]);
  return Buffer.concat([
    Buffer.from([0x80, 2]),
    dict,
    Buffer.from('('),
    ...entries,
    Buffer.from('u'),
    metadata,
    Buffer.from('.'),
  ]);
}

/** Bytes that a dtype's number takes. */
export function dtypeBytes(dtype: string): number {
  return BYTES[dtype] ?? 0;
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16LE(value);
  return bytes;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}
