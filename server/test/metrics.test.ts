import { context, propagation, trace } from '@opentelemetry/api';
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base';
import { loadModel, type Model } from 'node-chatglm';
import { type Logger, pino } from 'pino';
import { createServer, type Server, type ServerOptions } from '../src/index';
import { prettyLine } from '../src/observe/logs';
import { exchange, metric, metricOf, post, until } from './support/infra';
import { endless } from './support/served';

let model: Model;
const servers: Server[] = [];

beforeAll(async () => {
  model = await loadModel(null, { device: 'cpu' });
});
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()));
});
afterAll(async () => {
  await model.dispose();
});

async function start(options: ServerOptions = {}): Promise<{ server: Server; url: string }> {
  const server = createServer({ model: { tiny: model }, ...options });
  servers.push(server);
  return { server, url: await server.listen({ port: 0 }) };
}

const question = { messages: [{ role: 'user', content: 'What is the capital of France?' }], temperature: 0 };

describe('metrics', () => {
  test('count requests, tokens and times of each model', async () => {
    const { server, url } = await start();
    const first = await post(`${url}/v1/chat/completions`, { ...question, max_tokens: 12 });
    const second = await post(`${url}/v1/chat/completions`, { ...question, max_tokens: 12 });
    const { prompt_tokens: prompt } = first.body.usage;
    const cached = second.body.usage.prompt_tokens_details.cached_tokens;
    const generated = first.body.usage.completion_tokens + second.body.usage.completion_tokens;
    await post(`${url}/v1/chat/completions`, { messages: 'wrong' });
    await fetch(`${url}/v1/nothing?secret=1`);
    const tiny = { model: 'tiny' };
    const text = await (await fetch(`${url}/metrics`)).text();
    expect(text).not.toContain('secret');
    const value = (name: string, labels: Record<string, string> = tiny) => metricOf(text, `chatglm_${name}`, labels);
    expect(value('prompt_tokens_total')).toBe(2 * prompt);
    expect(value('cached_prompt_tokens_total')).toBe(cached);
    expect(cached).toBeGreaterThan(0);
    expect(value('prefix_cache_hit_ratio')).toBeCloseTo(cached / (2 * prompt));
    expect(value('generated_tokens_total')).toBe(generated);
    expect(value('generated_tokens_per_second')).toBeGreaterThan(0);
    expect(value('sequences_total', { model: 'tiny', outcome: 'finished' })).toBe(2);
    expect(value('time_to_first_token_seconds_count')).toBe(2);
    expect(value('time_to_first_token_seconds_sum')).toBeGreaterThan(0);
    expect(value('time_between_tokens_seconds_count')).toBe(2);
    expect(value('queue_seconds_count')).toBe(2);
    expect(value('active_sequences')).toBe(0);
    expect(value('queue_length')).toBe(0);
    expect(value('kv_pages')).toBeGreaterThan(0);
    expect(value('kv_pages_used')).toBeGreaterThan(0);
    expect(value('model_loaded')).toBe(1);
    const chat = { method: 'POST', route: '/v1/chat/completions' };
    expect(value('http_requests_total', { ...chat, status: '200' })).toBe(2);
    expect(value('http_requests_total', { ...chat, status: '400' })).toBe(1);
    expect(value('http_requests_total', { method: 'GET', route: 'unknown', status: '404' })).toBe(1);
    expect(value('http_request_duration_seconds_count', { route: '/v1/chat/completions', status: '200' })).toBe(2);
    expect(value('http_connections', {})).toBeGreaterThan(0);
    expect(metricOf(text, 'nodejs_eventloop_lag_p99_seconds')).toBeGreaterThan(0);
    expect(await metric(server, 'chatglm_http_requests_in_flight')).toBe(0);
  });

  test('a client that goes is counted as such, and its sequence ends', async () => {
    const { server, url } = await start();
    const gone = new AbortController();
    const body = { ...question, max_tokens: 900, logit_bias: endless(model), stream: true };
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
      signal: gone.signal,
    });
    expect(response.status).toBe(200);
    await response.body?.getReader().read();
    gone.abort();
    await until(() => model.stats().activeSequences === 0);
    await until(async () => (await metric(server, 'chatglm_http_requests_in_flight')) === 0);
  });

  test('are not there where they are not wanted, and two servers share none', async () => {
    const [{ url }, other] = [await start({ metrics: false }), await start()];
    expect((await fetch(`${url}/metrics`)).status).toBe(404);
    await fetch(`${url}/v1/models`);
    expect(await metric(other.server, 'chatglm_http_requests_total', { route: '/v1/models' })).toBeNaN();
  });
});

