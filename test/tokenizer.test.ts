import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ChatMessage, embeddedModelPath, loadTokenizer, type Tokenizer } from 'node-chatglm';
import { referenceLines, referenceTokenizer, temporaryDirectory } from './support/checkpoints';

interface EncodedText {
  text: string;
  ids: number[];
  decoded: string;
}

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

test('long texts stay quick', () => {
  const text = '人工智能 and deep learning. '.repeat(20_000);
  const ids = tokenizer.encode(text);
  expect(tokenizer.decode(ids)).toBe(text);
});

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
