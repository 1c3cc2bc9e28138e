import type { Model, TraceEvent } from 'node-chatglm';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

/** What is known of a request of the engine until it ends. */
interface Running {
  cached: number;
  computed: number;
  firstTokenMs: number;
  wasAdmitted: boolean;
}

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
const TOKEN_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1];
/** Over how many seconds tokens per second are counted. */
const RATE_SECONDS = 10;

interface MeteredModels {
  loaded(): Iterable<{ id: string; model: Model }>;
  list(): readonly { id: string; isLoaded: boolean }[];
}

let ofProcess: Registry | undefined;

/**
 * Memory, processor, and how late the event loop is: measured once for the process, however many servers it has, since what
 * measures has no end.
 */
function processMetrics(): Registry {
  if (!ofProcess) {
    ofProcess = new Registry();
    collectDefaultMetrics({ register: ofProcess, eventLoopMonitoringPrecision: 10 });
  }
  return ofProcess;
}

/** The numbers of one server, in a registry of its own. */
export class Metrics {
  readonly registry = new Registry();
  readonly #requests: Counter;
  readonly #duration: Histogram;
  readonly #firstToken: Histogram;
  readonly #betweenTokens: Histogram;
  readonly #queued: Histogram;
  readonly #promptTokens: Counter;
  readonly #cachedTokens: Counter;
  readonly #generatedTokens: Counter;
  readonly #answers: Counter;
  readonly #preemptions: Counter;
  readonly #loads: Counter;
  readonly #failures: Counter;
  readonly #rates = new Map<string, Rate>();

