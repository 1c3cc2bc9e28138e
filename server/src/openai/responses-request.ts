import type { AnswerOptions, ResponseFormat, ToolChoice } from 'node-chatglm';
import type { SamplingFields } from '../chat/sampling.js';
import { badRequest } from '../http/errors.js';
import { type Fields, wrongValue } from '../http/fields.js';
import { optional } from '../http/validation.js';
import { commonOptions, SAMPLING_SCHEMA } from './chat-request.js';
import {
  type FunctionTool,
  type Item,
  readInput,
  readMetadata,
  readTextOptions,
  readToolChoice,
  readTools,
} from './responses-input.js';

const MOST_TOKENS = 0x7fff_ffff;

/** What the body of a response may have. */
export const RESPONSES_SCHEMA = {
  type: 'object',
  additionalProperties: false,
  properties: {
    model: optional.string,
    input: optional.any,
    instructions: optional.string,
    previous_response_id: optional.string,
    store: optional.boolean,
    stream: optional.boolean,
    stream_options: {
      type: 'object',
      nullable: true,
      additionalProperties: false,
      properties: { include_obfuscation: optional.boolean },
    },
    // OpenAI has the first two only; the others are those of chat completions.
    ...SAMPLING_SCHEMA,
    max_output_tokens: optional.integer(1, MOST_TOKENS),
    tools: optional.array,
    tool_choice: optional.any,
    parallel_tool_calls: optional.boolean,
    text: optional.object,
    truncation: optional.choice('auto', 'disabled'),
    metadata: optional.object,
    include: { type: 'array', nullable: true, items: { type: 'string' } },
    top_logprobs: optional.integer(0, 20),
    user: optional.string,
    safety_identifier: optional.string,
    service_tier: optional.choice('auto', 'default', 'flex', 'scale', 'priority'),
    // Taken, and without effect.
    max_tool_calls: optional.integer(0, MOST_TOKENS),
    prompt_cache_key: optional.string,
    prompt_cache_options: optional.object,
    prompt_cache_retention: optional.string,
    reasoning: optional.object,
    // Refused with a reason.
    background: optional.boolean,
    context_management: optional.any,
    conversation: optional.any,
    moderation: optional.any,
    prompt: optional.any,
  },
} as const;

/** A body that {@link RESPONSES_SCHEMA} allows. */
export interface ResponsesBody extends SamplingFields {
  model?: string | null;
  input?: unknown;
  instructions?: string | null;
  previous_response_id?: string | null;
  store?: boolean | null;
  stream?: boolean | null;
  max_output_tokens?: number | null;
  tools?: unknown;
  tool_choice?: unknown;
  parallel_tool_calls?: boolean | null;
  text?: unknown;
  truncation?: 'auto' | 'disabled' | null;
  metadata?: unknown;
  include?: string[] | null;
  top_logprobs?: number | null;
  user?: string | null;
  safety_identifier?: string | null;
  max_tool_calls?: number | null;
  prompt_cache_key?: string | null;
  background?: boolean | null;
  context_management?: unknown;
  conversation?: unknown;
  moderation?: unknown;
  prompt?: unknown;
}

/** A request of a response, read. */
export interface ResponsesOrder {
  model: string | undefined;
  instructions: string | undefined;
  /** What came with the request. */
  input: readonly Item[];
  previous: string | undefined;
  tools: readonly FunctionTool[];
  toolChoice: ToolChoice;
  format: ResponseFormat | undefined;
  options: AnswerOptions;
  isStream: boolean;
  isStored: boolean;
  withLogprobs: boolean;
  /** Whom the request says that it is for. */
  user: string | undefined;
  /** Fields of the request that the response tells again. */
  echo: Fields;
}

/** What may be asked for beyond the answer. All but the first are about things that answers here do not have. */
const INCLUDABLE = [
  'message.output_text.logprobs',
  'reasoning.encrypted_content',
  'file_search_call.results',
  'web_search_call.results',
  'web_search_call.action.sources',
  'message.input_image.image_url',
  'computer_call_output.output.image_url',
  'code_interpreter_call.outputs',
];

/** Reads a body. What is wrong with it is thrown as an ApiError. */
export function readResponsesBody(body: ResponsesBody): ResponsesOrder {
  refuseUnsupported(body);
  const given = readTools(body.tools);
  const { choice, tools } = readToolChoice(body.tool_choice, given);
  const { text, format } = readTextOptions(body.text);
  for (const [index, name] of (body.include ?? []).entries()) {
    if (!INCLUDABLE.includes(name)) throw wrongValue(`include[${index}]`, name, INCLUDABLE);
  }
  const options: AnswerOptions = commonOptions(body);
  if (body.max_output_tokens != null) options.maxTokens = body.max_output_tokens;
  const withLogprobs = body.top_logprobs != null || body.include?.includes('message.output_text.logprobs') === true;
  if (withLogprobs) options.logprobs = body.top_logprobs ?? 0;
  if (body.truncation === 'auto') options.contextOverflow = 'drop-oldest-rounds';
  const instructions = body.instructions ?? undefined;
  const isStored = body.store ?? true;
  return {
    model: body.model ?? undefined,
    instructions,
    input: readInput(body.input),
    previous: body.previous_response_id ?? undefined,
    tools,
    toolChoice: choice,
    format,
    options,
    isStream: body.stream === true,
    isStored,
    withLogprobs,
    user: body.user || body.safety_identifier || undefined,
    echo: {
      background: false,
      instructions: instructions ?? null,
      max_output_tokens: body.max_output_tokens ?? null,
      max_tool_calls: body.max_tool_calls ?? null,
      metadata: readMetadata(body.metadata),
      parallel_tool_calls: body.parallel_tool_calls ?? true,
      previous_response_id: body.previous_response_id ?? null,
      prompt_cache_key: body.prompt_cache_key ?? null,
      reasoning: { effort: null, summary: null },
      safety_identifier: body.safety_identifier ?? null,
      service_tier: 'default',
      store: isStored,
      temperature: body.temperature ?? 1,
      text,
      tool_choice: body.tool_choice ?? 'auto',
      tools: given,
      top_logprobs: body.top_logprobs ?? 0,
      top_p: body.top_p ?? 1,
      truncation: body.truncation ?? 'disabled',
      user: body.user ?? null,
    },
  };
}

/** Says which of OpenAI's features there is not, rather than answering without them. */
function refuseUnsupported(body: ResponsesBody): void {
  if (body.background === true) {
    throw badRequest(
      'Responses in the background are not supported: wait for the answer, or use /v1/batches.',
      'background',
      'unsupported_value',
    );
  }
  const missing = {
    context_management: 'Context management is not supported; truncation: "auto" leaves out the oldest rounds.',
    conversation: 'Conversations are not supported; previous_response_id goes on from a response.',
    moderation: 'Moderation is not supported.',
    prompt: 'Prompt templates are not supported; send instructions and input.',
  } as const;
  for (const [name, message] of Object.entries(missing)) {
    if (body[name as keyof typeof missing] != null) throw badRequest(message, name, 'unsupported_parameter');
  }
}
