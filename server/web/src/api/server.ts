import { computed, signal } from '@preact/signals';
import { settings } from '../state/settings.js';
import { fetchModels, fetchServerInfo, type ModelInfo, RequestError, type ServerInfo } from './client.js';

export const models = signal<readonly ModelInfo[]>([]);
export const serverInfo = signal<ServerInfo>({ tools: [], interpreter: undefined });
/** `waiting` until the server has answered once; `offline` while it cannot be reached. */
export const connection = signal<'waiting' | 'online' | 'offline'>('waiting');
/** Whether the server wants a key, or another one. */
export const needsKey = signal(false);

export const hasTools = computed(() => serverInfo.value.tools.length > 0 || serverInfo.value.interpreter !== undefined);

let retry: ReturnType<typeof setTimeout> | undefined;
let tries = 0;

/** Learns what the server has; where it cannot be reached, again and again until it can. */
export async function connect(): Promise<boolean> {
  clearTimeout(retry);
  try {
    const [list, info] = await Promise.all([fetchModels(), fetchServerInfo()]);
    models.value = list;
    serverInfo.value = info;
    connection.value = 'online';
    needsKey.value = false;
    tries = 0;
    return true;
  } catch (error) {
    const kind = error instanceof RequestError ? error.problem.kind : 'server';
    if (kind === 'key') {
      connection.value = 'online';
      needsKey.value = true;
      return false;
    }
    connection.value = 'offline';
    retry = setTimeout(connect, Math.min(10_000, 500 * 2 ** tries++));
    return false;
  }
}

/** Called where a request has failed because nobody answered. */
export function lost(): void {
  if (connection.value === 'offline') return;
  connection.value = 'offline';
  tries = 0;
  void connect();
}

// Who comes back to the page, or to the network, wants no wait.
addEventListener('online', () => void connect());
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible' && connection.value === 'offline') void connect();
});

/** The model that a conversation is answered by. */
export function modelFor(chosen: string | undefined): ModelInfo | undefined {
  const known = (id: string | undefined) => models.value.find((model) => model.id === id);
  return known(chosen) ?? known(settings.value.model) ?? models.value[0];
}

/** Learns the length of a context that was unknown before the model was loaded. */
export async function refreshModels(): Promise<void> {
  try {
    models.value = await fetchModels();
  } catch {
    // The next request tells what is wrong.
  }
}
