import type { TensorType } from '../addon/native.js';

interface TypeLayout {
  /** Weights that are stored together. */
  block: number;
  /** Bytes of one block. */
  bytes: number;
  /** GGUF's number, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; THUDM's types have none. */
  ggml?: number;
}

/** How each type lies in a file. A THUDM `int4` byte holds two weights. */
export const TYPE_LAYOUTS: Readonly<Record<TensorType, TypeLayout>> = {
  f32: { block: 1, bytes: 4, ggml: 0 },
  f16: { block: 1, bytes: 2, ggml: 1 },
  q4_0: { block: 32, bytes: 18, ggml: 2 },
  q4_1: { block: 32, bytes: 20, ggml: 3 },
  q5_0: { block: 32, bytes: 22, ggml: 6 },
  q5_1: { block: 32, bytes: 24, ggml: 7 },
  q8_0: { block: 32, bytes: 34, ggml: 8 },
  q4_k: { block: 256, bytes: 144, ggml: 12 },
  q5_k: { block: 256, bytes: 176, ggml: 13 },
  q6_k: { block: 256, bytes: 210, ggml: 14 },
  bf16: { block: 1, bytes: 2, ggml: 30 },
  int8: { block: 1, bytes: 1 },
  int4: { block: 2, bytes: 1 },
};

const BY_GGML = new Map<number, TensorType>(
  (Object.keys(TYPE_LAYOUTS) as TensorType[]).flatMap((type) => {
    const { ggml } = TYPE_LAYOUTS[type];
    return ggml === undefined ? [] : [[ggml, type] as const];
  }),
);

export function typeOfGgml(number: number): TensorType | undefined {
  return BY_GGML.get(number);
}

export type FloatType = 'f32' | 'f16' | 'bf16';

export function isFloatType(type: TensorType): type is FloatType {
  return type === 'f32' || type === 'f16' || type === 'bf16';
}

/** Bytes of `rows` rows of `columns` weights; undefined where rows do not consist of whole blocks. */
export function tensorBytes(type: TensorType, rows: number, columns: number): number | undefined {
  const { block, bytes } = TYPE_LAYOUTS[type];
  if (columns % block !== 0) return undefined;
  return rows * (columns / block) * bytes;
}

/** Product of a shape's dimensions; undefined when one is no positive integer or the product is not exact. */
export function elementCount(shape: readonly number[]): number | undefined {
  let count = 1;
  for (const dimension of shape) {
    if (!Number.isSafeInteger(dimension) || dimension < 1) return undefined;
    count *= dimension;
    if (!Number.isSafeInteger(count)) return undefined;
  }
  return count;
}

/** (rows, columns) of a tensor as it is stored: a vector is one row. */
export function rowsAndColumns(shape: readonly number[]): [rows: number, columns: number] {
  return shape.length === 1 ? [1, shape[0] ?? 0] : [shape[0] ?? 0, shape[1] ?? 0];
}
