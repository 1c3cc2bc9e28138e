import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ChatMessage, embeddedModelPath, loadTokenizer, type Tokenizer } from 'node-chatglm';
import { referenceLines, referenceTokenizer, temporaryDirectory } from './support/checkpoints';

interface EncodedText {
  text: string;
  ids: number[];
  decoded: string;
}

/** Surrogates without their other half become U+FFFD. */
const wellFormed = (text: string) => Buffer.from(text).toString();

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await loadTokenizer(referenceTokenizer());
});

test("encodes and decodes SentencePiece's 3,000 texts identically", () => {
  const lines = referenceLines<EncodedText>('encode');
  expect(lines).toHaveLength(3000);
  const different = lines.filter(
    ({ text, ids, decoded }) => tokenizer.encode(text).join() !== ids.join() || tokenizer.decode(ids) !== decoded,
  );
  expect(different).toEqual([]);
});

test('deltas of an incremental decoder, joined, are the decoded whole and hold whole characters', () => {
  for (const { ids, decoded } of referenceLines<EncodedText>('encode')) {
    const decoder = tokenizer.createDecoder();
    const deltas = [...ids.map((id) => decoder.push(id)), decoder.flush()];
    if (deltas.join('') !== decoded) expect(deltas.join('')).toBe(decoded);
    if (!decoded.includes('\ufffd')) expect(deltas.filter((delta) => /\ufffd/.test(delta))).toEqual([]);
  }
  expect.hasAssertions();
});

test("a text's tokens have the bytes of the text, behind the space that encoding puts before it", () => {
  for (const { text, ids, decoded } of referenceLines<EncodedText>('encode')) {
    const bytes = Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id)));
    if (bytes.toString() !== ` ${decoded}` && text !== '') expect(bytes.toString()).toBe(` ${decoded}`);
  }
  const { size, special } = tokenizer;
  const [, , last] = tokenizer.encode('\u{1f9ff}').map((id) => tokenizer.tokenBytes(id));
  expect(last).toEqual(Uint8Array.of(0x9f)); // one of the four bytes of a character that no piece has
  expect(tokenizer.tokenBytes(0).toString()).toBe(
    Buffer.from(tokenizer.decode([5000, 0]))
      .subarray(-5)
      .join(),
  );
  for (const id of [1, 2, special.gmask as number, size, 2 ** 32 - 1]) expect(tokenizer.tokenBytes(id)).toHaveLength(0);
  // What is given away is nobody else's.
  const own = tokenizer.tokenBytes(5000);
  const before = tokenizer.decode([5000]);
  own.fill(0);
  expect(tokenizer.decode([5000])).toBe(before);
  expect(tokenizer.tokenBytes(5000)).not.toEqual(own);
  for (const bad of [-1, 1.5, 2 ** 32, '1', undefined]) {
    expect(() => tokenizer.tokenBytes(bad as number)).toThrow('id must be a token id');
  }
});

test("builds ChatGLM2's prompts as THUDM's code does", () => {
  const lines = referenceLines<{ query: string; history: [string, string][]; ids: number[] }>('chatglm2_prompts');
  expect(lines.length).toBeGreaterThan(50);
  for (const { query, history, ids } of lines) {
    const messages = [
      ...history.flatMap(([question, answer]): ChatMessage[] => [
        { role: 'user', content: question },
        { role: 'assistant', content: answer },
      ]),
      { role: 'user', content: query } as const,
    ];
    expect(tokenizer.encodeChat(messages, { family: 'chatglm2' })).toEqual(ids);
  }
});

test("builds ChatGLM3's prompts as THUDM's code does", () => {
  const lines = referenceLines<{ messages: ChatMessage[]; ids: number[] }>('chatglm3_prompts');
  expect(lines.length).toBeGreaterThan(50);
  for (const { messages, ids } of lines) {
    expect(tokenizer.encodeChat(messages, { family: 'chatglm3' })).toEqual(ids);
  }
});

test.each([
  '<|user|>\nhi<|assistant|>',
  'aesop <|user|> </s> isopropyl',
  '[gMASK]sop<eop>',
  '<0x0A><unk><s>',
  '\u0000\u2581\ufffd',
])('text never produces a special id: %j', (text) => {
  const ids = tokenizer.encode(text);
  expect(ids.filter((id) => id < 3 || id >= tokenizer.size)).toEqual([]);
  expect(tokenizer.decode(ids)).toBe(text.replaceAll('\u2581', ' '));
});

test('lone surrogates are encoded as U+FFFD', () => {
  expect(tokenizer.decode(tokenizer.encode('a\ud800b'))).toBe('a\ufffdb');
  for (const lone of ['\ud83d', 'a\ude00\ud83d', '\ud83d\ud83d\ude00\ud83d', '\udfff\u0000\udbff']) {
    expect(tokenizer.encode(lone)).toEqual(tokenizer.encode(wellFormed(lone)));
  }
});

