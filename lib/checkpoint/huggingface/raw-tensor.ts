/** A tensor as safetensors or torch names and types it. */
export interface RawTensor {
  name: string;
  /** safetensors' names of types, such as `F16`. */
  dtype: string;
  shape: number[];
  /** Where its bytes lie in `file`. */
  file: string;
  offset: number;
  length: number;
}

/** A file of weights, read without them. */
export interface RawTensorFile {
  path: string;
  size: number;
  tensors: RawTensor[];
}

/** Tensors of one file. A model of the most layers that are allowed, quantized by THUDM, has some 11,000. */
export const TENSOR_LIMIT = 16_384;
