// First of all, before anything that an old Node lacks.
import './common/node-version.js';

export type { ModelShape, TensorType, TokenDecoder } from './addon/native.js';
export { type GpuInfo, measureBandwidth, type SystemInfo, systemInfo } from './addon/system.js';
export type { ToolChoice } from './chat/answer-grammar.js';
export { Chat, type RestoreOptions, type SaveOptions } from './chat/chat.js';
export type { ChatOnceOptions, ChatOnceResult } from './chat/chat-once.js';
export {
  type AnswerOptions,
  type ChatOptions,
  type ContextOverflow,
  INTERPRETER_PROMPT,
  type Overflow,
  type SendOptions,
  TOOLS_PROMPT,
} from './chat/chat-options.js';
export { ChatStore, type ChatStoreEntry, ChatStoreSession, openChatStore } from './chat/chat-store.js';
export { type ChatChunk, type ChatReply, type ChatStep, ChatStream, type ToolResult } from './chat/chat-stream.js';
export {
  type ChatGLMFields,
  fromOpenAI,
  type OpenAIAssistantMessage,
  type OpenAIContent,
  type OpenAIFunctionCall,
  type OpenAIFunctionMessage,
  type OpenAIMessage,
  type OpenAISystemMessage,
  type OpenAITextPart,
  type OpenAIToolCall,
  type OpenAIToolMessage,
  type OpenAIUserMessage,
  type ToOpenAIOptions,
  toOpenAI,
} from './chat/openai.js';
export { toPairs } from './chat/pairs.js';
export type { ToolCall } from './chat/reply.js';
export type { SavedChat } from './chat/saved-chat.js';
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
export type { InferOutput, StandardSchema } from './common/standard-schema.js';
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
export type {
  CodeExecutor,
  ExecutionFile,
  ExecutionResult,
  ExecutorSession,
  SandboxProtections,
} from './interpreter/executor.js';
export { javascriptExecutor, type ProcessExecutor, pythonExecutor } from './interpreter/executors.js';
export type {
  ExecutorOptions,
  JavaScriptExecutorOptions,
  PythonExecutorOptions,
  SandboxChoice,
} from './interpreter/options.js';
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
export type { ParsedAs, ResponseFormat, SchemaOption } from './structured/response-format.js';
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
export type { ToolsInput } from './tools/tool-set.js';
