import path from 'node:path';
import { loadModel, type Model } from 'node-chatglm';
import { ApiError } from '../http/errors.js';
import type { ServedModel } from '../options.js';
import type { ModelCard, ModelLease, ModelPool } from './pool.js';

interface Entry {
  id: string;
  created: number;
  source: ServedModel;
  model: Promise<Model> | undefined;
  contextLength: number | undefined;
}

/** Models that are loaded when they are first asked for. */
export function createModelPool(models: readonly ServedModel[]): ModelPool {
  const created = Math.floor(Date.now() / 1000);
  const entries = models.map((source): Entry => {
    const id = source.id ?? (source.path === undefined ? 'chatglm-tiny' : path.parse(source.path).name);
    return { id, created, source, model: source.model && Promise.resolve(source.model), contextLength: undefined };
  });
  return {
    list: () =>
      entries.map(
        ({ id, created, model, contextLength }): ModelCard => ({
          id,
          created,
          isLoaded: model !== undefined,
          contextLength,
        }),
      ),
    async acquire(id): Promise<ModelLease> {
      const entry = id === undefined ? entries[0] : entries.find((each) => each.id === id);
      if (!entry) {
        throw new ApiError(`The model \`${id}\` does not exist or you do not have access to it.`, {
          status: 404,
          code: 'model_not_found',
          param: 'model',
        });
      }
      entry.model ??= loadModel(entry.source.path, entry.source.load ?? {});
      const model = await entry.model;
      entry.contextLength = model.info.contextLength;
      return { id: entry.id, created: entry.created, model, release: () => {} };
    },
    async close(timeoutMs) {
      for (const { model, source } of entries) {
        if (source.model) continue;
        const loaded = await model?.catch(() => undefined);
        await loaded?.drain({ timeoutMs });
        await loaded?.dispose();
      }
    },
  };
}
