import * as api from '../../index.js';
import type {
  Chat,
  ChatMessage,
  ChatOptions,
  ChatReply,
  ChatStream,
  CodeExecutor,
  ExecutionResult,
  GenerateOptions,
  Model,
  ToolDefinition,
} from './chat-types.js';

// What the terminal asks of a chat, over what the package has today.

/** A tool with the function that carries it out; without one the model's call is only shown. */
export interface ChatTool extends ToolDefinition {
  execute?: (args: Record<string, unknown>, context: { signal: AbortSignal }) => unknown;
}

/** A piece of an answer. */
export type AnswerPart =
  | { type: 'text'; text: string }
  | { type: 'tool-call'; text: ''; call: { name: string; arguments?: Record<string, unknown> | undefined } }
  | { type: 'tool-result'; text: ''; result: { name: string; content: string; ok: boolean } }
  | { type: 'code'; text: ''; code: string }
  | { type: 'code-result'; text: ''; result: ExecutionResult };

/** An answer on its way. */
export interface Answer extends AsyncIterable<AnswerPart> {
  /** Ends the answer; what there is of it is kept. */
  stop(): void;
  /** Set once the iteration has ended without an error. */
  readonly reply: ChatReply | undefined;
}

/** The most calls of tools in one answer: a model may call forever. */
const MOST_CALLS = 16;

/** Sends a message and carries out the tools that the model calls. */
export function ask(chat: Chat, tools: readonly ChatTool[], input: string, options: GenerateOptions): Answer {
  return new ToolAnswer(chat, tools, options, () => chat.stream(input, options));
}

/** Answers the last message again. */
export function askAgain(chat: Chat, tools: readonly ChatTool[], options: GenerateOptions): Answer {
  return new ToolAnswer(chat, tools, options, () => chat.regenerate(options));
}

class ToolAnswer implements Answer {
  readonly #chat: Chat;
  readonly #tools: readonly ChatTool[];
  readonly #options: GenerateOptions;
  readonly #controller = new AbortController();
  #stream: ChatStream;
  #reply: ChatReply | undefined;

  constructor(chat: Chat, tools: readonly ChatTool[], options: GenerateOptions, start: () => ChatStream) {
    this.#chat = chat;
    this.#tools = tools;
    this.#options = options;
    this.#stream = start();
  }

  get reply(): ChatReply | undefined {
    return this.#reply;
  }

  stop(): void {
    this.#controller.abort();
    void this.#stream.return();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<AnswerPart> {
    const { signal } = this.#controller;
    for (let calls = 0; ; calls++) {
      for await (const chunk of this.#stream) yield toPart(chunk);
      this.#reply = await this.#stream.result;
      const { toolCall } = this.#reply;
      const tool = this.#tools.find(({ name }) => name === toolCall?.name);
      if (!toolCall?.arguments || !tool?.execute || calls === MOST_CALLS || signal.aborted) return;
      yield { type: 'tool-call', text: '', call: { name: toolCall.name, arguments: toolCall.arguments } };
      const result = await carryOut(tool, toolCall.arguments, signal);
      if (signal.aborted) {
        // A call that nothing answers would stand in the way of the next message.
        this.#chat.history.push({ role: 'observation', content: 'The user stopped this call.' });
        return;
      }
      yield { type: 'tool-result', text: '', result };
      this.#stream = this.#chat.stream(result.content, { ...this.#options, role: 'observation' });
      if (signal.aborted) void this.#stream.return();
    }
  }
}

function toPart(chunk: object): AnswerPart {
  return 'type' in chunk ? (chunk as AnswerPart) : { type: 'text', text: (chunk as { text: string }).text };
}

async function carryOut(tool: ChatTool, args: Record<string, unknown>, signal: AbortSignal) {
  const { name } = tool;
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('stopped')), { once: true });
  });
  try {
    const value = await Promise.race([tool.execute?.(args, { signal }), aborted]);
    return { name, content: typeof value === 'string' ? value : (JSON.stringify(value) ?? 'null'), ok: true };
  } catch (error) {
    return { name, content: error instanceof Error ? error.message : String(error), ok: false };
  }
}

/** Options of a chat that are about to come. */
export interface TerminalChatOptions extends ChatOptions {
  interpreter?: CodeExecutor | undefined;
  responseFormat?: { type: 'json_schema'; schema: unknown } | undefined;
  contextOverflow?: 'error' | 'drop-oldest-rounds' | undefined;
}

export function createChat(model: Model, options: TerminalChatOptions): Chat {
  return model.createChat(options);
}

/** Takes the last message of the user back, and all that followed it. Returns what was taken back, the oldest first. */
export function undo(chat: Chat): ChatMessage[] {
  const last = chat.history.findLastIndex(({ role }) => role === 'user');
  return last < 0 ? [] : chat.history.splice(last);
}

export function systemOf(chat: Chat): string | undefined {
  const [first] = chat.history;
  return first?.role === 'system' ? first.content : undefined;
}

/** Sets the system message; undefined takes it away, but for that of the tools. */
export function setSystem(chat: Chat, content: string | undefined): void {
  const [first] = chat.history;
  if (first?.role !== 'system') {
    if (content !== undefined) chat.history.unshift({ role: 'system', content });
  } else if (content === undefined && !first.tools) {
    chat.history.shift();
  } else {
    first.content = content ?? api.TOOLS_PROMPT;
  }
}

/** How many messages at the beginning of the conversation an answer has dropped, for want of room in the context. */
export function droppedMessages(before: number, after: number, reply: ChatReply): number {
  return Math.max(0, before + reply.messages.length - after);
}

/** How many tokens of the context the conversation takes; undefined where that is not known. */
export async function contextTokens(_chat: Chat, last: ChatReply | undefined): Promise<number | undefined> {
  return last && last.usage.promptTokens + last.usage.generatedTokens;
}

/** Ends what a chat holds beside its history, such as the process of its interpreter. */
export async function endChat(chat: Chat): Promise<void> {
  await (chat as Partial<AsyncDisposable>)[Symbol.asyncDispose]?.();
}

interface Later {
  pythonExecutor?: () => CodeExecutor;
  javascriptExecutor?: () => CodeExecutor;
  toolsFromMcp?: (client: unknown) => Promise<ChatTool[]>;
}

/** What runs the model's code; undefined where this build has no such executor. */
export function executorOf(language: string): CodeExecutor | undefined {
  const { pythonExecutor, javascriptExecutor } = api as Later;
  return language === 'python' ? pythonExecutor?.() : javascriptExecutor?.();
}

/** The tools of a Model Context Protocol server. */
export async function toolsFromMcp(client: McpClient): Promise<ChatTool[]> {
  const later = (api as Later).toolsFromMcp;
  if (later) return await later(client);
  const { tools } = await client.listTools();
  return tools.map(({ name, description = '', inputSchema }) => ({
    name,
    description,
    parameters: inputSchema,
    execute: async (args, { signal }) => {
      const { content, isError } = await client.callTool({ name, arguments: args }, undefined, { signal });
      const text = (content as { text?: string }[]).map((part) => part.text ?? JSON.stringify(part)).join('\n');
      if (isError) throw new Error(text);
      return text;
    },
  }));
}

/** The part of the MCP SDK's client that is used here. */
export interface McpClient {
  listTools(): Promise<{
    tools: { name: string; description?: string | undefined; inputSchema: Record<string, unknown> }[];
  }>;
  callTool(
    call: { name: string; arguments: Record<string, unknown> },
    schema: undefined,
    options: { signal: AbortSignal },
  ): Promise<{ content?: unknown; isError?: unknown }>;
  close(): Promise<void>;
}
