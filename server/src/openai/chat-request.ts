import type { CodeExecutor, GenerateOptions, Model, ResponseFormat, ToolChoice, ToolsInput } from 'node-chatglm';
import { MOST_CHOICES } from '../chat/choices.js';
import { type SamplingFields, samplingOptions } from '../chat/sampling.js';
import { checkToolMessages } from '../chat/tool-messages.js';
import type { ServerContext } from '../context.js';
import { badRequest } from '../http/errors.js';
import { kindOf, optional, shown } from '../http/validation.js';
import type { ServerSettings } from '../options.js';

/** Fields for streaming, which chat completions and completions share. */
export const STREAM_SCHEMA = {
  stream: optional.boolean,
  stream_options: {
    type: 'object',
    nullable: true,
    additionalProperties: false,
    properties: { include_usage: optional.boolean, include_obfuscation: optional.boolean },
  },
};

/** Fields for sampling, which chat completions and completions share. */
export const SAMPLING_SCHEMA = {
  temperature: optional.number(0, 2),
  top_p: optional.number(0, 1),
  presence_penalty: optional.number(-2, 2),
  frequency_penalty: optional.number(-2, 2),
  seed: { type: 'integer', nullable: true },
  stop: optional.any,
  logit_bias: {
    type: 'object',
    nullable: true,
    additionalProperties: { type: 'number', minimum: -100, maximum: 100 },
  },
  // Not of OpenAI: vLLM's and llama.cpp's.
  top_k: optional.integer(-1, 0x7fff_ffff),
  min_p: optional.number(0, 1),
  repetition_penalty: optional.number(0.01, 100),
  repeat_penalty: optional.number(0.01, 100),
  ignore_eos: optional.boolean,
  timings_per_token: optional.boolean,
} as const;

/** Fields that are taken and make no difference. */
const IGNORED_OF_OPENAI = {
  metadata: optional.object,
  store: optional.boolean,
  prompt_cache_key: optional.string,
  prompt_cache_retention: optional.string,
  prediction: optional.object,
  verbosity: optional.choice('low', 'medium', 'high'),
  reasoning_effort: optional.choice('none', 'minimal', 'low', 'medium', 'high', 'xhigh'),
} as const;

/** What clients of llama.cpp and vLLM send with every request, and what has no meaning here. */
export const IGNORED_OF_OTHERS = Object.fromEntries(
  [
    'add_generation_prompt',
    'backend_sampling',
    'cache_prompt',
    'chat_template_kwargs',
    'dry_allowed_length',
    'dry_base',
    'dry_multiplier',
    'dry_penalty_last_n',
    'dynatemp_exponent',
    'dynatemp_range',
    'enable_thinking',
    'id_slot',
    'parse_tool_calls',
    'reasoning_format',
    'repeat_last_n',
    'return_progress',
    'samplers',
    'skip_special_tokens',
    'spaces_between_special_tokens',
    'typ_p',
    'xtc_probability',
    'xtc_threshold',
  ].map((name) => [name, optional.any]),
);

const MOST_TOKENS = 0x7fff_ffff;

/** What the body of a chat completion may have. */
export const CHAT_SCHEMA = {
  type: 'object',
  required: ['messages'],
  additionalProperties: false,
  properties: {
    model: optional.string,
    messages: { type: 'array', minItems: 1 },
    ...STREAM_SCHEMA,
    ...SAMPLING_SCHEMA,
    max_tokens: optional.integer(1, MOST_TOKENS),
    max_completion_tokens: optional.integer(1, MOST_TOKENS),
    n: optional.integer(1, MOST_CHOICES),
    logprobs: optional.boolean,
    top_logprobs: optional.integer(0, 20),
    response_format: optional.any,
    tools: optional.array,
    tool_choice: optional.any,
    parallel_tool_calls: optional.boolean,
    functions: optional.array,
    function_call: optional.any,
    user: optional.string,
    safety_identifier: optional.string,
    service_tier: optional.choice('auto', 'default', 'flex', 'scale', 'priority'),
    modalities: optional.array,
    audio: optional.any,
    web_search_options: optional.any,
    grammar: optional.string,
    json_schema: optional.object,
    n_predict: optional.integer(-1, MOST_TOKENS),
    chatglm: {
      type: 'object',
      nullable: true,
      additionalProperties: false,
      properties: { run_tools: optional.boolean, timings: optional.boolean },
    },
    ...IGNORED_OF_OPENAI,
    ...IGNORED_OF_OTHERS,
  },
} as const;

