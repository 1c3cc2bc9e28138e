import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Readable } from 'node:stream';
import cors from '@fastify/cors';
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController } from 'fastify';
import { Access } from './access/access.js';
import type { AnswerUsage, Caller } from './access/caller.js';
import { internalCaller } from './access/internal.js';
import { isLoopback, OriginGuard } from './access/origins.js';
import { messagesRoutes } from './anthropic/messages.js';
import { batchRoutes } from './batch/routes.js';
import type { EngineOptions, ServerContext } from './context.js';
import { closeWithSocket } from './http/closing.js';
import { errorBody, errorHandler } from './http/error-handler.js';
import { ApiError } from './http/errors.js';
import { Lifecycle } from './lifecycle.js';
import { Pool } from './models/model-pool.js';
import type { ModelLease, ModelPool } from './models/pool.js';
import { createLogger, isLogger, requestId } from './observe/logs.js';
import { Metrics } from './observe/metrics.js';
import { RequestRecord } from './observe/record.js';
import { observeRoutes } from './observe/routes.js';
import { Tracing, tellAll } from './observe/tracing.js';
import { chatRoutes } from './openai/chat.js';
import { completionRoutes } from './openai/completions.js';
import { modelRoutes } from './openai/models.js';
import { responsesRoutes } from './openai/responses.js';
import { tokenizeRoutes } from './openai/tokenize.js';
import { readServerOptions, type ServedModel, type ServerOptions, type ServerSettings } from './options.js';
import { VERSION } from './version.js';
import { webRoutes } from './web.js';

/** Each part adds its routes. */
const PARTS: readonly ((app: FastifyInstance, context: ServerContext) => void)[] = [
  observeRoutes,
  modelRoutes,
  chatRoutes,
  completionRoutes,
  tokenizeRoutes,
  responsesRoutes,
  messagesRoutes,
  batchRoutes,
  webRoutes,
];

/** What {@link Server.listen} takes. */
export interface ListenOptions {
  /** 0 takes any free port. Default: 8000. */
  port?: number | undefined;
  /** The address to listen on. `0.0.0.0` and `::` are all of the machine's. Default: `127.0.0.1`. */
  host?: string | undefined;
}

/**
 * A server: `createServer()` makes one.
 *
 * @example
 * ```ts
 * import { createServer } from 'node-chatglm-server';
 *
 * await using server = createServer({ model: './chatglm3-6b' });
 * console.log(await server.listen({ port: 8000 })); // http://127.0.0.1:8000
 * ```
 */
export class Server implements AsyncDisposable {
  /** The Fastify application, to which routes and hooks may be added before it listens. */
  readonly app: FastifyInstance;
  /** The models, which programs may use beside the server. */
  readonly models: ModelPool;
  readonly #context: ServerContext & { models: Pool };
  readonly #guard: OriginGuard;
  #loading: Promise<void> | undefined;
  #closing: Promise<void> | undefined;

  /** @internal Use `createServer()`. */
  constructor(settings: ServerSettings, mount: Mount = {}) {
    const built = build(settings, mount);
    this.app = built.app;
    this.models = built.context.models;
    this.#context = built.context;
    this.#guard = built.guard;
  }

  /** Whether keys are asked for. */
  get hasKeys(): boolean {
    return this.#context.access.hasKeys;
  }

  /** Whether {@link close} was called. */
  get isDraining(): boolean {
    return this.#context.lifecycle.isDraining;
  }

  /**
   * Listens, and begins to load the models that are to be there. Requests are taken at once and wait for their model;
   * `/ready` tells when it is loaded, and so does {@link preload}.
   *
   * @returns The URL.
   * @throws {Error} EADDRINUSE, EACCES and others of Node's.
   *
   * @example
   * ```ts
   * const address = await server.listen({ port: 0 });
   * console.log((await fetch(`${address}/health`)).status); // 200
   * ```
   */
  async listen({ port = 8000, host = '127.0.0.1' }: ListenOptions = {}): Promise<string> {
    const { access, log } = this.#context;
    this.#guard.isLocal = isLoopback(host) && !access.hasKeys;
    if (!isLoopback(host) && !access.hasKeys) {
      log.warn({ host }, 'everybody who reaches this address may use the server: it has no keys');
    }
    const address = await this.app.listen({ port, host, backlog: 2048 });
    this.preload().catch(() => {}); // it is in the log, and /ready tells
    return address;
  }