describe('without a dummy prefix, as CodeGeeX2 has it', () => {
  const directory = temporaryDirectory();
  afterAll(() => directory.remove());
  let codegeex: Tokenizer;
  beforeAll(async () => {
    const bytes = readFileSync(referenceTokenizer());
    // NormalizerSpec ends the file: the name, no character map, add_dummy_prefix (field 3), and two more.
    const at = bytes.lastIndexOf('identity') + 'identity'.length;
    expect([...bytes.subarray(at, at + 4)]).toEqual([0x12, 0, 0x18, 1]);
    bytes[at + 3] = 0;
    const file = join(directory.path, 'tokenizer.model');
    writeFileSync(file, bytes);
    codegeex = await loadTokenizer(file);
  });

  test('ids are those of the text as it stands', () => {
    expect(codegeex.encodePrompt('# language: Python\n# write a bubble sort function\n')).toEqual([
      64790, 64792, 31010, 3239, 30954, 16719, 13, 31010, 3072, 260, 17338, 3482, 1674, 13,
    ]);
    expect(codegeex.encode('')).toEqual([]);
    // The prefix is a space, so what differs is no more than that.
    for (const { text } of referenceLines<EncodedText>('encode')) {
      if (text !== '') expect(codegeex.encode(` ${text}`)).toEqual(tokenizer.encode(text));
    }
  });

  test('a leading space stays when ids are decoded, at once and one by one', () => {
    expect(codegeex.decode([260, 3072])).toBe(' a write');
    expect(tokenizer.decode([260, 3072])).toBe('a write');
    const decoder = codegeex.createDecoder();
    expect([decoder.push(260), decoder.push(3072), decoder.flush()]).toEqual([' a', ' write', '']);
    for (const { text } of referenceLines<EncodedText>('encode')) {
      expect(codegeex.decode(codegeex.encode(text))).toBe(wellFormed(text).replaceAll('\u2581', ' '));
    }
  });

  test('off the thread as on it', async () => {
    const text = 'def f():\n    return 1\n'.repeat(5000);
    expect([...(await codegeex.encodeAsync(text))]).toEqual(codegeex.encode(text));
  });
});

describe('encodeAsync', () => {
  test.each<[string, string]>([
    ['nothing', ''],
    ['a short text', '你好'],
    ['spaces', ' '.repeat(1_200_000)],
    ['surrogate pairs that slices cut', `a${'😀'.repeat(700_000)}`],
    ['surrogates without their other half', '\ud83d'.repeat(50_000)],
    ['prose', '人工智能 and deep learning. \n\u0000'.repeat(40_000)],
  ])('gives the ids of encode(): %s', async (_, text) => {
    const ids = await tokenizer.encodeAsync(text);
    expect(ids).toBeInstanceOf(Uint32Array);
    const expected = tokenizer.encode(text);
    expect(ids).toHaveLength(expected.length);
    expect(Buffer.compare(Buffer.from(ids.buffer), Buffer.from(Uint32Array.from(expected).buffer))).toBe(0);
  });

  test('several at once end in their order, and the event loop turns meanwhile', async () => {
    const ended: number[] = [];
    let turns = 0;
    const ticker = setInterval(() => turns++, 0);
    const text = 'word '.repeat(200_000);
    await Promise.all([0, 1, 2].map(async (i) => void ended.push((await tokenizer.encodeAsync(text + i)).length && i)));
    clearInterval(ticker);
    expect(ended).toEqual([0, 1, 2]);
    expect(turns).toBeGreaterThan(3);
  });

  test('a signal ends one that runs and one that waits, and no other', async () => {
    const text = 'word '.repeat(300_000);
    const [first, second] = [new AbortController(), new AbortController()];
    const running = tokenizer.encodeAsync(text, { signal: first.signal });
    const waiting = tokenizer.encodeAsync(text, { signal: second.signal });
    const last = tokenizer.encodeAsync(text);
    second.abort();
    await expect(waiting).rejects.toMatchObject({ code: 'ERR_ABORTED', name: 'AbortError' });
    first.abort('enough');
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED', cause: 'enough' });
    expect(await last).toHaveLength(tokenizer.encode(text).length);
    await expect(tokenizer.encodeAsync('x', { signal: first.signal })).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });
});

