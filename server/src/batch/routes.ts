import { Readable } from 'node:stream';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Gauge } from 'prom-client';
import type { ServerContext } from '../context.js';
import { ApiError, badRequest } from '../http/errors.js';
import { nameAt, objectAt, optionalAt, stringAt, wrongValue } from '../http/fields.js';
import { readForm } from './multipart.js';
import { inStatus, isOver, newId, nowSeconds, type StoredBatch, type StoredFile, toBatch, toFile } from './records.js';
import { BatchService } from './service.js';
import type { PageQuery, Staged } from './store.js';

/** What a batch may ask, where the server has it. */
const ENDPOINTS = ['/v1/chat/completions', '/v1/completions', '/v1/responses'];

/** How long files are kept that say nothing about it, as OpenAI keeps those of batches. */
const KEEP_SECONDS = 30 * 86_400;

const LEAST_WINDOW_SECONDS = 60;

/** `/v1/files` and `/v1/batches`. */
export function batchRoutes(app: FastifyInstance, context: ServerContext): void {
  const settings = context.settings.batch;
  if (!settings) return;
  const service = new BatchService(app, context, settings);
  app.addHook('onReady', () => service.start());
  context.lifecycle.onDrain(() => void service.stop());
  app.addHook('preClose', () => service.close());
  measureBacklog(service, context);
  app.register(async (scope) => {
    // The body is read as it comes, by the route.
    scope.addContentTypeParser('multipart/form-data', (_request, payload, done) => done(null, payload));
    fileRoutes(scope, service, settings.fileBytes);
    batchesRoutes(scope, service);
  });
}

/** Gauges of what is left to be done, such as for the number of workers. */
function measureBacklog(service: BatchService, { metrics }: ServerContext): void {
  const registers = [metrics.registry];
  new Gauge({
    name: 'chatglm_batches_unfinished',
    help: 'Batches that are not over',
    registers,
    async collect() {
      this.set((await service.backlog())?.batches ?? Number.NaN);
    },
  });
  new Gauge({
    name: 'chatglm_batch_lines_left',
    help: 'Lines of batches in progress that have no answer yet',
    registers,
    async collect() {
      this.set((await service.backlog())?.lines ?? Number.NaN);
    },
  });
}

type WithId = { Params: { id: string } };
type Query = { Querystring: Record<string, unknown> };

const config = { hasModel: false };

function fileRoutes(app: FastifyInstance, service: BatchService, mostBytes: number): void {
  app.post('/v1/files', { config }, async (request) => {
    const { store } = await service.open();
    const type = request.headers['content-type'] ?? '';
    if (!(request.body instanceof Readable) || !/^multipart\/form-data/i.test(type)) {
      throw badRequest('Files are uploaded as multipart/form-data with the fields purpose and file.');
    }
    let file: (Staged & { filename: string }) | undefined;
    try {
      const fields = await readForm(request.body, type, async ({ name, filename, body }) => {
        if (name !== 'file') {
          throw badRequest(`The form has a file '${name.slice(0, 100)}': there is only 'file'.`, 'file');
        }
        if (file) throw badRequest("The form has more than one 'file'.", 'file');
        file = { ...(await store.stage(body, mostBytes)), filename: shownName(filename) };
      });
      const purpose = fields.get('purpose');
      if (purpose === undefined) throw missing('purpose');
      if (purpose !== 'batch') throw wrongValue('purpose', purpose, ['batch']);
      if (!file) throw missing('file');
      const created = nowSeconds();
      const keep = keepSeconds(
        fields.get('expires_after[anchor]'),
        fields.has('expires_after[seconds]') ? Number(fields.get('expires_after[seconds]')) : undefined,
        'expires_after',
      );
      const stored: StoredFile = { ...file, owner: ownerOf(request), purpose, created, expires: created + keep };
      // From here on the file may be there, whatever is heard of it.
      file = undefined;
      await store.addFile(stored);
      return toFile(stored);
    } finally {
      if (file) await store.discard(file).catch(() => {});
    }
  });

  app.get<Query>('/v1/files', async (request) => {
    const { store } = await service.open();
    const { data, hasMore } = await store.files(ownerOf(request), pageQuery(request.query, 10_000, 10_000));
    return listOf(data.map(toFile), hasMore);
  });

  const find = async (request: FastifyRequest<WithId>): Promise<StoredFile> => {
    const { store } = await service.open();
    const file = await store.file(request.params.id);
    if (file?.owner === ownerOf(request)) return file;
    throw new ApiError(`No such File object: ${shortened(request.params.id)}`, {
      status: 404,
      code: null,
      param: 'id',
    });
  };

  app.get<WithId>('/v1/files/:id', async (request) => toFile(await find(request)));

  app.get<WithId>('/v1/files/:id/content', async (request, reply) => {
    const { store } = await service.open();
    const { id, bytes } = await find(request);
    reply.header('content-type', 'application/octet-stream').header('content-length', String(bytes));
    return reply.send(Readable.from(store.read(id, 0, bytes), { objectMode: false, highWaterMark: 1 }));
  });

  app.delete<WithId>('/v1/files/:id', async (request) => {
    const { store } = await service.open();
    const { id } = await find(request);
    if ((await store.deleteFile(id)) === 'in use') {
      throw new ApiError(`The file ${id} is the input of a batch that is not over: cancel the batch first.`, {
        status: 409,
        code: 'file_in_use',
        param: 'id',
      });
    }
    return { id, object: 'file', deleted: true };
  });
}

