import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../lib/checkpoint/open';
import { temporaryDirectory } from './support/checkpoints';
import { type SmallDirectoryOptions, type TensorBytes, writeSmallDirectory } from './support/small-checkpoints';
import { stateDictPickle, torchFile, type ZipRecord, zipFile } from './support/torch-file';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

let count = 0;
/** A directory whose pytorch_model.bin holds the given bytes. */
function withFile(bytes: Uint8Array): string {
  const path = join(directory.path, String(count++));
  const [file = ''] = writeSmallDirectory(path, { container: 'torch' });
  writeFileSync(file, bytes);
  return path;
}

function refusal(bytes: Uint8Array, message: RegExp) {
  return expect(openCheckpoint(withFile(bytes))).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: expect.stringMatching(message),
  });
}

function withPickle(pickle: string | Buffer): Buffer {
  return zipFile([{ name: 'a/data.pkl', data: typeof pickle === 'string' ? Buffer.from(pickle, 'latin1') : pickle }]);
}

function tensorsOf(options: SmallDirectoryOptions = {}): TensorBytes[] {
  let found: TensorBytes[] = [];
  writeSmallDirectory(join(directory.path, 'tensors'), {
    ...options,
    tensors: (tensors) => {
      found = tensors;
      return tensors;
    },
  });
  return found;
}

describe('reads', () => {
  test.each([1, 2])('%i shards', async (shards) => {
    const path = join(directory.path, `shards-${shards}`);
    writeSmallDirectory(path, { container: 'torch', shards });
    const checkpoint = await openCheckpoint(path);
    expect(checkpoint.format).toBe('torch');
    expect(checkpoint.files).toHaveLength(shards);
  });

  test.each([4, 8] as const)('%i-bit rows with scales', async (quantizationBit) => {
    const path = join(directory.path, `bits-${quantizationBit}`);
    writeSmallDirectory(path, { container: 'torch', quantizationBit });
    const { tensors } = await openCheckpoint(path);
    expect(tensors.filter(({ type }) => type === `int${quantizationBit}`)).toHaveLength(4);
  });

  test('the very bytes of each tensor', async () => {
    const tensors = tensorsOf();
    const bytes = torchFile(tensors);
    const opened = await openCheckpoint(withFile(bytes));
    const embedding = tensors.find(({ name }) => name.includes('word_embeddings'));
    const range = opened.tensors.find(({ name }) => name === 'token_embd.weight')?.data ?? { offset: 0, length: 0 };
    expect(bytes.subarray(range.offset, range.offset + range.length)).toEqual(embedding?.data);
  });
});

describe('a pickle', () => {
  test.each([
    ['os.system', 'cos\nsystem\nX\x04\0\0\0true\x85R.'],
    ['builtins.eval', 'cbuiltins\neval\n(X\x03\0\0\x001+1tR.'],
    ['builtins.getattr by STACK_GLOBAL', '\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.'],
    ['numpy.core.multiarray._reconstruct', 'cnumpy.core.multiarray\n_reconstruct\n)R.'],
  ])('that wants %s is refused by name', async (name, pickle) => {
    const global = name.split(' ')[0] ?? '';
    await refusal(withPickle(pickle), new RegExp(`pickle wants ${global.replaceAll('.', '\\.')}`));
    await expect(openCheckpoint(withFile(withPickle(pickle)))).rejects.toMatchObject({ details: { global } });
  });

  test.each([
    ['a call of a string', 'X\x01\0\0\0a)R.'],
    ['an unknown opcode (INST)', '(ios\nsystem\n.'],
    ['an empty stack', '.'],
    ['a missing mark', 't.'],
    ['a memo entry that is not there', 'h\x07.'],
    ['no dict', 'K\x01.'],
    ['no end', '}'],
    ['an endless name', 'c'.repeat(10)],
    ['a string longer than itself', 'X\xff\xff\xff\x7fabc.'],
    ['a huge integer', '\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f.'],
    ['a dict in itself as a tensor', '}q\0X\x01\0\0\0ah\0s.'],
    ['protocol 0', '\x80\0}.'],
  ])('with %s is refused', async (_, pickle) => {
    await refusal(withPickle(pickle), /pickle|tensor/);
  });

  test.each([
    ['marks', Buffer.alloc(3 << 20, '(')],
    ['nested tuples', Buffer.concat([Buffer.from(')'), Buffer.alloc(3 << 20, 0x85), Buffer.from('.')])],
    ['values', Buffer.alloc(3 << 20, 'N')],
    ['memo entries', Buffer.concat([Buffer.from('}'), ...Array.from({ length: 200_000 }, longPut), Buffer.from('.')])],
  ])('of millions of %s is refused, quickly', async (_, pickle) => {
    const begin = performance.now();
    await refusal(withPickle(pickle), /pickle|no dict/);
    expect(performance.now() - begin).toBeLessThan(5000);
  });

  test('larger than any sensible one is not even read', async () => {
    await refusal(withPickle(Buffer.alloc(5 << 20)), /wild size/);
  });

  function longPut(_: unknown, i: number): Buffer {
    const bytes = Buffer.from('r\0\0\0\0');
    bytes.writeUInt32LE(i, 1);
    return bytes;
  }
});

