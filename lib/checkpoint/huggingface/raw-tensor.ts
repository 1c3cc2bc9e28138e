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
