import { once } from 'node:events';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { embeddedModelPath, loadTokenizer } from 'node-chatglm';
import OpenAI from 'openai';
import { Nginx, Replica } from './support/replicas';

// Three servers in processes of their own behind a real nginx with the configuration that deploy/ gives people.

type Message = OpenAI.ChatCompletionMessageParam;

const ARGS = ['--threads', '1', '--kv-cache-tokens', '32768'];
const QUESTIONS = [
  'What is the capital of France?',
  'What is 7 times 8?',
  'Tell me a story about a fox.',
  '你好',
  'What should I do if I cannot sleep?',
  'Write a poem about the moon.',
];

let replicas: Replica[];
let nginx: Nginx;
/** The right answers, which do not depend on what else a replica computes. */
const rightAnswers = new Map<string, string>();

/** @param conversation What the header names; none for a client that has no such header. */
const clientOf = (conversation?: string, baseURL = nginx.url) =>
  new OpenAI({
    baseURL: `${baseURL}/v1`,
    apiKey: 'sk-test',
    maxRetries: 0,
    ...(conversation === undefined ? {} : { defaultHeaders: { 'X-Conversation-Id': conversation } }),
  });

const greedy = { model: 'chatglm-tiny', temperature: 0, max_tokens: 80 } as const;

beforeAll(async () => {
  replicas = await Promise.all([1, 2, 3].map(() => Replica.start(ARGS)));
  nginx = await Nginx.start(replicas.map(({ port }) => port));
  const [first] = replicas as [Replica, ...Replica[]];
  const client = clientOf(undefined, first.url);
  for (const content of QUESTIONS) {
    const answer = await client.chat.completions.create({ ...greedy, messages: [{ role: 'user', content }] });
    rightAnswers.set(content, answer.choices[0]?.message.content ?? '');
  }
});

afterAll(async () => {
  await nginx?.stop();
  await Promise.all((replicas ?? []).map((replica) => replica.signal('SIGKILL')));
});

describe('conversations', () => {
  test('stay on their replica, which still has what they said', async () => {
    nginx.requests();
    let cacheable = 0;
    let cached = 0;
    const converse = async (name: string, turns: number) => {
      const client = clientOf(name);
      const messages: Message[] = [];
      let before = 0;
      for (let turn = 0; turn < turns; turn++) {
        // Each conversation begins with words of its own, so that none finds what another one has left.
        const content = turn === 0 ? `${name}: hello!` : (QUESTIONS[turn % QUESTIONS.length] as string);
        messages.push({ role: 'user', content });
        const { data, response } = await client.chat.completions
          .create({ ...greedy, messages }, { headers: { 'X-Request-Id': `${name}.${turn}` } })
          .withResponse();
        expect(response.headers.get('x-request-id')).toBe(`${name}.${turn}`);
        const { usage, choices } = data;
        messages.push({ role: 'assistant', content: choices[0]?.message.content ?? '' });
        if (usage === undefined) throw new Error('no usage');
        cacheable += before;
        // Where there is nothing of its own yet, the first tokens of all prompts are found.
        cached += Math.min(before, usage.prompt_tokens_details?.cached_tokens ?? 0);
        // All of the prompt and of the answer but its last token, behind which nothing was computed.
        before = usage.total_tokens - 1;
      }
    };
    await Promise.all(Array.from({ length: 24 }, (_, i) => converse(`conversation-${i}`, 4)));

    const places = new Map<string, Set<string>>();
    for (const { request, replicas: asked } of nginx.requests()) {
      const [name] = request.split('.') as [string];
      const known = places.get(name) ?? new Set();
      for (const each of asked) known.add(each);
      places.set(name, known);
    }
    expect(places.size).toBe(24);
    for (const [name, known] of places) expect([name, known.size]).toEqual([name, 1]);
    expect(new Set([...places.values()].flatMap((known) => [...known])).size).toBeGreaterThan(1);
    expect(cached / cacheable).toBeGreaterThanOrEqual(0.95);
  });

  test('without a header are those of a key and an address', async () => {
    nginx.requests();
    const client = clientOf();
    for (const content of QUESTIONS) {
      await client.chat.completions.create({ ...greedy, messages: [{ role: 'user', content }] });
    }
    const asked = nginx.requests().flatMap((request) => request.replicas);
    expect(asked).toHaveLength(QUESTIONS.length);
    expect(new Set(asked).size).toBe(1);
  });
});

test('no event is held back, whatever the replica says of buffering', async () => {
  // In place of a replica: one whose second event comes only once the first has arrived.
  let goOn = () => {};
  const hasArrived = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const origin = http.createServer(async (_request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n');
    await hasArrived;
    response.end('data: 2\n\n');
  });
  origin.listen(0, '127.0.0.1');
  await once(origin, 'listening');
  const { port } = origin.address() as AddressInfo;
  const proxy = await Nginx.start([port, port, port]);
  const pieces: string[] = [];
  const response = await fetch(`${proxy.url}/v1/chat/completions`, { method: 'POST', body: '{}' });
  const decoder = new TextDecoder();
  for await (const piece of response.body as unknown as AsyncIterable<Uint8Array>) {
    pieces.push(decoder.decode(piece));
    goOn();
  }
  expect(pieces).toEqual(['data: 1\n\n', 'data: 2\n\n']);
  await proxy.stop();
  origin.close();
});

