import type { FastifyInstance } from 'fastify';
import type { ServerContext } from '../context.js';
import { ApiError } from '../http/errors.js';
import type { ModelCard } from '../models/pool.js';

/** `/v1/models`. */
export function modelRoutes(app: FastifyInstance, { models }: ServerContext): void {
  app.get('/v1/models', async () => ({ object: 'list', data: models.list().map(toModel) }));
  app.get<{ Params: { '*': string } }>('/v1/models/*', async ({ params }) => {
    const card = models.list().find(({ id }) => id === params['*']);
    if (card) return toModel(card);
    throw new ApiError(`The model \`${params['*']}\` does not exist or you do not have access to it.`, {
      status: 404,
      code: 'model_not_found',
      param: 'model',
    });
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
