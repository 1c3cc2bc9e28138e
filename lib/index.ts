export { type GpuInfo, measureBandwidth, type SystemInfo, systemInfo } from './addon/system.js';
export {
  Chat,
  type ChatOnceOptions,
  type ChatOnceResult,
  type ChatOptions,
  type SavedChat,
  type SendOptions,
  TOOLS_PROMPT,
} from './chat/chat.js';
export { type ChatReply, ChatStream } from './chat/chat-stream.js';
export type { ToolCall } from './chat/reply.js';
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
export { ChatGLMError, type ErrorCode, type ErrorDetails } from './common/errors.js';
export type { ChatMessage, Role, ToolDefinition, WrappedToolDefinition } from './families/messages.js';
export type { ChatFamily, SpecialTokens } from './families/prompt.js';
export type {
  FinishReason,
  GenerateOptions,
  GenerationChunk,
  GenerationResult,
  SamplingOptions,
  Timings,
  TokenLogprobs,
  Usage,
} from './generation/options.js';
export { Generation } from './generation/text-stream.js';
export { embeddedModelPath } from './model/embedded.js';
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
} from './model/model.js';
export {
  type DecodeOptions,
  type EncodeOptions,
  loadTokenizer,
  type TokenDecoder,
  Tokenizer,
} from './tokenizer/tokenizer.js';