describe('a tensor', () => {
  /** A file of one tensor whose pickle is changed. */
  function changed(change: (pickle: Buffer) => void): Buffer {
    const tensor = { name: 'transformer.x', dtype: 'F16', shape: [4, 8], data: new Uint8Array(64) };
    const pickle = stateDictPickle([tensor]);
    change(pickle);
    return zipFile([
      { name: 'a/data.pkl', data: pickle },
      { name: 'a/data/0', data: tensor.data },
    ]);
  }
  /** Overwrites the i-th 32-bit integer of the pickle: the storage's length, the offset, the shape, the strides. */
  function setInteger(pickle: Buffer, index: number, value: number): void {
    let at = pickle.indexOf('ctorch\nHalfStorage');
    for (let i = 0; i <= index; i++) at = pickle.indexOf('J', at + 1);
    pickle.writeInt32LE(value, at + 1);
  }

  test.each([
    ['a storage longer than its record', 0, 33, /storage of 64 bytes/],
    ['an offset past its storage', 1, 1, /outside of its storage/],
    ['a negative offset', 1, -1, /outside of its storage/],
    ['a negative size', 2, -4, /has the shape \(-4, 8\)/],
    ['a size of 0', 2, 0, /has the shape \(0, 8\)/],
    ['more rows than its storage', 2, 5, /outside of its storage/],
    ['swapped strides', 4, 1, /not contiguous/],
    ['a stride of 0', 5, 0, /not contiguous/],
  ])('with %s is refused', async (_, index, value, message) => {
    await refusal(
      changed((pickle) => setInteger(pickle, index, value)),
      message,
    );
  });

  test('of an unknown storage is refused', async () => {
    await refusal(
      changed((pickle) => pickle.write('Hxlf', pickle.indexOf('HalfStorage'))),
      /torch\.HxlfStorage/,
    );
  });

  test('that occurs twice is refused', async () => {
    const tensors = tensorsOf();
    await refusal(torchFile([...tensors, ...tensors.slice(0, 1)]), /occurs twice/);
  });
});

describe('a zip file', () => {
  const records = (): ZipRecord[] => [{ name: 'a/data.pkl', data: Buffer.from('\x80\x02}.', 'latin1') }];

  test('that is compressed is refused', async () => {
    await refusal(zipFile([{ ...(records()[0] as ZipRecord), method: 8 }]), /compressed \(method 8\)/);
  });

  test('with a name twice is refused', async () => {
    await refusal(zipFile([...records(), ...records()]), /holds a\/data\.pkl twice/);
  });

  test('with two pickles, or none, is refused', async () => {
    await refusal(zipFile([...records(), { name: 'b/data.pkl', data: Buffer.from('.') }]), /no data\.pkl/);
    await refusal(zipFile([{ name: 'a/x', data: Buffer.from('.') }]), /no data\.pkl/);
  });

  test('whose headers disagree is refused', async () => {
    const bytes = zipFile(records());
    bytes.write('b', bytes.indexOf('a/data.pkl'));
    await refusal(bytes, /not where the zip directory says/);
  });

  test('of big-endian numbers is refused', async () => {
    await refusal(zipFile([...records(), { name: 'a/byteorder', data: Buffer.from('big') }]), /byte order "big"/);
  });

  test('of a TorchScript program is refused', async () => {
    await refusal(zipFile([...records(), { name: 'a/constants.pkl', data: Buffer.from('.') }]), /TorchScript/);
  });
});

test('the format of torch before 1.6 is named', async () => {
  await refusal(Buffer.from('\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', 'latin1'), /torch before 1\.6/);
});
