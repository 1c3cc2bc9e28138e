import { loadModel } from 'node-chatglm';
import OpenAI, { APIUserAbortError, BadRequestError, NotFoundError, RateLimitError } from 'openai';
import { zodResponsesFunction, zodTextFormat } from 'openai/helpers/zod';
import type { ResponseInputItem, ResponseStreamEvent, Tool } from 'openai/resources/responses/responses';
import { z } from 'zod';
import type { Item } from '../src/openai/responses-input';
import { ResponseStore } from '../src/openai/responses-store';
import { type Listening, LONG_LIST, listen, nested } from './support/listen';

let server: Listening;
let client: OpenAI;
beforeAll(async () => {
  server = await listen({ keys: ['anna', 'mallory'].map((name) => ({ name, key: keyOf(name) })) });
  client = clientOf('anna');
});
afterAll(() => server.close());

function keyOf(name: string): string {
  return `sk-chatglm-0123456789-${name}`;
}

function clientOf(name: string): OpenAI {
  return new OpenAI({ baseURL: `${server.address}/v1`, apiKey: keyOf(name), maxRetries: 0 });
}

const greedy = { model: 'chatglm-tiny', temperature: 0 } as const;
const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] };
const weather: Tool = {
  type: 'function',
  name: 'get_weather',
  description: '查询某个城市的天气',
  parameters,
  strict: false,
};
const question = '北京今天天气怎么样？';
const observed = '{"weather": "晴", "temperature": 21}';

/** The parts of a response's call that the next request needs. */
function callOf({ output }: OpenAI.Responses.Response) {
  const call = output.find((item) => item.type === 'function_call');
  if (call?.type !== 'function_call') throw new Error(`no call in ${JSON.stringify(output)}`);
  return call;
}

async function refused(request: object): Promise<InstanceType<typeof OpenAI.APIError>> {
  const error = await client.responses.create({ ...greedy, input: '你好', ...request }).catch((thrown) => thrown);
  expect(error).toBeInstanceOf(OpenAI.APIError);
  return error;
}

test('answers a text, and tells of the request again', async () => {
  const response = await client.responses.create({
    ...greedy,
    input: '你好',
    instructions: '你是一个助手。',
    metadata: { purpose: 'test' },
    user: 'u1',
  });
  expect(response.output_text).toContain('你好');
  expect(response).toMatchObject({
    object: 'response',
    status: 'completed',
    error: null,
    incomplete_details: null,
    model: 'chatglm-tiny',
    instructions: '你是一个助手。',
    metadata: { purpose: 'test' },
    temperature: 0,
    top_p: 1,
    truncation: 'disabled',
    store: true,
    text: { format: { type: 'text' } },
    tool_choice: 'auto',
    tools: [],
    user: 'u1',
  });
  expect(response.output).toMatchObject([
    { type: 'message', role: 'assistant', status: 'completed', content: [{ type: 'output_text', annotations: [] }] },
  ]);
  const { input_tokens, output_tokens, total_tokens } = response.usage as OpenAI.Responses.ResponseUsage;
  expect(total_tokens).toBe(input_tokens + output_tokens);
  expect(output_tokens).toBeGreaterThan(1);
});

test('the stream has each event once and in its order, and makes the same response', async () => {
  const stream = await client.responses.create({ ...greedy, input: '你好', stream: true });
  const events: ResponseStreamEvent[] = [];
  for await (const event of stream) events.push(event);
  expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, index) => index));
  const types = events.map(({ type }) => type).filter((type, i, all) => type !== all[i - 1]);
  expect(types).toEqual([
    'response.created',
    'response.in_progress',
    'response.output_item.added',
    'response.content_part.added',
    'response.output_text.delta',
    'response.output_text.done',
    'response.content_part.done',
    'response.output_item.done',
    'response.completed',
  ]);
  const deltas = events.flatMap((event) => (event.type === 'response.output_text.delta' ? [event.delta] : []));
  const last = events.at(-1);
  if (last?.type !== 'response.completed') throw new Error('not completed');
  const whole = await client.responses.create({ ...greedy, input: '你好' });
  expect(deltas.join('')).toBe(whole.output_text);
  expect(last.response.output).toMatchObject([{ content: [{ text: whole.output_text }] }]);
  expect(await client.responses.retrieve(last.response.id)).toMatchObject({ output: last.response.output });
});