test('who leaves a stream ends it in the replica', async () => {
  const sum = async (name: string) => {
    const each = await Promise.all(replicas.map((replica) => replica.metric(name)));
    return each.reduce((total, value) => total + value, 0);
  };
  const before = await sum('chatglm_generated_tokens_total');
  const stream = await clientOf('unbuffered').chat.completions.create({
    ...greedy,
    stream: true,
    max_tokens: 900,
    logit_bias: Object.fromEntries(await endingTokens()),
    messages: [{ role: 'user', content: 'Tell me a story about a fox.' }],
  });
  let events = 0;
  for await (const _ of stream) if (++events === 3) break;
  while ((await sum('chatglm_active_sequences')) > 0) await new Promise(setImmediate);
  const tokens = (await sum('chatglm_generated_tokens_total')) - before;
  expect(tokens).toBeGreaterThan(2);
  expect(tokens).toBeLessThan(900);
});

/** Bans of what ends an answer. */
async function endingTokens(): Promise<[number, number][]> {
  const { special } = await loadTokenizer(embeddedModelPath());
  const { eos, roles } = special;
  return [eos, ...Object.values(roles ?? {})].map((id) => [id as number, -100]);
}

/** Asks until it is told to stop, half of the time for a stream. */
class Load {
  answered = 0;
  /** Streams that broke off after their first event. */
  broken = 0;
  readonly failures: string[] = [];
  #isOver = false;
  readonly #clients: Promise<void>[];
  #waiting: { count: number; resolve: () => void }[] = [];

  constructor(clients: number) {
    this.#clients = Array.from({ length: clients }, (_, i) => this.#run(i));
  }

  /** Resolves once so many more requests have been answered. */
  more(count: number): Promise<void> {
    return new Promise((resolve) => this.#waiting.push({ count: this.answered + count, resolve }));
  }

  async end(): Promise<void> {
    this.#isOver = true;
    await Promise.all(this.#clients);
  }

  async #run(client: number): Promise<void> {
    for (let i = 0; !this.#isOver && this.failures.length === 0; i++) {
      const content = QUESTIONS[(client + i) % QUESTIONS.length] as string;
      try {
        await this.#ask(`load-${client}-${i}`, content, i % 2 === 1);
      } catch (error) {
        this.failures.push(String(error));
      }
      this.answered++;
      for (const { count, resolve } of this.#waiting) if (this.answered >= count) resolve();
    }
    for (const { resolve } of this.#waiting) resolve();
  }

  async #ask(name: string, content: string, isStream: boolean): Promise<void> {
    const messages: Message[] = [{ role: 'user', content }];
    const { completions } = clientOf(name).chat;
    let text = '';
    if (isStream) {
      const stream = await completions.create({ ...greedy, messages, stream: true });
      try {
        for await (const { choices } of stream) text += choices[0]?.delta.content ?? '';
      } catch {
        // Its status was out, so its answer had begun.
        this.broken++;
        return;
      }
    } else {
      text = (await completions.create({ ...greedy, messages })).choices[0]?.message.content ?? '';
    }
    const right = rightAnswers.get(content);
    if (text !== right) throw new Error(`answered ${JSON.stringify(text)} in place of ${JSON.stringify(right)}`);
  }
}

test('a replica that is killed costs no request that had not begun to be answered', async () => {
  nginx.requests();
  const load = new Load(24);
  await load.more(60);
  const [victim] = replicas as [Replica, ...Replica[]];
  await victim.signal('SIGKILL');
  await load.more(120);
  expect(load.failures).toEqual([]);
  // At most what the victim had in hand.
  expect(load.broken).toBeLessThanOrEqual(24);
  // Some were asked for once more, elsewhere.
  expect(nginx.requests().some((request) => request.replicas.length > 1 && request.status === 200)).toBe(true);

  // It comes back, under its old name, and gets its conversations again.
  replicas[0] = await Replica.start(ARGS, victim.port);
  const address = `127.0.0.1:${victim.port}`;
  while (!nginx.requests().some((request) => request.replicas.at(-1) === address && request.status === 200)) {
    await load.more(10);
    expect(load.failures).toEqual([]);
  }
  await load.end();
  expect(load.failures).toEqual([]);
});

test('SIGTERM of a replica costs no request at all', async () => {
  const load = new Load(24);
  await load.more(40);
  const [, second] = replicas as [Replica, Replica, Replica];
  expect(await second.signal('SIGTERM')).toEqual({ code: 0, signal: null });
  await load.more(60);
  await load.end();
  expect({ failures: load.failures, broken: load.broken }).toEqual({ failures: [], broken: 0 });
});

test('what is not for everybody is not shown, and where no replica is left, clients are told in words they know', async () => {
  expect((await fetch(`${nginx.url}/metrics`)).status).toBe(404);
  await Promise.all(replicas.map((replica) => replica.signal('SIGKILL')));
  const response = await fetch(`${nginx.url}/v1/models`);
  expect(response.status).toBe(503);
  expect(response.headers.get('retry-after')).toBe('1');
  const question = {
    ...greedy,
    messages: [{ role: 'user', content: '你好' }],
  } satisfies OpenAI.ChatCompletionCreateParams;
  const error = await clientOf('none')
    .chat.completions.create(question)
    .catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(OpenAI.InternalServerError);
  expect(error).toMatchObject({ status: 503, code: 'unavailable', type: 'server_error' });
  expect(await (await fetch(`${nginx.url}/nginx-health`)).text()).toBe('ok\n');
});
