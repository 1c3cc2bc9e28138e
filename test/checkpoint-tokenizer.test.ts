import type { Work } from '../lib/common/turns';
import { familyNamed } from '../lib/families/index';
import { PieceType, type TokenizerData } from '../lib/tokenizer/data';
import { pieceTexts } from '../lib/tokenizer/pieces';
import { parseSentencePiece } from '../lib/tokenizer/sentencepiece';
import { syntheticTokenizer } from '../lib/tokenizer/synthetic';
import { protobuf, smallTokenizer, tokenizerModel } from './support/small-checkpoints';

function atOnce<T>(work: Work<T>): T {
  for (;;) {
    const step = work.next();
    if (step.done) return step.value;
  }
}

const refused = (bytes: Uint8Array, message: RegExp) => {
  expect(() => atOnce(parseSentencePiece(bytes, 'tokenizer.model'))).toThrow(
    expect.objectContaining({ code: 'ERR_CHECKPOINT_INVALID', message: expect.stringMatching(message) }),
  );
};

const copyOf = (data: TokenizerData): TokenizerData => structuredClone(data);

test('reads pieces, scores and types', () => {
  expect(atOnce(parseSentencePiece(tokenizerModel(smallTokenizer), 'tokenizer.model'))).toEqual(smallTokenizer);
});

test('reads whether there is a dummy prefix, which there is by default', () => {
  const none = { ...smallTokenizer, addDummyPrefix: false };
  expect(atOnce(parseSentencePiece(tokenizerModel(none), 'tokenizer.model'))).toEqual(none);
  const unsaid = protobuf([[4, 0]]);
  const read = atOnce(parseSentencePiece(tokenizerModel(none, { normalizer: unsaid }), 'tokenizer.model'));
  expect(read).toEqual(smallTokenizer);
});

test('a piece of more than 256 bytes is refused', () => {
  const withPiece = (length: number) => {
    const last = pieceTexts(smallTokenizer).at(-1) as Uint8Array;
    const pieces = Buffer.concat([smallTokenizer.pieces.subarray(0, -last.length), Buffer.alloc(length, 'x')]);
    const offsets = smallTokenizer.offsets.with(-1, pieces.length);
    return tokenizerModel({ ...smallTokenizer, pieces, offsets });
  };
  const { types } = atOnce(parseSentencePiece(withPiece(256), 'tokenizer.model'));
  expect(types).toHaveLength(smallTokenizer.types.length);
  refused(withPiece(257), /piece 265 .* 257 bytes/);
});

test('a synthetic tokenizer is the same whenever it is made, and has distinct pieces and falling scores', () => {
  const data = syntheticTokenizer(64_789);
  expect(data.types).toHaveLength(64_789);
  expect(data.scores.subarray(260).every((score, i) => score < (data.scores[259 + i] ?? 0))).toBe(true);
  expect(syntheticTokenizer(64_789)).toEqual(data);
  // llama.cpp ends the process at a vocabulary in which two tokens have one text.
  const texts = new Set(pieceTexts(data).map((text) => Buffer.from(text).toString()));
  expect(familyNamed('chatglm3').specialTokens.filter((token) => texts.has(token))).toEqual([]);
});

test.each([
  [1, /unigram/],
  [3, /word/],
  [9, /type 9/],
])('model type %i is refused', (modelType, message) => {
  refused(tokenizerModel(smallTokenizer, { modelType }), message);
});

test.each<[string, Buffer, RegExp]>([
  [
    'rewrites characters',
    protobuf([
      [1, Buffer.from('nmt_nfkc')],
      [2, Buffer.from('x')],
      [4, 0],
    ]),
    /nmt_nfkc/,
  ],
  [
    'has another name',
    protobuf([
      [1, Buffer.from('nfkc')],
      [4, 0],
    ]),
    /is nfkc/,
  ],
  ['removes whitespace', protobuf([[4, 1]]), /removes whitespace/],
  ['removes whitespace by default', protobuf([]), /removes whitespace/],
  [
    'does not escape whitespace',
    protobuf([
      [4, 0],
      [5, 0],
    ]),
    /escape/,
  ],
])('a normalizer that %s is refused', (_, normalizer, message) => {
  refused(tokenizerModel(smallTokenizer, { normalizer }), message);
});

test.each<[string, (data: TokenizerData) => void, RegExp]>([
  ['a byte piece of another type', (data) => data.types.fill(PieceType.normal, 10, 11), /piece 10 .* type 1/],
  [
    'a byte piece of another byte',
    (data) => data.pieces.set(Buffer.from('<0x00>'), data.offsets[4]),
    /piece 4 .*(byte|twice)/,
  ],
  ['no unknown piece', (data) => data.types.fill(PieceType.normal, 0, 1), /piece 0/],
  ['a control piece among the ordinary', (data) => data.types.fill(PieceType.control, 260, 261), /piece 260/],
  ['a score that is no number', (data) => data.scores.fill(Number.NaN, 260, 261), /score NaN/],
  ['broken UTF-8', (data) => data.pieces.fill(0xff, data.offsets[262], data.offsets[263]), /not UTF-8/],
  ['the same piece twice', (data) => data.pieces.fill(0x41, data.offsets[260], data.offsets[262]), /twice/],
])('%s is refused', (_, change, message) => {
  const data = copyOf(smallTokenizer);
  change(data);
  refused(tokenizerModel(data), message);
});

test('what is no protobuf is refused', () => {
  refused(new Uint8Array(0), /no pieces/);
  refused(Buffer.from('hello world, this is text'), /damaged|no SentencePiece/);
  refused(Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]), /longer than/);
  refused(Buffer.alloc(20, 0xff), /too many digits|damaged/);
  refused(tokenizerModel(smallTokenizer).subarray(0, 100), /damaged/);
});
