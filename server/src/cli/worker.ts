import type { BatchWorker } from '../batch/worker.js';
import { createServer } from '../server.js';
import { VERSION } from '../version.js';
import { type OptionSpecs, optionLines, readArguments, UsageError } from './arguments.js';
import { print } from './output.js';
import { isAnswered, isLoaded, untilSignal } from './running.js';
import { models, running, toLoadOptions, toLogOptions, toModels } from './serve.js';

const work = {
  redis: { kind: 'text', value: 'URL', about: "The servers' Redis, such as redis://10.0.0.5:6379 (needed)" },
  concurrency: { kind: 'integer', least: 1, most: 1024, about: 'Most lines answered at a time (default: 32)' },
  'line-limit': { kind: 'bytes', least: 1, about: "Longest line; the servers' --body-limit (default: 8MiB)" },
} as const satisfies OptionSpecs;

const { metrics: _, ...other } = running;
const { preload: _preload, ...loading } = models;
const options = { ...work, ...loading, ...other };

const help = [
  'Usage: chatglm-server worker --redis URL [MODEL...] [options]',
  '',
  'Answers batches of the servers that have the same Redis (chatglm-server --redis URL), with models of its own. MODEL is as',
  'for chatglm-server; a batch is answered by workers whose model has the name that its lines give.',
  '',
  'Batches:',
  ...optionLines(work),
  '',
  'Models:',
  ...optionLines(loading),
  '',
  'Running:',
  ...optionLines(other),
  '',
  'SIGTERM and SIGINT let answers end that have begun; other workers answer what is left. A second one ends at once.',
].join('\n');

export async function run(args: readonly string[]): Promise<void> {
  const { options: given, positionals } = readArguments(options, args);
  if (isAnswered(given, help)) return;
  const { redis } = given;
  if (redis === undefined) throw new UsageError('a worker needs --redis URL');
  if (!/^(rediss?|unix):/.test(redis)) throw new UsageError(`--redis must be a URL such as redis://127.0.0.1:6379`);
  const served = toModels([...(given.model ?? []), ...positionals], toLoadOptions(given));
  const logger = toLogOptions(given);
  const concurrency = given.concurrency ?? 32;
  const server = createServer({
    model: served,
    logger,
    maxMemory: given['max-memory'],
    anyModel: given['any-model'],
    limits: { bodyBytes: given['line-limit'] },
    web: false,
    metrics: false,
    batch: false,
  });
  await server.app.ready();
  let worker: BatchWorker | undefined;
  const ended = untilSignal(async () => {
    await worker?.close(given['shutdown-timeout'] ?? 30_000);
    await server.close();
  });
  if (!(await isLoaded(server))) return await ended;
  const names = server.models.list().flatMap(({ id, aliases }) => [id, ...aliases]);
  const { BatchWorker } = await import('../batch/worker.js');
  worker = new BatchWorker({ app: server.app, redis, models: names, concurrency, log: server.app.log });
  worker.start();
  server.app.log.info({ models: names, concurrency }, 'the worker takes lines of batches');
  if (logger.pretty) print(`\nchatglm-server ${VERSION}: a worker for ${names.join(', ')}. Stop: Ctrl-C\n`);
  await ended;
}