  /**
   * Resolves when the models are loaded that are to be there at the start.
   *
   * @throws {Error} the first failure, whose `cause` says what went wrong.
   *
   * @example
   * ```ts
   * await server.preload();
   * console.log(server.models.list().filter(({ isLoaded }) => isLoaded).length);
   * ```
   */
  async preload(): Promise<void> {
    this.#loading ??= this.#context.models.preload();
    await this.#loading;
  }

  /**
   * Reads the file of keys again, as SIGHUP does on the command line. A file that is wrong changes nothing.
   *
   * @example
   * ```ts
   * process.on('SIGHUP', () => server.reload());
   * ```
   */
  reload(): void {
    this.#context.access.reload();
  }

  /**
   * Takes no new requests, lets those that run come to their end within `shutdownMs`, and gives everything back. Models that
   * were given to the server stay as they are.
   *
   * @example
   * ```ts
   * process.once('SIGTERM', () => void server.close());
   * ```
   */
  async close(): Promise<void> {
    this.#closing ??= this.#close();
    await this.#closing;
  }

  /**
   * Closes at the end of the block of an `await using`.
   *
   * @example
   * ```ts
   * import { createServer } from 'node-chatglm-server';
   *
   * await using server = createServer();
   * await server.listen({ port: 0 });
   * ```
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    const { lifecycle, settings, log } = this.#context;
    log.info({ inFlight: lifecycle.inFlight }, 'shutting down');
    // Connections without a request stay until the end: what comes on them is refused in words rather than by a reset.
    const isDone = await lifecycle.drain(settings.shutdownMs);
    if (!isDone) log.warn({ inFlight: lifecycle.inFlight }, 'answers are cut off: the time to shut down is over');
    await this.app.close();
  }
}

/**
 * Makes a server that listens to nothing yet.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT.
 *
 * @example
 * ```ts
 * import { createServer } from 'node-chatglm-server';
 *
 * const server = createServer({
 *   model: { 'chatglm3-6b': { path: './chatglm3-6b', load: { quantization: 'int4' } } },
 *   keys: [{ name: 'anna', key: 'sk-chatglm-0123456789abcdef', tokensPerMinute: 100_000 }],
 *   logger: true,
 * });
 * await server.listen({ port: 8000, host: '0.0.0.0' });
 * process.once('SIGTERM', () => void server.close());
 * ```
 */
export function createServer(options: ServerOptions = {}): Server {
  return new Server(readServerOptions(options));
}

/** The server as a Fastify application that listens to nothing yet. */
export function buildApp({ models, ...options }: ServerOptions & { models: readonly ServedModel[] }): FastifyInstance {
  return build(readServerOptions({ ...options, model: models })).app;
}

interface Built {
  app: FastifyInstance;
  context: ServerContext & { models: Pool };
  guard: OriginGuard;
}

/** How a server is part of another application. */
export interface Mount {
  /** Gets requests for which there is no route. Default: they are answered with 404. */
  onUnknown?: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
}

function build(settings: ServerSettings, { onUnknown }: Mount = {}): Built {
  const { limits, logger } = settings;
  const loggerInstance: FastifyBaseLogger | undefined = logger && (isLogger(logger) ? logger : createLogger(logger));
  const app: FastifyInstance = Fastify({
    ...(loggerInstance ? { loggerInstance } : { logger: false }),
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: requestId,
    requestIdHeader: false,
    bodyLimit: limits.bodyBytes,
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    requestTimeout: limits.requestTimeoutMs,
    trustProxy: settings.trustProxy,
    forceCloseConnections: true,
    routerOptions: { maxParamLength: 500 },
    http: {
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.headersTimeoutMs,
      connectionsCheckingInterval: limits.checkIntervalMs,
    },
    // Values stay what the client sent: "1" is no number, and fields that a schema does not know are left alone.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, useDefaults: false, allErrors: false } },
    clientErrorHandler: answerBadRequest,
  });
  app.server.maxConnections = limits.connections;
  const connections = countConnections(app);

  const lifecycle = new Lifecycle();
  const metrics: Metrics = new Metrics(() => models, {
    connections,
    inFlight: () => lifecycle.inFlight,
    isDraining: () => lifecycle.isDraining,
  });
  const listeners = new Map<string, ReturnType<Metrics['listener']>>();
  const listenerOf = (id: string) => {
    let listener = listeners.get(id);
    if (!listener) {
      listener = metrics.listener(id);
      listeners.set(id, listener);
    }
    return listener;
  };
  const models = new Pool(settings, app.log, {
    onLoaded: (id) => metrics.countLoad(id),
    onFailed: (id) => metrics.countFailure(id),
    onTrace: listenerOf,
  });
  const access = new Access(settings, app.log);
  const guard = new OriginGuard(settings);
  const tracing = new Tracing(VERSION);
  const context = { settings, models, log: app.log, access, metrics, lifecycle };

  app.decorateRequest('caller');
  app.decorateRequest('gone');
  app.decorateRequest('record');
  app.decorateRequest('engineOptions', function (this, lease: ModelLease): EngineOptions {
    this.record.setModel((this.body as { model?: unknown } | undefined)?.model, lease.id);
    const count = listenerOf(lease.id);
    const span = this.record.onTrace;
    return {
      signal: this.gone,
      client: this.caller.client,
      priority: this.caller.priority,
      onTrace: tellAll(count, span),
      timeoutMs: limits.answerTimeoutMs,
      queueTimeoutMs: limits.queueTimeoutMs,
    };
  });

  app.addHook('onRequest', (request, reply, done) => {
    const { raw } = reply;
    const { isQuiet = false, isOpen = false } = request.routeOptions.config;
    reply.headers(HEADERS).header('x-request-id', request.id);
    const record = new RequestRecord(request, tracing);
    request.record = record;
    const gone = new AbortController();
    request.gone = gone.signal;
    if (!isQuiet) lifecycle.enter();
    closeWithSocket(raw, request.raw.socket);
    raw.once('close', () => {
      if (!isQuiet) lifecycle.leave();
      if (!raw.writableFinished) gone.abort();
      record.end(request, reply, metrics);
    });
    try {
      const internal = internalCaller();
      if (!internal && !access.hasKeys) guard.check(request);
      if (lifecycle.isDraining && !isQuiet) {
        reply.header('connection', 'close');
        throw new ApiError('The server is shutting down.', { status: 503, code: 'shutting_down', retryAfter: 1 });
      }
      request.caller = isOpen ? NOBODY : withRecord(internal ?? access.identify(request), record);
      // What only reads costs nothing worth counting.
      if (!internal && !isOpen && request.method === 'POST') access.enter(request, reply);
      done();
    } catch (error) {
      done(error as Error);
    }
  });
  // An application may have read the body before it handed the request over, as express.json() does.
  app.addHook('preParsing', (request, _reply, payload, done) => {
    const { body } = request.raw as IncomingMessage & { body?: unknown };
    if (body === undefined || !request.raw.readableEnded) {
      done(null, payload);
      return;
    }
    const text = Buffer.from(typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body));
    const again = Readable.from([text]) as Readable & { receivedEncodedLength?: number };
    const length = Number(request.headers['content-length']);
    // What was sent may have been longer, with spaces or compressed.
    again.receivedEncodedLength = Number.isNaN(length) ? text.length : length;
    done(null, again);
  });
  const logsContent = logger !== undefined && !isLogger(logger) && logger.content;
  app.addHook('preHandler', (request, _reply, done) => {
    if (logsContent && request.method === 'POST') request.log.info({ content: contentOf(request.body) }, 'asked');
    const { model } = (request.body ?? {}) as { model?: unknown };
    const { caller } = request;
    const { hasModel = true } = request.routeOptions.config;
    if (hasModel && request.method === 'POST' && (typeof model === 'string' || model == null)) {
      const id = resolved(models, model ?? undefined);
      if (id !== undefined && !caller.allows(id)) {
        done(
          new ApiError(`The key \`${caller.key}\` does not have access to the model \`${model ?? id}\`.`, {
            status: 403,
            code: 'model_not_found',
            param: 'model',
          }),
        );
        return;
      }
    }
    done();
  });
  app.setErrorHandler(errorHandler);
  app.setNotFoundHandler((request, reply) => {
    if (onUnknown?.(request.raw, reply.raw)) {
      reply.hijack();
      return;
    }
    throw new ApiError(`Unknown request URL: ${request.method} ${request.url.slice(0, 200)}`, {
      status: 404,
      code: 'unknown_url',
    });
  });
  if (settings.cors.length > 0) {
    app.register(cors, {
      origin: settings.cors.includes('*') ? '*' : [...settings.cors],
      methods: ['GET', 'POST', 'DELETE'],
      exposedHeaders: ['x-request-id', 'retry-after', ...RATE_HEADERS],
      maxAge: 600,
    });
  }
  app.addHook('onClose', async () => {
    await models.close(0);
  });
  for (const add of PARTS) add(app, context);
  return { app, context, guard };
}

