export type {
  Chat,
  ChatMessage,
  ChatOptions,
  ChatReply,
  ChatStream,
  GenerateOptions,
  Model,
  SavedChat,
  ToolDefinition,
} from '../../index.js';

/** What the model's code gave: the part that the terminal shows. */
export interface ExecutionResult {
  status: string;
  text: string;
  files: { name: string; mediaType: string; data: Uint8Array }[];
  tookMs: number;
}

/** What runs the model's code, as `ChatOptions` will take it. */
export interface CodeExecutor {
  readonly language: string;
  open(): Promise<ExecutorSession>;
}

export interface ExecutorSession extends AsyncDisposable {
  run(code: string, options?: { signal?: AbortSignal | undefined }): Promise<ExecutionResult>;
  dispose(): Promise<void>;
}
