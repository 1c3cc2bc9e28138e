import type { FastifyInstance } from 'fastify';
import { type LoadOptions, loadModel, type Model } from 'node-chatglm';
import OpenAI, { type ClientOptions } from 'openai';
import { buildApp } from '../../src/server';

/** JSON that a test looks into: what is not as it should be fails there. */
// biome-ignore lint/suspicious/noExplicitAny: a test says what it expects of each field.
export type Json = any;

/** A server that listens, and the model behind it. */
export interface Served {
  app: FastifyInstance;
  model: Model;
  /** Without a slash at its end. */
  url: string;
  /** OpenAI's own client, which does not try again by itself. */
  client(options?: ClientOptions): OpenAI;
  /** POSTs JSON and gives what came back. */
  post(
    path: string,
    body: unknown,
    headers?: Record<string, string>,
  ): Promise<{ status: number; body: Json; headers: Headers }>;
  /** Resolves once the model computes nothing. */
  idle(): Promise<void>;
  /** Ends the server and frees the model. */
  close(): Promise<void>;
}

/** Serves the embedded model on a free port. */
export async function serve(settings: object = {}, load: LoadOptions = {}): Promise<Served> {
  const model = await loadModel(null, { device: 'cpu', ...load });
  const app = buildApp({ models: [{ id: 'chatglm-tiny', model }], ...settings });
  return await listening(app, model);
}

/** Lets an application listen on a free port. */
export async function listening(app: FastifyInstance, model: Model): Promise<Served> {
  const url = await app.listen({ port: 0, host: '127.0.0.1' });
  return {
    app,
    model,
    url,
    client: (options) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, ...options }),
    async post(path, body, headers = {}) {
      const response = await fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: JSON.stringify(body),
      });
      const text = await response.text();
      const isJson = response.headers.get('content-type')?.includes('json');
      return { status: response.status, body: isJson ? JSON.parse(text) : text, headers: response.headers };
    },
    async idle() {
      for (;;) {
        const { activeSequences, queuedRequests } = model.stats();
        if (activeSequences === 0 && queuedRequests === 0) return;
        await new Promise(setImmediate);
      }
    },
    async close() {
      const closed = app.close();
      // A client that aborts a request opens another connection, which says nothing and would be waited for.
      app.server.closeAllConnections();
      await closed;
      await model.dispose();
    },
  };
}

/** A bias that keeps an answer from ending by itself. */
export function endless({ tokenizer }: Model): Record<string, number> {
  const { size, tokenCount } = tokenizer;
  const ids = [2, ...Array.from({ length: tokenCount - size }, (_, i) => size + i)];
  return Object.fromEntries(ids.map((id) => [id, -100]));
}

/** The data of a stream's events, those that are JSON parsed. */
export function eventsOf(text: string): Json[] {
  return text
    .split('\n\n')
    .filter((event) => event.startsWith('data: '))
    .map((event) => (event === 'data: [DONE]' ? '[DONE]' : JSON.parse(event.slice('data: '.length))));
}

export const weatherTool = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: '查询某个城市的天气',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
} as const;

/** Fields of requests whose answers are always the same. */
export const greedy = { model: 'chatglm-tiny', temperature: 0 } as const;
export const hello = [{ role: 'user', content: '你好' }] as const satisfies OpenAI.ChatCompletionMessageParam[];
/** The greedy answer to {@link hello}. */
export const GREETING = '你好👋！我是人工智能助手 ChatGLM-Tiny，很高兴见到你，欢迎问我任何问题。';