const NOBODY: Caller = { key: undefined, client: undefined, allows: () => true, used: () => {} };

/** Where the server's answers may not be shown, and what a browser must not make of them. */
const HEADERS = {
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
};

const RATE_HEADERS = ['requests', 'tokens'].flatMap((what) =>
  ['limit', 'remaining', 'reset'].map((which) => `x-ratelimit-${which}-${what}`),
);

/** The caller, whose answers the record of the request hears of too. */
function withRecord(caller: Caller, record: RequestRecord): Caller {
  return {
    ...caller,
    used(usage: AnswerUsage) {
      caller.used(usage);
      record.used(usage);
    },
  };
}

/** What a request says, and not how it is to be answered. */
function contentOf(body: unknown): unknown {
  const { messages, system, prompt, input, instructions } = (body ?? {}) as Record<string, unknown>;
  return { messages, system, prompt, input, instructions };
}

function resolved(models: ModelPool, name: string | undefined): string | undefined {
  try {
    return models.resolve(name);
  } catch {
    return undefined; // the route tells that there is no such model
  }
}

function countConnections(app: FastifyInstance): () => number {
  const open = new Set<Socket>();
  app.server.on('connection', (socket) => {
    open.add(socket);
    socket.once('close', () => open.delete(socket));
  });
  return () => open.size;
}

/** What is no HTTP, or too slow, or too much of it: answered in the shape of other errors, and the connection is closed. */
function answerBadRequest(this: FastifyInstance, error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed) return;
  // What comes behind a request that cannot be read is no request either. And a connection that has sent nothing waits for
  // no answer: clients open some ahead, and would take one for that of the request which they are about to send.
  if (socket.writableEnded || socket.bytesRead === 0) {
    socket.destroy();
    return;
  }
  const [status, reason, message] =
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large', 'The headers of the request are too large.']
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout', 'The request did not arrive in time.']
        : [400, 'Bad Request', 'This is no HTTP request that can be read.'];
  const body = JSON.stringify(errorBody(new ApiError(message, { status, code: null }), 'openai', ''));
  // An answer that is due, or begun, would be mixed up with this one; unless it is for the request that broke off.
  const { _httpMessage: due } = socket as Socket & { _httpMessage?: ServerResponse | null };
  if (socket.writable && (!due || (!due.headersSent && !due.req.complete))) {
    socket.end(
      `HTTP/1.1 ${status} ${reason}\r\nContent-Type: application/json; charset=utf-8\r\n` +
        `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    );
  }
  // Who does not read the answer does not keep the connection.
  socket.destroySoon();
}
