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
 */
export function inRequestNames(error: unknown): unknown {
  if (!(error instanceof ChatGLMError) || error.code !== 'ERR_INVALID_ARGUMENT') return error;
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
