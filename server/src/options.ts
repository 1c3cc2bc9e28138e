import { statSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  type CodeExecutor,
  defineTool,
  embeddedModelPath,
  type LoadOptions,
  Model,
  type ToolsInput,
} from 'node-chatglm';
import type { Logger } from 'pino';
import { type KeyOptions, type ServerKey, toServerKey } from './access/key.js';
import { BATCH_DEFAULTS, type BatchSettings } from './batch/settings.js';
import {
  booleanOption,
  integerOption,
  invalidArgument,
  isPlainObject,
  readOptions,
  show,
  textOption,
  textsOption,
} from './checks.js';

/** A path as Node's own functions take it: text or a `file:` URL. */
export type FilePath = string | URL;

/** A model of a server. */
export interface ServedModel {
  /** What requests call it. Default: the name of its file or directory. */
  id?: string | undefined;
  /** The checkpoint's directory or file. Default: the embedded model. */
  path?: FilePath | undefined;
  /**
   * A model that is loaded already, in place of `path` and `load`. It is yours: the server never disposes of it.
   * Default: none.
   */
  model?: Model | undefined;
  /** Options of `loadModel()`. Default: its own. */
  load?: LoadOptions | undefined;
  /** More names by which requests may call it. Default: none. */
  aliases?: readonly string[] | undefined;
}

/** How much the server takes, of a request and altogether. */
export interface LimitOptions {
  /** The most bytes of a request's body; more is answered with 413. Default: 8,388,608. */
  bodyBytes?: number | undefined;
  /** The most bytes of a request's headers; more is answered with 431. Default: 16,384. */
  headerBytes?: number | undefined;
  /** The most connections at a time; more are closed at once. Default: 10,000. */
  connections?: number | undefined;
  /** How long the headers of a request may take to arrive, in milliseconds. Default: 20,000. */
  headersTimeoutMs?: number | undefined;
  /** How long a whole request may take to arrive, in milliseconds; its answer may take any time. Default: 120,000. */
  requestTimeoutMs?: number | undefined;
  /** How long a connection without a request is kept, in milliseconds. Default: 72,000, longer than balancers keep theirs. */
  keepAliveTimeoutMs?: number | undefined;
  /** How often connections are looked at for these limits, in milliseconds. Default: 5,000. */
  checkIntervalMs?: number | undefined;
  /** The most requests of one address that are answered at a time, where there are no keys. Default: no limit. */
  parallelPerAddress?: number | undefined;
  /** How long a request may wait before work on it begins, in milliseconds; then it gets 503. Default: no limit. */
  queueTimeoutMs?: number | undefined;
  /** How long an answer may take from the request to its end, in milliseconds. Default: no limit. */
  answerTimeoutMs?: number | undefined;
}

/** How the server logs. */
export interface LogOptions {
  /** What is logged: `silent`, `error`, `warn`, `info` or `debug`. Default: `info`. */
  level?: 'silent' | 'error' | 'warn' | 'info' | 'debug' | undefined;
  /** Lines for people in place of JSON. Default: where stdout is a terminal. */
  pretty?: boolean | undefined;
  /** The texts of messages are logged too. Default: false. */
  content?: boolean | undefined;
}

/** Where batches and their files are kept, and who works on them. */
export interface BatchOptions {
  /**
   * The directory for files and batches, of this server alone. Default: a temporary one, gone with the process; the command
   * line has the user's directory for data.
   */
  directory?: FilePath | undefined;
  /**
   * The URL of a Redis that has files and batches in place of a directory, and whose workers (`chatglm-server worker`) answer
   * them. Default: none; this process answers them itself.
   */
  redis?: string | undefined;
  /** The most lines of batches that this process answers at a time. Default: 32. */
  concurrency?: number | undefined;
  /** The most bytes of an uploaded file; more is answered with 413. Default: 209,715,200. */
  fileBytes?: number | undefined;
  /** The most bytes of all files together; more is answered with 507. Default: 10 GiB in a directory, 1 GiB in Redis. */
  totalBytes?: number | undefined;
}