/** A body that {@link CHAT_SCHEMA} allows. */
export interface ChatBody extends SamplingFields {
  model?: string | null;
  messages: unknown[];
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean | null } | null;
  repeat_penalty?: number | null;
  ignore_eos?: boolean | null;
  timings_per_token?: boolean | null;
  max_tokens?: number | null;
  max_completion_tokens?: number | null;
  n?: number | null;
  logprobs?: boolean | null;
  top_logprobs?: number | null;
  response_format?: unknown;
  tools?: unknown[] | null;
  tool_choice?: unknown;
  functions?: unknown[] | null;
  function_call?: unknown;
  user?: string | null;
  safety_identifier?: string | null;
  service_tier?: string | null;
  modalities?: unknown[] | null;
  audio?: unknown;
  web_search_options?: unknown;
  grammar?: string | null;
  json_schema?: Record<string, unknown> | null;
  n_predict?: number | null;
  chatglm?: { run_tools?: boolean | null; timings?: boolean | null } | null;
}

/** A chat completion that was asked for, read. */
export interface ChatOrder {
  model: string | undefined;
  messages: unknown[];
  tools: ToolsInput | undefined;
  toolChoice: ToolChoice | undefined;
  interpreter: CodeExecutor | undefined;
  responseFormat: ResponseFormat | undefined;
  /** The options of the choice of that index. */
  options(index: number): GenerateOptions;
  choices: number;
  isStream: boolean;
  withUsage: boolean;
  withLogprobs: boolean;
  withTimings: boolean;
  /** Whether the answer may not end by itself. */
  isEndless: boolean;
  /** Whether calls are written as they were before there were tools. */
  usesFunctions: boolean;
  /** Whether the server runs its own tools, and tells of each step. */
  runsTools: boolean;
  serviceTier: string | undefined;
  /** Whom the request says that it is for. */
  user: string | undefined;
}

/** Reads a body. What is wrong with it is thrown as an ApiError. */
export function readChatBody(body: ChatBody, { settings }: ServerContext): ChatOrder {
  refuseUnsupported(body);
  checkToolMessages(body.messages);
  const usesFunctions = body.functions != null || body.function_call != null;
  const runsTools = body.chatglm?.run_tools === true;
  const own: ServerTools = runsTools ? settings : {};
  const given = usesFunctions ? toTools(body) : readTools(body.tools ?? undefined);
  const { tools, choice } = chosenTools(given, usesFunctions ? body.function_call : body.tool_choice);
  const all = [...(tools ?? []), ...serverTools(own.tools, tools ?? [])];
  if (body.top_logprobs != null && body.logprobs !== true) {
    throw badRequest("'top_logprobs' is allowed with 'logprobs': true only.", 'top_logprobs');
  }
  if (body.stream_options != null && body.stream !== true) {
    throw badRequest("'stream_options' is allowed with 'stream': true only.", 'stream_options');
  }
  const common = commonOptions(body);
  if (body.logprobs === true) common.logprobs = body.top_logprobs ?? 0;
  const maxTokens = body.max_completion_tokens ?? body.max_tokens ?? body.n_predict;
  if (maxTokens != null && maxTokens >= 0) common.maxTokens = maxTokens;
  return {
    model: body.model ?? undefined,
    messages: body.messages,
    tools: all.length > 0 ? (all as unknown as ToolsInput) : undefined,
    toolChoice: choice,
    interpreter: own.interpreter ?? undefined,
    responseFormat: readFormat(body),
    options: (index) => withSeed(common, index),
    choices: body.n ?? 1,
    isStream: body.stream === true,
    withUsage: body.stream_options?.include_usage === true,
    withLogprobs: body.logprobs === true,
    withTimings: body.chatglm?.timings === true || body.timings_per_token === true,
    isEndless: body.ignore_eos === true,
    usesFunctions,
    runsTools,
    serviceTier: body.service_tier ?? undefined,
    user: body.user || body.safety_identifier || undefined,
  };
}