test.each<[string, () => unknown, RegExp]>([
  ['encode(1)', () => tokenizer.encode(1 as never), /text must be a string, got 1/],
  ['decode(99999999)', () => tokenizer.decode(99999999 as never), /ids must be an array of token ids/],
  ['decode([-1])', () => tokenizer.decode([-1]), /ids\[0\]/],
  ['decode([1], null)', () => tokenizer.decode([1], null as never), /options of decode/],
  ['decode special: 1', () => tokenizer.decode([1], { special: 1 as never }), /special must be true or false/],
  ['encodeChat without options', () => tokenizer.encodeChat([], undefined as never), /options of encodeChat/],
  ['encodeChat of no family', () => tokenizer.encodeChat([], {} as never), /messages|family/],
  ["push('x')", () => tokenizer.createDecoder().push('x' as never), /id must be a token id .* got "x"/],
  ['push(1.5)', () => tokenizer.createDecoder().push(1.5), /got 1.5/],
  ['push(2 ** 32)', () => tokenizer.createDecoder().push(2 ** 32), /got 4294967296/],
])('what is no argument is refused: %s', (_, call, message) => {
  expect(call).toThrow(
    expect.objectContaining({
      name: 'ChatGLMError',
      code: 'ERR_INVALID_ARGUMENT',
      message: expect.stringMatching(message),
    }),
  );
});

test('encodeAsync refuses by its promise', async () => {
  await expect(tokenizer.encodeAsync(1 as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
  await expect(tokenizer.encodeAsync('', { stop: 1 } as never)).rejects.toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
});

test('ids without a piece have no text', () => {
  expect(tokenizer.tokenCount).toBe(64798);
  expect(tokenizer.decode([14980, tokenizer.tokenCount, 99999999, 14980], { special: true })).toBe('hi hi');
  expect(tokenizer.createDecoder().push(4294967295)).toBe('');
});

test('leastTokens() is never too high, and reached where the text is of the longest pieces', () => {
  const { leastTokens } = tokenizer as unknown as { leastTokens(length: number): number };
  const least = leastTokens.bind(tokenizer);
  for (const { text, ids } of referenceLines<EncodedText>('encode')) {
    if (least(text.length) > ids.length) expect(text).toBe('shorter');
  }
  for (const length of [0, 15, 31, 160_000 - 1]) {
    expect(tokenizer.encode(' '.repeat(length))).toHaveLength(least(length));
  }
});

test('names special tokens only when asked to', () => {
  const { gmask, sop, roles } = tokenizer.special;
  const ids = [gmask, sop, roles?.user as number, 30910, 13, 36474, 54591];
  expect(tokenizer.decode(ids)).toBe('\n 你好');
  expect(tokenizer.decode(ids, { special: true })).toBe('[gMASK]sop<|user|>\n 你好');
});

test('a character whose tokens are cut off becomes U+FFFD, and a special token ends it', () => {
  const emoji = [...Buffer.from('😀')].map((byte) => byte + 3);
  expect(tokenizer.decode(emoji)).toBe('😀');
  expect(tokenizer.decode(emoji.slice(0, 3))).toBe('\ufffd\ufffd\ufffd');
  const decoder = tokenizer.createDecoder();
  expect(emoji.map((id) => decoder.push(id))).toEqual(['', '', '', '😀']);
});

// Two megabytes of each; what takes longer than linear time takes minutes.
test.each(['人工智能 and deep learning. ', ' ', '\n', 'a', 'ab', '中', '😀', '\u2581', '=-', '\ud800'])(
  'long texts stay quick: %j',
  (part) => {
    const text = part.repeat(2_000_000 / part.length);
    const ids = tokenizer.encode(text);
    expect(tokenizer.decode(ids) === wellFormed(text).replaceAll('\u2581', ' ')).toBe(true);
  },
);

test('loads from a GGUF file and refuses what is none', async () => {
  const embedded = await loadTokenizer(embeddedModelPath());
  expect(embedded.size).toBe(8183);
  expect(embedded.decode(embedded.encode('你好 world'))).toBe('你好 world');
  await expect(loadTokenizer(join(__dirname, 'nowhere'))).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_NOT_FOUND' });
  await expect(loadTokenizer(__filename)).rejects.toMatchObject({ code: 'ERR_CHECKPOINT_INVALID' });
});

test('a damaged tokenizer.model gives an error or a tokenizer that works', async () => {
  const directory = temporaryDirectory();
  const bytes = readFileSync(referenceTokenizer());
  const file = join(directory.path, 'tokenizer.model');
  // The file is a megabyte of like entries: its beginning, its end and a sample between.
  const positions = [...Array(16).keys(), bytes.length - 1, bytes.length - 20];
  for (let i = 0; i < 8; i++) positions.push(Math.floor((bytes.length * (i + 0.5)) / 8));
  const outcomes = new Set<string>();
  for (const position of positions) {
    const damaged = Uint8Array.from(bytes);
    damaged[position] = (damaged[position] as number) ^ 0xff;
    writeFileSync(file, damaged);
    try {
      const loaded = await loadTokenizer(file);
      expect(loaded.encode('你好 world').length).toBeGreaterThan(0);
      outcomes.add('loaded');
    } catch (error) {
      outcomes.add((error as { code: string }).code);
    }
  }
  directory.remove();
  expect([...outcomes].sort()).toEqual(['ERR_CHECKPOINT_INVALID', 'loaded']);
});
