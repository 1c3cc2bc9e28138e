import type { FastifyInstance } from 'fastify';
import { isAnthropicClient, toAnthropicModel, toAnthropicModels } from '../anthropic/models.js';
import type { ServerContext } from '../context.js';
import { noSuchModel } from '../models/model-pool.js';
import type { ModelCard } from '../models/pool.js';

/** `/v1/models`. */
export function modelRoutes(app: FastifyInstance, { models }: ServerContext): void {
  app.get('/v1/models', async ({ caller, headers }) => {
    const cards = models.list().filter(({ id }) => caller.allows(id));
    if (isAnthropicClient(headers)) return toAnthropicModels(cards);
    return { object: 'list', data: cards.map(toModel) };
  });
  app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ caller, headers, params }) => {
    const name = params['*'];
    const card = models.list().find(({ id, aliases }) => id === name || aliases.includes(name));
    if (card && caller.allows(card.id)) return isAnthropicClient(headers) ? toAnthropicModel(card) : toModel(card);
    throw noSuchModel(name);
  });
}

function toModel({ id, created, contextLength, isLoaded }: ModelCard): object {
  // The names that vLLM and llama.cpp have for what OpenAI's clients do not look at.
  return {
    id,
    object: 'model',
    created,
    owned_by: 'node-chatglm',
    max_model_len: contextLength ?? null,
    loaded: isLoaded,
  };
}
