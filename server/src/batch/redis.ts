import type { FastifyBaseLogger } from 'fastify';
import type { LineQueue } from './line-queue.js';
import type { Store } from './store.js';

export async function openRedis(
  _url: string,
  _totalBytes: number,
  _log: FastifyBaseLogger,
): Promise<{ store: Store; queue: LineQueue }> {
  throw new Error('not yet');
}