/** Options of `createServer()`, `requestHandler()` and the Fastify plugin. */
export interface ServerOptions {
  /**
   * What is served: a path, a loaded model, or several: an array of those and of {@link ServedModel}, or an object of them by
   * id. Requests that name no model get the first. Default: the embedded model.
   */
  model?:
    | FilePath
    | Model
    | ServedModel
    | readonly (FilePath | Model | ServedModel)[]
    | Readonly<Record<string, FilePath | Model | ServedModel>>
    | undefined;
  /**
   * Ids of models that are loaded when the server starts; the server is ready when they are. `true` is the first one, `false`
   * none. Default: true.
   */
  preload?: boolean | readonly string[] | undefined;
  /**
   * The most bytes of memory that loaded models may take together. Idle models make room for others, the least recently used
   * first; a model that answers is never unloaded. Default: no limit.
   */
  maxMemory?: number | undefined;
  /** A model that there is not is the first one instead of an error 404. Default: false. */
  anyModel?: boolean | undefined;
  /** Tools that run on the server, for chats of the web page. Default: none. */
  tools?: ToolsInput | undefined;
  /** Runs the code that the model writes, for chats of the web page. Default: none. */
  interpreter?: CodeExecutor | undefined;
  /**
   * Who may ask: a file of keys as `chatglm-server key` prints them, or an array. Without it everybody may who reaches the
   * server. Default: none.
   */
  keys?: FilePath | readonly KeyOptions[] | undefined;
  /** Origins of web pages that may use the server from a browser, such as `https://example.com`; `*` is all. Default: none. */
  cors?: readonly string[] | undefined;
  /**
   * Names by which the server may be called in the header `Host`, besides `localhost` and loopback addresses; only checked
   * where it listens on loopback and has no keys. `*` is all. Default: none.
   */
  hosts?: readonly string[] | undefined;
  /** Whether `x-forwarded-for` tells the address: `true` or the addresses of the proxies. Default: false. */
  trustProxy?: boolean | readonly string[] | undefined;
  /** Default: as {@link LimitOptions} says. */
  limits?: LimitOptions | undefined;
  /** A logger of pino's, or what to make one of; false logs nothing. Default: false. */
  logger?: Logger | LogOptions | boolean | undefined;
  /** `/metrics`: there and behind the keys, there for everybody (`open`), or not there. Default: true. */
  metrics?: boolean | 'open' | undefined;
  /** The web page at `/`. Default: true. */
  web?: boolean | undefined;
  /** Files and batches. `false` leaves them out. Default: there, until the process ends. */
  batch?: BatchOptions | false | undefined;
  /** How long `close()` lets answers come to their end, in milliseconds. Default: 30,000. */
  shutdownMs?: number | undefined;
}

/** A model, read: what it is and by which names. */
export interface ModelEntry {
  id: string;
  path: string;
  model: Model | undefined;
  load: LoadOptions;
  aliases: readonly string[];
}

export interface Limits {
  bodyBytes: number;
  headerBytes: number;
  connections: number;
  headersTimeoutMs: number;
  requestTimeoutMs: number;
  keepAliveTimeoutMs: number;
  checkIntervalMs: number;
  parallelPerAddress: number | undefined;
  queueTimeoutMs: number | undefined;
  answerTimeoutMs: number | undefined;
}

export interface LogSettings {
  level: NonNullable<LogOptions['level']>;
  pretty: boolean;
  content: boolean;
}

/** What a server is made of, read and checked. */
export interface ServerSettings {
  models: readonly ModelEntry[];
  /** Ids. */
  preload: readonly string[];
  maxMemory: number | undefined;
  anyModel: boolean;
  tools: ToolsInput | undefined;
  interpreter: CodeExecutor | undefined;
  /** A file, which may change, or keys; undefined where there are none. */
  keys: string | readonly ServerKey[] | undefined;
  cors: readonly string[];
  hosts: readonly string[];
  trustProxy: boolean | string[];
  limits: Limits;
  logger: Logger | LogSettings | undefined;
  metrics: boolean | 'open';
  web: boolean;
  batch: BatchSettings | undefined;
  shutdownMs: number;
}

