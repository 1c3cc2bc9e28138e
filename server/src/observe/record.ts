import type { FastifyReply, FastifyRequest } from 'fastify';
import type { TraceEvent } from 'node-chatglm';
import type { Logger } from 'pino';
import type { AnswerUsage } from '../access/caller.js';
import type { Metrics } from './metrics.js';
import { pathOf, type RequestSpan, type Tracing } from './tracing.js';

/** What one request did, for its line in the log, the metrics and its span. */
export class RequestRecord {
  readonly #began = performance.now();
  readonly #span: RequestSpan | undefined;
  #model: string | undefined;
  #prompt = 0;
  #generated = 0;
  #cached = 0;
  readonly #finishReasons: string[] = [];
  #timings: AnswerUsage['timings'];
  #error: string | undefined;

  constructor(request: FastifyRequest, tracing: Tracing) {
    this.#span = tracing.begin(request);
  }

  setModel(requested: unknown, id: string): void {
    this.#model = id;
    this.#span?.setModel(typeof requested === 'string' ? requested : undefined, id);
  }

  get onTrace(): ((event: TraceEvent) => void) | undefined {
    const span = this.#span;
    return span && ((event) => span.onTrace(event));
  }

  used(usage: AnswerUsage): void {
    this.#prompt += usage.prompt;
    this.#generated += usage.generated;
    this.#cached += usage.cached ?? 0;
    if (usage.finishReason) this.#finishReasons.push(usage.finishReason);
    this.#timings ??= usage.timings;
    this.#span?.used(usage);
  }

  failed(code: string): void {
    this.#error = code;
  }

  /** Called once, when the answer is over or its client has gone. */
  end(request: FastifyRequest, { raw, statusCode }: FastifyReply, metrics: Metrics): void {
    const { url = 'unknown', config } = request.routeOptions;
    const ms = performance.now() - this.#began;
    // nginx's number for a client that went before it had an answer.
    const status = raw.headersSent ? statusCode : 499;
    metrics.observeRequest(request.method, url, status, ms / 1000);
    this.#span?.end(url, status, this.#error);
    const level = config.isQuiet && status < 500 ? 'debug' : 'info';
    if (!(request.log as Partial<Logger>).isLevelEnabled?.(level)) return;
    const timings = this.#timings;
    request.log[level](
      {
        method: request.method,
        path: shortened(pathOf(request.url)),
        status,
        ms: Math.round(ms * 10) / 10,
        key: request.caller?.key,
        model: this.#model,
        ...(this.#prompt + this.#generated > 0 && {
          prompt: this.#prompt,
          cached: this.#cached,
          generated: this.#generated,
        }),
        ...(this.#finishReasons.length > 0 && { finishReason: this.#finishReasons.join() }),
        ...(timings && {
          queueMs: Math.round(timings.queueMs),
          firstTokenMs: Math.round(timings.firstTokenMs),
          tokensPerSecond: Math.round(timings.decodeTokensPerSecond * 10) / 10,
        }),
        ...(this.#error !== undefined && { error: this.#error }),
        ...(raw.writableFinished ? {} : { gone: true }),
      },
      'answered',
    );
  }
}

function shortened(path: string): string {
  return path.length > 200 ? `${path.slice(0, 200)}…` : path;
}
