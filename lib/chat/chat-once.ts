import { invalidArgument } from '../common/errors.js';
import { type Nullable, readOptions, show } from '../common/options.js';
import type { ChatMessage } from '../families/messages.js';
import { Chat, type ChatModel } from './chat.js';
import { CHAT_OPTIONS, type ChatOptions, type SendOptions } from './chat-options.js';
import type { ChatReply } from './chat-stream.js';

/** Options of `model.chat()`. */
export interface ChatOnceOptions extends SendOptions, Pick<ChatOptions, 'history' | 'system' | 'tools' | 'family'> {}

/** What `model.chat()` gives: THUDM's `response, history`, and how the answer came about. */
export interface ChatOnceResult extends Pick<ChatReply, 'finishReason' | 'usage' | 'timings' | 'seed' | 'logprobs'> {
  /**
   * The text. When a tool is to be called: its name and `parameters`. When those cannot be read, or for the code
   * interpreter: the name and the `content` that the model wrote.
   */
  response: string | { name: string; parameters: Record<string, unknown> } | { name: string; content: string };
  /** The conversation with the question and the answer. The one that was given is left as it was. */
  history: ChatMessage[];
}

/** One question and its answer in the shape of THUDM's `chat()`. */
export async function chatOnce(
  model: ChatModel,
  query: string,
  options: Nullable<ChatOnceOptions> = {},
): Promise<ChatOnceResult> {
  const { role, ...rest } = readOptions<ChatOnceOptions>(
    options,
    [...CHAT_OPTIONS.filter((name) => name !== 'interpreter'), 'role'],
    'chat()',
  );
  if (typeof query !== 'string') throw invalidArgument(`query must be a string, got ${show(query)}`);
  // THUDM's chat() takes what looks like code for the interpreter for that, whatever the model was told.
  const chat = new Chat(model, { ...rest, interpreter: 'manual' });
  const reply = await chat.send(query, { role });
  const { finishReason, usage, timings, seed, logprobs } = reply;
  const result: ChatOnceResult = {
    response: response(reply),
    history: chat.history,
    finishReason,
    usage,
    timings,
    seed,
  };
  if (logprobs) result.logprobs = logprobs;
  return result;
}

function response({ text, toolCall, code, messages }: ChatReply): ChatOnceResult['response'] {
  if (toolCall?.arguments) return { name: toolCall.name, parameters: toolCall.arguments };
  if (toolCall) return { name: toolCall.name, content: toolCall.raw };
  const last = messages.at(-1);
  if (code !== undefined && last) return { name: last.metadata ?? '', content: last.content };
  return text;
}