function batchesRoutes(app: FastifyInstance, service: BatchService): void {
  app.post('/v1/batches', { config }, async (request) => {
    const { store, coordinator } = await service.open();
    const fields = objectAt(request.body, 'body');
    const input = nameAt(fields.input_file_id, 'input_file_id');
    const endpoint = stringAt(fields.endpoint, 'endpoint');
    const endpoints = ENDPOINTS.filter((url) => app.hasRoute({ method: 'POST', url }));
    if (!endpoints.includes(endpoint)) throw wrongValue('endpoint', endpoint, endpoints);
    const window = stringAt(fields.completion_window, 'completion_window');
    const metadata = optionalAt(fields.metadata, 'metadata', metadataAt) ?? null;
    const after = optionalAt(fields.output_expires_after, 'output_expires_after', objectAt);
    const owner = ownerOf(request);
    const created = nowSeconds();
    const batch: StoredBatch = {
      id: newId('batch_'),
      owner,
      endpoint,
      input,
      window,
      metadata,
      status: 'validating',
      outcome: null,
      created,
      expires: created + windowSeconds(window),
      times: {},
      model: null,
      total: 0,
      counts: { completed: 0, failed: 0 },
      errors: [],
      output: null,
      errorFile: null,
      keepOutput: keepSeconds(after?.anchor, after?.seconds, 'output_expires_after'),
    };
    const file = await store.file(input);
    if (file?.owner !== owner || file.purpose !== 'batch' || !(await store.addBatch(batch))) {
      throw badRequest(`There is no file of the purpose batch with the id '${shortened(input)}'.`, 'input_file_id');
    }
    coordinator.wake(batch.id);
    return toBatch(batch, batch.counts);
  });

  app.get<Query>('/v1/batches', async (request) => {
    const { store } = await service.open();
    const { data, hasMore } = await store.batches(ownerOf(request), pageQuery(request.query, 20, 100));
    return listOf(await Promise.all(data.map(shown)), hasMore);
  });

  const shown = async (batch: StoredBatch) => {
    const { store } = await service.open();
    if (isOver(batch)) return toBatch(batch, batch.counts);
    const counts = await store.counts(batch.id);
    // It may have ended since it was read, and with it the store's counts.
    const now = counts.completed + counts.failed === 0 ? ((await store.batch(batch.id)) ?? batch) : batch;
    return toBatch(now, isOver(now) ? now.counts : counts);
  };

  const find = async (request: FastifyRequest<WithId>): Promise<StoredBatch> => {
    const { store } = await service.open();
    const batch = await store.batch(request.params.id);
    if (batch?.owner === ownerOf(request)) return batch;
    throw new ApiError(`No batch found with id '${shortened(request.params.id)}'.`, { status: 404, code: null });
  };

  app.get<WithId>('/v1/batches/:id', async (request) => await shown(await find(request)));

  app.post<WithId>('/v1/batches/:id/cancel', { config }, async (request) => {
    const { store, coordinator } = await service.open();
    const { id } = await find(request);
    const counts = await store.counts(id);
    const batch = (await store.update(id, (now) =>
      now.status === 'validating' || now.status === 'in_progress'
        ? inStatus(now, 'cancelling', { outcome: 'cancelled', counts })
        : undefined,
    )) as StoredBatch;
    if (batch.status !== 'cancelling' && batch.status !== 'cancelled') {
      throw new ApiError(`Cannot cancel a batch with status '${batch.status}'.`, { status: 409, code: null });
    }
    if (!isOver(batch)) coordinator.wake(id);
    return toBatch(batch, batch.counts);
  });
}