describe('logs', () => {
  function collecting(): { lines: () => Record<string, unknown>[]; logger: Logger; text: () => string } {
    let text = '';
    const logger = pino(
      { level: 'info' },
      {
        write: (line: string) => {
          text += line;
        },
      },
    );
    return {
      logger,
      text: () => text,
      lines: () =>
        text
          .trimEnd()
          .split('\n')
          .map((line) => JSON.parse(line) as Record<string, unknown>),
    };
  }

  test('one line a request, with its id, model, tokens and times, and without texts', async () => {
    const { logger, lines, text } = collecting();
    const keys = [{ name: 'anna', key: 'sk-0123456789abcdef' }];
    const { url } = await start({ logger, keys });
    const headers = { 'x-request-id': 'mine-1', authorization: 'Bearer sk-0123456789abcdef' };
    const { body } = await post(`${url}/v1/chat/completions?q=secret`, { ...question, max_tokens: 5 }, { headers });
    await post(`${url}/v1/chat/completions`, question, { headers: { authorization: 'Bearer sk-wrong-0123456789' } });
    await fetch(`${url}/health`);
    await until(() => lines().filter(({ msg }) => msg === 'answered').length === 2);
    const [good, bad] = lines().filter(({ msg }) => msg === 'answered');
    expect(good).toMatchObject({
      reqId: 'mine-1',
      method: 'POST',
      path: '/v1/chat/completions',
      status: 200,
      key: 'anna',
      model: 'tiny',
      prompt: body.usage.prompt_tokens,
      generated: 5,
      finishReason: 'length',
      firstTokenMs: expect.any(Number),
      tokensPerSecond: expect.any(Number),
    });
    expect(bad).toMatchObject({ status: 401, error: 'invalid_api_key' });
    expect(text()).not.toMatch(/France|Paris|sk-|secret/);
  });

  test('a request without a body that can be read is a line too', async () => {
    const { logger, lines } = collecting();
    const { url } = await start({ logger });
    await exchange(url, 'POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n');
    await until(() => lines().some(({ msg }) => msg === 'answered'));
    expect(lines().find(({ msg }) => msg === 'answered')).toMatchObject({ status: 400 });
  });

  test('lines for people', () => {
    const entry = { level: 30, time: '2026-01-02T03:04:05.678Z', reqId: 'r', msg: 'answered', ms: 12 };
    const line = prettyLine(
      JSON.stringify({ ...entry, method: 'POST', path: '/v1/\u001b[2J', status: 200, model: 'm' }),
    );
    expect(line).toMatch(/^\d\d:04:05 POST \/v1\/\ufffd\[2J 200 {2}ms=12 model=m$/);
    const failed = prettyLine(
      JSON.stringify({ ...entry, level: 50, msg: 'it failed', err: { message: 'no', stack: 'x\n at y' } }),
    );
    expect(failed).toMatch(/error: it failed no {2}ms=12\n at y$/);
    expect(prettyLine('no JSON\u0007')).toBe('no JSON\ufffd');
  });
});

describe('traces', () => {
  const exporter = new InMemorySpanExporter();
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  beforeAll(() => {
    trace.setGlobalTracerProvider(provider);
  });
  afterEach(() => exporter.reset());
  afterAll(async () => {
    trace.disable();
    context.disable();
    propagation.disable();
    await provider.shutdown();
  });

  test('a span of each request, below that of the caller, with phases below it', async () => {
    const { url } = await start();
    const traceId = '0af7651916cd43dd8448eb211c80319c';
    const headers = { traceparent: `00-${traceId}-b7ad6b7169203331-01` };
    const { body } = await post(`${url}/v1/chat/completions`, { ...question, max_tokens: 6 }, { headers });
    await until(() => exporter.getFinishedSpans().some(({ name }) => name === 'chat tiny'));
    const spans = exporter.getFinishedSpans();
    const request = spans.find(({ name }) => name === 'chat tiny');
    expect(request?.spanContext().traceId).toBe(traceId);
    expect(request?.parentSpanContext?.spanId).toBe('b7ad6b7169203331');
    expect(request?.attributes).toMatchObject({
      'http.request.method': 'POST',
      'http.route': '/v1/chat/completions',
      'http.response.status_code': 200,
      'gen_ai.operation.name': 'chat',
      'gen_ai.request.model': 'tiny',
      'gen_ai.response.model': 'tiny',
      'gen_ai.request.temperature': 0,
      'gen_ai.request.max_tokens': 6,
      'gen_ai.usage.input_tokens': body.usage.prompt_tokens,
      'gen_ai.usage.output_tokens': 6,
      'gen_ai.response.finish_reasons': ['length'],
    });
    const phases = spans.filter(({ parentSpanContext }) => parentSpanContext?.spanId === request?.spanContext().spanId);
    expect(phases.map(({ name }) => name)).toEqual(['queue', 'prefill', 'decode']);
    expect(JSON.stringify(spans.map(({ attributes, events }) => [attributes, events]))).not.toMatch(/France|Paris/);
  });

  test('a request that is refused has its error; a traceparent that is none is a new trace', async () => {
    const { url } = await start();
    await post(`${url}/v1/chat/completions`, { ...question, model: 'none' }, { headers: { traceparent: '00-0-0-0' } });
    await until(() => exporter.getFinishedSpans().length === 1);
    const [span] = exporter.getFinishedSpans();
    expect(span?.attributes).toMatchObject({ 'http.response.status_code': 404, 'error.type': 'model_not_found' });
    expect(span?.parentSpanContext).toBeUndefined();
  });
});
