import {
  ChatGLMError,
  convertCheckpoint,
  type Generation,
  type GenerationChunk,
  type Model,
  openCheckpoint,
  synthesize,
} from 'node-chatglm';
import { loadModel, onGpu, testOnCpu } from './support/device';

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

async function collect(generation: Generation): Promise<GenerationChunk[]> {
  const chunks: GenerationChunk[] = [];
  for await (const chunk of generation) chunks.push(chunk);
  return chunks;
}

const prompt = 'Once upon a time';
const endless = { stopTokens: [] };

describe('results', () => {
  test('chunks, joined, are the result, which tells how it came about', async () => {
    const generation = model.generate(prompt, { maxTokens: 20, seed: 1, ...endless });
    const chunks = await collect(generation);
    const result = await generation.result;
    expect(chunks.map(({ text }) => text).join('')).toBe(result.text);
    expect(chunks.flatMap(({ tokens }) => tokens)).toEqual(result.tokens);
    expect(result.tokens).toHaveLength(20);
    expect(model.tokenizer.decode(result.tokens)).toBe(result.text);
    expect(result).toMatchObject({
      finishReason: 'length',
      seed: 1,
      usage: { promptTokens: model.tokenizer.encodePrompt(prompt).length, generatedTokens: 20 },
    });
    const { timings } = result;
    expect(timings.firstTokenMs).toBeGreaterThan(0);
    expect(timings.decodeTokensPerSecond).toBeCloseTo((19 * 1000) / timings.decodeMs, 3);
  });

  test('text and its ids give the same', async () => {
    // On a GPU alone and in a batch differ by rounding, which a draw may show.
    const options = { maxTokens: 8, ...(onGpu ? { temperature: 0 } : { seed: 3 }) };
    const ids = model.tokenizer.encodePrompt(prompt);
    const [a, b] = await Promise.all([model.generate(prompt, options).result, model.generate(ids, options).result]);
    expect(a.tokens).toEqual(b.tokens);
  });

  testOnCpu('the same seed gives the same tokens, alone and among others; another gives others', async () => {
    const options = { temperature: 1.5, topP: 1, topK: 0, maxTokens: 30, ...endless };
    const alone = await model.generate(prompt, { ...options, seed: 11 }).result;
    const among = await Promise.all(
      [11, 12, 11, 13].map((seed) => model.generate(prompt, { ...options, seed }).result),
    );
    expect(among[0]?.tokens).toEqual(alone.tokens);
    expect(among[2]?.tokens).toEqual(alone.tokens);
    expect(among[1]?.tokens).not.toEqual(alone.tokens);
  });

  test('the seed is told, and gives the same tokens again', async () => {
    const options = { temperature: 1.5, topP: 1, topK: 0, maxTokens: 30, ...endless };
    await model.generate(prompt, { maxTokens: 0 }).result; // from here on both find the same in the cache
    const unseeded = await model.generate(prompt, options).result;
    const repeated = await model.generate(prompt, { ...options, seed: unseeded.seed }).result;
    expect(repeated.tokens).toEqual(unseeded.tokens);
    const other = await model.generate(prompt, { ...options, seed: unseeded.seed + 1 }).result;
    expect(other.tokens).not.toEqual(unseeded.tokens);
  });

  test('doSample: false, temperature 0, topK 1 and topP 0 take the likeliest token', async () => {
    const variants = [{ doSample: false }, { temperature: 0 }, { topK: 1 }, { topP: 0 }, { minP: 1 }];
    const results = await Promise.all(
      variants.map((variant) => model.generate(prompt, { ...variant, maxTokens: 12, ...endless }).result),
    );
    for (const { tokens } of results) expect(tokens).toEqual(results[0]?.tokens);
  });

  test('maxTokens: 0 evaluates the prompt, for the next request to find', async () => {
    model.clearCache();
    const { tokens, finishReason } = await model.generate(prompt, { maxTokens: 0 }).result;
    expect([tokens, finishReason]).toEqual([[], 'length']);
    const { usage } = await model.generate(prompt, { maxTokens: 1 }).result;
    expect(usage.cachedTokens).toBe(usage.promptTokens - 1);
  });

  test('log-probabilities are those of the logits', async () => {
    const ids = model.tokenizer.encodePrompt(prompt);
    const { tokens, logprobs } = await model.generate(ids, { maxTokens: 3, logprobs: 4, temperature: 0, ...endless })
      .result;
    const logits = await model.logits([...ids, ...tokens.slice(0, -1)], { from: ids.length - 1 });
    expect(logprobs).toHaveLength(3);
    logprobs?.forEach(({ token, logprob, top }, i) => {
      const row = logits.subarray(i * model.info.vocabSize, (i + 1) * model.info.vocabSize);
      const logSum = Math.log(row.reduce((sum, logit) => sum + Math.exp(logit), 0));
      expect(token).toBe(tokens[i]);
      expect(logprob).toBeCloseTo((row[token] as number) - logSum, onGpu ? 1 : 4);
      expect(top).toHaveLength(4);
      expect(top[0]?.token).toBe(token);
      expect(top[0]?.logprob).toBeCloseTo(logprob, 5);
      expect(top.map((entry) => entry.logprob)).toEqual([...top.map((entry) => entry.logprob)].sort((a, b) => b - a));
    });
  });

  test('penalties and bias change what comes', async () => {
    const plain = await model.generate(prompt, { temperature: 0, maxTokens: 20, ...endless }).result;
    const first = plain.tokens[0] as number;
    const banned = await model.generate(prompt, {
      temperature: 0,
      maxTokens: 20,
      logitBias: { [first]: Number.NEGATIVE_INFINITY },
      ...endless,
    }).result;
    expect(banned.tokens).not.toContain(first);
    const forced = await model.generate(prompt, { temperature: 0, maxTokens: 4, logitBias: { 900: 1000 }, ...endless })
      .result;
    expect(forced.tokens).toEqual([900, 900, 900, 900]);
    const penalized = await model.generate(prompt, {
      temperature: 0,
      maxTokens: 40,
      repetitionPenalty: 50,
      presencePenalty: 100,
      ...endless,
    }).result;
    expect(new Set(penalized.tokens).size).toBe(40);
  });
});

