import {
  type AnswerOptions,
  type Chat,
  type ChatStream,
  type CodeExecutor,
  fromOpenAI,
  type GenerateOptions,
  type Model,
  type ResponseFormat,
  type ToolChoice,
  type ToolsInput,
} from 'node-chatglm';
import { badRequest } from '../http/errors.js';
import { inRequestNames } from './facade-errors.js';

/** A conversation that is to be answered, whichever API it came by. The APIs differ in how they write the same things. */
export interface ChatRequest {
  /** The conversation in the shape of OpenAI's chat completions, whose last message is the one to answer. */
  messages: unknown;
  /** Functions that the model may call, in OpenAI's shape. The caller runs those that have no `execute()`. Default: none. */
  tools?: ToolsInput | undefined;
  /** Default: `auto`. */
  toolChoice?: ToolChoice | undefined;
  /** Runs the code that the model writes. Default: none. */
  interpreter?: CodeExecutor | undefined;
  /** Default: free text. */
  responseFormat?: ResponseFormat | undefined;
  /** Sampling, limits, signal, client; and what to do with a conversation that is too long. */
  options: GenerateOptions & Pick<AnswerOptions, 'contextOverflow'>;
}

/** A chat that answers. Who has given it an interpreter has to dispose of it. */
export interface StartedChat {
  chat: Chat;
  stream: ChatStream;
}

/** Begins to answer. What is wrong with the request is thrown at once, as an ApiError that names the request's field. */
export function openChat(
  model: Model,
  { messages, tools, toolChoice, interpreter, responseFormat, options }: ChatRequest,
): StartedChat {
  try {
    const history = fromOpenAI(messages);
    if (history.length === 0) throw badRequest('messages must have at least one message.', 'messages');
    const last = history.at(-1);
    if (last?.role === 'assistant') {
      throw badRequest(
        'The last message must not be of the role assistant: an answer that others began is not continued.',
        `messages[${(messages as unknown[]).length - 1}].role`,
      );
    }
    // Who only instructs the model wants to be answered: to a question that says nothing.
    const question = last?.role === 'system' ? { role: 'user' as const, content: '' } : history.pop();
    const chat = model.createChat({ history, tools, toolChoice, interpreter, ...options });
    return { chat, stream: chat.stream(question as NonNullable<typeof question>, { responseFormat }) };
  } catch (error) {
    throw inRequestNames(error);
  }
}

/** As {@link openChat}, for chats without an interpreter. */
export function startChat(model: Model, request: Omit<ChatRequest, 'interpreter'>): ChatStream {
  return openChat(model, request).stream;
}
