import { ChatGLMError, type Model, type TraceEvent } from 'node-chatglm';
import { loadModel, onGpu, testOnCpu } from './support/device';

let model: Model;
beforeAll(async () => {
  model = await loadModel();
});
afterAll(() => model.dispose());

const endless = { stopTokens: [], temperature: 0 };
const numbers = (first: number, count: number) =>
  Array.from({ length: count }, (_, i) => 100 + ((first + i * i) % 5000));

/** What a promise ended with, and after how many milliseconds. */
async function ended(promise: Promise<unknown>): Promise<{ error: unknown; ms: number }> {
  const began = performance.now();
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  return { error, ms: performance.now() - began };
}

describe('time limits', () => {
  test('an answer that takes too long ends with ERR_TIMEOUT, and its sequence with it', async () => {
    const generation = model.generate(numbers(1, 50), { ...endless, timeoutMs: 60 });
    const { error } = await ended(generation.result);
    expect(error).toBeInstanceOf(ChatGLMError);
    expect(error).toMatchObject({ code: 'ERR_TIMEOUT', details: { timeoutMs: 60 }, name: 'ChatGLMError' });
    expect((error as Error).message).toBe('the answer is not complete after 60 ms');
    // The tokens that came in time are there to be read, then the error.
    await expect(
      (async () => {
        for await (const _ of generation);
      })(),
    ).rejects.toMatchObject({ code: 'ERR_TIMEOUT' });
    while (model.stats().activeSequences > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  test('what is done in time is not touched', async () => {
    const { tokens } = await model.generate(numbers(1, 5), { ...endless, maxTokens: 3, timeoutMs: 60_000 }).result;
    expect(tokens).toHaveLength(3);
  });

  test('a request that waits too long for its turn', async () => {
    const small = await loadModel(undefined, { maxSequences: 1 });
    const first = small.generate(numbers(1, 20), { ...endless, maxTokens: 400 });
    await first.next();
    const waiting = small.generate(numbers(2, 20), { ...endless, maxTokens: 5, queueTimeoutMs: 20 });
    expect((await ended(waiting.result)).error).toMatchObject({
      code: 'ERR_TIMEOUT',
      message: 'work on the request has not begun after 20 ms',
    });
    await first.return();
    // Work that has begun is not limited by the time in the queue.
    const { tokens } = await small.generate(numbers(3, 20), { ...endless, maxTokens: 200, queueTimeoutMs: 40 }).result;
    expect(tokens).toHaveLength(200);
    await small.dispose();
  });
});

describe('order', () => {
  test('a higher priority comes first, and what it interrupts comes out the same', async () => {
    const small = await loadModel(undefined, { maxSequences: 1, speculation: false });
    const alone = await small.generate(numbers(1, 20), { ...endless, maxTokens: 150 }).result;
    small.clearCache();
    const order: string[] = [];
    const note = (name: string) => () => order.push(name);
    const first = small.generate(numbers(1, 20), { ...endless, maxTokens: 150 });
    await first.next();
    const second = small.generate(numbers(2, 20), { ...endless, maxTokens: 5 }).result.then(note('second'));
    const urgent = small
      .generate(numbers(3, 20), { ...endless, maxTokens: 5, priority: 1 })
      .result.then(note('urgent'));
    const { tokens } = await first.result;
    order.push('first');
    await Promise.all([second, urgent]);
    expect(order).toEqual(['urgent', 'first', 'second']);
    if (!onGpu) expect(tokens).toEqual(alone.tokens);
    expect(small.stats().preemptions).toBe(1);
    await small.dispose();
  });

  test('a client with few requests does not wait behind one with many', async () => {
    const small = await loadModel(undefined, { maxSequences: 1, maxQueue: 100 });
    const order: string[] = [];
    const ask = (client: string, i: number) =>
      small.generate(numbers(i, 20), { ...endless, maxTokens: 10, client }).result.then(() => order.push(client));
    const many = Array.from({ length: 20 }, (_, i) => ask('many', i));
    const few = Array.from({ length: 2 }, (_, i) => ask('few', 50 + i));
    await Promise.all([...many, ...few]);
    expect(order.indexOf('few')).toBeLessThan(4);
    expect(order.lastIndexOf('few')).toBeLessThan(7);
    await small.dispose();
  });

  test('a cache that is too small for all makes the youngest pause, and every answer is the one alone', async () => {
    const small = await loadModel(undefined, { contextLength: 512, kvCacheTokens: 1024, speculation: false });
    const prompts = Array.from({ length: 8 }, (_, i) => numbers(i, 100));
    const options = { ...endless, maxTokens: 380 };
    const together = await Promise.all(prompts.map((ids) => small.generate(ids, options).result));
    expect(small.stats().preemptions).toBeGreaterThan(0);
    expect(together.map(({ tokens }) => tokens.length)).toEqual(prompts.map(() => 380));
    if (!onGpu) {
      small.clearCache();
      const alone = await small.generate(prompts[7] as number[], options).result;
      expect(together[7]?.tokens).toEqual(alone.tokens);
    }
    small.clearCache();
    while (small.stats().usedPages > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    await small.dispose();
  });

  test('64 users of long contexts load, although not all contexts fit at once', async () => {
    const many = await loadModel(undefined, { maxSequences: 64, kvCacheTokens: 2048 });
    expect(many.info.kvCacheTokens).toBe(2048);
    expect(many.info.kvCacheBytes).toBe(2048 * many.info.kvBytesPerToken);
    const all = Array.from(
      { length: 64 },
      (_, i) => many.generate(numbers(i, 20), { ...endless, maxTokens: 10 }).result,
    );
    expect((await Promise.all(all)).every(({ tokens }) => tokens.length === 10)).toBe(true);
    await many.dispose();
  });

  test.each([
    [{ priority: 0.5 }, /^priority must be a whole number/],
    [{ client: 5 }, /^client must be/],
    [{ client: { key: 5 } }, /^client\.key must be a string, got 5$/],
    [{ client: { key: 'a', weight: 0 } }, /^client\.weight must be/],
    [{ client: { kay: 'a' } }, /^client has no option kay/],
    [{ timeoutMs: -1 }, /^timeoutMs must be/],
    [{ queueTimeoutMs: '5' }, /^queueTimeoutMs must be/],
    [{ onTrace: true }, /^onTrace must be/],
  ])('%p is refused', (options, message) => {
    expect(() => model.generate('Hello', options as never)).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARGUMENT', message: expect.stringMatching(message) }),
    );
  });
});

test('traces tell the phases of a request, of the model or of its own', async () => {
  const own: TraceEvent[] = [];
  const all: TraceEvent[] = [];
  const traced = await loadModel(undefined, { onTrace: (event) => all.push(event) });
  await traced.generate(numbers(1, 100), { ...endless, maxTokens: 5, client: 'anna', onTrace: (e) => own.push(e) })
    .result;
  await traced.generate(numbers(2, 100), { ...endless, maxTokens: 5 }).result;
  expect(own[0]).toMatchObject({ phase: 'queued', client: 'anna' });
  expect(own.map(({ phase }) => phase)).toEqual(expect.arrayContaining(['admitted', 'prefill', 'decode', 'finished']));
  expect(own.filter(({ phase }) => phase === 'prefill').reduce((sum, { tokens }) => sum + tokens, 0)).toBe(100);
  expect(own.at(-1)).toMatchObject({ phase: 'finished', tokens: 5 });
  const times = own.map(({ atMs }) => atMs);
  expect(times).toEqual([...times].sort((a, b) => a - b));
  expect(new Set(all.map(({ request }) => request)).size).toBe(1); // the other request had a listener of its own
  expect(all[0]?.client).toBe('');
  await traced.dispose();
});

describe('sampling options', () => {
  test('badWords are not generated, as a word and within one', async () => {
    const options = { ...endless, maxTokens: 40 };
    const free = await model.generate('The', options).result;
    const banned = free.tokens.slice(2, 4);
    const without = await model.generate('The', { ...options, badWords: [banned] }).result;
    const pairs = without.tokens.slice(1).map((token, i) => `${without.tokens[i]},${token}`);
    expect(pairs).not.toContain(banned.join());
    expect(without.tokens).not.toEqual(free.tokens);
    // One half of it is allowed.
    expect(without.tokens.slice(0, 3)).toEqual(free.tokens.slice(0, 3));
    const word = model.tokenizer.decode([free.tokens[5] as number]).trim();
    if (word === '') return;
    const other = await model.generate('The', { ...options, badWords: [word] }).result;
    expect(other.tokens).not.toContain(free.tokens[5]);
  });

  test('allowedTokens are the only ones', async () => {
    const allowedTokens = [300, 301, 4000];
    const { tokens } = await model.generate('The', {
      maxTokens: 30,
      topK: 0,
      topP: 1,
      temperature: 5,
      stopTokens: [],
      allowedTokens,
    }).result;
    expect(new Set(tokens)).toEqual(new Set(allowedTokens));
  });

  test('every token banned is an error that says where', async () => {
    const options = { ...endless, maxTokens: 3, allowedTokens: [300], logitBias: { 300: Number.NEGATIVE_INFINITY } };
    await expect(model.generate('The', options).result).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: 'every token is banned at this place of the answer',
    });
  });

  test.each([
    [{ badWords: 'a' }, /^badWords must be an array/],
    [{ badWords: [''] }, /^badWords\[0\] is empty$/],
    [{ badWords: [[]] }, /^badWords\[0\] has no tokens$/],
    [{ badWords: [[1e9]] }, /^badWords\[0\]/],
    [{ allowedTokens: [] }, /^allowedTokens is empty/],
    [{ allowedTokens: [9000] }, /^allowedTokens/],
    [{ allowedTokens: 5 }, /^allowedTokens/],
  ])('%p is refused', async (options, message) => {
    const ask = async () => await model.generate('Hello', options as never).result;
    await expect(ask()).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });

  testOnCpu('all options together give the same tokens alone and beside others', async () => {
    const options = {
      temperature: 1.2,
      topK: 0,
      topP: 0.95,
      minP: 0.001,
      repetitionPenalty: 1.1,
      presencePenalty: 0.2,
      frequencyPenalty: 0.1,
      logitBias: { 300: 2, 301: -2 },
      badWords: [[13, 13]],
      logprobs: 5,
      maxTokens: 40,
      stopTokens: [],
    };
    const alone = await model.generate('Once', { ...options, seed: 5 }).result;
    const among = await Promise.all([4, 5, 6].map((seed) => model.generate('Once', { ...options, seed }).result));
    expect(among[1]?.tokens).toEqual(alone.tokens);
    expect(among[1]?.logprobs).toEqual(alone.logprobs);
    expect(among[0]?.tokens).not.toEqual(alone.tokens);
  });
});

describe('score()', () => {
  const ids = numbers(3, 150);

  test('gives what the logits say, without their rows', async () => {
    const from = 100;
    const [scores, logits] = await Promise.all([
      model.score(ids, { from, logprobs: 2 }),
      model.logits(ids, { from: from - 1 }),
    ]);
    expect(scores).toHaveLength(50);
    const { vocabSize } = model.info;
    scores.forEach(({ token, logprob, top }, i) => {
      const row = logits.subarray(i * vocabSize, (i + 1) * vocabSize);
      const largest = Math.max(...row);
      const sum = largest + Math.log(row.reduce((total, value) => total + Math.exp(value - largest), 0));
      expect(token).toBe(ids[from + i]);
      // A GPU computes both in batches of other sizes.
      expect(Math.abs(logprob - ((row[token] as number) - sum))).toBeLessThan(onGpu ? 0.05 : 1e-4);
      expect(top).toHaveLength(2);
      expect(top[0]?.logprob).toBeGreaterThanOrEqual(top[1]?.logprob as number);
    });
  });

  test('of all tokens but the first, from the cache or not', async () => {
    model.clearCache();
    const first = await model.score(ids);
    const again = await model.score(ids);
    expect(first).toHaveLength(149);
    if (!onGpu) expect(again).toEqual(first);
    expect(first[0]?.top).toEqual([]);
  });

  test.each([
    [[5], {}, /^ids must have at least 2 tokens/],
    [[5, 6], { from: 0 }, /^from must be/],
    [[5, 6], { from: 2 }, /^from must be/],
    [[5, 6], { logprobs: 101 }, /^logprobs must be/],
    [[5, 6], { top: 1 }, /^score\(\) has no option top/],
  ])('of %p with %p is refused', async (tokens, options, message) => {
    await expect(model.score(tokens, options as never)).rejects.toMatchObject({
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    });
  });
});

describe('speculation', () => {
  testOnCpu('gives the same tokens, and guesses where text repeats', async () => {
    const off = await loadModel(undefined, { speculation: false });
    const repeating = Array.from({ length: 200 }, (_, i) => 300 + (i % 7));
    for (const options of [{ temperature: 0 }, { temperature: 0.8, seed: 3, topK: 5 }]) {
      for (const prompt of [repeating, numbers(1, 50)]) {
        const ask = (on: Model) =>
          on.generate(prompt, { ...options, maxTokens: 150, stopTokens: [], logprobs: 1 }).result;
        const [here, there] = [await ask(model), await ask(off)];
        expect(here.tokens).toEqual(there.tokens);
        expect(here.logprobs).toEqual(there.logprobs);
        expect(there.usage.speculatedTokens).toBe(0);
      }
    }
    expect(off.stats().draftedTokens).toBe(0);
    await off.dispose();
  });

  test('a repeated answer is accepted in bulk, and counted', async () => {
    // Only one token may come, so what comes repeats itself.
    const { tokens, usage } = await model.generate('The', { ...endless, maxTokens: 100, allowedTokens: [300] }).result;
    expect(tokens).toHaveLength(100);
    expect(usage.speculatedTokens).toBeGreaterThan(20);
    expect(model.stats().acceptedTokens).toBeGreaterThanOrEqual(usage.speculatedTokens);
  });
});
