import type { FastifyInstance } from 'fastify';
import { buildApp } from '../../src/server';

type Settings = Parameters<typeof buildApp>[0];

/** What an answer took, as the caller's account hears of it. */
export interface Used {
  url: string;
  generated: number;
  finishReason?: string | null | undefined;
}

/** A server that listens, with the embedded model. */
export interface Listening {
  address: string;
  app: FastifyInstance;
  /** What was told of each answer, in the order of their ends. */
  used: Used[];
  /** Resolves when the next request has come with its body. */
  nextRequest(): Promise<void>;
  /** Resolves with the next answer's account. */
  nextUsed(): Promise<Used>;
  close(): Promise<void>;
}

export async function listen(settings: Partial<Settings> = {}): Promise<Listening> {
  const app = buildApp({ models: [{}], ...settings });
  const used: Used[] = [];
  const waiting: ((used: Used) => void)[] = [];
  const expecting: (() => void)[] = [];
  app.addHook('preHandler', async (request) => {
    expecting.shift()?.();
    const { caller } = request;
    request.caller = {
      ...caller,
      used(usage) {
        caller.used(usage);
        const { generated, finishReason } = usage;
        const entry = { url: request.url, generated, finishReason };
        used.push(entry);
        waiting.shift()?.(entry);
      },
    };
  });
  const address = await app.listen({ port: 0, host: '127.0.0.1' });
  return {
    address,
    app,
    used,
    nextRequest: () => new Promise((resolve) => expecting.push(resolve)),
    nextUsed: () => new Promise((resolve) => waiting.push(resolve)),
    async close() {
      const closed = app.close();
      // Clients keep connections open that they may need again.
      app.server.closeAllConnections();
      await closed;
    },
  };
}

/** A schema that only a long answer follows: one that can be left. */
export const LONG_LIST = {
  type: 'object',
  properties: { numbers: { type: 'array', items: { type: 'integer' }, minItems: 150, maxItems: 150 } },
  required: ['numbers'],
  additionalProperties: false,
};

/** JSON of so many arrays within each other. */
export function nested(levels: number): string {
  return '['.repeat(levels) + ']'.repeat(levels);
}