  constructor(
    models: () => MeteredModels,
    facts: { connections(): number; inFlight(): number; isDraining(): boolean },
  ) {
    const registers = [this.registry];
    const counter = (name: string, help: string, labelNames: string[]) =>
      new Counter({ name, help, labelNames, registers });
    const histogram = (name: string, help: string, labelNames: string[], buckets: number[]) =>
      new Histogram({ name, help, labelNames, buckets, registers });
    const gauge = (name: string, help: string, labelNames: string[], collect: (this: Gauge) => void) =>
      new Gauge({ name, help, labelNames, registers, collect });

    processMetrics(); // counts from now on
    this.#requests = counter('chatglm_http_requests_total', 'HTTP requests that were answered', [
      'method',
      'route',
      'status',
    ]);
    this.#duration = histogram(
      'chatglm_http_request_duration_seconds',
      'Time from a request to the end of its answer',
      ['route', 'status'],
      SECONDS,
    );
    this.#firstToken = histogram(
      'chatglm_time_to_first_token_seconds',
      'Time from a request of the engine to its first token',
      ['model'],
      SECONDS,
    );
    this.#betweenTokens = histogram(
      'chatglm_time_between_tokens_seconds',
      'Mean time between two tokens of an answer, one value for each answer',
      ['model'],
      TOKEN_SECONDS,
    );
    this.#queued = histogram(
      'chatglm_queue_seconds',
      'Time from a request of the engine until work on it began',
      ['model'],
      SECONDS,
    );
    this.#promptTokens = counter('chatglm_prompt_tokens_total', 'Tokens of prompts, cached ones included', ['model']);
    this.#cachedTokens = counter('chatglm_cached_prompt_tokens_total', 'Tokens of prompts that the prefix cache had', [
      'model',
    ]);
    this.#generatedTokens = counter('chatglm_generated_tokens_total', 'Tokens that were generated', ['model']);
    this.#answers = counter('chatglm_sequences_total', 'Sequences that ended', ['model', 'outcome']);
    this.#preemptions = counter('chatglm_preemptions_total', 'Times that a sequence paused for want of pages', [
      'model',
    ]);
    this.#loads = counter('chatglm_model_loads_total', 'Times that a model was loaded', ['model']);
    this.#failures = counter('chatglm_model_failures_total', 'Times that a model failed, or could not be loaded', [
      'model',
    ]);

    const statistic = (name: string, help: string, value: (model: Model) => number) =>
      gauge(name, help, ['model'], function () {
        this.reset();
        for (const { id, model } of models().loaded()) {
          const number = statsOf(() => value(model));
          if (number !== undefined) this.set({ model: id }, number);
        }
      });
    statistic('chatglm_queue_length', 'Requests that wait in the engine', (model) => model.stats().queuedRequests);
    statistic('chatglm_active_sequences', 'Sequences that are computed', (model) => model.stats().activeSequences);
    statistic('chatglm_kv_pages_used', 'Pages of the key/value cache in use', (model) => model.stats().usedPages);
    statistic('chatglm_kv_pages', 'Pages of the key/value cache', (model) => model.stats().totalPages);
    statistic('chatglm_prefix_cache_tokens', 'Tokens kept for later requests', (model) => model.stats().cachedTokens);
    gauge('chatglm_model_loaded', 'Whether a model is in memory', ['model'], function () {
      for (const { id, isLoaded } of models().list()) this.set({ model: id }, isLoaded ? 1 : 0);
    });
    const rates = this.#rates;
    gauge(
      'chatglm_generated_tokens_per_second',
      `Tokens of answers that ended within the last ${RATE_SECONDS} s, a second`,
      ['model'],
      function () {
        for (const [model, rate] of rates) this.set({ model }, rate.perSecond());
      },
    );
    const [prompt, cached] = [this.#promptTokens, this.#cachedTokens];
    gauge(
      'chatglm_prefix_cache_hit_ratio',
      'Part of all tokens of prompts that the prefix cache had',
      ['model'],
      async function () {
        const hits = new Map((await cached.get()).values.map(({ labels, value }) => [labels.model, value]));
        for (const { labels, value } of (await prompt.get()).values) {
          if (value > 0) this.set(labels, (hits.get(labels.model) ?? 0) / value);
        }
      },
    );
    gauge('chatglm_http_connections', 'Connections that are open', [], function () {
      this.set(facts.connections());
    });
    gauge('chatglm_http_requests_in_flight', 'Requests that are being answered', [], function () {
      this.set(facts.inFlight());
    });
    gauge('chatglm_draining', 'Whether the server is shutting down', [], function () {
      this.set(facts.isDraining() ? 1 : 0);
    });
  }

  /** All numbers in Prometheus' format, those of the process included. */
  async text(): Promise<string> {
    return [await this.registry.metrics(), await processMetrics().metrics()].join('\n');
  }

  /** A request that was answered. `route` is a pattern of the server's own, never a URL, of which there are endlessly many. */
  observeRequest(method: string, route: string, status: number, seconds: number): void {
    this.#requests.inc({ method, route, status: String(status) });
    this.#duration.observe({ route, status: String(status) }, seconds);
  }

  countLoad(model: string): void {
    this.#loads.inc({ model });
  }

  countFailure(model: string): void {
    this.#failures.inc({ model });
  }

  /** Hears the phases of one model's requests: a few events for each request, none for a token. */
  listener(model: string): (event: TraceEvent) => void {
    const running = new Map<number, Running>();
    const labels = { model };
    let rate = this.#rates.get(model);
    if (!rate) {
      rate = new Rate();
      this.#rates.set(model, rate);
    }
    const generated = rate;
    return ({ request, phase, atMs, tookMs, tokens }) => {
      switch (phase) {
        case 'queued':
          running.set(request, { cached: 0, computed: 0, firstTokenMs: 0, wasAdmitted: false });
          return;
        case 'preempted':
          this.#preemptions.inc(labels);
          return;
        case 'admitted': {
          const state = running.get(request);
          // What a sequence that paused finds of itself is no hit.
          if (!state || state.wasAdmitted) return;
          state.wasAdmitted = true;
          state.cached = tokens;
          this.#queued.observe(labels, atMs / 1000);
          return;
        }
        case 'prefill': {
          const state = running.get(request);
          if (!state) return;
          state.computed += tokens;
          state.firstTokenMs = atMs;
          return;
        }
        case 'decode':
          if (tokens > 1) this.#betweenTokens.observe(labels, tookMs / 1000 / (tokens - 1));
          return;
        default: {
          const state = running.get(request);
          running.delete(request);
          this.#answers.inc({ model, outcome: phase });
          if (!state?.wasAdmitted) return;
          this.#promptTokens.inc(labels, state.cached + state.computed);
          this.#cachedTokens.inc(labels, state.cached);
          this.#generatedTokens.inc(labels, tokens);
          generated.add(tokens);
          if (tokens > 0) this.#firstToken.observe(labels, state.firstTokenMs / 1000);
        }
      }
    };
  }
}

/** A model that is being loaded again, or was just disposed of, has no numbers. */
function statsOf(read: () => number): number | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** How many of something came within the last seconds. */
class Rate {
  readonly #counts = new Array<number>(RATE_SECONDS).fill(0);
  #second = 0;

  add(count: number): void {
    this.#turn();
    const slot = this.#second % RATE_SECONDS;
    this.#counts[slot] = (this.#counts[slot] as number) + count;
  }

  perSecond(): number {
    this.#turn();
    return this.#counts.reduce((sum, count) => sum + count, 0) / RATE_SECONDS;
  }

  #turn(): void {
    const now = Math.floor(performance.now() / 1000);
    const passed = Math.min(RATE_SECONDS, now - this.#second);
    for (let i = 1; i <= passed; i++) this.#counts[(now - passed + i) % RATE_SECONDS] = 0;
    this.#second = now;
  }
}
