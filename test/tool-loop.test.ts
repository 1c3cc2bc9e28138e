import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import {
  type ChatChunk,
  ChatGLMError,
  type ChatMessage,
  defineTool,
  INTERPRETER_PROMPT,
  type Model,
} from 'node-chatglm';
import { loadModel } from './support/device';

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

const greedy = { temperature: 0, maxTokens: 200 } as const;
const city = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } as const;

/** A weather station that remembers what it was asked. */
function weather(answer: (city: string) => unknown = () => ({ weather: '晴', temperature: 21 })) {
  const asked: string[] = [];
  const tool = defineTool({
    name: 'get_weather',
    description: '查询某个城市的天气',
    parameters: city,
    execute: ({ city: name }) => {
      asked.push(name);
      return answer(name);
    },
  });
  return { tool, asked };
}

const clock = defineTool({
  name: 'get_time',
  description: '查询某个城市现在的时间',
  parameters: city,
  execute: () => ({ time: '15:42' }),
});

test('calls a tool, tells the model what it gave, and answers', async () => {
  const { tool, asked } = weather();
  const chat = model.createChat({ ...greedy, tools: [tool] });
  const chunks: ChatChunk[] = [];
  const heard: string[] = [];
  const stream = chat.stream('北京今天天气怎么样？', { onStep: ({ type }) => heard.push(type) });
  for await (const chunk of stream) chunks.push(chunk);
  const reply = await stream.result;
  expect(asked).toEqual(['北京']);
  expect(reply.text).toBe('北京现在的天气是晴，气温21度。');
  expect(reply.finishReason).toBe('stop');
  expect(reply.toolCall).toBeUndefined();
  const call = { name: 'get_weather', arguments: { city: '北京' } };
  expect(reply.steps).toMatchObject([
    { type: 'tool', call, result: { name: 'get_weather', ok: true, value: { weather: '晴', temperature: 21 } } },
  ]);
  const types = chunks.map(({ type }) => type).filter((type, i, all) => type !== all[i - 1]);
  expect(types).toEqual(['text', 'tool-call', 'tool-result', 'text']);
  expect(heard).toEqual(['tool-call', 'tool-result']);
  expect(chunks.map(({ text }) => text).join('')).toBe(reply.text);
  expect(chunks.flatMap(({ tokens }) => tokens)).toEqual(reply.tokens);
  expect(chat.history.map(({ role }) => role)).toEqual(['system', 'user', 'assistant', 'observation', 'assistant']);
  expect(reply.messages).toEqual(chat.history.slice(2));
  expect(reply.usage.generatedTokens).toBe(reply.tokens.length);
  // The next question finds all of it in the cache, and is answered with the same tools.
  const next = await chat.send('上海今天天气怎么样？');
  expect(asked).toEqual(['北京', '上海']);
  expect(next.text).toContain('21');
});

test('50 generated questions in both languages are answered through real tools', async () => {
  const cities = [
    '北京',
    '上海',
    '东京',
    '伦敦',
    '巴黎',
    '广州',
    'London',
    'Paris',
    'Tokyo',
    'Berlin',
    'Rome',
    'Madrid',
    'Moscow',
  ];
  const chinese = (name: string) => /\p{Script=Han}/u.test(name);
  const wordings: [tool: string, ask: (city: string) => string][] = [
    ['get_weather', (name) => (chinese(name) ? `${name}今天天气怎么样？` : `What is the weather in ${name}?`)],
    ['get_weather', (name) => (chinese(name) ? `${name}天气如何` : `How's the weather in ${name} today?`)],
    ['get_time', (name) => (chinese(name) ? `现在${name}几点了？` : `What time is it in ${name}?`)],
    ['get_time', (name) => (chinese(name) ? `${name}现在几点？` : `What's the time in ${name} now?`)],
  ];
  const questions = Array.from({ length: 50 }, (_, i) => {
    const [tool, ask] = wordings[i % wordings.length] as (typeof wordings)[number];
    return {
      tool,
      question: ask(cities[i % cities.length] as string),
      temperature: 3 + i,
      time: `${8 + (i % 12)}:${10 + i}`,
    };
  });
  const answers = await Promise.all(
    questions.map(async ({ tool, question, temperature, time }) => {
      const used: string[] = [];
      const use = <T>(name: string, result: T) => {
        used.push(name);
        return result;
      };
      const tools = [
        defineTool({
          ...weather().tool,
          parameters: city,
          execute: () => use('get_weather', { weather: '晴', temperature }),
        }),
        defineTool({ ...clock, parameters: city, execute: () => use('get_time', { time }) }),
      ];
      const { text } = await model.createChat({ ...greedy, tools }).send(question);
      return used.join() === tool && text.includes(tool === 'get_weather' ? `${temperature}` : time);
    }),
  );
  const wrong = questions.filter((_, i) => !answers[i]).map(({ question }) => question);
  expect({ right: answers.filter(Boolean).length, wrong }).toEqual({
    right: expect.any(Number),
    wrong: expect.any(Array),
  });
  expect(wrong.length).toBeLessThanOrEqual(5);
});

