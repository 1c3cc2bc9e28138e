import type { FastifyRequest } from 'fastify';
import type { EngineOptions } from '../context.js';
import type { ModelLease } from '../models/pool.js';

/**
 * Options for the generations of a request: whose it is, the server's limits of time, and who hears of its phases.
 *
 * The signal is left out: whoever generates ends a generation whose client has gone by its `return()`, which tells what it
 * took until then; a signal would end it with an error.
 *
 * @param user Whom the request names: the client of requests without a key.
 */
export function engineOptions(
  request: FastifyRequest,
  lease: ModelLease,
  user?: string | null,
): Omit<EngineOptions, 'signal'> {
  const { signal: _, ...options } = request.engineOptions(lease);
  if (options.client === undefined && user) options.client = { key: user, weight: 1 };
  return options;
}
