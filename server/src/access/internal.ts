import { AsyncLocalStorage } from 'node:async_hooks';
import type { Caller } from './caller.js';

/** A request that the server makes to itself. */
interface InternalRequest {
  caller: Caller;
  isTaken: boolean;
}

/**
 * Lives in the process's own asynchronous context and in no byte of a request, so that nothing a client sends can look
 * like it.
 */
const storage = new AsyncLocalStorage<InternalRequest>();

/** Makes one request in the name of a caller: the first that `request` injects into the application. */
export function asCaller<T>(caller: Caller, request: () => Promise<T>): Promise<T> {
  return storage.run({ caller, isTaken: false }, request);
}

/** In whose name the request that begins here is made; undefined for one that came by a connection. Each is told once. */
export function internalCaller(): Caller | undefined {
  const internal = storage.getStore();
  if (!internal || internal.isTaken) return undefined;
  internal.isTaken = true;
  return internal.caller;
}
