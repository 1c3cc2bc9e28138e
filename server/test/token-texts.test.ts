import { loadTokenizer, type Tokenizer, type TokenLogprobs } from 'node-chatglm';
import { referenceLines, referenceTokenizer } from '../../test/support/checkpoints';
import { type ShownToken, TokenAligner } from '../src/openai/token-texts';

let tokenizer: Tokenizer;
beforeAll(async () => {
  tokenizer = await loadTokenizer(referenceTokenizer());
});

/** Random numbers from 0 to 1 that are the same each time (Park and Miller). */
function numbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48271) % 0x7fff_ffff;
    return state / 0x7fff_ffff;
  };
}

const asLogprobs = (ids: readonly number[]): TokenLogprobs[] => ids.map((token) => ({ token, logprob: 0, top: [] }));

/** What an aligner finds for tokens that come one by one, and whose text comes when the decoder has it, or later. */
function aligned(ids: readonly number[], textOf: (decoded: string) => string, random: () => number) {
  const aligner = new TokenAligner(tokenizer);
  const decoder = tokenizer.createDecoder();
  const whole = textOf(tokenizer.decode(ids));
  let decoded = '';
  let given = 0;
  let held: number[] = [];
  const shown: ShownToken[] = [];
  for (const id of ids) {
    decoded += decoder.push(id);
    held.push(id);
    // Text is held back while it may be the beginning of a stop sequence.
    if (random() < 0.4) continue;
    const text = whole.slice(given, Math.max(given, Math.min(whole.length, decoded.length)));
    // No text ends within a character.
    if (/[\ud800-\udbff]$/.test(text)) continue;
    shown.push(...aligner.push(text, asLogprobs(held)));
    given += text.length;
    held = [];
  }
  shown.push(...aligner.push(whole.slice(given), asLogprobs(held)), ...aligner.end());
  return { whole, shown };
}

/** Texts that SentencePiece encoded, without those that it cannot give back. */
const lines = () =>
  referenceLines<{ ids: number[]; decoded: string }>('encode').filter(
    ({ decoded }) => decoded !== '' && !decoded.includes('\ufffd'),
  );

const joined = (tokens: readonly ShownToken[]) => Buffer.concat(tokens.map(({ shown }) => shown.bytes)).toString();

test('the tokens of a text, joined, are the text, however late it comes', () => {
  const random = numbers(1);
  const different = lines().filter(({ ids }) => {
    const { whole, shown } = aligned(ids, (text) => text, random);
    return joined(shown) !== whole || shown.length > ids.length || shown.length < ids.length - 1;
  });
  expect(different).toEqual([]);
});

test('without the spaces around an answer, which are no part of it', () => {
  const random = numbers(2);
  const line = tokenizer.encode('\n');
  const different = lines().filter(({ ids }) => {
    const { whole, shown } = aligned([...line, ...ids, ...line], (text) => text.trim(), random);
    // The last token may be longer than what is shown of it.
    return joined(shown).trimEnd() !== whole;
  });
  expect(different).toEqual([]);
});

test('a text that is cut anywhere has the tokens before the cut, and the one that it cuts whole', () => {
  const random = numbers(3);
  const different = lines().filter(({ ids, decoded }) => {
    const characters = [...decoded];
    const cut = characters.slice(0, Math.floor(random() * (characters.length + 1))).join('');
    const { shown } = aligned(ids, () => cut, random);
    const before = shown.slice(0, -1).reduce((bytes, token) => bytes + token.shown.bytes.length, 0);
    return !joined(shown).startsWith(cut) || (cut !== '' && before >= Buffer.byteLength(cut));
  });
  expect(different).toEqual([]);
});

test('special tokens, and calls whose text is not shown, are left out', () => {
  const said = tokenizer.encode('Let me look.');
  const call = tokenizer.encode("get_weather\n```python\ntool_call(city='北京')\n```");
  const aligner = new TokenAligner(tokenizer);
  const end = tokenizer.size; // the first of the special tokens
  const shown = [
    ...aligner.push('Let me look.', asLogprobs([...said, end])),
    ...aligner.push('', asLogprobs([...call, end])),
    ...aligner.end(),
  ];
  expect(shown.map(({ logprobs }) => logprobs.token)).toEqual(said);
  expect(joined(shown)).toBe('Let me look.');
});

test('a line break between two parts of an answer is no token', () => {
  const [first, second] = [tokenizer.encode('One part.'), tokenizer.encode('Another one.')];
  const aligner = new TokenAligner(tokenizer);
  const shown = [
    ...aligner.push('One part.', asLogprobs([...first, tokenizer.size])),
    ...aligner.push('\nAnother one.', asLogprobs(second)),
  ];
  expect(shown.map(({ logprobs }) => logprobs.token)).toEqual([...first, ...second]);
  expect(joined(shown)).toBe('One part.Another one.');
});