test('what a tool throws is told to the model; the conversation goes on', async () => {
  const { tool } = weather(() => {
    throw new Error('the station is closed');
  });
  const chat = model.createChat({ ...greedy, tools: [tool] });
  const reply = await chat.send('北京今天天气怎么样？');
  const [step] = reply.steps;
  expect(step).toMatchObject({ type: 'tool', result: { ok: false } });
  if (step?.type !== 'tool') throw new Error('no tool ran');
  expect(step.result.content).toContain('the station is closed');
  expect(step.result.error).toBeInstanceOf(ChatGLMError);
  expect(chat.history.filter(({ role }) => role === 'observation')[0]?.content).toBe(step.result.content);
  expect((await chat.send('你好')).finishReason).toBe('stop');
});

test('after maxToolRounds the call is the caller’s', async () => {
  const { tool, asked } = weather();
  const chat = model.createChat({ ...greedy, tools: [tool], maxToolRounds: 0 });
  const reply = await chat.send('北京今天天气怎么样？');
  expect(reply).toMatchObject({ finishReason: 'tool_call', toolCall: { name: 'get_weather' }, steps: [] });
  expect(asked).toEqual([]);
  const answer = await chat.send('{"weather": "晴", "temperature": 21}', { role: 'observation' });
  expect(answer.text).toBe('北京现在的天气是晴，气温21度。');
});

test('tools of one answer leave the chat as it was', async () => {
  const { tool, asked } = weather();
  const chat = model.createChat(greedy);
  expect((await chat.send('北京今天天气怎么样？', { tools: [tool] })).text).toContain('21');
  expect(asked).toEqual(['北京']);
  expect(chat.history[0]?.role).toBe('user');
  const without = await chat.send('上海今天天气怎么样？');
  expect(asked).toEqual(['北京']);
  expect(without.toolCall).toBeUndefined();
});

describe('toolChoice', () => {
  test('none: the model is told of no tools', async () => {
    const { tool, asked } = weather();
    const chat = model.createChat({ ...greedy, tools: [tool] });
    const reply = await chat.send('北京今天天气怎么样？', { toolChoice: 'none' });
    expect(asked).toEqual([]);
    expect(reply.text).toBe('我现在没有可用的工具，查不到这个。给我一个工具，或者加载完整的模型，就可以了。');
    expect(chat.history[0]?.tools).toHaveLength(1);
  });

  test('required and a name: a call comes, whatever the question', async () => {
    const { tool, asked } = weather();
    for (const toolChoice of ['required', { name: 'get_weather' }] as const) {
      const chat = model.createChat({ ...greedy, tools: [clock, tool] });
      const reply = await chat.send('你好', { toolChoice });
      expect(reply.steps[0]).toMatchObject({ type: 'tool', result: { ok: true } });
      expect(reply.finishReason).toBe('stop');
    }
    expect(asked).toHaveLength(asked.length);
    const named = await model
      .createChat({ ...greedy, tools: [clock, tool] })
      .send('你好', { toolChoice: { name: 'get_time' } });
    expect(named.steps[0]).toMatchObject({ call: { name: 'get_time' } });
  });

  test('what names no tool is refused', () => {
    const { tool } = weather();
    const chat = model.createChat({ tools: [tool] });
    expect(() => chat.stream('x', { toolChoice: { name: 'other' } })).toThrow(/names "other"/);
    expect(() => chat.stream('x', { toolChoice: 'always' as 'auto' })).toThrow(/must be auto, none, required/);
    expect(() => model.createChat({ toolChoice: 'required' })).toThrow(/no tools/);
  });
});

