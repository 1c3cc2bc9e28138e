import { AIMessage, HumanMessage, SystemMessage, ToolMessage, type UsageMetadata } from '@langchain/core/messages';
import { tool } from '@langchain/core/tools';
import { ChatOpenAI, OpenAI } from '@langchain/openai';
import { z } from 'zod';
import { endless, GREETING, type Served, serve } from './support/served';

let served: Served;
beforeAll(async () => {
  served = await serve();
});
afterAll(() => served.close());

function chat(options: object = {}): ChatOpenAI {
  return new ChatOpenAI({
    model: 'chatglm-tiny',
    temperature: 0,
    apiKey: 'none',
    maxRetries: 0,
    configuration: { baseURL: `${served.url}/v1` },
    ...options,
  });
}

const weather = tool(async ({ city }) => JSON.stringify({ city, weather: '晴', temperature: 21 }), {
  name: 'get_weather',
  description: '查询某个城市的天气',
  schema: z.object({ city: z.string() }),
});

test('answers, with what it took', async () => {
  const message = await chat().invoke([new HumanMessage('你好')]);
  expect(message.content).toBe(GREETING);
  expect(message.usage_metadata).toMatchObject({ input_tokens: 7, output_tokens: 14, total_tokens: 21 });
  expect(message.response_metadata).toMatchObject({ finish_reason: 'stop', model_name: 'chatglm-tiny' });
});

test('streams, with what it took at the end', async () => {
  const texts: string[] = [];
  let tokens: number | undefined;
  for await (const chunk of await chat({ streamUsage: true }).stream('你好')) {
    texts.push(chunk.content as string);
    const usage = chunk.usage_metadata as UsageMetadata | undefined;
    tokens = usage?.output_tokens ?? tokens;
  }
  expect(texts.join('')).toBe(GREETING);
  expect(texts.length).toBeGreaterThan(3);
  expect(tokens).toBe(14);
});

test('a batch of prompts, each with its answer', async () => {
  const answers = await chat({ maxTokens: 20 }).batch(['你好', '谢谢', '你好']);
  expect(answers.map(({ content }) => content)).toEqual([GREETING, expect.any(String), GREETING]);
});

test('tools to the end: the call, its result, the answer; streamed as well', async () => {
  const model = chat().bindTools([weather]);
  const question = new HumanMessage('北京今天天气怎么样？');
  const call = await model.invoke([question]);
  expect(call.tool_calls).toMatchObject([
    { name: 'get_weather', args: { city: '北京' }, id: expect.stringMatching(/^call_/) },
  ]);
  const result = (await weather.invoke(call.tool_calls?.[0] as never)) as ToolMessage;
  expect(result).toBeInstanceOf(ToolMessage);
  const answer = await model.invoke([question, call, result]);
  expect(answer.content).toBe('北京现在的天气是晴，气温21度。');

  let gathered: Awaited<ReturnType<typeof model.invoke>> | undefined;
  for await (const chunk of await model.stream([question])) gathered = gathered ? gathered.concat(chunk) : chunk;
  expect(gathered?.tool_calls).toMatchObject([{ name: 'get_weather', args: { city: '北京' } }]);
});

test('a tool that must be called', async () => {
  const model = chat({ maxTokens: 60 }).bindTools([weather], { tool_choice: 'get_weather' });
  const { tool_calls: calls } = await model.invoke('你好');
  expect(calls).toMatchObject([{ name: 'get_weather', args: { city: expect.any(String) } }]);
});

test.each(['jsonSchema', 'functionCalling', 'jsonMode'] as const)('structured output: %s', async (method) => {
  const schema = z.object({ name: z.string(), age: z.number().int() });
  const ask = chat({ maxTokens: 120 }).withStructuredOutput(
    method === 'jsonMode' ? z.record(z.string(), z.unknown()) : schema,
    {
      method,
      name: 'person',
    },
  );
  const value = await ask.invoke([new SystemMessage('Answer in JSON.'), new HumanMessage('Anna is 30 years old.')]);
  if (method === 'jsonMode') expect(typeof value).toBe('object');
  else expect(schema.parse(value)).toEqual(value);
});

test('log-probabilities are in the metadata', async () => {
  const message = await chat({ logprobs: true, topLogprobs: 1 }).invoke('你好');
  const content = (message.response_metadata.logprobs as { content: { token: string }[] }).content;
  expect(content.map(({ token }) => token).join('')).toBe(GREETING);
});

test('a conversation goes on', async () => {
  const answer = await chat({ maxTokens: 40 }).invoke([
    new SystemMessage('You are Emma.'),
    new HumanMessage('你好'),
    new AIMessage('你好！'),
    new HumanMessage([{ type: 'text', text: '谢谢' }]),
  ]);
  expect(answer.content).not.toBe('');
});

test('the completion model', async () => {
  const model = new OpenAI({
    model: 'chatglm-tiny',
    temperature: 0,
    apiKey: 'none',
    maxRetries: 0,
    maxTokens: 32,
    configuration: { baseURL: `${served.url}/v1` },
  });
  expect(await model.invoke('你好')).toBe(GREETING.slice('你好'.length));
  const texts: string[] = [];
  for await (const text of await model.stream('你好')) texts.push(text);
  expect(texts.join('')).toBe(GREETING.slice('你好'.length));
});

test('a stream that is left ends its sequence', async () => {
  const model = chat({ maxTokens: 900, modelKwargs: { logit_bias: endless(served.model) } });
  const controller = new AbortController();
  const left = (async () => {
    for await (const { content } of await model.stream('你好', { signal: controller.signal })) {
      if (content !== '') controller.abort();
    }
  })();
  await expect(left).rejects.toThrow(/abort/i);
  await served.idle();
  expect(served.model.stats().generatedTokens).toBeGreaterThan(0);
});

test('errors keep their status and message', async () => {
  await expect(chat({ model: 'gpt-4' }).invoke('你好')).rejects.toMatchObject({ status: 404, code: 'model_not_found' });
  await expect(chat({ temperature: 3 }).invoke('你好')).rejects.toMatchObject({ status: 400, param: 'temperature' });
});
