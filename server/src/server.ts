import Fastify, { type FastifyInstance } from 'fastify';
import { messagesRoutes } from './anthropic/messages.js';
import type { ServerContext } from './context.js';
import { errorHandler } from './http/error-handler.js';
import { ApiError } from './http/errors.js';
import { createModelPool } from './models/model-pool.js';
import { chatRoutes } from './openai/chat.js';
import { completionRoutes } from './openai/completions.js';
import { modelRoutes } from './openai/models.js';
import { responsesRoutes } from './openai/responses.js';
import { tokenizeRoutes } from './openai/tokenize.js';
import type { ServerSettings } from './options.js';

/** Each part adds its routes. */
const PARTS: readonly ((app: FastifyInstance, context: ServerContext) => void)[] = [
  modelRoutes,
  chatRoutes,
  completionRoutes,
  tokenizeRoutes,
  responsesRoutes,
  messagesRoutes,
];

/** The server as a Fastify application that listens to nothing yet. */
export function buildApp(settings: ServerSettings): FastifyInstance {
  const app = Fastify({
    logger: false,
    // A field of the wrong type, or one that there is not, is told, and not mended.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false } },
  });
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
