import type { LoadOptions, Model } from 'node-chatglm';

/** A model of a server. */
export interface ServedModel {
  /** What requests call it. Default: the name of its file or directory. */
  id?: string | undefined;
  /** The checkpoint's directory or file. Default: the embedded model. */
  path?: string | undefined;
  /** A model that is loaded already, in place of `path` and `load`; the server never disposes of it. Default: none. */
  model?: Model | undefined;
  /** Options of `loadModel()`. */
  load?: LoadOptions | undefined;
}

/** What a server is made of, read and checked. */
export interface ServerSettings {
  models: readonly ServedModel[];
}
