import type { FastifyInstance } from 'fastify';
import type { Caller } from '../access/caller.js';
import { asCaller } from '../access/internal.js';
import { newId } from './records.js';
import type { BatchRequest } from './validate.js';

/** The answer to a line, before it has a number. */
export interface Answer {
  isOk: boolean;
  text: string;
}

/** Batches use what interactive requests leave. */
export const BATCH_PRIORITY = -10;

/** How long a line waits that found the server busy, at first and at most. */
const WAIT_MS = 250;
const MOST_WAIT_MS = 10_000;

/**
 * How often a line is tried that gets an error by which it may be the line's own fault, by the code. A queue that is full is
 * nobody's.
 */
const MOST_ATTEMPTS: Readonly<Record<string, number>> = { timeout: 3, out_of_memory: 10 };
const MOST_ATTEMPTS_OF_OTHERS = 30;

/** Requests of lines come by no address. */
const ADDRESS = '127.0.0.1';

/**
 * Answers a line as its endpoint would: in this process, through the same route, so that checks and errors are the same.
 * What fails because the server is busy is tried again until it does not.
 *
 * @returns Undefined where the signal fired before there was an answer.
 */
export async function executeLine(
  app: FastifyInstance,
  endpoint: string,
  { customId, body }: BatchRequest,
  caller: Caller,
  signal: AbortSignal,
): Promise<Answer | undefined> {
  if (body.stream === true) {
    const error = { message: 'A line of a batch is answered at once: stream must not be true.', param: 'body.stream' };
    return answer(customId, 400, newId('req-'), {
      error: { ...error, type: 'invalid_request_error', code: 'invalid_value' },
    });
  }
  let wait = WAIT_MS;
  for (let attempt = 1; !signal.aborted; attempt++) {
    let response: Awaited<ReturnType<FastifyInstance['inject']>>;
    try {
      response = await asCaller(
        { ...caller, priority: BATCH_PRIORITY },
        async () =>
          await app.inject({
            method: 'POST',
            url: endpoint,
            headers: { 'content-type': 'application/json', host: 'localhost' },
            payload: JSON.stringify(body),
            remoteAddress: ADDRESS,
            signal,
          }),
      );
    } catch {
      if (signal.aborted) return undefined;
      return answer(customId, 500, newId('req-'), {
        error: { message: 'The server failed to answer.', type: 'server_error', param: null, code: 'internal_error' },
      });
    }
    if (signal.aborted) return undefined;
    const { statusCode, headers, payload } = response;
    const told = parsed(payload);
    if (!isWorthAnother(statusCode, told, attempt)) {
      return answer(customId, statusCode, String(headers['x-request-id'] ?? newId('req-')), told);
    }
    await pause(wait, signal);
    wait = Math.min(wait * 2, MOST_WAIT_MS);
  }
  return undefined;
}

function isWorthAnother(status: number, told: unknown, attempt: number): boolean {
  if (status === 429) return true;
  if (status !== 503) return false;
  const code = (told as { error?: { code?: unknown } } | null)?.error?.code;
  if (code === 'shutting_down') return true;
  return attempt < (MOST_ATTEMPTS[String(code)] ?? MOST_ATTEMPTS_OF_OTHERS);
}

function answer(customId: string, status: number, requestId: string, body: unknown): Answer {
  return {
    isOk: status >= 200 && status < 300,
    text: JSON.stringify({
      id: newId('batch_req_'),
      custom_id: customId,
      response: { status_code: status, request_id: requestId, body },
      error: null,
    }),
  };
}

/** The line of a request that was not answered. */
export function unanswered(customId: string, code: string, message: string): Answer {
  return {
    isOk: false,
    text: JSON.stringify({ id: newId('batch_req_'), custom_id: customId, response: null, error: { code, message } }),
  };
}

function parsed(payload: string): unknown {
  try {
    return JSON.parse(payload);
  } catch {
    return payload;
  }
}

/** Resolves after so many milliseconds, or when the signal fires. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done, { once: true });
  });
}
