import type { FastifyRequest } from 'fastify';
import type { GenerateOptions } from 'node-chatglm';
import type { ModelLease } from '../models/pool.js';

/** What the engine is told of a request besides what the request says itself. */
type EngineOptions = Pick<GenerateOptions, 'signal' | 'client' | 'onTrace' | 'timeoutMs' | 'queueTimeoutMs'>;

/**
 * Options for the generations of a request: whose it is, the server's limits of time, and who hears of its phases.
 *
 * The signal is left out: whoever generates ends a generation whose client has gone by its `return()`, which tells what it
 * took until then; a signal would end it with an error.
 *
 * @param user Whom the request names: the client of requests without a key.
 */
export function engineOptions(request: FastifyRequest, lease: ModelLease, user?: string | null): GenerateOptions {
  const { engineOptions: own } = request as { engineOptions?: (lease: ModelLease) => EngineOptions };
  const { signal: _, ...options } = own?.call(request, lease) ?? { client: request.caller.client };
  if (options.client === undefined && user) options.client = { key: user, weight: 1 };
  return options;
}
