export type { KeyOptions } from './access/key.js';
export type { ModelCard, ModelLease, ModelPool, ModelState } from './models/pool.js';
export { fastifyChatGLM, type RequestHandler, requestHandler } from './mount.js';
export type {
  BatchOptions,
  FilePath,
  LimitOptions,
  LogOptions,
  ServedModel,
  ServerOptions,
} from './options.js';
export { createServer, type ListenOptions, Server } from './server.js';
