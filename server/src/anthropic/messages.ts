import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { ChatReply } from 'node-chatglm';
import { account, collectChoices, streamChoices } from '../chat/choices.js';
import { countTokens } from '../chat/count-tokens.js';
import { engineOptions } from '../chat/engine-options.js';
import { startChat } from '../chat/start-chat.js';
import type { ServerContext } from '../context.js';
import { EventStream } from '../http/event-stream.js';
import { checkBody } from '../http/validation.js';
import {
  blocksOf,
  type MessageFrame,
  MessageWriter,
  messagesUsage,
  newId,
  PING,
  PromptCount,
  stopOf,
  toMessage,
} from './messages-answer.js';
import {
  COUNT_SCHEMA,
  type CountBody,
  MESSAGES_SCHEMA,
  type MessagesBody,
  readConversation,
  readOptions,
} from './messages-request.js';

/** `/v1/messages`, in Anthropic's shape. */
export function messagesRoutes(app: FastifyInstance, { models }: ServerContext): void {
  const route = {
    config: { api: 'anthropic' },
    attachValidation: true,
    onRequest: async (request: FastifyRequest, reply: FastifyReply) => {
      reply.header('request-id', request.id);
    },
  } as const;

  app.post<{ Body: MessagesBody }>(
    '/v1/messages',
    { ...route, schema: { body: MESSAGES_SCHEMA } },
    async (request, reply) => {
      checkBody(request);
      const { body, caller, gone } = request;
      const sampling = readOptions(body);
      const conversation = readConversation(body);
      const stops = body.stop_sequences ?? [];
      const lease = await models.acquire(body.model, gone);
      try {
        const { model } = lease;
        const prompt = new PromptCount();
        const engine = engineOptions(request, lease, body.metadata?.user_id);
        const options = { ...sampling, ...engine };
        if (body.stream === true) {
          options.onTrace = (event) => {
            prompt.onTrace(event);
            engine.onTrace?.(event);
          };
        }
        const stream = startChat(model, { ...conversation, options });
        const frame: MessageFrame = { id: newId('msg'), model: lease.id };
        if (body.stream === true) {
          const writer = new MessageWriter(frame, { prompt, model, stops, requestId: request.id });
          await streamChoices(new EventStream(reply, PING), [{ source: stream, writer }], {
            gone,
            field: 'messages',
            requestId: request.id,
            lastEvents: ([answer]) => {
              account(caller, [[answer as ChatReply]]);
              return '';
            },
            failure: (error) => writer.failed(error),
          });
          return reply;
        }
        const [answer] = (await collectChoices([stream], { gone, field: 'messages' })) as [ChatReply];
        account(caller, [[answer]]);
        return toMessage(frame, {
          content: blocksOf(answer),
          stop: stopOf(answer, model, stops),
          usage: messagesUsage(answer.usage),
        });
      } finally {
        lease.release();
      }
    },
  );

  app.post<{ Body: CountBody }>(
    '/v1/messages/count_tokens',
    { ...route, schema: { body: COUNT_SCHEMA } },
    async (request) => {
      checkBody(request);
      const conversation = readConversation(request.body);
      const lease = await models.acquire(request.body.model, request.gone);
      try {
        return { input_tokens: countTokens(lease.model, conversation) };
      } finally {
        lease.release();
      }
    },
  );
}
