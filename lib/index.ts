export {
  Chat,
  type ChatOnceOptions,
  type ChatOnceResult,
  type ChatOptions,
  type SavedChat,
  type SendOptions,
  TOOLS_PROMPT,
} from './chat.js';
export { type ChatReply, ChatStream } from './chat-stream.js';
export {
  type Checkpoint,
  CONVERSION_TYPES,
  type ConversionType,
  type ConvertOptions,
  convertCheckpoint,
  type ModelConfig,
  type ModelFamily,
  openCheckpoint,
  type ShapeName,
  SYNTHETIC_TYPES,
  type SynthesizeOptions,
  type SyntheticType,
  shapes,
  synthesize,
  type TensorEntry,
  type TensorType,
  type WriteProgress,
  type WrittenFile,
} from './checkpoint/index.js';
export { embeddedModelPath } from './embedded.js';
export { ChatGLMError, type ErrorCode, type ErrorDetails } from './errors.js';
export type {
  FinishReason,
  GenerateOptions,
  GenerationChunk,
  GenerationResult,
  SamplingOptions,
  Timings,
  TokenLogprobs,
  Usage,
} from './generation.js';
export type { ChatMessage, Role, ToolDefinition, WrappedToolDefinition } from './messages.js';
export {
  type LoadOptions,
  type LoadProgress,
  type LogitsOptions,
  loadModel,
  loadSyntheticModel,
  Model,
  type ModelInfo,
  type ModelStats,
  type SyntheticModelOptions,
} from './model.js';
export type { ChatFamily, SpecialTokens } from './prompt.js';
export type { ToolCall } from './reply.js';
export { type GpuInfo, measureBandwidth, type SystemInfo, systemInfo } from './system.js';
export { Generation } from './text-stream.js';
export { type DecodeOptions, loadTokenizer, type TokenDecoder, Tokenizer } from './tokenizer.js';