test('strict tools get arguments of their schema, whatever is drawn', async () => {
  const seen: unknown[] = [];
  const tool = defineTool({
    name: 'set_alarm',
    description: '设置闹钟',
    parameters: {
      type: 'object',
      properties: { hour: { type: 'integer', minimum: 0, maximum: 23 }, day: { enum: ['today', 'tomorrow'] } },
      required: ['hour', 'day'],
    } as const,
    strict: true,
    execute: (given) => {
      seen.push(given);
      return 'ok';
    },
  });
  for (let seed = 0; seed < 20; seed++) {
    const chat = model.createChat({ tools: [tool], maxTokens: 120 });
    const { steps } = await chat.send('帮我设一个早上7点的闹钟', {
      toolChoice: seed % 2 ? 'required' : 'auto',
      temperature: 3,
      topP: 1,
      topK: 0,
      seed,
      maxToolRounds: 1,
    });
    if (seed % 2) expect(steps).toMatchObject([{ result: { ok: true } }]);
    for (const step of steps) if (step.type === 'tool') expect(step.result).toMatchObject({ ok: true });
  }
  for (const given of seen) {
    const { hour, day } = given as { hour: number; day: string };
    expect(Number.isInteger(hour) && hour >= 0 && hour <= 23).toBe(true);
    expect(['today', 'tomorrow']).toContain(day);
  }
  expect(seen.length).toBeGreaterThanOrEqual(10);
});

test('leaving the loop while a tool runs keeps what was said', async () => {
  let begun: () => void = () => {};
  const running = new Promise<void>((resolve) => {
    begun = resolve;
  });
  let aborted = false;
  const slow = defineTool({
    ...clock,
    name: 'get_weather',
    parameters: city,
    execute: (_, { signal }) =>
      new Promise((resolve) => {
        begun();
        signal.addEventListener('abort', () => {
          aborted = true;
          resolve('stopped');
        });
      }),
  });
  const chat = model.createChat({ ...greedy, tools: [slow] });
  const stream = chat.stream('北京今天天气怎么样？');
  for await (const { type } of stream) {
    if (type !== 'tool-call') continue;
    await running;
    break;
  }
  const reply = await stream.result;
  expect(aborted).toBe(true);
  expect(reply.finishReason).toBe('cancelled');
  expect(chat.history.map(({ role }) => role)).toEqual(['system', 'user', 'assistant', 'observation']);
  expect((await chat.send('你好')).finishReason).toBe('stop');
});

test('an aborted signal ends the tool and the answer, and the history stays', async () => {
  const slow = defineTool({ ...clock, name: 'get_weather', parameters: city, execute: () => new Promise(() => {}) });
  const chat = model.createChat({ ...greedy, tools: [slow] });
  const before = structuredClone(chat.history);
  const controller = new AbortController();
  const stream = chat.stream('北京今天天气怎么样？', { signal: controller.signal });
  const read = (async () => {
    for await (const { type } of stream) if (type === 'tool-call') controller.abort();
  })();
  await expect(read).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  expect(chat.history).toEqual(before);
  expect((await chat.send('你好', { toolChoice: 'none' })).finishReason).toBe('stop');
});

test('families without tools: a clear error, or calls asked for in the prompt', async () => {
  const { tool, asked } = weather();
  expect(() => model.createChat({ family: 'chatglm2', tools: [tool] })).toThrow(
    /ChatGLM2 has none; toolPrompting: 'text'/,
  );
  const chat = model.createChat({ family: 'chatglm2', tools: [tool], toolPrompting: 'text', ...greedy });
  // The embedded model was not trained for this: the answer is made to be a call.
  const reply = await chat.send('北京', {
    responseFormat: {
      type: 'regex',
      pattern: '\\{"tool": "get_weather", "arguments": \\{"city": "[^"\\\\]{1,5}"\\}\\}',
    },
    maxToolRounds: 1,
  });
  expect(asked).toHaveLength(1);
  expect(reply.steps).toHaveLength(1);
  expect(chat.history.map(({ role }) => role)).toEqual(['user', 'assistant', 'observation', 'assistant']);
  expect(chat.countTokens()).toBeGreaterThan(50);
  // The question and all that followed it are one round: to take back, to answer again, and to leave out of a prompt.
  const before = structuredClone(chat.history);
  await chat.regenerate({ toolChoice: 'none' }).result;
  expect(chat.history.map(({ role }) => role)).toEqual(['user', 'assistant']);
  chat.history = before;
  const fits = await chat.send('你好', { contextOverflow: 'drop-oldest-rounds', toolChoice: 'none' });
  expect(fits.droppedMessages).toBe(0);
  chat.delete(-2, 2);
  expect(chat.undo()).toHaveLength(4);
});

