import type { Attributes, Context, Span, TraceAPI } from '@opentelemetry/api';
import type { FastifyRequest } from 'fastify';
import type { TraceEvent } from 'node-chatglm';
import type { AnswerUsage } from '../access/caller.js';

type Api = typeof import('@opentelemetry/api');

/** The operations of OpenTelemetry's conventions for generative AI, by route. Others have spans of HTTP only. */
const OPERATIONS: Readonly<Record<string, string>> = {
  '/v1/chat/completions': 'chat',
  '/v1/responses': 'chat',
  '/v1/messages': 'chat',
  '/v1/completions': 'text_completion',
};

/** The span of one request. */
export interface RequestSpan {
  /** Tells which model answers. */
  setModel(requested: string | undefined, id: string): void;
  /** Hears a phase of the engine's work. */
  onTrace(event: TraceEvent): void;
  used(usage: AnswerUsage): void;
  end(route: string, status: number, error: string | undefined): void;
}

/**
 * Makes a span of each request where `@opentelemetry/api` is installed and an SDK is registered with it. Without them it
 * costs one call that gives nothing.
 */
export class Tracing {
  readonly #api: Api | undefined = loadApi();
  readonly #version: string;

  constructor(version: string) {
    this.#version = version;
  }

  begin(request: FastifyRequest): RequestSpan | undefined {
    const api = this.#api;
    if (!api) return undefined;
    // Asked for anew each time: an SDK may be registered after the server was made.
    const tracer = api.trace.getTracer('node-chatglm-server', this.#version);
    const span = tracer.startSpan(
      request.method,
      {
        kind: api.SpanKind.SERVER,
        attributes: {
          'http.request.method': request.method,
          'url.path': pathOf(request.url),
          'client.address': request.ip,
        },
      },
      parentOf(api, request),
    );
    return span.isRecording() ? new OpenSpan(api, span, tracer, request) : undefined;
  }
}

class OpenSpan implements RequestSpan {
  readonly #api: Api;
  readonly #span: Span;
  readonly #tracer: ReturnType<TraceAPI['getTracer']>;
  readonly #request: FastifyRequest;
  readonly #context: Context;
  readonly #finishReasons: string[] = [];
  #prompt = 0;
  #generated = 0;
  #model: string | undefined;

  constructor(api: Api, span: Span, tracer: ReturnType<TraceAPI['getTracer']>, request: FastifyRequest) {
    this.#api = api;
    this.#span = span;
    this.#tracer = tracer;
    this.#request = request;
    this.#context = api.trace.setSpan(api.ROOT_CONTEXT, span);
  }

  setModel(requested: string | undefined, id: string): void {
    this.#model = id;
    const attributes: Attributes = {
      'gen_ai.system': 'node-chatglm',
      'gen_ai.provider.name': 'node-chatglm',
      'gen_ai.request.model': requested ?? id,
      'gen_ai.response.model': id,
    };
    const body = (this.#request.body ?? {}) as Record<string, unknown>;
    for (const [field, name] of [
      ['max_completion_tokens', 'max_tokens'],
      ['max_tokens', 'max_tokens'],
      ['temperature', 'temperature'],
      ['top_p', 'top_p'],
      ['top_k', 'top_k'],
      ['seed', 'seed'],
      ['frequency_penalty', 'frequency_penalty'],
      ['presence_penalty', 'presence_penalty'],
    ] as const) {
      const value = body[field];
      if (typeof value === 'number') attributes[`gen_ai.request.${name}`] = value;
    }
    this.#span.setAttributes(attributes);
  }

  onTrace({ request, phase, atMs, tookMs, tokens }: TraceEvent): void {
    const now = Date.now();
    if (phase === 'prefill' || phase === 'decode') {
      this.#phase(phase, now - tookMs, now, { 'chatglm.sequence': request, 'chatglm.tokens': tokens });
    } else if (phase === 'admitted') {
      this.#phase('queue', now - atMs, now, { 'chatglm.sequence': request, 'chatglm.cached_tokens': tokens });
    } else {
      this.#span.addEvent(phase, { 'chatglm.sequence': request, 'chatglm.tokens': tokens }, now);
    }
  }

  used({ prompt, generated, finishReason }: AnswerUsage): void {
    this.#prompt += prompt;
    this.#generated += generated;
    if (finishReason) this.#finishReasons.push(finishReason);
  }

  end(route: string, status: number, error: string | undefined): void {
    const span = this.#span;
    const operation = OPERATIONS[route];
    span.setAttributes({ 'http.route': route, 'http.response.status_code': status });
    if (operation) {
      span.setAttribute('gen_ai.operation.name', operation);
      if (this.#model !== undefined) span.updateName(`${operation} ${this.#model}`);
    } else {
      span.updateName(`${this.#request.method} ${route}`);
    }
    if (this.#prompt > 0 || this.#generated > 0) {
      span.setAttributes({
        'gen_ai.usage.input_tokens': this.#prompt,
        'gen_ai.usage.output_tokens': this.#generated,
      });
    }
    if (this.#finishReasons.length > 0) span.setAttribute('gen_ai.response.finish_reasons', this.#finishReasons);
    if (error !== undefined) span.setAttribute('error.type', error);
    if (status >= 500) span.setStatus({ code: this.#api.SpanStatusCode.ERROR });
    span.end();
  }

  #phase(name: string, start: number, end: number, attributes: Attributes): void {
    this.#tracer.startSpan(name, { startTime: start, attributes }, this.#context).end(end);
  }
}

function loadApi(): Api | undefined {
  try {
    return require('@opentelemetry/api') as Api;
  } catch {
    return undefined;
  }
}

/** The caller's span: as the registered propagator reads it or, where none is, from W3C's header. */
function parentOf(api: Api, { headers }: FastifyRequest): Context {
  const extracted = api.propagation.extract(api.ROOT_CONTEXT, headers);
  if (api.trace.getSpanContext(extracted)) return extracted;
  const { traceparent } = headers;
  const parts =
    typeof traceparent === 'string' ? /^00-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})$/.exec(traceparent) : null;
  if (!parts) return extracted;
  const [, traceId = '', spanId = '', flags = ''] = parts;
  const spanContext = { traceId, spanId, traceFlags: Number.parseInt(flags, 16), isRemote: true };
  return api.isSpanContextValid(spanContext) ? api.trace.setSpanContext(extracted, spanContext) : extracted;
}

/** A URL without its query, which may hold anything. */
export function pathOf(url: string): string {
  const end = url.indexOf('?');
  return end < 0 ? url : url.slice(0, end);
}

type Hear = (event: TraceEvent) => void;

/** A listener that tells all that are given. */
export function tellAll(first: Hear | undefined, second: Hear | undefined): Hear | undefined {
  if (!first || !second) return first ?? second;
  return (event) => {
    first(event);
    second(event);
  };
}
