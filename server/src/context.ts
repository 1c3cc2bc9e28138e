import type { FastifyBaseLogger } from 'fastify';
import type { GenerateOptions } from 'node-chatglm';
import type { Access } from './access/access.js';
import type { Caller } from './access/caller.js';
import type { Lifecycle } from './lifecycle.js';
import type { ModelLease, ModelPool } from './models/pool.js';
import type { Metrics } from './observe/metrics.js';
import type { RequestRecord } from './observe/record.js';
import type { ServerSettings } from './options.js';

/** What the parts of one server share. */
export interface ServerContext {
  readonly settings: ServerSettings;
  readonly models: ModelPool;
  readonly log: FastifyBaseLogger;
  readonly access: Access;
  readonly metrics: Metrics;
  /** Whether the server is shutting down; `onDrain` hears of it. */
  readonly lifecycle: Lifecycle;
}

/** What the engine is told of every request. */
export type EngineOptions = Pick<
  GenerateOptions,
  'signal' | 'client' | 'priority' | 'onTrace' | 'timeoutMs' | 'queueTimeoutMs'
>;

declare module 'fastify' {
  interface FastifyRequest {
    /** Who asks: set before a route runs. */
    caller: Caller;
    /** Fires when the client has gone before its answer was complete. */
    gone: AbortSignal;
    /**
     * What the engine is to be told of this request, to be spread into the options of its generations: whose it is, when its
     * client has gone, the server's limits of time, and who hears of its phases. The log and traces learn of the model here.
     */
    engineOptions(lease: ModelLease): EngineOptions;
    /** What the log and the metrics are told of the request at its end. */
    record: RequestRecord;
  }
  interface FastifyContextConfig {
    /** In whose shape errors are written. Default: `openai`. */
    api?: 'openai' | 'anthropic';
    /** Whether the route is there for those who have no key, such as `/health`. Default: false. */
    isOpen?: boolean;
    /** Whether the route looks after the server: it answers while the server drains, and only debug logs tell of it. Default: false. */
    isQuiet?: boolean;
    /** Whether the body names a model, or means the first one by naming none. Default: true. */
    hasModel?: boolean;
  }
}
