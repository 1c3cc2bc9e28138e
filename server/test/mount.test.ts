import { createServer as createHttpServer, type Server as HttpServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import express, { type Express } from 'express';
import Fastify, { type FastifyInstance } from 'fastify';
import { loadModel, type Model } from 'node-chatglm';
import { fastifyChatGLM, type RequestHandler, requestHandler, type Server } from '../src/index';
import { addGenerateRoute, GENERATE, json, post } from './support/infra';

let model: Model;
const closing: (() => Promise<unknown>)[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});
afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});
afterAll(async () => {
  await model.dispose();
});

async function listen(app: Parameters<typeof createHttpServer>[1]): Promise<string> {
  const http: HttpServer = createHttpServer(app as never);
  await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve));
  closing.push(async () => {
    http.closeAllConnections();
    await new Promise((resolve) => http.close(resolve));
  });
  return `http://127.0.0.1:${(http.address() as AddressInfo).port}`;
}

function handlerOf(options = {}): RequestHandler {
  const handler = requestHandler({ model, web: false, ...options });
  closing.push(() => handler.close());
  addGenerateRoute(handler.server.app, handler.server.models);
  return handler;
}

describe('an Express application', () => {
  const withRoutes = (app: Express) =>
    app
      .get('/own', (_request, response) => void response.json({ own: true }))
      .use((_request, response) => void response.status(404).json({ who: 'express' }));

  test('has the server at a path, and answers the rest itself', async () => {
    const url = await listen(withRoutes(express().use('/llm', handlerOf())));
    expect(await json(await fetch(`${url}/own`))).toEqual({ own: true });
    const { data } = await json(await fetch(`${url}/llm/v1/models?x=1`));
    expect(data[0].id).toBe('chatglm-tiny');
    const answer = await post(`${url}/llm${GENERATE}`, { tokens: 3 });
    expect([answer.status, answer.body.usage.generatedTokens]).toEqual([200, 3]);
    expect((await post(`${url}/llm${GENERATE}`, { model: 'none' })).body.error.code).toBe('model_not_found');
    for (const unknown of ['/nothing', '/llm/nothing']) {
      expect(await json(await fetch(url + unknown))).toEqual({ who: 'express' });
    }
  });

  test('may have parsed the body, and checked who asks', async () => {
    const app = express()
      .use(express.json())
      .use((request, response, next) => {
        if (request.headers.authorization === 'Bearer of the application') next();
        else response.status(401).end();
      });
    const url = await listen(withRoutes(app.use(handlerOf())));
    expect((await fetch(`${url}/v1/models`)).status).toBe(401);
    const headers = { authorization: 'Bearer of the application' };
    const answer = await post(url + GENERATE, { tokens: 2, prompt: '你好 — ü' }, { headers });
    expect([answer.status, answer.body.usage.generatedTokens]).toEqual([200, 2]);
  });

  test('a closed handler takes no requests, and leaves the application alone', async () => {
    const handler = handlerOf();
    const url = await listen(withRoutes(express().use('/llm', handler)));
    expect((await fetch(`${url}/llm/health`)).status).toBe(200);
    await handler.close();
    const refused = await fetch(`${url}/llm/v1/models`);
    expect(refused.status).toBe(503);
    expect((await fetch(`${url}/own`)).status).toBe(200);
  });
});

test('a plain HTTP server', async () => {
  const url = await listen(handlerOf());
  expect((await fetch(`${url}/health`)).status).toBe(200);
  const unknown = await fetch(`${url}/nothing`);
  expect([unknown.status, (await json(unknown)).error.code]).toEqual([404, 'unknown_url']);
});

describe('a Fastify application', () => {
  async function start(prefix: string | undefined, prepare: (app: FastifyInstance) => void = () => {}) {
    const app = Fastify();
    prepare(app);
    app.get('/own', async () => ({ own: true }));
    await app.register(async (scope) => {
      await scope.register(fastifyChatGLM, { ...(prefix === undefined ? {} : { prefix }), model, web: false });
    });
    closing.push(() => app.close());
    return { app, url: await app.listen({ port: 0, host: '127.0.0.1' }) };
  }

  test('has the server under a prefix', async () => {
    const { url } = await start('/llm');
    expect(await json(await fetch(`${url}/own`))).toEqual({ own: true });
    expect((await json(await fetch(`${url}/llm/v1/models`))).data[0].id).toBe('chatglm-tiny');
    const wrong = await fetch(`${url}/llm/v1/nothing`, { method: 'POST', body: 'x'.repeat(100_000) });
    expect([wrong.status, (await json(wrong)).error.code]).toEqual([404, 'unknown_url']);
    expect((await fetch(`${url}/elsewhere`)).status).toBe(404);
  });

  test('has it at its root, behind its own hooks', async () => {
    const { app, url } = await start(undefined, (outer) => {
      outer.addHook('onRequest', async (request, reply) => {
        if (request.headers.authorization !== 'Bearer of the application') return reply.status(401).send({});
      });
    });
    expect((await fetch(`${url}/v1/models`)).status).toBe(401);
    const headers = { authorization: 'Bearer of the application' };
    expect((await fetch(`${url}/v1/models`, { headers })).status).toBe(200);
    expect((await app.inject({ url: '/v1/models', headers })).json().data[0].id).toBe('chatglm-tiny');
  });

  test('parses no body itself', async () => {
    const app = Fastify();
    let server: Server | undefined;
    await app.register(async (scope) => {
      await scope.register(
        async (inner) => {
          await fastifyChatGLM(inner, { model, web: false });
          server = (inner as unknown as { chatglm: Server }).chatglm;
        },
        { prefix: '/llm' },
      );
    });
    closing.push(() => app.close());
    const url = await app.listen({ port: 0, host: '127.0.0.1' });
    const body = JSON.stringify({ model: 'chatglm-tiny', messages: [] });
    const answer = await fetch(`${url}/llm/v1/models`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    expect(answer.status).toBe(404);
    expect(server?.isDraining).toBe(false);
    await app.close();
    expect(server?.isDraining).toBe(true);
  });
});
