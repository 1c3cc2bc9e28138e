import { settings } from '../state/settings.js';
import type { Problem } from '../state/types.js';

/** Where the server is: the page works under any path. */
const BASE = new URL('.', document.baseURI);

export interface ModelInfo {
  id: string;
  contextLength: number | undefined;
}

export interface ServerInfo {
  tools: { name: string; description: string }[];
  interpreter: string | undefined;
}

/** A failure with what is known about it. */
export class RequestError extends Error {
  readonly problem: Problem;

  constructor(problem: Problem) {
    super(problem.message ?? problem.kind);
    this.name = 'RequestError';
    this.problem = problem;
  }
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const { key } = settings.value;
  const headers = new Headers(init.headers);
  if (key !== '') headers.set('authorization', `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(new URL(path, BASE), { ...init, headers, credentials: 'same-origin' });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new RequestError({ kind: 'offline' });
  }
  if (response.ok) return response;
  throw new RequestError(await problemOf(response));
}

async function problemOf(response: Response): Promise<Problem> {
  const { status } = response;
  // A balancer in front of a server that is gone answers with one of these, and a page of its own.
  const isApi = response.headers.get('content-type')?.includes('json') ?? false;
  if (!isApi && (status === 502 || status === 503 || status === 504)) return { kind: 'offline' };
  const body = isApi ? ((await response.json().catch(() => ({}))) as { error?: unknown }) : {};
  const wait = Number(response.headers.get('retry-after') ?? Number.NaN);
  return problemFrom(status, body.error, Number.isFinite(wait) ? wait : undefined);
}

export function problemFrom(status: number, error: unknown, retryAfter?: number): Problem {
  const { message, code } = (error ?? {}) as { message?: unknown; code?: unknown };
  const about = {
    ...(typeof message === 'string' && { message }),
    ...(retryAfter !== undefined && { retryAfter }),
  };
  if (status === 401) return { kind: 'key', ...about };
  if (code === 'context_length_exceeded') return { kind: 'context', ...about };
  if (code === 'shutting_down') return { kind: 'stopping', ...about };
  if (code === 'queue_full') return { kind: 'busy', ...about };
  if (status === 429) return { kind: 'limit', ...about };
  if (code === 'model_not_found') return { kind: 'model', ...about };
  if (status >= 400 && status < 500) return { kind: 'request', ...about };
  return { kind: 'server', ...about };
}

export async function fetchModels(): Promise<ModelInfo[]> {
  const response = await request('v1/models');
  const { data } = (await response.json()) as { data?: { id: string; max_model_len?: number | null }[] };
  return (data ?? []).map(({ id, max_model_len: length }) => ({ id, contextLength: length ?? undefined }));
}

export async function fetchServerInfo(): Promise<ServerInfo> {
  const response = await request('web/config.json');
  const { tools, interpreter } = (await response.json()) as Partial<ServerInfo>;
  return { tools: tools ?? [], interpreter: interpreter ?? undefined };
}

/** One event of a streamed answer, as far as the page reads it. */
export interface Chunk {
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number };
  } | null;
  timings?: { predicted_per_second?: number; first_token_ms?: number };
  error?: unknown;
  chatglm?: Step;
}

/** What the server did between question and answer. */
export type Step =
  | { type: 'tool-call'; call: { name: string; arguments: string } }
  | { type: 'tool-result'; result: { name: string; ok: boolean; content: string } }
  | { type: 'code'; code: string }
  | {
      type: 'code-result';
      result: {
        status: string;
        text: string;
        took_ms?: number;
        files?: { name: string; media_type: string; url?: string }[];
      };
    }
  | { type: 'messages'; messages: unknown[] };

/**
 * Asks for an answer and calls `onChunk` with what comes. Rejects with a RequestError, or with an AbortError.
 *
 * @param conversation Its id, by which a balancer keeps it on the replica that has its prompt in the cache.
 */
export async function streamChat(
  body: object,
  { conversation, signal, onChunk }: { conversation: string; signal: AbortSignal; onChunk: (chunk: Chunk) => void },
): Promise<void> {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-conversation-id': conversation },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.body) throw new RequestError({ kind: 'broken' });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        if (!line.startsWith('data:')) continue;
        const data = line.slice(5).trim();
        if (data === '[DONE]') return;
        const chunk = JSON.parse(data) as Chunk;
        if (chunk.error) {
          const { status } = chunk.error as { status?: unknown };
          throw new RequestError(problemFrom(typeof status === 'number' ? status : 500, chunk.error));
        }
        onChunk(chunk);
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof RequestError) throw error;
    throw new RequestError({ kind: 'broken' });
  } finally {
    reader.cancel().catch(() => {});
  }
  // The end of the stream without its last line: whatever stood between has given up.
  throw new RequestError({ kind: 'broken' });
}