const OPTIONS = [
  'model',
  'preload',
  'maxMemory',
  'anyModel',
  'tools',
  'interpreter',
  'keys',
  'cors',
  'hosts',
  'trustProxy',
  'limits',
  'logger',
  'metrics',
  'web',
  'batch',
  'shutdownMs',
] as const satisfies readonly (keyof ServerOptions)[];

/** What Node's timers can wait for. */
const MOST_MS = 2 ** 31 - 1;

/**
 * Reads the options of a server.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the option.
 */
export function readServerOptions(options: unknown = {}): ServerSettings {
  const set = readOptions<ServerOptions>('the options of a server', options, OPTIONS);
  const models = readModels(set.model);
  return {
    models,
    preload: readPreload(set.preload, models),
    maxMemory: integerOption('maxMemory', set.maxMemory, undefined, { least: 1 }),
    anyModel: booleanOption('anyModel', set.anyModel, false),
    tools: set.tools === undefined ? undefined : checkedTools(set.tools),
    interpreter: readInterpreter(set.interpreter),
    keys: readKeys(set.keys),
    cors: textsOption('cors', set.cors).map(toOrigin),
    hosts: textsOption('hosts', set.hosts).map((host) => host.toLowerCase()),
    trustProxy:
      typeof set.trustProxy === 'boolean'
        ? set.trustProxy
        : [...textsOption('trustProxy', set.trustProxy)].length > 0
          ? [...textsOption('trustProxy', set.trustProxy)]
          : false,
    limits: readLimits(set.limits ?? {}),
    logger: readLogger(set.logger),
    metrics: set.metrics === 'open' ? 'open' : booleanOption('metrics', set.metrics, true),
    web: booleanOption('web', set.web, true),
    batch: readBatch(set.batch),
    shutdownMs: integerOption('shutdownMs', set.shutdownMs, 30_000, { most: MOST_MS }),
  };
}

/** What remains of a path as a name: of a file without `.gguf`; `model.gguf` and the like are named by their directory. */
export function idOfPath(file: string): string {
  const resolved = path.resolve(file);
  const base = path.basename(resolved).replace(/\.gguf$/i, '');
  return /^(model|ggml-model)$/i.test(base) ? path.basename(path.dirname(resolved)) : base;
}

function readModels(given: ServerOptions['model']): readonly ModelEntry[] {
  const models = listOf(given);
  if (models.length === 0) throw invalidArgument('model must name at least one model');
  const names = new Set<string>();
  for (const { id, aliases } of models) {
    for (const name of [id, ...aliases]) {
      if (names.has(name)) throw invalidArgument(`two models have the name ${show(name)}: give each an id of its own`);
      names.add(name);
    }
  }
  return models;
}

function listOf(given: ServerOptions['model']): ModelEntry[] {
  if (given === undefined) return [toEntry('model', {})];
  if (Array.isArray(given)) return given.map((each: unknown, i) => toEntry(`model[${i}]`, each));
  if (isPlainObject(given) && !isServedModel(given)) {
    return Object.entries(given).map(([id, each]) => {
      const entry = toEntry(`model[${show(id)}]`, each);
      return { ...entry, id: checkedId('an id', id) };
    });
  }
  return [toEntry('model', given)];
}

const MODEL_OPTIONS = ['id', 'path', 'model', 'load', 'aliases'] as const satisfies readonly (keyof ServedModel)[];

/** An object of the options of one model, and not one of models by their ids. */
function isServedModel(value: Record<string, unknown>): boolean {
  return Object.keys(value).every((name) => (MODEL_OPTIONS as readonly string[]).includes(name));
}

function toEntry(name: string, given: unknown): ModelEntry {
  if (given instanceof Model) return entryOf(name, { model: given });
  if (typeof given === 'string' || given instanceof URL) return entryOf(name, { path: given });
  if (!isPlainObject(given)) {
    throw invalidArgument(`${name} must be a path, a model of loadModel() or { id, path, load }, got ${show(given)}`);
  }
  return entryOf(name, readOptions<ServedModel>(name, given, MODEL_OPTIONS));
}

