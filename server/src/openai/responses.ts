import type { FastifyInstance, FastifyRequest } from 'fastify';
import type { ChatReply } from 'node-chatglm';
import { account, collectChoices, streamChoices } from '../chat/choices.js';
import { countTokens } from '../chat/count-tokens.js';
import { engineOptions } from '../chat/engine-options.js';
import { startChat } from '../chat/start-chat.js';
import type { ServerContext } from '../context.js';
import { ApiError, badRequest, toApiError } from '../http/errors.js';
import { EventStream } from '../http/event-stream.js';
import { cut, wrongValue } from '../http/fields.js';
import { checkBody } from '../http/validation.js';
import {
  newAnswerIds,
  outputItems,
  outputLogprobs,
  type ResponseFrame,
  ResponseWriter,
  responsesUsage,
  statusOf,
  toResponse,
} from './responses-answer.js';
import { type Item, inResponsesNames, newId, toChatMessages, toChatTools } from './responses-input.js';
import { RESPONSES_SCHEMA, type ResponsesBody, type ResponsesOrder, readResponsesBody } from './responses-request.js';
import { ResponseStore, type StoredResponse } from './responses-store.js';

/** `/v1/responses`, and the responses that are kept. */
export function responsesRoutes(app: FastifyInstance, { models }: ServerContext): void {
  const store = new ResponseStore();
  const schema = { body: RESPONSES_SCHEMA };

  app.post<{ Body: ResponsesBody }>('/v1/responses', { schema, attachValidation: true }, async (request, reply) => {
    checkBody(request);
    const { gone, caller } = request;
    const order = readResponsesBody(request.body);
    const { earlier, chat } = conversationOf(order, caller.key, store);
    const lease = await models.acquire(order.model, gone);
    try {
      const stream = startChat(lease.model, {
        ...chat,
        options: { ...order.options, ...engineOptions(request, lease, order.user) },
      });
      const frame: ResponseFrame = {
        id: newId('resp'),
        createdAt: Math.floor(Date.now() / 1000),
        model: lease.id,
        echo: order.echo,
      };
      const ids = newAnswerIds();
      const complete = (answer: ChatReply, output: readonly Item[]) => {
        account(caller, [[answer]]);
        const usage = responsesUsage(answer.usage);
        const response = toResponse(frame, { status: statusOf(answer), output, usage });
        // What nobody has got is nothing to come back to.
        if (order.isStored && !gone.aborted) {
          const { input, previous: before } = order;
          store.add(frame.id, { owner: caller.key, response, input, output, before, earlier });
        }
        return response;
      };
      if (order.isStream) {
        const writer = new ResponseWriter(frame, ids, lease.model, order.withLogprobs);
        await streamChoices(new EventStream(reply), [{ source: stream, writer }], {
          gone,
          field: 'input',
          requestId: request.id,
          lastEvents: ([answer]) => writer.last(complete(answer as ChatReply, writer.output)),
          failure: (error) => writer.failed(inResponsesNames(error)),
        });
        return reply;
      }
      const [answer] = (await collectChoices([stream], { gone, field: 'input' })) as [ChatReply];
      const logprobs = order.withLogprobs ? outputLogprobs(answer, lease.model) : [];
      return complete(answer, outputItems(answer, ids, logprobs));
    } catch (error) {
      throw inResponsesNames(toApiError(error));
    } finally {
      lease.release();
    }
  });

  app.post<{ Body: ResponsesBody }>(
    '/v1/responses/input_tokens',
    { schema, attachValidation: true },
    async (request) => {
      checkBody(request);
      const order = readResponsesBody(request.body);
      const { chat } = conversationOf(order, request.caller.key, store);
      const lease = await models.acquire(order.model, request.gone);
      try {
        return { object: 'response.input_tokens', input_tokens: countTokens(lease.model, chat) };
      } catch (error) {
        throw inResponsesNames(toApiError(error));
      } finally {
        lease.release();
      }
    },
  );

  const stored = ({ params, caller }: FastifyRequest<{ Params: { id: string } }>): StoredResponse => {
    const found = store.get(params.id, caller.key);
    if (found) return found;
    throw new ApiError(`Response with id '${cut(params.id)}' not found.`, { status: 404, code: null });
  };

  app.get<{ Params: { id: string }; Querystring: { stream?: string } }>('/v1/responses/:id', async (request) => {
    const { response } = stored(request);
    if (request.query.stream === 'true') {
      throw badRequest('A response that is complete is not streamed again.', 'stream', 'unsupported_value');
    }
    return response;
  });

  app.delete<{ Params: { id: string } }>('/v1/responses/:id', async (request) => {
    stored(request);
    store.delete(request.params.id, request.caller.key);
    return { id: request.params.id, object: 'response', deleted: true };
  });

  app.post<{ Params: { id: string } }>('/v1/responses/:id/cancel', async (request) => {
    stored(request);
    throw badRequest('Cannot cancel a synchronous response.');
  });

  app.get<{ Params: { id: string }; Querystring: ListQuery }>('/v1/responses/:id/input_items', async (request) =>
    listOf(stored(request).input(), request.query),
  );
}

/** The conversation that a request goes on with, and what of it was said in earlier responses. */
function conversationOf(order: ResponsesOrder, key: string | undefined, store: ResponseStore) {
  let earlier: readonly Item[] = [];
  if (order.previous !== undefined) {
    const found = store.get(order.previous, key);
    if (found === undefined) {
      throw badRequest(
        `Previous response with id '${cut(order.previous)}' not found.`,
        'previous_response_id',
        'previous_response_not_found',
      );
    }
    earlier = found.conversation();
  }
  const items = [...earlier, ...order.input];
  if (items.length === 0 && order.instructions === undefined) {
    throw badRequest("Missing required parameter: 'input'.", 'input', 'missing_required_parameter');
  }
  const chat = {
    messages: toChatMessages(items, order.instructions),
    tools: order.tools.length === 0 ? undefined : toChatTools(order.tools),
    toolChoice: order.toolChoice,
    responseFormat: order.format,
  };
  return { earlier, chat };
}

interface ListQuery {
  limit?: string;
  order?: string;
  after?: string;
}

/** A page of items, the last one first unless `order` says otherwise. */
function listOf(items: readonly Item[], { limit = '20', order = 'desc', after }: ListQuery): object {
  const most = Number(limit);
  if (!Number.isInteger(most) || most < 1 || most > 100) {
    throw badRequest(
      `Invalid 'limit': expected a whole number from 1 to 100, got ${cut(limit)}.`,
      'limit',
      'invalid_value',
    );
  }
  if (order !== 'asc' && order !== 'desc') throw wrongValue('order', order, ['asc', 'desc']);
  const all = order === 'asc' ? [...items] : [...items].reverse();
  const start = after === undefined ? 0 : all.findIndex(({ id }) => id === after) + 1;
  if (after !== undefined && start === 0)
    throw badRequest(`Item with id '${cut(after as string)}' not found.`, 'after');
  const data = all.slice(start, start + most);
  return {
    object: 'list',
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: start + most < all.length,
  };
}