/** What the server was started with for `chatglm.run_tools`. */
type ServerTools = Partial<Pick<ServerSettings, 'tools' | 'interpreter'>>;

/** The options that all choices of a request share. */
export function commonOptions(body: SamplingFields & { repeat_penalty?: number | null }): GenerateOptions {
  checkStop(body.stop);
  return samplingOptions({
    ...body,
    // vLLM writes -1 for all.
    top_k: body.top_k === -1 ? 0 : body.top_k,
    repetition_penalty: body.repetition_penalty ?? body.repeat_penalty,
    stop: typeof body.stop === 'string' ? [body.stop] : body.stop?.filter((text) => text !== ''),
  });
}

/** Options that keep an answer from ending by itself: a bias that bans the tokens that would end it. */
export function endlessly(options: GenerateOptions, { tokenizer }: Model): GenerateOptions {
  const { size, tokenCount } = tokenizer;
  const special = Array.from({ length: tokenCount - size }, (_, i) => size + i);
  const banned = [END_OF_TEXT, ...special].map((id) => [id, Number.NEGATIVE_INFINITY]);
  return { ...options, logitBias: { ...options.logitBias, ...Object.fromEntries(banned) } };
}

/** `</s>`, in every ChatGLM. */
const END_OF_TEXT = 2;

/** The options of one of several choices: the same seed would give the same answer. */
export function withSeed(options: GenerateOptions, index: number): GenerateOptions {
  if (options.seed === undefined || index === 0) return options;
  return { ...options, seed: (options.seed + index) % 2 ** 53 };
}

function checkStop(stop: unknown): void {
  const isList = Array.isArray(stop) && stop.every((text) => typeof text === 'string');
  if (stop == null || typeof stop === 'string' || isList) return;
  throw badRequest(
    `Invalid type for 'stop': expected a string or an array of strings, got ${Array.isArray(stop) ? shown(stop) : kindOf(stop)}.`,
    'stop',
    'invalid_type',
  );
}

/** Says which of OpenAI's features there is not, rather than answering without them. */
function refuseUnsupported({ modalities, audio, web_search_options, messages }: ChatBody): void {
  const other = modalities?.find((modality) => modality !== 'text');
  if (other !== undefined) {
    throw badRequest(
      `This model answers in text: modality ${shown(other)} is not supported.`,
      'modalities',
      'unsupported_value',
    );
  }
  if (audio != null)
    throw badRequest('This model answers in text: audio is not supported.', 'audio', 'unsupported_parameter');
  if (web_search_options != null) {
    throw badRequest('This server has no web search.', 'web_search_options', 'unsupported_parameter');
  }
  messages.forEach((message, index) => {
    const { content } = (typeof message === 'object' && message !== null ? message : {}) as { content?: unknown };
    if (!Array.isArray(content)) return;
    content.forEach((part: { type?: unknown } | null, place) => {
      if (typeof part?.type !== 'string' || part.type === 'text' || part.type === 'refusal') return;
      throw badRequest(
        `This model reads text: content of the type ${shown(part.type)} is not supported.`,
        `messages[${index}].content[${place}].type`,
        'unsupported_value',
      );
    });
  });
}

interface ToolFields {
  type?: unknown;
  function?: { name?: unknown } | null;
}

