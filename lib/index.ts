// First of all, before anything that an old Node lacks.
import './common/node-version.js';

export type { ModelShape, TensorType, TokenDecoder } from './addon/native.js';
export { type GpuInfo, measureBandwidth, type SystemInfo, systemInfo } from './addon/system.js';
export {
  Chat,
  type ChatOnceOptions,
  type ChatOnceResult,
  type ChatOptions,
  type RestoreOptions,
  type SavedChat,
  type SaveOptions,
  type SendOptions,
  TOOLS_PROMPT,
} from './chat/chat.js';
export { type ChatReply, ChatStream } from './chat/chat-stream.js';
export type { ToolCall } from './chat/reply.js';
export { CONVERSION_TYPES, type ConversionType, type ConvertOptions, convertCheckpoint } from './checkpoint/convert.js';
export type { WriteProgress } from './checkpoint/gguf/writer.js';
export { openCheckpoint } from './checkpoint/open.js';
export {
  type ShapeName,
  SYNTHETIC_TYPES,
  type SynthesizeOptions,
  type SyntheticType,
  shapes,
  synthesize,
} from './checkpoint/synth.js';
export type { Checkpoint, ModelConfig, TensorEntry } from './checkpoint/types.js';
export { ChatGLMError, type ErrorCode, type ErrorDetails, type SerializedError } from './common/errors.js';
export type { FromSchema } from './common/from-schema.js';
export type { FilePath, Nullable } from './common/options.js';
export type { StandardSchema } from './common/standard-schema.js';
export type { WrittenFile } from './common/written-file.js';
export {
  CHAT_FAMILIES,
  type ChatFamily,
  MODEL_FAMILIES,
  type ModelFamily,
  type SpecialTokens,
} from './families/index.js';
export type {
  ChatMessage,
  ListedTools,
  Role,
  ToolDefinition,
  ToolRegistry,
  WrappedToolDefinition,
} from './families/messages.js';
export type {
  FinishReason,
  GenerateOptions,
  GenerationChunk,
  GenerationResult,
  SamplingOptions,
  Timings,
  TokenLogprobs,
  TraceEvent,
  Usage,
} from './generation/options.js';
export { Generation } from './generation/text-stream.js';
export { embeddedModelPath } from './model/embedded.js';
export {
  type LoadTokenizerOptions,
  loadModel,
  loadSyntheticModel,
  loadTokenizer,
  type SyntheticModelOptions,
} from './model/load.js';
export type { LoadOptions, LoadProgress } from './model/load-options.js';
export {
  CachedPrompt,
  type LogitsOptions,
  Model,
  type ModelInfo,
  type ModelStats,
  type ScoreOptions,
} from './model/model.js';
export { type DecodeOptions, type EncodeOptions, Tokenizer } from './tokenizer/tokenizer.js';
export { type McpClient, type McpOptions, type McpTool, toolsFromMcp } from './tools/mcp.js';
export {
  defineTool,
  type Tool,
  type ToolArguments,
  type ToolContext,
  type ToolOptions,
  type ToolParameters,
} from './tools/tool.js';
