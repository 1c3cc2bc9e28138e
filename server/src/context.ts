import type { FastifyBaseLogger } from 'fastify';
import type { Caller } from './access/caller.js';
import type { ModelPool } from './models/pool.js';
import type { ServerSettings } from './options.js';

/** What the parts of one server share. */
export interface ServerContext {
  readonly settings: ServerSettings;
  readonly models: ModelPool;
  readonly log: FastifyBaseLogger;
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Who asks: set before a route runs. */
    caller: Caller;
    /** Fires when the client has gone before its answer was complete. */
    gone: AbortSignal;
  }
  interface FastifyContextConfig {
    /** In whose shape errors are written. Default: `openai`. */
    api?: 'openai' | 'anthropic';
    /** Whether the route is there for those who have no key, such as `/health`. Default: false. */
    isOpen?: boolean;
  }
}