test('a tool is called and answered, with previous_response_id', async () => {
  const asked = await client.responses.create({ ...greedy, input: question, tools: [weather] });
  const call = callOf(asked);
  expect(call).toMatchObject({ name: 'get_weather', status: 'completed' });
  expect(JSON.parse(call.arguments)).toEqual({ city: '北京' });
  const answered = await client.responses.create({
    ...greedy,
    previous_response_id: asked.id,
    tools: [weather],
    input: [{ type: 'function_call_output', call_id: call.call_id, output: observed }],
  });
  expect(answered.output_text).toBe('北京现在的天气是晴，气温21度。');
  expect(answered.previous_response_id).toBe(asked.id);
  // What the first prompt had is not computed again.
  expect(answered.usage?.input_tokens_details.cached_tokens).toBeGreaterThanOrEqual(asked.usage?.input_tokens ?? 1e9);
  const items = await client.responses.inputItems.list(answered.id, { order: 'asc' });
  expect(items.data.map(({ type }) => type)).toEqual(['message', 'function_call', 'function_call_output']);
  // The conversation goes on, also from where it has already gone on.
  for (const other of ['上海', '广州']) {
    const next = await client.responses.create({
      ...greedy,
      previous_response_id: answered.id,
      tools: [weather],
      input: `${other}今天天气怎么样？`,
    });
    expect(JSON.parse(callOf(next).arguments)).toEqual({ city: other });
  }
});

test('a tool is called and answered without anything being kept, streamed', async () => {
  const history: ResponseInputItem[] = [{ role: 'user', content: [{ type: 'input_text', text: question }] }];
  const request = { ...greedy, store: false, tools: [weather] };
  const asking = client.responses.stream({ ...request, input: history });
  const types: string[] = [];
  const written: string[] = [];
  for await (const event of asking) {
    types.push(event.type);
    if (event.type === 'response.function_call_arguments.delta') written.push(event.delta);
  }
  expect(types).toEqual([
    'response.created',
    'response.in_progress',
    'response.output_item.added',
    'response.function_call_arguments.delta',
    'response.function_call_arguments.done',
    'response.output_item.done',
    'response.completed',
  ]);
  const asked = await asking.finalResponse();
  const call = callOf(asked);
  expect(written.join('')).toBe(call.arguments);
  const { id, type, call_id, name, arguments: given } = call;
  history.push({ id: id as string, type, call_id, name, arguments: given });
  history.push({ type: 'reasoning', id: 'rs_1', summary: [] });
  history.push({ type: 'function_call_output', call_id, output: [{ type: 'input_text', text: observed }] });
  const answered = await client.responses.stream({ ...request, input: history }).finalResponse();
  expect(answered.output_text).toBe('北京现在的天气是晴，气温21度。');
  await expect(client.responses.retrieve(answered.id)).rejects.toBeInstanceOf(NotFoundError);
});

test('tool_choice forces a tool, leaves tools out, and allows some', async () => {
  const clock: Tool = { ...weather, name: 'get_time', description: '查询某个城市现在的时间' };
  const tools = [weather, clock];
  const forced = await client.responses.create({
    ...greedy,
    input: question,
    tools,
    tool_choice: { type: 'function', name: 'get_time' },
  });
  expect(callOf(forced).name).toBe('get_time');
  const required = await client.responses.create({ ...greedy, input: '你好', tools, tool_choice: 'required' });
  expect(['get_weather', 'get_time']).toContain(callOf(required).name);
  const none = await client.responses.create({ ...greedy, input: question, tools, tool_choice: 'none' });
  expect(none.output.map(({ type }) => type)).toEqual(['message']);
  const allowed = await client.responses.create({
    ...greedy,
    input: question,
    tools,
    tool_choice: { type: 'allowed_tools', mode: 'required', tools: [{ type: 'function', name: 'get_time' }] },
  });
  expect(callOf(allowed).name).toBe('get_time');
  expect(allowed.tools).toHaveLength(2);
  const missing = await refused({ tools, tool_choice: { type: 'function', name: 'other' } });
  expect([missing.status, missing.param]).toEqual([400, 'tool_choice']);
});

