import { invalidArgument } from '../common/errors.js';
import { show } from '../common/options.js';
import { type ChatMessage, validateMessages } from '../families/messages.js';

/**
 * A conversation as THUDM's older `history`: pairs of a question and its answer. Every option `history` takes such pairs.
 * The field `openai` of messages, which no prompt shows, is left out.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message, for what pairs cannot say: system messages, observations,
 *   calls of tools, and a question without its answer.
 *
 * @example
 * ```ts
 * const pairs = toPairs(chat.history); // [['你好', '你好！'], …]
 * const { response } = await model.chat('How are you?', { history: pairs });
 * console.log(response);
 * ```
 */
export function toPairs(messages: readonly ChatMessage[]): [query: string, response: string][] {
  const pairs: [string, string][] = [];
  const checked = validateMessages(messages, 'messages');
  for (const [index, { role, content, metadata }] of checked.entries()) {
    const expected = index % 2 === 0 ? 'user' : 'assistant';
    if (role !== expected) {
      throw invalidArgument(
        `messages[${index}].role is ${role}, expected ${expected}: pairs are user and assistant in turn`,
      );
    }
    if (metadata) {
      throw invalidArgument(`messages[${index}].metadata is ${show(metadata)}: pairs have texts alone`);
    }
    const pair = pairs.at(-1);
    if (role === 'user') pairs.push([content, '']);
    else if (pair) pair[1] = content;
  }
  if (checked.length % 2 !== 0) {
    throw invalidArgument(`messages[${checked.length - 1}] is a question without an answer: pairs have both`);
  }
  return pairs;
}