test('toolChoice and strict tools hold where calls are asked for in the prompt', async () => {
  for (const family of ['chatglm2', 'chatglm3'] as const) {
    const { tool, asked } = weather();
    const chat = model.createChat({ family, tools: [{ ...tool, strict: true }], toolPrompting: 'text', ...greedy });
    const options = { temperature: 3, topK: 0, topP: 1, seed: 5, maxToolRounds: 1 } as const;
    for (const toolChoice of ['required', { name: 'get_weather' }] as const) {
      const { steps } = await chat.send('x', { ...options, toolChoice });
      expect(steps).toMatchObject([{ call: { name: 'get_weather' }, result: { ok: true } }]);
    }
    expect(asked).toHaveLength(2);
    for (let seed = 0; seed < 10; seed++) {
      const reply = await model
        .createChat({ family, tools: [{ ...tool, strict: true }], toolPrompting: 'text' })
        .send('x', { ...options, seed, maxTokens: 30 });
      for (const step of reply.steps) expect(step.result).toMatchObject({ ok: true });
      expect(reply.text).not.toMatch(/^\s*[{`]/);
    }
  }
});

test('a chat with an interpreter writes code, or an answer of the form', async () => {
  const chat = model.createChat({ ...greedy, interpreter: 'manual', system: INTERPRETER_PROMPT });
  const responseFormat = { type: 'regex', pattern: '[0-9]{1,5}' } as const;
  const reply = await chat.send('求1到100的和', { responseFormat });
  expect(reply.code).toBe('result = sum(range(1, 100 + 1))\nprint(result)');
  const answer = await chat.send('5050', { role: 'observation', responseFormat });
  expect(answer.code ?? answer.text).toMatch(/^[0-9]{1,5}$/);
});

test('a tool that the caller runs gets its observation, also where calls are asked for in the prompt', async () => {
  const tools = [{ name: 'get_weather', description: '查询某个城市的天气', parameters: city }];
  const chat = model.createChat({ family: 'chatglm2', tools, toolPrompting: 'text', ...greedy });
  const reply = await chat.send('北京', {
    responseFormat: {
      type: 'regex',
      pattern: '\\{"tool": "get_weather", "arguments": \\{"city": "[^"\\\\]{1,5}"\\}\\}',
    },
  });
  expect(reply).toMatchObject({ finishReason: 'tool_call', toolCall: { name: 'get_weather' }, steps: [] });
  const answer = await chat.send('21', { role: 'observation' });
  expect(answer.messages).toHaveLength(1);
  expect(chat.history.map(({ role }) => role)).toEqual(['user', 'assistant', 'observation', 'assistant']);
});

describe('histories', () => {
  test('undo, edit, insert, delete, fork', async () => {
    const chat = model.createChat(greedy);
    await chat.send('My name is Anna.');
    await chat.send('What is the capital of France?');
    const other = chat.fork(2);
    expect(other.history).toEqual(chat.history.slice(0, 2));
    expect(chat.undo().map(({ role }) => role)).toEqual(['user', 'assistant']);
    expect(chat.history).toHaveLength(2);
    chat.insert(0, { role: 'system', content: 'You are Bob, a friendly assistant.' });
    expect(chat.system).toBe('You are Bob, a friendly assistant.');
    chat.edit(1, 'My name is Bill.');
    expect(chat.history[1]).toEqual({ role: 'user', content: 'My name is Bill.' });
    expect(chat.delete(-1)).toHaveLength(1);
    expect(() => chat.edit(9, 'x')).toThrow(ChatGLMError);
    chat.system = undefined;
    expect(chat.history).toHaveLength(1);
    expect(model.createChat().undo()).toEqual([]);
  });

  test('counts tokens as the prompt has them', async () => {
    const { tool } = weather();
    const chat = model.createChat({ ...greedy, tools: [tool] });
    await chat.send('北京今天天气怎么样？');
    const ids = model.tokenizer.encodeChat(chat.history, { family: 'chatglm3' });
    expect(chat.countTokens()).toBe(ids.length);
    // [gMASK], sop and the last <|assistant|> belong to no message.
    expect(chat.messageTokens().reduce((a, b) => a + b, 3)).toBe(ids.length);
  });

  test('ChatGLM2’s histories are counted and saved, though its prompts end with a question', async () => {
    const folder = mkdtempSync(path.join(tmpdir(), 'chatglm2-'));
    try {
      const chat = model.createChat({ ...greedy, family: 'chatglm2', system: 'x' });
      expect(chat.countTokens()).toBeGreaterThan(0);
      await chat.send('你好', { maxTokens: 5 });
      const before = chat.countTokens();
      await chat.save(path.join(folder, 'chat'));
      const restored = await model.restoreChat(path.join(folder, 'chat'));
      expect(restored.history).toEqual(chat.history);
      expect(restored.countTokens()).toBe(before);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('a reply that is encoded again gives the ids that were generated', async () => {
    const { tool } = weather();
    const chat = model.createChat({ ...greedy, tools: [tool] });
    const reply = await chat.send('北京今天天气怎么样？');
    const ids = model.tokenizer.encodeChat(chat.history, { family: 'chatglm3' });
    const { roles } = model.tokenizer.special;
    // Each round's tokens but the last, which says what comes next, follow an <|assistant|>.
    const rounds: number[][] = [[]];
    for (const id of reply.tokens) {
      if (id === roles?.observation || id === roles?.user) rounds.push([]);
      else rounds.at(-1)?.push(id);
    }
    for (const round of rounds.filter(({ length }) => length > 0)) {
      const text = [roles?.assistant, ...round].join();
      expect(ids.join()).toContain(text);
    }
  });

  test('what is said over six turns is recalled with trimming on, and the history stays whole', async () => {
    const chat = model.createChat({ ...greedy, contextOverflow: 'drop-oldest-rounds' });
    await chat.send('My name is Anna.');
    await chat.send('I live in Paris.');
    for (const question of ['What is the capital of France?', 'What is 7 times 8?', 'How do you say dog in Chinese?']) {
      await chat.send(question);
    }
    expect((await chat.send('What is my name?')).text).toContain('Anna');
    expect((await chat.send('Where do I live?')).text).toContain('Paris');
    // Until the context of 1,024 tokens is full several times over.
    let dropped = 0;
    for (let i = 0; i < 60; i++) dropped = (await chat.send(`What is ${i % 12} times ${i % 7}?`)).droppedMessages;
    expect(dropped).toBeGreaterThan(20);
    expect(chat.history).toHaveLength(134);
    // Without trimming, the same history is too long.
    await expect(chat.send('你好', { contextOverflow: 'error' })).rejects.toMatchObject({
      code: 'ERR_CONTEXT_OVERFLOW',
    });
    const chosen = await chat.send('What is my name?', {
      contextOverflow: (messages, { limit, tokens, count }) => {
        expect(tokens).toBeGreaterThan(limit);
        const kept = messages.slice(-3);
        expect(count(kept)).toBeLessThan(limit);
        return kept;
      },
    });
    expect(chosen.droppedMessages).toBe(chat.history.length - 2 - 3 + 1);
  });

  test('regenerate() that is left early keeps the old answer; complete, it replaces all rounds', async () => {
    const { tool, asked } = weather();
    const chat = model.createChat({ ...greedy, tools: [tool] });
    await chat.send('北京今天天气怎么样？');
    const before = structuredClone(chat.history);
    for await (const _ of chat.regenerate()) break;
    expect(chat.history).toEqual(before);
    await chat.regenerate().result;
    expect(chat.history).toEqual(before);
    expect(asked.length).toBeGreaterThanOrEqual(2);
  });

  test('messages that come while an answer runs stay', async () => {
    const chat = model.createChat(greedy);
    const stream = chat.stream('What is the capital of France?');
    const later: ChatMessage = { role: 'user', content: 'One more thing.' };
    chat.history.push(later);
    await stream.result;
    expect(chat.history.map(({ role }) => role)).toEqual(['user', 'assistant', 'user']);
    expect(chat.history[2]).toEqual(later);
    expect(() => {
      const running = chat.stream('x');
      void running.return();
      chat.undo();
    }).toThrow(/answering already/);
  });

  test('options that are plain data are saved with the chat', async () => {
    const chat = model.createChat({ temperature: 0, maxTokens: 7, seed: 3, contextOverflow: 'drop-oldest-rounds' });
    const saved = JSON.parse(JSON.stringify(chat));
    expect(saved).toMatchObject({ temperature: 0, maxTokens: 7, seed: 3, contextOverflow: 'drop-oldest-rounds' });
    expect((await model.createChat(saved).send('What is the capital of France?')).tokens.length).toBeLessThanOrEqual(7);
  });
});
