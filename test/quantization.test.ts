import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from 'node-chatglm';
import { referenceCheckpoint, referenceExpectation, temporaryDirectory } from './support/checkpoints';
import { loadModel } from './support/device';

const name = 'chatglm3-32k-f16';
const { input_ids: ids } = referenceExpectation(name);

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

const halves = Float64Array.from({ length: 65_536 }, (_, half) => {
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return half & 0x8000 ? -magnitude : magnitude;
});

function halfToFloat(half: number): number {
  return halves[half] as number;
}

/** To the nearest float16, ties to even: the bits. */
function floatToHalf(value: number): number {
  float[0] = value;
  const sign = ((bits[0] as number) >>> 16) & 0x8000;
  const magnitude = Math.abs(value);
  if (magnitude === 0) return sign;
  const exponent = Math.max(-14, (((bits[0] as number) >>> 23) & 255) - 127);
  const steps = roundHalfToEven(magnitude / 2 ** (exponent - 10));
  return sign + (exponent + 14) * 1024 + steps;
}

function roundHalfToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** THUDM's quantization.py on one float16 matrix, in the arithmetic of float16. */
function quantize(half: Uint16Array, rows: number, columns: number, bitsPerWeight: 4 | 8) {
  const largestCode = 2 ** (bitsPerWeight - 1) - 1;
  const scales = new Uint16Array(rows);
  const codes = new Int8Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const weights = Array.from(half.subarray(row * columns, (row + 1) * columns), halfToFloat);
    const largest = weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0);
    const scale = floatToHalf(largest / largestCode);
    scales[row] = scale;
    weights.forEach((weight, column) => {
      codes[row * columns + column] = roundSigned(halfToFloat(floatToHalf(weight / halfToFloat(scale))));
    });
  }
  if (bitsPerWeight === 8) return { codes, columns, scales };
  const packed = new Int8Array(codes.length / 2);
  for (let i = 0; i < packed.length; i++) {
    packed[i] = ((codes[2 * i] as number) << 4) | ((codes[2 * i + 1] as number) & 15);
  }
  return { codes: packed, columns: columns / 2, scales };
}

function roundSigned(value: number): number {
  return value < 0 ? -roundHalfToEven(-value) : roundHalfToEven(value);
}

/** THUDM's name of a tensor. */
function thudmName(ggufName: string): string {
  const parts: [RegExp, string][] = [
    [/^token_embd/, 'embedding.word_embeddings'],
    [/^output_norm/, 'encoder.final_layernorm'],
    [/^output/, 'output_layer'],
    [/^blk\.(\d+)/, 'encoder.layers.$1'],
    [/attn_norm/, 'input_layernorm'],
    [/attn_qkv/, 'self_attention.query_key_value'],
    [/attn_output/, 'self_attention.dense'],
    [/ffn_norm/, 'post_attention_layernorm'],
    [/ffn_up/, 'mlp.dense_h_to_4h'],
    [/ffn_down/, 'mlp.dense_4h_to_h'],
  ];
  return `transformer.${parts.reduce((text, [pattern, replacement]) => text.replace(pattern, replacement), ggufName)}`;
}

/** Writes the checkpoint as THUDM publishes quantized ones. */
async function writeQuantized(directory: string, bitsPerWeight: 4 | 8): Promise<void> {
  const source = referenceCheckpoint(name);
  const config = JSON.parse(readFileSync(join(source, 'config.json'), 'utf8')) as object;
  writeFileSync(join(directory, 'config.json'), JSON.stringify({ ...config, quantization_bit: bitsPerWeight }));
  const { tensors, files } = await openCheckpoint(source);
  const header: Record<string, { dtype: string; shape: readonly number[]; data_offsets: number[] }> = {};
  const parts: Uint8Array[] = [];
  let offset = 0;
  const add = (tensor: string, dtype: string, shape: readonly number[], data: Int8Array | Uint16Array) => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    header[tensor] = { dtype, shape, data_offsets: [offset, offset + bytes.length] };
    parts.push(bytes);
    offset += bytes.length;
  };
  for (const { name: tensor, shape, data } of tensors) {
    const file = readFileSync(files[data.file] as string);
    const half = new Uint16Array(Uint8Array.from(file.subarray(data.offset, data.offset + data.length)).buffer);
    if (/(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$/.test(tensor)) {
      const [rows, columns] = shape as [number, number];
      const result = quantize(half, rows, columns, bitsPerWeight);
      add(thudmName(tensor), 'I8', [rows, result.columns], result.codes);
      add(`${thudmName(tensor)}_scale`, 'F16', [rows], result.scales);
    } else {
      add(thudmName(tensor), 'F16', shape, half);
    }
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(join(directory, 'model.safetensors'), Buffer.concat([length, json, ...parts]));
}

test.each([
  ['int8', 8, 'q8_0'],
  ['int4', 4, 'q4_0'],
] as const)(
  "quantization: '%s' computes what THUDM's quantized checkpoint does",
  async (quantization, bitCount, type) => {
    const directory = temporaryDirectory();
    await writeQuantized(directory.path, bitCount);
    const published = await loadModel(directory.path);
    const original = await loadModel(referenceCheckpoint(name));
    const quantized = await loadModel(referenceCheckpoint(name), { quantization });
    try {
      expect(quantized.info.weightTypes).toEqual(published.info.weightTypes);
      expect(Object.keys(quantized.info.weightTypes).sort()).toEqual(['f16', 'f32', type].sort());
      const logits = await quantized.logits(ids);
      expect(logits).toEqual(await published.logits(ids));
      expect(logits).not.toEqual(await original.logits(ids));
    } finally {
      for (const model of [published, original, quantized]) await model.dispose();
      directory.remove();
    }
  },
);