test('responses.parse gives values of a schema, and arguments of a function', async () => {
  const answer = z.object({ city: z.string().max(20), celsius: z.number().int() });
  const parsed = await client.responses.parse({
    ...greedy,
    input: question,
    text: { format: zodTextFormat(answer, 'answer') },
  });
  expect(answer.parse(parsed.output_parsed)).toEqual(parsed.output_parsed);
  expect(parsed.text?.format).toMatchObject({ type: 'json_schema', name: 'answer', strict: true });
  const tool = zodResponsesFunction({
    name: 'get_weather',
    description: '查询某个城市的天气',
    parameters: z.object({ city: z.string() }),
  });
  const called = await client.responses.parse({ ...greedy, input: question, tools: [tool] });
  expect(called.output[0]).toMatchObject({ type: 'function_call', parsed_arguments: { city: '北京' } });
  const object = await client.responses.create({
    ...greedy,
    input: '你好',
    text: { format: { type: 'json_object' } },
    max_output_tokens: 60,
  });
  expect(typeof JSON.parse(object.output_text)).toBe('object');
});

test('an answer that max_output_tokens cuts is incomplete, streamed or not', async () => {
  const request = { ...greedy, input: '你好', max_output_tokens: 3 };
  const cut = { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } };
  expect(await client.responses.create(request)).toMatchObject({ ...cut, output: [{ status: 'incomplete' }] });
  const types: string[] = [];
  const stream = client.responses.stream(request);
  for await (const { type } of stream) types.push(type);
  expect(types.at(-1)).toBe('response.incomplete');
  expect(await stream.finalResponse()).toMatchObject({ ...cut, usage: { output_tokens: 3 } });
});

test('log-probabilities come with the text, whole and streamed', async () => {
  const request = {
    ...greedy,
    input: '你好',
    include: ['message.output_text.logprobs' as const],
    top_logprobs: 2,
  };
  const response = await client.responses.create(request);
  const [message] = response.output;
  const part = message?.type === 'message' ? message.content[0] : undefined;
  if (part?.type !== 'output_text') throw new Error('no text');
  const logprobs = part.logprobs ?? [];
  expect(logprobs.map(({ token }) => token).join('')).toBe(part.text);
  expect(logprobs.every(({ top_logprobs, logprob }) => top_logprobs.length === 2 && logprob <= 0)).toBe(true);
  const streamed: string[] = [];
  let text = '';
  for await (const event of client.responses.stream(request)) {
    if (event.type === 'response.output_text.delta') streamed.push(...event.logprobs.map(({ token }) => token));
    if (event.type === 'response.output_text.done') text = event.text;
  }
  expect(streamed.join('')).toBe(text);
  expect(text).toBe(part.text);
});

test('truncation auto leaves the oldest rounds out; else a long conversation is refused', async () => {
  const long = Array.from({ length: 40 }, (_, i): ResponseInputItem[] => [
    { role: 'user', content: `第${i}个问题：${'今天天气怎么样'.repeat(8)}` },
    { role: 'assistant', content: '我不知道。' },
  ]).flat();
  const input: ResponseInputItem[] = [...long, { role: 'user', content: '你好' }];
  const error = await refused({ input });
  expect([error.status, error.code, error.param]).toEqual([400, 'context_length_exceeded', 'input']);
  const response = await client.responses.create({ ...greedy, input, truncation: 'auto', max_output_tokens: 20 });
  expect(response.usage?.input_tokens).toBeLessThan(1024);
});

