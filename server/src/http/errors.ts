import { ChatGLMError } from 'node-chatglm';

/** What a client is told of a failure. Each API writes it in its own shape. */
export interface ApiErrorFields {
  /** The HTTP status. */
  status: number;
  /** OpenAI's `code`: what programs decide by. */
  code: string | null;
  /** The field of the request that is wrong, such as `messages[0].role`. Default: none. */
  param?: string | null | undefined;
  /** Seconds after which the same request may succeed. Default: none is told. */
  retryAfter?: number | undefined;
  /** What Anthropic's clients are told besides, as `error.details`: programs decide by it. Default: nothing. */
  details?: object | undefined;
  /** What went wrong underneath, for the log. */
  cause?: unknown;
}

/** A failure whose message is for the client. Whatever else is thrown is told as an internal error, without its message. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string | null;
  readonly param: string | null;
  readonly retryAfter: number | undefined;
  readonly details: object | undefined;

  constructor(message: string, { status, code, param = null, retryAfter, details, cause }: ApiErrorFields) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ApiError';
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
    this.details = details;
  }
}

/** A request that is wrong, with the field that is. */
export function badRequest(message: string, param: string | null = null, code: string | null = null): ApiError {
  return new ApiError(message, { status: 400, code, param });
}

/**
 * What a client is told of anything that was thrown. Messages of the model's own errors name options as `loadModel()` and
 * `generate()` call them; those about requests are written for their callers, and all others stay in the log: they may name
 * files.
 */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  if (error instanceof ChatGLMError) {
    const { message, code, cause } = error;
    switch (code) {
      case 'ERR_INVALID_ARGUMENT':
        return new ApiError(message, { status: 400, code: null, cause });
      case 'ERR_CONTEXT_OVERFLOW':
        return new ApiError(message, { status: 400, code: 'context_length_exceeded', param: 'messages' });
      case 'ERR_QUEUE_FULL':
        return new ApiError('The server is busy: too many requests wait already.', {
          status: 429,
          code: 'queue_full',
          retryAfter: 1,
        });
      case 'ERR_TIMEOUT':
        return new ApiError('The request took longer than the server allows.', {
          status: 503,
          code: 'timeout',
          retryAfter: 1,
        });
      case 'ERR_DRAINING':
      case 'ERR_DISPOSED':
        return new ApiError('The server is shutting down.', { status: 503, code: 'shutting_down', retryAfter: 1 });
      case 'ERR_OUT_OF_MEMORY':
        return new ApiError('The model has no memory left for this request.', {
          status: 503,
          code: 'out_of_memory',
          retryAfter: 5,
          cause: error,
        });
      case 'ERR_RUNTIME_CRASHED':
        return new ApiError('The model failed while it answered. It is being loaded again.', {
          status: 503,
          code: 'model_failed',
          retryAfter: 1,
          cause: error,
        });
      case 'ERR_ABORTED':
        // Nobody reads this answer; nginx's number tells the log that the server did not fail.
        return new ApiError('The client has closed the request.', { status: 499, code: 'client_closed', cause: error });
      default:
        break;
    }
  }
  const fields = error as { statusCode?: unknown; message?: unknown; code?: unknown };
  // Fastify's own errors about a request, such as a body that is no JSON: their messages are for clients.
  if (typeof fields?.statusCode === 'number' && fields.statusCode >= 400 && fields.statusCode < 500) {
    const message =
      fields.code === 'FST_ERR_CTP_INVALID_MEDIA_TYPE'
        ? 'The body has to be JSON, with the header `content-type: application/json`.'
        : String(fields.message);
    return new ApiError(message, { status: fields.statusCode, code: null, cause: error });
  }
  return new ApiError('The server failed to answer. Its log tells why.', {
    status: 500,
    code: 'internal_error',
    cause: error,
  });
}
