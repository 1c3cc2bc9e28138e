import type { FastifyInstance } from 'fastify';
import type { ServerContext } from '../context.js';

/** `/health`, `/ready` and `/metrics`. */
export function observeRoutes(app: FastifyInstance, { models, metrics, settings, lifecycle }: ServerContext): void {
  const open = { config: { isOpen: true, isQuiet: true } };

  // Whether the process lives: what restarts it where not.
  app.get('/health', open, async () => ({ status: 'ok' }));

  // Whether requests should be sent here.
  app.get('/ready', open, async (_request, reply) => {
    const cards = models.list();
    const waiting = cards.filter(({ isRequired, isLoaded }) => isRequired && !isLoaded);
    const status = lifecycle.isDraining
      ? 'draining'
      : waiting.some(({ state }) => state === 'failed')
        ? 'failed'
        : waiting.length > 0
          ? 'loading'
          : 'ready';
    reply.status(status === 'ready' ? 200 : 503);
    return { status, models: cards.map(({ id, state }) => ({ id, state })) };
  });

  if (settings.metrics === false) return;
  const config = { isOpen: settings.metrics === 'open', isQuiet: true };
  app.get('/metrics', { config }, async (_request, reply) => {
    reply.type(metrics.registry.contentType);
    return await metrics.text();
  });
}
