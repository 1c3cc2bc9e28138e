/** Constants of GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md */
export const GGUF_MAGIC = 'GGUF';
export const GGUF_VERSION = 3;
export const DEFAULT_ALIGNMENT = 32;

/** Types of metadata values. */
export const ValueType = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;

/** Bytes of each fixed-size value type. */
export const VALUE_BYTES: ReadonlyMap<number, number> = new Map([
  [ValueType.u8, 1],
  [ValueType.i8, 1],
  [ValueType.u16, 2],
  [ValueType.i16, 2],
  [ValueType.u32, 4],
  [ValueType.i32, 4],
  [ValueType.f32, 4],
  [ValueType.bool, 1],
  [ValueType.u64, 8],
  [ValueType.i64, 8],
  [ValueType.f64, 8],
]);

export function alignUp(offset: number, alignment: number): number {
  return Math.ceil(offset / alignment) * alignment;
}
