import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { withFile } from '../lib/checkpoint/file';
import { readSafetensors } from '../lib/checkpoint/huggingface/safetensors';
import { openCheckpoint } from '../lib/checkpoint/open';
import { temporaryDirectory } from './support/checkpoints';
import { safetensorsBytes, writeSmallDirectory } from './support/small-checkpoints';

const directory = temporaryDirectory();
afterAll(() => directory.remove());

function refusal(bytes: Uint8Array, message: RegExp) {
  const path = join(directory.path, 'x.safetensors');
  writeFileSync(path, bytes);
  return expect(withFile(path, undefined, readSafetensors)).rejects.toMatchObject({
    code: 'ERR_CHECKPOINT_INVALID',
    message: expect.stringMatching(message),
  });
}

const tensor = { dtype: 'F16', shape: [2, 4], data_offsets: [0, 16] };
const data = new Uint8Array(32);

test('lists names, types, shapes and places', async () => {
  const path = join(directory.path, 'good.safetensors');
  const header = { __metadata__: { format: 'pt' }, a: tensor, b: { dtype: 'I8', shape: [16], data_offsets: [16, 32] } };
  writeFileSync(path, safetensorsBytes(header, data));
  const start = 8 + JSON.stringify(header).length;
  const { tensors, size } = await withFile(path, undefined, readSafetensors);
  expect(size).toBe(start + 32);
  expect(tensors).toEqual([
    { name: 'a', dtype: 'F16', shape: [2, 4], file: path, offset: start, length: 16 },
    { name: 'b', dtype: 'I8', shape: [16], file: path, offset: start + 16, length: 16 },
  ]);
});

test.each([1, 3])('%i shards', async (shards) => {
  const path = join(directory.path, `shards-${shards}`);
  writeSmallDirectory(path, { shards });
  expect((await openCheckpoint(path)).files).toHaveLength(shards);
});

test.each<[string, unknown, RegExp]>([
  ['overlaps', { a: tensor, b: { ...tensor, data_offsets: [8, 24] } }, /b overlaps a/],
  ['is twice in the JSON', `{"a":${JSON.stringify(tensor)},"a":${JSON.stringify(tensor)}}`, /key "a" twice/],
  ['is twice, once escaped', `{"a":${JSON.stringify(tensor)},"\\u0061":${JSON.stringify(tensor)}}`, /key "a" twice/],
  ['has a field twice', '{"a":{"dtype":"F16","dtype":"F32","shape":[8],"data_offsets":[0,16]}}', /"dtype" twice/],
  ['has a negative dimension', { a: { ...tensor, shape: [-2, -4] } }, /shape \[-2, -4\]/],
  ['has half a dimension', { a: { ...tensor, shape: [2.5, 4] } }, /shape \[2\.5, 4\]/],
  ['overflows', { a: { ...tensor, shape: [2 ** 40, 2 ** 40] } }, /has the shape/],
  ['has no shape', { a: { ...tensor, shape: 'x' } }, /no valid shape/],
  ['has a shape of strings', { a: { ...tensor, shape: ['2', 4] } }, /no valid shape/],
  ['has too few bytes', { a: { ...tensor, data_offsets: [0, 14] } }, /14 bytes.*ask for 16/],
  ['ends before it begins', { a: { ...tensor, data_offsets: [16, 0] } }, /data_offsets/],
  ['begins before the data', { a: { ...tensor, data_offsets: [-16, 0] } }, /data_offsets/],
  ['ends past the file', { a: { ...tensor, data_offsets: [24, 40] } }, /outside of the file/],
  ['has huge offsets', { a: { ...tensor, data_offsets: [1e300, 1e300] } }, /data_offsets/],
  ['has an unknown dtype', { a: { ...tensor, dtype: 'F4' } }, /unknown dtype F4/],
  ['is no object', { a: 1 }, /no object/],
])('a tensor that %s is refused', async (_, header, message) => {
  await refusal(safetensorsBytes(header, data), message);
});

test('a header of another size than the file has is refused', async () => {
  const bytes = safetensorsBytes({ a: tensor }, data);
  for (const length of [0n, 1n, 1_000_000n, 2n ** 62n, 2n ** 64n - 1n]) {
    bytes.writeBigUInt64LE(length);
    await refusal(bytes, /header/);
  }
  await refusal(Buffer.alloc(0), /0 bytes/);
});

test('a header that nests deep is refused, not a stack overflow', async () => {
  await refusal(
    safetensorsBytes(`{"a":${'['.repeat(200_000)}${']'.repeat(200_000)}}`, data),
    /its header nests deeper than 64/,
  );
});