describe('ends', () => {
  test('stop sequences are not part of the text, wherever tokens cut them', async () => {
    const whole = await model.generate(prompt, { temperature: 0, maxTokens: 30, ...endless }).result;
    const stop = whole.text.slice(10, 17);
    const { text, finishReason } = await model.generate(prompt, { temperature: 0, maxTokens: 30, stop, ...endless })
      .result;
    expect(text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
    expect(finishReason).toBe('stop_sequence');
  });

  test('stop tokens end an answer and are its last token', async () => {
    const whole = await model.generate(prompt, { temperature: 0, maxTokens: 10, ...endless }).result;
    const stopToken = whole.tokens[4] as number;
    const { tokens, finishReason } = await model.generate(prompt, {
      temperature: 0,
      maxTokens: 10,
      stopTokens: [stopToken],
    }).result;
    expect(tokens).toEqual(whole.tokens.slice(0, whole.tokens.indexOf(stopToken) + 1));
    expect(finishReason).toBe('stop');
  });

  test('an answer ends with the context, and the last token is kept', async () => {
    const { contextLength } = model.info;
    const ids = Array.from({ length: contextLength - 5 }, (_, i) => 300 + (i % 100));
    const { tokens, finishReason } = await model.generate(ids, endless).result;
    expect([tokens.length, finishReason]).toEqual([5, 'length']);
  });

  test('a prompt longer than the context is an error with both numbers', async () => {
    const { contextLength } = model.info;
    const ids = new Uint32Array(contextLength).fill(300);
    await expect(model.generate(ids).result).rejects.toMatchObject({
      code: 'ERR_CONTEXT_OVERFLOW',
      details: { tokens: contextLength, limit: contextLength },
      message: expect.stringContaining(`${contextLength}`),
    });
    await expect(model.logits([...ids, 300])).rejects.toMatchObject({ code: 'ERR_CONTEXT_OVERFLOW' });
    await expect(collect(model.generate(ids))).rejects.toBeInstanceOf(ChatGLMError);
  });

  test('leaving the loop stops the generation', async () => {
    const generation = model.generate(prompt, { maxTokens: 900, ...endless });
    for await (const chunk of generation) {
      expect(chunk.tokens.length).toBeGreaterThan(0);
      break;
    }
    const { finishReason, usage } = await generation.result;
    expect(finishReason).toBe('cancelled');
    expect(usage.generatedTokens).toBeLessThan(900);
    while (model.stats().activeSequences > 0) await new Promise((resolve) => setTimeout(resolve, 1));
  });

  test('an aborted signal ends it with its reason: before, while waiting, in the prompt and in the answer', async () => {
    const reason = new Error('enough');
    const aborted = { code: 'ERR_ABORTED', name: 'AbortError', cause: reason };
    await expect(model.generate(prompt, { signal: AbortSignal.abort(reason) }).result).rejects.toMatchObject(aborted);

    const during = new AbortController();
    await expect(
      (async () => {
        for await (const _ of model.generate(prompt, { maxTokens: 900, signal: during.signal, ...endless })) {
          during.abort(reason);
        }
      })(),
    ).rejects.toMatchObject(aborted);

    const inPrompt = new AbortController();
    const ids = Array.from({ length: 1000 }, (_, i) => 300 + ((i * 7) % 1000));
    const generation = model.generate(ids, { signal: inPrompt.signal });
    const logits = model.logits(ids, { signal: inPrompt.signal });
    if (onGpu) setImmediate(() => inPrompt.abort(reason));
    else setTimeout(() => inPrompt.abort(reason), 1);
    await expect(generation.result).rejects.toMatchObject(aborted);
    await expect(logits).rejects.toMatchObject(aborted);

    const others = Array.from({ length: 4 }, () => model.generate(prompt, { maxTokens: 50, ...endless }));
    const waiting = new AbortController();
    const queued = model.generate(prompt, { signal: waiting.signal });
    waiting.abort(reason);
    await expect(queued.result).rejects.toMatchObject(aborted);
    for (const other of others) expect((await other.result).tokens).toHaveLength(50);
  });
});

test('more requests than sequences wait for their turn, and more than maxQueue are refused', async () => {
  const small = await loadModel(undefined, { maxSequences: 2, maxQueue: 3 });
  const generations = Array.from({ length: 3 }, () => small.generate(prompt, { maxTokens: 60, ...endless }));
  await generations[0]?.next();
  const more = Array.from({ length: 5 }, () => small.generate(prompt, { maxTokens: 5, ...endless }).result);
  const outcomes = await Promise.allSettled(more);
  const refused = outcomes.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
  expect(refused.length).toBeGreaterThanOrEqual(1);
  for (const { reason } of refused) expect(reason).toMatchObject({ code: 'ERR_QUEUE_FULL', details: { limit: 3 } });
  const results = await Promise.all(generations.map(({ result }) => result));
  expect(results.map(({ tokens }) => tokens.length)).toEqual([60, 60, 60]);
  expect(results[2]?.timings.queueMs).toBeGreaterThan(0);
  await small.dispose();
});

test('free sequences count beside the queue, however quick the model is', async () => {
  const small = await loadModel(undefined, { maxSequences: 2, maxQueue: 1 });
  for (let round = 0; round < 5; round++) {
    const requests = Array.from({ length: 5 }, () => small.generate(prompt, { maxTokens: 40, ...endless }).result);
    const outcomes = await Promise.allSettled(requests);
    expect(outcomes.map(({ status }) => status)).toEqual([
      'fulfilled',
      'fulfilled',
      'fulfilled',
      'rejected',
      'rejected',
    ]);
  }
  await small.dispose();
});

test('a text that is far too long is refused without being tokenized', async () => {
  const text = 'hello '.repeat(1_000_000);
  const overflow = { code: 'ERR_CONTEXT_OVERFLOW', details: { tokens: expect.any(Number), limit: 1024 } };
  await expect(model.generate(text).result).rejects.toMatchObject(overflow);
  await expect(model.createChat().send(text)).rejects.toMatchObject(overflow);
});

test('many requests share one listener of a signal', async () => {
  const controller = new AbortController();
  const warnings: Error[] = [];
  const onWarning = (warning: Error) => warnings.push(warning);
  process.on('warning', onWarning);
  const { signal } = controller;
  const generations = Array.from({ length: 20 }, () => model.generate(prompt, { maxTokens: 500, signal, ...endless }));
  await generations[0]?.next();
  controller.abort();
  const outcomes = await Promise.allSettled(generations.map(({ result }) => result));
  process.off('warning', onWarning);
  expect(warnings).toEqual([]);
  expect(new Set(outcomes.map((outcome) => outcome.status === 'rejected' && outcome.reason.code))).toEqual(
    new Set(['ERR_ABORTED']),
  );
});

describe('wrong arguments are named', () => {
  test.each([
    [{ temperature: -1 }, /temperature/],
    [{ temperature: Number.NaN }, /temperature/],
    [{ topP: 2 }, /topP must be a number from 0 to 1, got 2/],
    [{ topK: 1.5 }, /topK/],
    [{ maxTokens: '5' }, /maxTokens must be a whole number of at least 0|maxTokens .*"5"/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty .*from 0.01/],
    [{ seed: -1 }, /seed/],
    [{ logprobs: 1000 }, /logprobs/],
    [{ stop: 5 }, /stop/],
    [{ stopTokens: ['a'] }, /stopTokens\[0\]/],
    [{ logitBias: { x: 1 } }, /logitBias/],
    [{ logitBias: { 8192: 1 } }, /logitBias: a token id must be a whole number from 0 to 8191/],
    [{ logitBias: new Map([[1, 1]]) }, /logitBias must be an object/],
    [{ stopTokens: 5 }, /stopTokens must be an array of token ids, got 5/],
    [{ logitBias: { '': 1 } }, /logitBias: a token id must be a whole number.* got ""/],
    [{ logitBias: { 1: 1e7 } }, /logitBias\[1\] must be a number from -1000000 to 1000000/],
    [{ stop: ['a', null] }, /stop must be .*, got null/],
    [{ stop: new Array(3) }, /stop must be .*, got undefined/],
    [null, /the options of a generation must be an object, got null/],
    [100, /must be an object, got 100/],
    [{ signal: {} }, /signal/],
    [{ temprature: 1 }, /temprature/],
  ])('%j', (options, message) => {
    expect(() => model.generate(prompt, options as object)).toThrow(message);
    expect(() => model.generate(prompt, options as object)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT' }),
    );
  });

  test('null and undefined are as good as absent', async () => {
    const names = ['doSample', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'presencePenalty'];
    const more = ['frequencyPenalty', 'logitBias', 'seed', 'logprobs', 'stop', 'stopTokens', 'signal', 'noSuchOption'];
    for (const nothing of [null, undefined]) {
      const options = Object.fromEntries([...names, ...more].map((name) => [name, nothing]));
      const { tokens } = await model.generate(prompt, { ...options, maxTokens: 3 }).result;
      expect(tokens.length).toBeGreaterThan(0);
    }
    const biased = { logitBias: { 900: 1000, 901: null as unknown as number }, maxTokens: 1, temperature: 0 };
    expect((await model.generate(prompt, biased).result).tokens).toEqual([900]);
    expect(await model.logits([1], { from: null, signal: null })).toHaveLength(model.info.vocabSize);
    const other = await loadModel(null, { threads: null, contextLength: null, family: undefined, onProgress: null });
    expect(other.info.contextLength).toBe(model.info.contextLength);
    await other.dispose();
  });

  test('a bias that leaves no token to generate', () => {
    const bans = (count: number) =>
      Object.fromEntries(Array.from({ length: count }, (_, id) => [id, Number.NEGATIVE_INFINITY]));
    const all = { logitBias: bans(model.info.vocabSize) };
    expect(() => model.generate(prompt, all)).toThrow(/logitBias bans all 8192 tokens: none is left to generate/);
    expect(() => model.createChat(all).stream('x')).toThrow(/bans all/);
  });

  test('more ids than the context holds are ERR_CONTEXT_OVERFLOW, and nothing is allocated for them', async () => {
    const overflow = { code: 'ERR_CONTEXT_OVERFLOW', details: { tokens: 1e6, limit: 1024 } };
    await expect(model.logits(new Uint32Array(1e6))).rejects.toMatchObject(overflow);
    await expect(model.generate(new Uint32Array(1e6)).result).rejects.toMatchObject(overflow);
    for (const length of [-1, 0.5, Number.NaN, 2 ** 40]) {
      const ids = { length };
      expect(() => model.generate(ids)).toThrow(/prompt must be an array of token ids, got one of the length/);
      await expect(model.logits(ids)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
  });

  test('prompts', async () => {
    expect(() => model.generate(5 as unknown as string)).toThrow(
      /prompt must be a text or an array of token ids, got 5/,
    );

    expect(() => model.generate([8192])).toThrow(/prompt\[0\] must be a token id from 0 to 8191/);
    expect(() => model.generate([-1])).toThrow(/prompt\[0\]/);
    expect(() => model.generate({} as number[])).toThrow(/prompt/);
    await expect(model.generate([]).result).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  });

  test('of createChat(), before the first message', () => {
    expect(() => model.createChat({ temperature: -1 })).toThrow(/temperature/);
    expect(() => model.createChat({ maxTokens: -1 })).toThrow(/maxTokens/);
    expect(() => model.createChat({ family: 'chatglm2', tools: [{ name: 'a' }] })).toThrow(/tools/);
  });

  test('of convertCheckpoint(), synthesize(), openCheckpoint() and decode()', async () => {
    const invalid = { code: 'ERR_INVALID_ARGUMENT' };
    await expect(convertCheckpoint('a', 'b', {} as { type: 'f16' })).rejects.toMatchObject(invalid);
    await expect(convertCheckpoint('a', 'b', { type: 'q5_0' } as object as { type: 'f16' })).rejects.toMatchObject(
      invalid,
    );
    await expect(synthesize('a', { tpye: 'f16' } as object)).rejects.toMatchObject(invalid);
    await expect(openCheckpoint(undefined as unknown as string)).rejects.toMatchObject(invalid);
    expect(() => model.tokenizer.decode([1], { speical: true } as object)).toThrow(/speical/);
  });

  test('what describes the model cannot be changed', () => {
    expect(() => {
      (model.info as { contextLength: number }).contextLength = 5;
    }).toThrow(TypeError);
    expect(() => {
      (model.tokenizer.special as { gmask: number }).gmask = 0;
    }).toThrow(TypeError);
  });

  test('of loadModel()', async () => {
    for (const [options, message] of [
      [{ contextLength: 4096 }, /contextLength must be a whole number from 1 to 1024, got 4096/],
      [{ quantization: 'int2' }, /quantization must be one of/],
      [{ threads: 0 }, /threads/],
      [{ onProgress: true }, /onProgress/],
      [{ contextLenght: 5 }, /contextLenght/],
    ] as const) {
      await expect(loadModel(undefined, options as object)).rejects.toThrow(message);
    }
    // All that no model allows is found before the path is looked at.
    for (const options of [{ threads: 0 }, { quantization: 'int2' }, { contextLength: 0 }, { device: 'gpu' }]) {
      await expect(loadModel('/nowhere', options as object)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
    }
    await expect(loadModel({ device: 'cpu' } as unknown as string)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(/the options come second.*loadModel\(undefined, options\)/),
    });
    await expect(loadModel('')).rejects.toThrow(/path must be the path of a file or directory/);
    await expect(loadModel('THUDM/chatglm3-6b')).rejects.toThrow(/must be cloned first/);
    await expect(loadModel('/nowhere')).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_NOT_FOUND' });
  });
});
