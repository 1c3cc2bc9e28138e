import type { FastifyBaseLogger } from 'fastify';
import { BullQueue } from './bull-queue.js';
import { RedisStore } from './redis-store.js';

/** Files and batches in Redis, whose lines workers answer. Loaded only where there is a Redis. */
export function openRedis(
  url: string,
  totalBytes: number,
  log: FastifyBaseLogger,
): { store: RedisStore; queue: BullQueue } {
  const store = new RedisStore(url, totalBytes, log);
  return { store, queue: new BullQueue(url, store, log) };
}
