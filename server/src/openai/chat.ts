import type { FastifyInstance } from 'fastify';
import type { ChatReply, GenerateOptions } from 'node-chatglm';
import { account, checkChoices, collectChoices, freshId, streamChoices } from '../chat/choices.js';
import { engineOptions } from '../chat/engine-options.js';
import { inRequestNames } from '../chat/facade-errors.js';
import { openChat, type StartedChat } from '../chat/start-chat.js';
import type { ServerContext } from '../context.js';
import { EventStream } from '../http/event-stream.js';
import { checkBody } from '../http/validation.js';
import type { ModelLease } from '../models/pool.js';
import { ChatChoiceWriter, type ChunkFrame, chatChoice } from './chat-answer.js';
import { CHAT_SCHEMA, type ChatBody, type ChatOrder, endlessly, readChatBody } from './chat-request.js';
import { apiTimings, apiUsage, systemFingerprint } from './usage.js';

/** `/v1/chat/completions`. */
export function chatRoutes(app: FastifyInstance, context: ServerContext): void {
  for (const path of ['/v1/chat/completions', '/chat/completions']) {
    app.post<{ Body: ChatBody }>(
      path,
      { schema: { body: CHAT_SCHEMA }, attachValidation: true },
      async (request, reply) => {
        checkBody(request);
        const order = readChatBody(request.body, context);
        const { gone, caller } = request;
        const lease = await context.models.acquire(order.model, gone);
        const started: StartedChat[] = [];
        try {
          checkChoices(order.choices, lease, context.settings);
          const engine = engineOptions(request, lease, order.user);
          const cached = await computePrompt(lease, order, { ...engine, signal: gone });
          for (let i = 0; i < order.choices; i++) {
            const own = order.options(i);
            const options = order.isEndless ? endlessly(own, lease.model) : own;
            started.push(openChat(lease.model, { ...order, options: { ...options, ...engine } }));
          }
          const created = Math.floor(Date.now() / 1000);
          const about = { id: freshId('chatcmpl-'), created, model: lease.id };
          const done = (replies: ChatReply[]) => {
            const told = replies.map((each) => ({ ...each, usage: { ...each.usage } }));
            if (cached !== undefined && told[0]) told[0].usage.cachedTokens = cached;
            account(caller, [told]);
            return apiUsage([told.map(({ usage }) => usage)]);
          };
          const fingerprint = systemFingerprint(lease);
          if (order.isStream) {
            const facts = { ...about, object: 'chat.completion.chunk', system_fingerprint: fingerprint };
            const head = JSON.stringify({ ...facts, ...tierOf(order) }).slice(0, -1);
            const frame: ChunkFrame = {
              head: `${head},"choices":[`,
              tail: order.withUsage ? '],"usage":null}' : ']}',
            };
            const choices = started.map(({ chat, stream }, index) => ({
              source: stream,
              writer: new ChatChoiceWriter(index, {
                frame,
                order,
                model: lease.model,
                contextTokens: () => chat.countTokens(),
              }),
            }));
            const lastEvents = (replies: ChatReply[]) => {
              const usage = done(replies);
              if (!order.withUsage && !order.withTimings) return 'data: [DONE]\n\n';
              const last = {
                ...(order.withUsage && { usage }),
                ...(order.withTimings && replies[0] && { timings: apiTimings(replies[0]) }),
              };
              return `data: ${head},"choices":[],${JSON.stringify(last).slice(1)}\n\ndata: [DONE]\n\n`;
            };
            await streamChoices(new EventStream(reply), choices, {
              gone,
              field: 'messages',
              requestId: request.id,
              lastEvents,
            });
            return reply;
          }
          const replies = await collectChoices(
            started.map(({ stream }) => stream),
            { gone, field: 'messages' },
          );
          const usage = done(replies);
          return {
            ...about,
            object: 'chat.completion',
            choices: replies.map((each, index) =>
              chatChoice(each, index, {
                order,
                model: lease.model,
                contextTokens: () => started[index]?.chat.countTokens() ?? 0,
              }),
            ),
            usage,
            ...tierOf(order),
            system_fingerprint: fingerprint,
            ...(order.withTimings && replies[0] && { timings: apiTimings(replies[0]) }),
          };
        } finally {
          lease.release();
          for (const { chat, stream } of started) {
            void stream.return();
            void chat.dispose();
          }
        }
      },
    );
  }
}

/**
 * Several choices answer the same prompt: it is computed once, ahead of them, and the prefix cache gives it to each.
 *
 * @returns How many of its tokens had been computed before; undefined where there is one choice.
 */
async function computePrompt(
  { model }: ModelLease,
  order: ChatOrder,
  engine: GenerateOptions,
): Promise<number | undefined> {
  if (order.choices === 1) return undefined;
  const options = { ...order.options(0), ...engine, maxTokens: 0 };
  try {
    const { usage } = await openChat(model, { ...order, interpreter: undefined, options }).stream.result;
    return usage.cachedTokens;
  } catch (error) {
    throw inRequestNames(error);
  }
}

function tierOf({ serviceTier }: ChatOrder): object {
  return serviceTier === undefined ? {} : { service_tier: 'default' };
}
