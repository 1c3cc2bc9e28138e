import { fromOpenAI, type Model } from 'node-chatglm';
import { inRequestNames } from './facade-errors.js';
import type { ChatRequest } from './start-chat.js';

/** The tokens of the prompt that a conversation makes, without an answer to it. */
export function countTokens(
  model: Model,
  { messages, tools, toolChoice }: Pick<ChatRequest, 'messages' | 'tools' | 'toolChoice'>,
): number {
  try {
    const history = fromOpenAI(messages);
    return model.createChat({ history, tools: toolChoice === 'none' ? undefined : tools }).countTokens();
  } catch (error) {
    throw inRequestNames(error);
  }
}
