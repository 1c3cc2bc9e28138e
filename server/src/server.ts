import Fastify, { type FastifyInstance } from 'fastify';
import type { ServerContext } from './context.js';
import { errorHandler } from './http/error-handler.js';
import { ApiError } from './http/errors.js';
import { createModelPool } from './models/model-pool.js';
import { modelRoutes } from './openai/models.js';
import type { ServerSettings } from './options.js';
import { webRoutes } from './web.js';

/** Each part adds its routes. */
const PARTS: readonly ((app: FastifyInstance, context: ServerContext) => void)[] = [modelRoutes, webRoutes];

/** The server as a Fastify application that listens to nothing yet. */
export function buildApp(settings: ServerSettings): FastifyInstance {
  const app = Fastify({ logger: false });
  const models = createModelPool(settings.models);
  const context: ServerContext = { settings, models, log: app.log };
  app.decorateRequest('caller');
  app.decorateRequest('gone');
  app.addHook('onRequest', async (request, reply) => {
    request.caller = { key: undefined, client: undefined, used: () => {} };
    const gone = new AbortController();
    request.gone = gone.signal;
    reply.raw.once('close', () => {
      if (!reply.raw.writableFinished) gone.abort();
    });
  });
  app.setErrorHandler(errorHandler);
  app.setNotFoundHandler((request) => {
    throw new ApiError(`Unknown request URL: ${request.method} ${request.url}`, { status: 404, code: 'unknown_url' });
  });
  app.addHook('onClose', async () => await models.close(30_000));
  for (const add of PARTS) add(app, context);
  return app;
}
