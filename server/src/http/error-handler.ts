import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify';
import { ApiError, toApiError } from './errors.js';

/** OpenAI's names for the kinds of errors, by status. */
export function openAIErrorType({ status }: ApiError): string {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 429) return 'rate_limit_error';
  return status >= 500 ? 'server_error' : 'invalid_request_error';
}

/** Anthropic's. */
export function anthropicErrorType({ status, code }: ApiError): string {
  if (status === 401) return 'authentication_error';
  if (status === 403) return 'permission_error';
  if (status === 404) return 'not_found_error';
  if (status === 413) return 'request_too_large';
  if (status === 429) return code === 'queue_full' ? 'overloaded_error' : 'rate_limit_error';
  if (status === 503) return 'overloaded_error';
  return status >= 500 ? 'api_error' : 'invalid_request_error';
}

/** The error as the API that the request belongs to writes it. */
export function errorBody(error: ApiError, api: 'openai' | 'anthropic', requestId: string): object {
  const { message, code, param, details } = error;
  if (api === 'anthropic') {
    const told = { type: anthropicErrorType(error), message, ...(details && { details }) };
    return { type: 'error', error: told, request_id: requestId };
  }
  return { error: { message, type: openAIErrorType(error), param, code } };
}

const CLIENT_GONE = new ApiError('The client has closed the request.', { status: 499, code: 'client_closed' });

/** Answers with an error; what only the server's owner may know goes to the log. */
export function errorHandler(thrown: FastifyError | Error, request: FastifyRequest, reply: FastifyReply): void {
  // Waiting for a model ends with the signal's own reason.
  const error = request.gone?.aborted && thrown === request.gone.reason ? CLIENT_GONE : toApiError(thrown);
  request.record?.failed(error.code ?? String(error.status));
  if (error.status >= 500) request.log.error({ err: error.cause ?? thrown }, error.message);
  if (error.retryAfter !== undefined) reply.header('retry-after', String(error.retryAfter));
  const { api = 'openai' } = request.routeOptions.config;
  if (api === 'anthropic') reply.header('request-id', request.id);
  reply.status(error.status).send(errorBody(error, api, request.id));
}