function entryOf(name: string, { id, path: given, model, load, aliases }: ServedModel): ModelEntry {
  if (model !== undefined && !(model instanceof Model)) {
    throw invalidArgument(`${name}.model must be a model of loadModel(), got ${show(model)}`);
  }
  if (model !== undefined && (given !== undefined || load !== undefined)) {
    throw invalidArgument(`${name} is a loaded model: path and load are for one that the server loads`);
  }
  if (load !== undefined && !isPlainObject(load)) {
    throw invalidArgument(`${name}.load must be an object of options of loadModel(), got ${show(load)}`);
  }
  const file = given === undefined ? (model?.info.path ?? embeddedModelPath()) : toPath(`${name}.path`, given);
  const ownName = model !== undefined && model.info.path === undefined ? model.info.name : idOfPath(file);
  return {
    id: checkedId(`${name}.id`, id ?? ownName),
    path: file,
    model,
    load: load ?? {},
    aliases: textsOption(`${name}.aliases`, aliases).map((alias) => checkedId(`${name}.aliases`, alias)),
  };
}

function checkedId(name: string, value: unknown): string {
  if (typeof value === 'string' && /^[^\p{Cc}\s]{1,200}$/u.test(value)) return value;
  throw invalidArgument(`${name} must be a name of 1 to 200 characters without spaces, got ${show(value)}`);
}

function toPath(name: string, value: unknown): string {
  if (value instanceof URL && value.protocol === 'file:') return fileURLToPath(value);
  if (typeof value === 'string' && value !== '' && !value.includes('\0')) return value;
  throw invalidArgument(`${name} must be the path of a file or directory, got ${show(value)}`);
}

function readPreload(value: unknown, models: readonly ModelEntry[]): readonly string[] {
  if (value === undefined || value === true) return [(models[0] as ModelEntry).id];
  if (value === false) return [];
  return textsOption('preload', value).map((name) => {
    const found = models.find(({ id, aliases }) => id === name || aliases.includes(name));
    if (found) return found.id;
    throw invalidArgument(`preload names ${show(name)}; there are ${models.map(({ id }) => id).join(', ')}`);
  });
}

function readInterpreter(value: unknown): CodeExecutor | undefined {
  if (value === undefined) return undefined;
  const { open, language } = value as Partial<CodeExecutor>;
  if (typeof open === 'function' && typeof language === 'string') return value as CodeExecutor;
  throw invalidArgument(`interpreter must be an executor, such as pythonExecutor(), got ${show(value)}`);
}

/** Tools of an array are looked at now, so that the first chat does not fail for what the server's owner wrote. */
function checkedTools(tools: ToolsInput): ToolsInput {
  if (Array.isArray(tools)) {
    for (const tool of tools as { name?: unknown; execute?: unknown }[]) {
      if (typeof tool?.execute === 'function') defineTool(tool as Parameters<typeof defineTool>[0]);
    }
  } else if (!isPlainObject(tools)) {
    throw invalidArgument(`tools must be an array of tools or THUDM's object of them, got ${show(tools)}`);
  }
  return tools;
}

function readKeys(value: unknown): ServerSettings['keys'] {
  if (value === undefined) return undefined;
  if (typeof value === 'string' || value instanceof URL) return toPath('keys', value);
  if (!Array.isArray(value)) throw invalidArgument(`keys must be a file or an array of keys, got ${show(value)}`);
  const keys = value.map((each: unknown, i) => toServerKey(`keys[${i}]`, each));
  const names = new Set<string>();
  for (const { name } of keys) {
    if (names.has(name)) throw invalidArgument(`two keys have the name ${show(name)}`);
    names.add(name);
  }
  return keys;
}

function toOrigin(text: string): string {
  if (text === '*' || text === 'null') return text;
  try {
    const { origin, protocol, host } = new URL(text);
    if (/^[a-z-]+:\/\/[^/]+\/?$/i.test(text)) return origin === 'null' ? `${protocol}//${host}` : origin;
  } catch {
    // Told below.
  }
  throw invalidArgument(`cors must have origins such as https://example.com, or *, got ${show(text)}`);
}

