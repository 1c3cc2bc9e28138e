import { isUtf8 } from 'node:buffer';
import type { FastifyInstance } from 'fastify';
import { type ChatFamily, fromOpenAI, type Model, TOOLS_PROMPT } from 'node-chatglm';
import { inRequestNames } from '../chat/facade-errors.js';
import type { ServerContext } from '../context.js';
import { ApiError, badRequest } from '../http/errors.js';
import { checkBody, optional } from '../http/validation.js';

const TOKENIZE_SCHEMA = {
  type: 'object',
  additionalProperties: false,
  properties: {
    model: optional.string,
    content: optional.string,
    prompt: optional.string,
    messages: optional.array,
    tools: optional.array,
    add_special: optional.boolean,
    add_special_tokens: optional.boolean,
    with_pieces: optional.boolean,
    return_token_strs: optional.boolean,
    // Text never becomes a special token here, and a prompt always ends where the answer begins.
    parse_special: optional.any,
    add_generation_prompt: optional.any,
    chat_template_kwargs: optional.any,
  },
} as const;

interface TokenizeBody {
  model?: string | null;
  content?: string | null;
  prompt?: string | null;
  messages?: unknown[] | null;
  tools?: unknown[] | null;
  add_special?: boolean | null;
  add_special_tokens?: boolean | null;
  with_pieces?: boolean | null;
  return_token_strs?: boolean | null;
}

const DETOKENIZE_SCHEMA = {
  type: 'object',
  required: ['tokens'],
  additionalProperties: false,
  properties: {
    model: optional.string,
    tokens: { type: 'array', items: { type: 'integer', minimum: 0, maximum: 0xffff_ffff } },
    special: optional.boolean,
  },
} as const;

interface DetokenizeBody {
  model?: string | null;
  tokens: number[];
  special?: boolean | null;
}

/** `/tokenize` and `/detokenize`, as llama.cpp's server and vLLM have them. */
export function tokenizeRoutes(app: FastifyInstance, { models }: ServerContext): void {
  for (const prefix of ['', '/v1']) {
    app.post<{ Body: TokenizeBody }>(
      `${prefix}/tokenize`,
      { schema: { body: TOKENIZE_SCHEMA }, attachValidation: true },
      async (request) => {
        checkBody(request);
        const { body, gone } = request;
        const lease = await models.acquire(body.model ?? undefined, gone);
        try {
          const { model } = lease;
          const ids = await idsOf(model, body, gone);
          const pieces = body.with_pieces ? ids.map((id) => ({ id, piece: pieceOf(model, id) })) : undefined;
          return {
            tokens: pieces ?? ids,
            count: ids.length,
            max_model_len: model.info.contextLength,
            ...(body.return_token_strs && {
              token_strs: ids.map((id) => model.tokenizer.decode([id], { special: true })),
            }),
          };
        } finally {
          lease.release();
        }
      },
    );
    app.post<{ Body: DetokenizeBody }>(
      `${prefix}/detokenize`,
      { schema: { body: DETOKENIZE_SCHEMA }, attachValidation: true },
      async (request) => {
        checkBody(request);
        const { model: id, tokens, special } = request.body;
        const lease = await models.acquire(id ?? undefined, request.gone);
        try {
          const { vocabSize } = lease.model.info;
          const wrong = tokens.findIndex((token) => token >= vocabSize);
          if (wrong >= 0) {
            throw badRequest(
              `Invalid 'tokens[${wrong}]': expected a value <= ${vocabSize - 1}, got ${tokens[wrong]}.`,
              `tokens[${wrong}]`,
              'integer_above_max_value',
            );
          }
          const text = lease.model.tokenizer.decode(tokens, { special: special === true });
          // vLLM calls it prompt.
          return { content: text, prompt: text };
        } finally {
          lease.release();
        }
      },
    );
  }
}

async function idsOf(model: Model, body: TokenizeBody, signal: AbortSignal): Promise<number[]> {
  const { tokenizer } = model;
  const text = body.content ?? body.prompt;
  if (body.messages != null) {
    if (text != null) throw badRequest("'messages' cannot stand beside 'content'.", 'messages');
    return await chatIds(model, body.messages, { tools: body.tools ?? undefined, signal });
  }
  if (text == null) {
    throw badRequest("Missing required parameter: 'content'.", 'content', 'missing_required_parameter');
  }
  // llama.cpp adds nothing unless asked to; vLLM, which says add_special_tokens, does.
  const isPrefixed = body.add_special ?? body.add_special_tokens ?? body.content == null;
  const ids = Array.from(await tokenizer.encodeAsync(text, { signal }));
  return isPrefixed ? [...tokenizer.encodePrompt(''), ...ids] : ids;
}

/** Texts of more UTF-16 units are counted on a thread first, so that the event loop is not held up by what is too long. */
const MOST_SYNC_UNITS = 1 << 15;

async function chatIds(
  { tokenizer, info }: Model,
  messages: unknown,
  { tools, signal }: { tools: unknown; signal: AbortSignal },
): Promise<number[]> {
  try {
    const history = fromOpenAI(messages);
    const text = history.map(({ content }) => content).join('\n');
    const count = text.length > MOST_SYNC_UNITS ? (await tokenizer.encodeAsync(text, { signal })).length : 0;
    if (count > info.contextLength) {
      throw new ApiError(
        `The messages have about ${count} tokens; the context holds ${info.contextLength}, the answer included.`,
        { status: 400, code: 'context_length_exceeded', param: 'messages' },
      );
    }
    if (tools !== undefined) {
      if (history[0]?.role === 'system') history[0].tools = tools as never;
      else history.unshift({ role: 'system', content: TOOLS_PROMPT, tools: tools as never });
    }
    return tokenizer.encodeChat(history, { family: info.family as ChatFamily });
  } catch (error) {
    throw inRequestNames(error);
  }
}

/** As text, or as bytes where they are no UTF-8. */
function pieceOf({ tokenizer }: Model, id: number): string | number[] {
  const bytes = tokenizer.tokenBytes(id);
  if (bytes.length === 0) return tokenizer.decode([id], { special: true });
  return isUtf8(bytes) ? Buffer.from(bytes).toString() : [...bytes];
}