test('responses belong to the key that made them, can be listed page by page, and deleted', async () => {
  const first = await client.responses.create({ ...greedy, input: '你好' });
  const input: ResponseInputItem[] = [
    { role: 'user', content: '早' },
    { role: 'assistant', content: '早上好' },
    { role: 'user', content: '你好' },
  ];
  const { id } = await client.responses.create({ ...greedy, input, previous_response_id: first.id });
  const texts: string[] = [];
  for await (const item of client.responses.inputItems.list(id, { limit: 2, order: 'asc' })) {
    if (item.type !== 'message') continue;
    const [part] = item.content;
    if (part && 'text' in part) texts.push(part.text);
  }
  expect(texts).toEqual(['你好', first.output_text, '早', '早上好', '你好']);
  const stranger = clientOf('mallory');
  await expect(stranger.responses.retrieve(id)).rejects.toBeInstanceOf(NotFoundError);
  await expect(stranger.responses.delete(id)).rejects.toBeInstanceOf(NotFoundError);
  await expect(stranger.responses.inputItems.list(id)).rejects.toBeInstanceOf(NotFoundError);
  await expect(stranger.responses.create({ ...greedy, input: '你好', previous_response_id: id })).rejects.toMatchObject(
    { status: 400, code: 'previous_response_not_found', param: 'previous_response_id' },
  );
  await expect(client.responses.cancel(id)).rejects.toBeInstanceOf(BadRequestError);
  await client.responses.delete(first.id);
  await expect(client.responses.retrieve(first.id)).rejects.toBeInstanceOf(NotFoundError);
  // What went on from a deleted response is whole.
  const next = await client.responses.create({ ...greedy, input: '你好', previous_response_id: id });
  expect((await client.responses.inputItems.list(next.id)).data).toHaveLength(7);
});

test('tokens of an input are counted as the answer counts them', async () => {
  const request = { model: greedy.model, input: question, tools: [weather], instructions: '你是一个助手。' };
  const { input_tokens } = await client.responses.inputTokens.count(request);
  const { usage } = await client.responses.create({ ...request, temperature: 0 });
  expect(input_tokens).toBe(usage?.input_tokens);
});

test('what is wrong, and what there is not, is told with its field', async () => {
  const cases: [request: object, param: string | null, message: RegExp][] = [
    [{ input: 3 }, 'input', /string or an array/],
    [{ input: undefined }, 'input', /required/],
    [{ unknown: 1 }, 'unknown', /unknown/i],
    [{ temperature: 3 }, 'temperature', /<= 2/],
    [{ temperature: '1' }, 'temperature', /number/],
    [{ max_output_tokens: 0 }, 'max_output_tokens', />= 1/],
    [{ background: true }, 'background', /not supported/],
    [{ conversation: 'conv_1' }, 'conversation', /not supported/],
    [{ tools: [{ type: 'web_search' }] }, 'tools[0].type', /web_search/],
    [{ tools: [{ type: 'file_search', vector_store_ids: [] }] }, 'tools[0].type', /file_search/],
    [{ tools: [{ type: 'function' }] }, 'tools[0].name', /required/],
    [{ tool_choice: 'required' }, 'tool_choice', /tools/],
    [{ include: ['everything'] }, 'include[0]', /Supported values/],
    [{ text: { format: { type: 'xml' } } }, 'text.format.type', /json_schema/],
    [{ text: { format: { type: 'json_schema', schema: {} } } }, 'text.format.name', /required/],
    [{ metadata: { a: 1 } }, 'metadata.a', /string/],
    [{ input: [{ role: 'user', content: [{ type: 'input_image' }] }] }, 'input[0].content[0].type', /text only/],
    [{ input: [{ type: 'item_reference', id: 'msg_1' }] }, 'input[0].type', /previous_response_id/],
    [{ input: [{ role: 'somebody', content: '' }] }, 'input[0].role', /user/],
    [{ input: [{ type: 'function_call_output', call_id: 'c', output: '' }] }, 'input', /No tool call found/],
    [{ input: [{ type: 'function_call', call_id: 'c', name: 'f', arguments: '{}' }] }, 'input', /No tool output/],
    [{ input: [{ role: 'assistant', content: '你好' }] }, 'input', /assistant/],
  ];
  for (const [request, param, message] of cases) {
    const error = await refused(request);
    expect({ request, status: error.status, param: error.param, type: error.type }).toEqual({
      request,
      status: 400,
      param,
      type: 'invalid_request_error',
    });
    expect(error.message).toMatch(message);
  }
  expect(await refused({ model: 'gpt-5' })).toMatchObject({ status: 404, code: 'model_not_found', param: 'model' });
});

