import { ChatGLMError } from 'node-chatglm';
import { ApiError } from '../http/errors.js';

/** What the facade calls the fields of requests. */
const FIELDS: Readonly<Record<string, string>> = {
  temperature: 'temperature',
  topP: 'top_p',
  topK: 'top_k',
  minP: 'min_p',
  repetitionPenalty: 'repetition_penalty',
  presencePenalty: 'presence_penalty',
  frequencyPenalty: 'frequency_penalty',
  logitBias: 'logit_bias',
  maxTokens: 'max_tokens',
  stop: 'stop',
  seed: 'seed',
  logprobs: 'top_logprobs',
  responseFormat: 'response_format',
  toolChoice: 'tool_choice',
  tools: 'tools',
  messages: 'messages',
  prompt: 'prompt',
  ids: 'prompt',
};

/**
 * What the facade refused of a request, with the field as the request calls it. Anything else comes back as it is.
 *
 * @param promptField What the request calls what is too long for the context.
 */
export function inRequestNames(error: unknown, promptField = 'messages'): unknown {
  if (!(error instanceof ChatGLMError)) return error;
  // Nobody is there to read this answer; the log should not call it a failure of the server.
  if (error.code === 'ERR_ABORTED') {
    return new ApiError('The client has closed the request.', { status: 499, code: 'client_closed', cause: error });
  }
  if (error.code === 'ERR_CONTEXT_OVERFLOW') {
    return new ApiError(error.message, {
      status: 400,
      code: 'context_length_exceeded',
      param: promptField,
      cause: error,
    });
  }
  if (error.code !== 'ERR_INVALID_ARGUMENT') return error;
  const [, name = '', rest = ''] = /^(\w+)((?:\.\w+|\[\d+\])*)/.exec(error.message) ?? [];
  const field = Object.hasOwn(FIELDS, name) ? FIELDS[name] : undefined;
  if (field === undefined) return new ApiError(error.message, { status: 400, code: 'invalid_value', cause: error });
  return new ApiError(`${field}${error.message.slice(name.length)}`, {
    status: 400,
    code: 'invalid_value',
    param: field + rest,
    cause: error,
  });
}