function readTools(tools: readonly unknown[] | undefined): ToolFields[] | undefined {
  if (tools === undefined || tools.length === 0) return undefined;
  return tools.map((entry, index) => {
    const tool = entry as ToolFields | null;
    if (typeof tool !== 'object' || tool === null) {
      throw badRequest(
        `Invalid type for 'tools[${index}]': expected an object, got ${kindOf(tool)}.`,
        `tools[${index}]`,
        'invalid_type',
      );
    }
    if (tool.type !== 'function') {
      throw badRequest(
        `Invalid value for 'tools[${index}].type': ${shown(tool.type)}. Supported values are: "function".`,
        `tools[${index}].type`,
        'invalid_value',
      );
    }
    if (typeof tool.function?.name !== 'string') {
      throw badRequest(
        `Missing required parameter: 'tools[${index}].function.name'.`,
        `tools[${index}].function.name`,
        'missing_required_parameter',
      );
    }
    return tool;
  });
}

/** The tools that the server runs, but for those whose names the request has for its own. */
function serverTools(tools: ToolsInput | undefined, given: readonly ToolFields[]): object[] {
  const taken = new Set(given.map((tool) => tool.function?.name));
  const list = Array.isArray(tools)
    ? (tools as object[])
    : Object.entries(tools ?? {}).map(([name, tool]) => ({ name, ...(tool as object) }));
  return list.filter((tool) => !taken.has((tool as { name?: string }).name));
}

/** The old `functions` as tools. */
function toTools({ functions, tools, tool_choice }: ChatBody): ToolFields[] | undefined {
  if (tools != null || tool_choice != null) {
    throw badRequest("'functions' and 'function_call' cannot stand beside 'tools' and 'tool_choice'.", 'functions');
  }
  return readTools((functions ?? []).map((each) => ({ type: 'function', function: each })));
}

/** The tools that a choice leaves, and what is left of the choice. */
function chosenTools(
  tools: ToolFields[] | undefined,
  given: unknown,
): { tools: ToolFields[] | undefined; choice: ToolChoice | undefined } {
  if (given == null) return { tools, choice: undefined };
  if (given === 'auto' || given === 'none' || given === 'required') {
    if (given === 'required' && tools === undefined) {
      throw badRequest("'tool_choice' is allowed with 'tools' only.", 'tool_choice');
    }
    return { tools, choice: given };
  }
  const { type, name, ...rest } = (typeof given === 'object' ? given : {}) as Record<string, unknown>;
  if (type === 'allowed_tools') {
    const { mode, tools: allowed } = (rest.allowed_tools ?? {}) as { mode?: unknown; tools?: unknown };
    if ((mode === 'auto' || mode === 'required') && Array.isArray(allowed)) {
      const names = new Set(allowed.map((tool: ToolFields | null) => tool?.function?.name));
      const left = tools?.filter((tool) => names.has(tool.function?.name));
      return { tools: left, choice: left?.length ? mode : 'none' };
    }
  }
  const wanted = (rest.function as ToolFields['function'])?.name ?? name;
  const isNamed = (type === undefined || type === 'function') && typeof wanted === 'string';
  if (!isNamed) {
    throw badRequest(
      `Invalid value for 'tool_choice': ${shown(given)}. Supported values are: "none", "auto", "required" and {"type": "function", "function": {"name": …}}.`,
      'tool_choice',
      'invalid_value',
    );
  }
  if (!tools?.some((tool) => tool.function?.name === wanted)) {
    throw badRequest(
      `Invalid value for 'tool_choice': 'tools' has no function ${shown(wanted)}.`,
      'tool_choice',
      'invalid_value',
    );
  }
  return { tools, choice: { name: wanted } };
}

/** The form of the answer, by OpenAI's field or by one of llama.cpp's. */
export function readFormat({
  response_format: format,
  grammar,
  json_schema: schema,
}: Pick<ChatBody, 'response_format' | 'grammar' | 'json_schema'>): ResponseFormat | undefined {
  if (format != null) {
    const { type, ...rest } = (typeof format === 'object' ? format : {}) as Record<string, unknown>;
    // llama.cpp's form of a schema.
    if (type === 'json_object' && rest.schema != null)
      return { type: 'json_schema', schema: rest.schema as object as never };
    return format as ResponseFormat;
  }
  if (grammar != null && grammar !== '') return { type: 'grammar', grammar };
  if (schema != null) return { type: 'json_schema', schema };
  return undefined;
}