test('JSON that no client means is refused, and nothing falls over', async () => {
  const bodies = [
    `{"input": [{"type": ${nested(100_000)}}]}`,
    `{"input": "x", "metadata": {"a": ${nested(100_000)}}}`,
    `{"input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"a": ${nested(100_000)}}}]}`,
    `{"input": [{"type": "function_call_output", "call_id": "${'c'.repeat(100_000)}", "output": ""}]}`,
    `{"input": "x", "previous_response_id": "${'c'.repeat(100_000)}"}`,
    '{"input": "x", "__proto__": {"stream": true}}',
    '{"input": [null]}',
    '{"input": [[]]}',
    '[]',
    'null',
    '',
  ];
  for (const body of bodies) {
    const response = await fetch(`${server.address}/v1/responses`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', authorization: `Bearer ${keyOf('anna')}` },
      body,
    });
    const answer = await response.text();
    expect([body.slice(0, 60), response.status]).toEqual([body.slice(0, 60), 400]);
    expect(answer.length).toBeLessThan(1000);
    expect(JSON.parse(answer)).toMatchObject({ error: { type: 'invalid_request_error' } });
  }
});

test('a failure behind the first event is told by events', async () => {
  const model = await loadModel();
  const failing = await listen({ models: [{ id: 'chatglm-tiny', model }] });
  try {
    const other = new OpenAI({ baseURL: `${failing.address}/v1`, apiKey: 'none', maxRetries: 0 });
    const format = { type: 'json_schema', name: 'list', schema: LONG_LIST } as const;
    const stream = await other.responses.create({ ...greedy, input: '你好', text: { format }, stream: true });
    const events: ResponseStreamEvent[] = [];
    for await (const event of stream) {
      events.push(event);
      if (event.type === 'response.output_text.delta') void model.dispose();
    }
    const [error, failed] = events.slice(-2);
    expect(error).toMatchObject({ type: 'error', code: 'shutting_down', message: expect.any(String) });
    expect(failed).toMatchObject({
      type: 'response.failed',
      response: { status: 'failed', error: { code: 'server_error' } },
    });
    expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, index) => index));
  } finally {
    await failing.close();
    await model.dispose();
  }
});

test('the client tries again what was refused for a while', async () => {
  const busy = await listen({ models: [{ load: { maxSequences: 1, maxQueue: 0 } }] });
  try {
    const options = { baseURL: `${busy.address}/v1`, apiKey: 'none' };
    const format = { type: 'json_schema', name: 'list', schema: LONG_LIST } as const;
    const request = { ...greedy, input: '你好' };
    const running = await new OpenAI(options).responses.create({ ...request, text: { format }, stream: true });
    await running[Symbol.asyncIterator]().next();
    await expect(new OpenAI({ ...options, maxRetries: 0 }).responses.create(request)).rejects.toBeInstanceOf(
      RateLimitError,
    );
    const tries: number[] = [];
    const watched = new OpenAI({
      ...options,
      fetch: async (...given) => {
        const response = await fetch(...given);
        tries.push(response.status);
        if (response.status === 429) running.controller.abort();
        return response;
      },
    });
    expect((await watched.responses.create(request)).status).toBe('completed');
    expect(tries).toEqual([429, 200]);
  } finally {
    await busy.close();
  }
});

