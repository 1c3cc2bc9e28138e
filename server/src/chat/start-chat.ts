import {
  type ChatStream,
  fromOpenAI,
  type GenerateOptions,
  type Model,
  type ResponseFormat,
  type ToolChoice,
  type ToolsInput,
} from 'node-chatglm';
import { badRequest } from '../http/errors.js';

/** A conversation that is to be answered, whichever API it came by. The APIs differ in how they write the same things. */
export interface ChatRequest {
  /** The conversation in the shape of OpenAI's chat completions, whose last message is the one to answer. */
  messages: unknown;
  /** Functions that the model may call, in OpenAI's shape. The caller runs them. Default: none. */
  tools?: ToolsInput | undefined;
  /** Default: `auto`. */
  toolChoice?: ToolChoice | undefined;
  /** Default: free text. */
  responseFormat?: ResponseFormat | undefined;
  /** Sampling, limits, signal, client. */
  options: GenerateOptions;
}

/** Begins to answer. What is wrong with the request is thrown at once, as an ApiError or ERR_INVALID_ARGUMENT. */
export function startChat(
  model: Model,
  { messages, tools, toolChoice, responseFormat, options }: ChatRequest,
): ChatStream {
  const history = fromOpenAI(messages);
  const last = history.pop();
  if (!last) throw badRequest('messages must have at least one message', 'messages');
  if (last.role !== 'user' && last.role !== 'observation') {
    throw badRequest(
      `the last message must be of the role user or tool, got ${last.role}: an answer that others began is not continued`,
      'messages',
    );
  }
  const chat = model.createChat({ history, tools, toolChoice, ...options });
  return chat.stream(last, { responseFormat });
}
