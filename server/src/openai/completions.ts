import type { FastifyInstance } from 'fastify';
import type { GenerateOptions, Generation, GenerationResult, Model, TokenLogprobs } from 'node-chatglm';
import { account, checkChoices, collectChoices, freshId, MOST_CHOICES, streamChoices } from '../chat/choices.js';
import { engineOptions } from '../chat/engine-options.js';
import { inRequestNames } from '../chat/facade-errors.js';
import type { SamplingFields } from '../chat/sampling.js';
import type { ServerContext } from '../context.js';
import { badRequest } from '../http/errors.js';
import { EventStream } from '../http/event-stream.js';
import { checkBody, kindOf, optional } from '../http/validation.js';
import {
  type ChatBody,
  commonOptions,
  endlessly,
  IGNORED_OF_OTHERS,
  readFormat,
  SAMPLING_SCHEMA,
  STREAM_SCHEMA,
  withSeed,
} from './chat-request.js';
import { CompletionWriter, type Echo, finishReason, TextLogprobs } from './completion-answer.js';
import { apiTimings, apiUsage, systemFingerprint } from './usage.js';

const MOST_TOKENS = 0x7fff_ffff;
/** OpenAI's. */
const DEFAULT_MAX_TOKENS = 16;

const COMPLETION_SCHEMA = {
  type: 'object',
  required: ['prompt'],
  additionalProperties: false,
  properties: {
    model: optional.string,
    prompt: optional.any,
    ...STREAM_SCHEMA,
    ...SAMPLING_SCHEMA,
    max_tokens: optional.integer(0, MOST_TOKENS),
    n_predict: optional.integer(-1, MOST_TOKENS),
    n: optional.integer(1, MOST_CHOICES),
    best_of: optional.integer(1, MOST_CHOICES),
    logprobs: optional.integer(0, 20),
    echo: optional.boolean,
    suffix: optional.string,
    user: optional.string,
    safety_identifier: optional.string,
    response_format: optional.any,
    grammar: optional.string,
    json_schema: optional.object,
    chatglm: {
      type: 'object',
      nullable: true,
      additionalProperties: false,
      properties: { timings: optional.boolean },
    },
    ...IGNORED_OF_OTHERS,
  },
} as const;

interface CompletionBody
  extends SamplingFields,
    Pick<
      ChatBody,
      | 'response_format'
      | 'grammar'
      | 'json_schema'
      | 'repeat_penalty'
      | 'ignore_eos'
      | 'timings_per_token'
      | 'user'
      | 'safety_identifier'
    > {
  model?: string | null;
  prompt: unknown;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean | null } | null;
  max_tokens?: number | null;
  n_predict?: number | null;
  n?: number | null;
  best_of?: number | null;
  logprobs?: number | null;
  echo?: boolean | null;
  suffix?: string | null;
  chatglm?: { timings?: boolean | null } | null;
}

/** A text, which gets the model's prefix, or token ids, which are taken as they are. */
type Prompt = string | number[];

/** `/v1/completions`. */
export function completionRoutes(app: FastifyInstance, context: ServerContext): void {
  app.post<{ Body: CompletionBody }>(
    '/v1/completions',
    { schema: { body: COMPLETION_SCHEMA }, attachValidation: true },
    async (request, reply) => {
      checkBody(request);
      const { body, caller, gone } = request;
      const prompts = readPrompts(body.prompt);
      const n = body.n ?? 1;
      refuseUnsupported(body, n, prompts.length);
      const common = commonOptions(body);
      const format = readFormat(body);
      if (format) common.responseFormat = format;
      const maxTokens = body.max_tokens ?? body.n_predict ?? DEFAULT_MAX_TOKENS;
      if (maxTokens >= 0) common.maxTokens = maxTokens;
      const withLogprobs = body.logprobs != null;
      if (withLogprobs) common.logprobs = body.logprobs as number;
      const isStream = body.stream === true;
      const withUsage = isStream && body.stream_options?.include_usage === true;

      const lease = await context.models.acquire(body.model ?? undefined, gone);
      const { model } = lease;
      const started: Generation[] = [];
      try {
        checkChoices(n * prompts.length, lease, context.settings);
        const echoes = body.echo
          ? await Promise.all(prompts.map((prompt) => echoOf(model, prompt, body.logprobs ?? undefined, gone)))
          : [];
        const options = body.ignore_eos ? endlessly(common, model) : common;
        const engine = engineOptions(request, lease, body.user || body.safety_identifier);
        const cached = n > 1 ? await computePrompts(model, prompts, { ...engine, signal: gone }) : undefined;
        for (const prompt of prompts) {
          for (let i = 0; i < n; i++) started.push(model.generate(prompt, { ...withSeed(options, i), ...engine }));
        }
        const done = (results: readonly GenerationResult[]) => {
          const told = prompts.map((_, p) => {
            const own = results.slice(p * n, (p + 1) * n).map((each) => ({ ...each, usage: { ...each.usage } }));
            const before = cached?.[p];
            if (before !== undefined && own[0]) own[0].usage.cachedTokens = before;
            return own;
          });
          account(caller, told);
          return apiUsage(told.map((own) => own.map(({ usage }) => usage)));
        };
        const id = freshId('cmpl-');
        const facts = {
          id,
          object: 'text_completion',
          created: Math.floor(Date.now() / 1000),
          model: lease.id,
          system_fingerprint: systemFingerprint(lease),
        };
        const timingsOf = ([first]: readonly GenerationResult[]) =>
          (body.chatglm?.timings || body.timings_per_token) && first ? { timings: apiTimings(first) } : {};
        const writerOf = (index: number) => {
          const logprobs = withLogprobs ? new TextLogprobs(model.tokenizer) : undefined;
          return { index, logprobs, echo: echoes[Math.floor(index / n)] };
        };
        if (isStream) {
          const head = JSON.stringify(facts).slice(0, -1);
          const frame = { head: `${head},"choices":[`, tail: withUsage ? '],"usage":null}' : ']}' };
          const choices = started.map((source, index) => ({
            source,
            writer: new CompletionWriter(frame, writerOf(index)),
          }));
          const lastEvents = (results: GenerationResult[]) => {
            const last = { ...(withUsage && { usage: done(results) }), ...timingsOf(results) };
            if (!withUsage) done(results);
            const event =
              Object.keys(last).length > 0 ? `data: ${head},"choices":[],${JSON.stringify(last).slice(1)}\n\n` : '';
            return `${event}data: [DONE]\n\n`;
          };
          const about = { gone, requestId: request.id, lastEvents, field: 'prompt' };
          await streamChoices(new EventStream(reply), choices, about);
          return reply;
        }
        const results = await collectChoices(started, { gone, field: 'prompt' });
        return {
          ...facts,
          choices: results.map((result, index) => {
            const { logprobs, echo } = writerOf(index);
            const told = logprobs && [
              ...(echo ? logprobs.ofEcho(echo) : []),
              ...logprobs.push(result.text, result.logprobs ?? []),
              ...logprobs.end(),
            ];
            return {
              index,
              text: (echo?.text ?? '') + result.text,
              logprobs: told ? TextLogprobs.toObject(told) : null,
              finish_reason: finishReason(result),
            };
          }),
          usage: done(results),
          ...timingsOf(results),
        };
      } catch (error) {
        throw inRequestNames(error, 'prompt');
      } finally {
        lease.release();
        for (const generation of started) void generation.return();
      }
    },
  );
}