const LIMITS = [
  'bodyBytes',
  'headerBytes',
  'connections',
  'headersTimeoutMs',
  'requestTimeoutMs',
  'keepAliveTimeoutMs',
  'checkIntervalMs',
  'parallelPerAddress',
  'queueTimeoutMs',
  'answerTimeoutMs',
] as const satisfies readonly (keyof LimitOptions)[];

function readLimits(given: unknown): Limits {
  const set = readOptions<LimitOptions>('limits', given, LIMITS);
  const ms = <T>(name: (typeof LIMITS)[number], fallback: T) =>
    integerOption(`limits.${name}`, set[name], fallback, { least: 1, most: MOST_MS });
  return {
    bodyBytes: integerOption('limits.bodyBytes', set.bodyBytes, 8 * 2 ** 20, { least: 1, most: 2 ** 30 }),
    headerBytes: integerOption('limits.headerBytes', set.headerBytes, 16 * 2 ** 10, { least: 1024, most: 2 ** 20 }),
    connections: integerOption('limits.connections', set.connections, 10_000, { least: 1, most: 2 ** 31 - 1 }),
    headersTimeoutMs: ms('headersTimeoutMs', 20_000),
    requestTimeoutMs: ms('requestTimeoutMs', 120_000),
    keepAliveTimeoutMs: ms('keepAliveTimeoutMs', 72_000),
    checkIntervalMs: ms('checkIntervalMs', 5_000),
    parallelPerAddress: integerOption('limits.parallelPerAddress', set.parallelPerAddress, undefined, { least: 1 }),
    queueTimeoutMs: ms('queueTimeoutMs', undefined),
    answerTimeoutMs: ms('answerTimeoutMs', undefined),
  };
}

const LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;

function readLogger(value: unknown): Logger | LogSettings | undefined {
  if (value === undefined || value === false) return undefined;
  if (typeof (value as Partial<Logger>).child === 'function') return value as Logger;
  const set = readOptions<LogOptions>('logger', value === true ? {} : value, ['level', 'pretty', 'content']);
  const level = set.level ?? 'info';
  if (!LEVELS.includes(level)) {
    throw invalidArgument(`logger.level must be one of ${LEVELS.join(', ')}, got ${show(level)}`);
  }
  return {
    level,
    pretty: booleanOption('logger.pretty', set.pretty, process.stdout.isTTY === true),
    content: booleanOption('logger.content', set.content, false),
  };
}

function readBatch(value: unknown): ServerSettings['batch'] {
  if (value === false) return undefined;
  const set = readOptions<BatchOptions>('batch', value ?? {}, [
    'directory',
    'redis',
    'concurrency',
    'fileBytes',
    'totalBytes',
  ]);
  const redis = textOption('batch.redis', set.redis, undefined);
  if (redis !== undefined && !/^(rediss?|unix):/.test(redis)) {
    throw invalidArgument(`batch.redis must be a URL such as redis://127.0.0.1:6379, got ${show(redis)}`);
  }
  const { concurrency, fileBytes } = BATCH_DEFAULTS;
  return {
    directory: set.directory === undefined ? undefined : path.resolve(toPath('batch.directory', set.directory)),
    redis,
    concurrency: integerOption('batch.concurrency', set.concurrency, concurrency, { least: 1, most: 1024 }),
    fileBytes: integerOption('batch.fileBytes', set.fileBytes, fileBytes, { least: 1, most: 2 ** 40 }),
    totalBytes: integerOption('batch.totalBytes', set.totalBytes, undefined, { least: 1 }),
  };
}

/** What a path is, for messages of the command line. */
export function kindOfPath(file: string): 'file' | 'directory' | 'nothing' {
  const found = statSync(file, { throwIfNoEntry: false });
  return found === undefined ? 'nothing' : found.isDirectory() ? 'directory' : 'file';
}