/** Whose files and batches a request may see. */
function ownerOf({ caller }: FastifyRequest): string {
  return caller.key ?? '';
}

function pageQuery(
  { limit, order, after, purpose }: Record<string, unknown>,
  fallback: number,
  most: number,
): PageQuery {
  const count = limit === undefined ? fallback : Number(limit);
  if (!Number.isInteger(count) || count < 1 || count > most) {
    throw badRequest(`Invalid 'limit': expected a whole number from 1 to ${most}.`, 'limit', 'invalid_value');
  }
  if (order !== undefined && order !== 'asc' && order !== 'desc') throw wrongValue('order', order, ['asc', 'desc']);
  return {
    limit: count,
    order: order ?? 'desc',
    after: optionalAt(after, 'after', stringAt),
    purpose: optionalAt(purpose, 'purpose', stringAt),
  };
}

function listOf(data: readonly object[], hasMore: boolean): object {
  const ids = data as readonly { id: string }[];
  return {
    object: 'list',
    data,
    first_id: ids[0]?.id ?? null,
    last_id: ids.at(-1)?.id ?? null,
    has_more: hasMore,
  };
}

/** A file's name as its maker calls it, for people: without directories and control characters. */
function shownName(filename: string): string {
  const name = filename.replace(/^.*[/\\]/s, '').replace(/\p{Cc}/gu, '');
  return name.slice(0, 255) || 'file';
}

function keepSeconds(anchor: unknown, seconds: unknown, place: string): number {
  if (anchor === undefined && seconds === undefined) return KEEP_SECONDS;
  if (anchor !== 'created_at') throw wrongValue(`${place}.anchor`, anchor, ['created_at']);
  if (Number.isInteger(seconds) && (seconds as number) >= 3600 && (seconds as number) <= KEEP_SECONDS) {
    return seconds as number;
  }
  throw badRequest(
    `Invalid '${place}.seconds': expected a whole number from 3600 to ${KEEP_SECONDS}.`,
    `${place}.seconds`,
    'invalid_value',
  );
}

/** `24h`, as OpenAI has it, and others such as `30m` and `7d`. */
function windowSeconds(window: string): number {
  const [, count, unit] = /^(\d{1,4})([mhd])$/.exec(window) ?? [];
  const seconds = Number(count) * ({ m: 60, h: 3600, d: 86_400 }[unit ?? ''] ?? Number.NaN);
  if (seconds >= LEAST_WINDOW_SECONDS && seconds <= 30 * 86_400) return seconds;
  throw badRequest(
    `Invalid 'completion_window': expected a time such as 24h, from 1m to 30d, got '${window.slice(0, 20)}'.`,
    'completion_window',
    'invalid_value',
  );
}

function metadataAt(value: unknown, place: string): Record<string, string> {
  const entries = Object.entries(objectAt(value, place));
  if (entries.length > 16) throw badRequest(`'${place}' has more than 16 entries.`, place, 'invalid_value');
  for (const [name, text] of entries) {
    if (name.length > 64 || stringAt(text, `${place}.${name.slice(0, 64)}`).length > 512) {
      throw badRequest(
        `'${place}' has a name of more than 64 or a text of more than 512 characters.`,
        place,
        'invalid_value',
      );
    }
  }
  return Object.fromEntries(entries) as Record<string, string>;
}

function missing(name: string): ApiError {
  return badRequest(`Missing required parameter: '${name}'.`, name, 'missing_required_parameter');
}

function shortened(id: string): string {
  return id.slice(0, 100);
}
