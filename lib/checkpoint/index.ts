export { specialTokens } from '../families/special-tokens.js';
export { CONVERSION_TYPES, type ConversionType, type ConvertOptions, convertCheckpoint } from './convert.js';
export type { WriteProgress, WrittenFile } from './gguf/writer.js';
export { type OpenOptions, openCheckpoint, type ReadTokenizerResult, readTokenizer } from './open.js';
export {
  type ShapeName,
  SYNTHETIC_TYPES,
  type SynthesizeOptions,
  type SyntheticType,
  shapes,
  synthesize,
  syntheticConfig,
  syntheticTensors,
} from './synth.js';
export type {
  Checkpoint,
  FileRange,
  ModelConfig,
  ModelFamily,
  TensorEntry,
  TensorType,
  TokenizerData,
} from './types.js';
export { PieceType } from './types.js';
