import type { IncomingMessage, ServerResponse } from 'node:http';
import type { FastifyPluginAsync } from 'fastify';
import { readServerOptions, type ServerOptions } from './options.js';
import { Server } from './server.js';

type Next = (error?: unknown) => void;

/** A handler of an Express or Connect application, which has to be closed. */
export type RequestHandler = ((request: IncomingMessage, response: ServerResponse, next?: Next) => void) &
  AsyncDisposable & {
    /** What answers: its models, its metrics. */
    readonly server: Server;
    /** As `server.close()`. */
    close(): Promise<void>;
  };

/**
 * The server as a part of an existing Express or Connect application, or of a plain `http.createServer()`. It answers the
 * requests that it has routes for, and gives the others to `next`. What the application did before, such as checking who
 * asks, stays done; a body that was parsed already is taken as it is.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT.
 *
 * @example
 * ```ts
 * import express from 'express';
 * import { requestHandler } from 'node-chatglm-server';
 *
 * const chatglm = requestHandler({ model: './chatglm3-6b', web: false });
 * const app = express();
 * app.use('/llm', chatglm); // http://…/llm/v1/chat/completions
 * const http = app.listen(3000);
 * process.once('SIGTERM', async () => {
 *   await chatglm.close();
 *   http.close();
 * });
 * ```
 */
export function requestHandler(options: ServerOptions = {}): RequestHandler {
  const following = new WeakMap<IncomingMessage, Next>();
  const server = new Server(readServerOptions(options), {
    onUnknown(request) {
      const next = following.get(request);
      if (!next) return false;
      next();
      return true;
    },
  });
  const ready = begin(server);
  const handler = (request: IncomingMessage, response: ServerResponse, next?: Next): void => {
    if (next) following.set(request, next);
    ready.then(
      () => server.app.routing(request, response),
      (error) => {
        if (next) next(error);
        else response.writeHead(500).end();
      },
    );
  };
  return Object.assign(handler, {
    server,
    close: () => server.close(),
    [Symbol.asyncDispose]: () => server.close(),
  });
}

/**
 * The server as a plugin of an existing Fastify application, under a prefix or at its root. Hooks of the application run
 * before; limits, errors and logs are those of the server's own options. It is closed with the application.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT.
 *
 * @example
 * ```ts
 * import Fastify from 'fastify';
 * import { fastifyChatGLM } from 'node-chatglm-server';
 *
 * const app = Fastify();
 * await app.register(fastifyChatGLM, { prefix: '/llm', model: './chatglm3-6b', web: false });
 * await app.listen({ port: 3000 });
 * ```
 */
export const fastifyChatGLM: FastifyPluginAsync<ServerOptions> = async (app, given) => {
  // Fastify gives a plugin its own options with the others.
  const {
    prefix: _prefix,
    logLevel: _logLevel,
    logSerializers: _logSerializers,
    ...options
  } = given as ServerOptions & {
    prefix?: string;
    logLevel?: string;
    logSerializers?: object;
  };
  const server = new Server(readServerOptions(options));
  app.decorate('chatglm', server);
  await begin(server);
  // The body stays in the socket for the server to read.
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', (_request, _payload, done) => done(null));
  const { prefix } = app;
  const answer = (raw: IncomingMessage, response: ServerResponse) => {
    // As Express does: the page wants to know by which address it is asked for.
    (raw as { originalUrl?: string | undefined }).originalUrl ??= raw.url;
    if (prefix !== '' && raw.url?.startsWith(prefix)) raw.url = raw.url.slice(prefix.length).replace(/^(?!\/)/, '/');
    server.app.routing(raw, response);
  };
  for (const url of ['/', '/*']) {
    app.all(url, (request, reply) => {
      reply.hijack();
      answer(request.raw, reply.raw);
    });
  }
  app.addHook('preClose', async () => await server.close());
};

async function begin(server: Server): Promise<void> {
  await server.app.ready();
  server.preload().catch(() => {}); // it is in the log, and /ready tells
}