test('a client that goes ends its answer, streamed or not', async () => {
  const format = { type: 'json_schema', name: 'list', schema: LONG_LIST } as const;
  const long = { ...greedy, input: '你好', text: { format } };
  const leaving = new AbortController();
  const came = server.nextRequest();
  const whole = client.responses.create(long, { signal: leaving.signal });
  await came;
  const stream = await client.responses.create({ ...long, stream: true });
  let deltas = 0;
  const left = server.nextUsed();
  // When some of the stream has come, both answers are on their way.
  for await (const { type } of stream) if (type === 'response.output_text.delta' && ++deltas === 3) break;
  expect((await left).generated).toBeLessThan(150);
  const used = server.nextUsed();
  leaving.abort();
  await expect(whole).rejects.toBeInstanceOf(APIUserAbortError);
  const { generated } = await used;
  expect(generated).toBeGreaterThan(0);
  expect(generated).toBeLessThan(300);
});

describe('the store of responses', () => {
  const item = (text: string): Item => ({
    id: `msg_${text}`,
    type: 'message',
    status: 'completed',
    role: 'user',
    content: [{ type: 'input_text', text }],
  });
  const limits = { responses: 100, units: 1_000_000, ageMs: 1000 };
  const add = (store: ResponseStore, id: string, before?: string, size = 1) =>
    store.add(id, {
      owner: 'anna',
      response: { id },
      input: [item(id.repeat(size))],
      output: [],
      before,
      earlier: before === undefined ? [] : [item('earlier')],
    });

  test('forgets what was used least recently, and keeps the conversations of those that are left', () => {
    const store = new ResponseStore({ ...limits, responses: 3 });
    add(store, 'a');
    add(store, 'b', 'a');
    add(store, 'c', 'b');
    expect(store.get('a', 'anna')).toBeDefined(); // now b is the one
    add(store, 'd', 'c');
    expect(['a', 'b', 'c', 'd'].filter((id) => store.get(id, 'anna'))).toEqual(['a', 'c', 'd']);
    expect(
      store
        .get('d', 'anna')
        ?.conversation()
        .map(({ id }) => id),
    ).toEqual(['msg_a', 'msg_b', 'msg_c', 'msg_d']);
    expect(
      store
        .get('d', 'anna')
        ?.input()
        .map(({ id }) => id),
    ).toEqual(['msg_a', 'msg_b', 'msg_c', 'msg_d']);
    expect(store.get('d', 'other')).toBeUndefined();
    expect(store.get('d', undefined)).toBeUndefined();
  });

  test('a response whose predecessor has gone meanwhile keeps what the request had read', () => {
    const store = new ResponseStore(limits);
    add(store, 'a');
    store.delete('a', 'anna');
    add(store, 'b', 'a');
    expect(
      store
        .get('b', 'anna')
        ?.conversation()
        .map(({ id }) => id),
    ).toEqual(['msg_earlier', 'msg_b']);
  });

  test('takes no more memory than it may, and gives all of it back', () => {
    const store = new ResponseStore({ ...limits, units: 3000 });
    for (let i = 0; i < 200; i++) {
      add(store, `${i}`, i % 3 === 0 ? undefined : `${i - 1}`, 20);
      expect(store.size.units).toBeLessThanOrEqual(3000);
    }
    expect(store.size.responses).toBeGreaterThan(3);
    for (let i = 0; i < 200; i++) store.delete(`${i}`, 'anna');
    expect(store.size).toEqual({ responses: 0, units: 0 });
    // One that is too large by itself is not kept.
    add(store, 'x'.repeat(10), undefined, 1000);
    expect(store.size).toEqual({ responses: 0, units: 0 });
  });

  test('forgets what nobody has asked for in a while', () => {
    let now = 0;
    const store = new ResponseStore(limits, () => now);
    add(store, 'a');
    add(store, 'b');
    now = 900;
    expect(store.get('a', 'anna')).toBeDefined();
    now = 1500;
    expect(['a', 'b'].filter((id) => store.get(id, 'anna'))).toEqual(['a']);
  });
});