function readPrompts(value: unknown): Prompt[] {
  const isIds = (list: unknown): list is number[] =>
    Array.isArray(list) && list.length > 0 && list.every((id) => Number.isInteger(id) && id >= 0);
  if (typeof value === 'string') return [value];
  if (isIds(value)) return [value];
  if (Array.isArray(value) && value.length > 0) {
    if (value.every((each) => typeof each === 'string' || isIds(each))) return value as Prompt[];
  }
  throw badRequest(
    `Invalid type for 'prompt': expected a string, an array of strings, an array of token ids or an array of such arrays, none of them empty, got ${kindOf(value)}.`,
    'prompt',
    'invalid_type',
  );
}

function refuseUnsupported(
  { suffix, best_of: bestOf, stream_options, stream }: CompletionBody,
  n: number,
  prompts: number,
) {
  if (suffix != null && suffix !== '') {
    throw badRequest(
      'This model writes what follows a text only: suffix is not supported.',
      'suffix',
      'unsupported_parameter',
    );
  }
  if (bestOf != null && bestOf !== n) {
    throw badRequest(
      bestOf < n
        ? `Invalid 'best_of': it must be at least n, which is ${n}.`
        : `best_of is not supported: ask for n of ${bestOf} choices with logprobs, and choose.`,
      'best_of',
      bestOf < n ? 'invalid_value' : 'unsupported_value',
    );
  }
  if (n * prompts > MOST_CHOICES) {
    throw badRequest(`${prompts} prompts with ${n} choices each are more than ${MOST_CHOICES} choices.`, 'prompt');
  }
  if (stream_options != null && stream !== true) {
    throw badRequest("'stream_options' is allowed with 'stream': true only.", 'stream_options');
  }
}

/** The prompt as part of the answer, with what the model thinks of its tokens. */
async function echoOf(model: Model, prompt: Prompt, logprobs: number | undefined, signal: AbortSignal): Promise<Echo> {
  const { tokenizer } = model;
  const text = typeof prompt === 'string' ? prompt : tokenizer.decode(prompt);
  if (logprobs === undefined) return { text, logprobs: [] };
  const ids =
    typeof prompt === 'string'
      ? [...tokenizer.encodePrompt(''), ...(await tokenizer.encodeAsync(prompt, { signal }))]
      : prompt;
  const start = typeof prompt === 'string' ? tokenizer.encodePrompt('').length : 0;
  const from = Math.max(1, start);
  const scored: TokenLogprobs[] = ids.length > from ? await model.score(ids, { from, logprobs, signal }) : [];
  // Nothing stands before the first token of all, so that nobody can tell how likely it is.
  const unknown = ids.slice(start, from).map((token) => ({ token, logprob: Number.NaN, top: [] }));
  return { text, logprobs: [...unknown, ...scored] };
}

/**
 * Several choices answer the same prompt: it is computed once, ahead of them, and the prefix cache gives it to each.
 *
 * @returns For each prompt, how many of its tokens had been computed before.
 */
async function computePrompts(model: Model, prompts: readonly Prompt[], engine: GenerateOptions): Promise<number[]> {
  const results = await Promise.all(
    prompts.map((prompt) => model.generate(prompt, { ...engine, maxTokens: 0 }).result),
  );
  return results.map(({ usage }) => usage.cachedTokens);
}
