import { badRequest } from '../http/errors.js';
import { shown } from '../http/validation.js';

interface Message {
  role?: unknown;
  tool_calls?: unknown;
  function_call?: unknown;
  tool_call_id?: unknown;
}

/**
 * Refuses messages of OpenAI's chat completions in which tools' results and calls do not belong together: a result must
 * answer a call of the last answer, once, and every call must have a result before anybody else speaks. The messages may be
 * wrong in any other way.
 *
 * @throws {ApiError} 400, naming the message.
 */
export function checkToolMessages(messages: unknown): void {
  if (!Array.isArray(messages)) return;
  /** Ids of calls that have no result yet, and the place of their message. */
  let open = new Set<unknown>();
  let calls: ReadonlySet<unknown> = open;
  let caller = -1;
  const refuseOpen = () => {
    if (open.size === 0) return;
    throw badRequest(
      `Each call in tool_calls of messages[${caller}] must be followed by a message of the role tool with its tool_call_id. These have none: ${[...open].map(shown).join(', ')}.`,
      `messages[${caller}].tool_calls`,
    );
  };
  messages.forEach((entry: unknown, index) => {
    const message = (typeof entry === 'object' && entry !== null ? entry : {}) as Message;
    if (message.role !== 'tool') {
      refuseOpen();
      const list = message.role === 'assistant' && Array.isArray(message.tool_calls) ? message.tool_calls : [];
      const ids = list.map((call: { id?: unknown } | null) => call?.id);
      open = new Set(ids);
      calls = new Set(ids);
      caller = index;
      if (open.size !== ids.length) {
        throw badRequest(
          `Two calls of messages[${index}] have the same id, or have none.`,
          `messages[${index}].tool_calls`,
        );
      }
      return;
    }
    if (open.delete(message.tool_call_id)) return;
    const why =
      calls.size === 0
        ? 'a message of the role tool must follow an assistant message with tool_calls'
        : calls.has(message.tool_call_id)
          ? 'the call has a result already'
          : `the calls of messages[${caller}] are ${[...calls].map(shown).join(', ')}`;
    throw badRequest(
      `messages[${index}].tool_call_id ${shown(message.tool_call_id)} answers no call: ${why}.`,
      `messages[${index}].tool_call_id`,
    );
  });
  refuseOpen();
}
