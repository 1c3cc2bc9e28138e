import { families } from '../families/index.js';
import { PieceType, type TokenizerData } from './data.js';
import { bytePiece, FIRST_BYTE_PIECE, PieceList } from './pieces.js';

/** SentencePiece's mark for a space. */
const SPACE = '\u2581';
/** By frequency in English. */
const LETTERS = 'etaoinshrdlcumwfgypbvkjxqz';
const FIRST_IDEOGRAPH = 0x4e00;
const IDEOGRAPHS = 20_902;

/**
 * Makes up a BPE tokenizer of `count` pieces, at least 259: always the same one. Its pieces can be merged out of shorter
 * ones, so it takes any text; what it has not is a meaning.
 */
export function syntheticTokenizer(count: number): TokenizerData {
  const pieces = new PieceList('the synthetic tokenizer');
  pieces.add(Buffer.from('<unk>'), 0, PieceType.unknown);
  pieces.add(Buffer.from('<s>'), 0, PieceType.control);
  pieces.add(Buffer.from('</s>'), 0, PieceType.control);
  for (let byte = 0; byte < 256; byte++) pieces.add(Buffer.from(bytePiece(byte)), 0, PieceType.byte);
  const ordinary = FIRST_BYTE_PIECE + 256;
  const taken: ReadonlySet<string> = new Set(families.flatMap(({ specialTokens }) => specialTokens));
  let id = ordinary;
  for (const text of ordinaryPieces()) {
    if (id >= count) break;
    // "sop" and "eop" are names of special tokens, which must be unlike all pieces.
    if (taken.has(text)) continue;
    // Scores fall with the id: the pieces of the smallest ids are merged first.
    pieces.add(Buffer.from(text), ordinary - id, PieceType.normal);
    id++;
  }
  return pieces.pack(true);
}

/** Distinct texts without end, the short ones first. */
function* ordinaryPieces(): Generator<string> {
  yield SPACE;
  for (let code = 0x21; code <= 0x7e; code++) yield String.fromCharCode(code);
  const words = (length: number): Generator<string> => lettersOf(length);
  for (const prefix of [SPACE, '']) for (const word of words(prefix === '' ? 2 : 1)) yield prefix + word;
  for (let i = 0; i < IDEOGRAPHS; i++) yield String.fromCharCode(FIRST_IDEOGRAPH + i);
  for (let length = 2; ; length++) {
    for (const word of words(length)) yield SPACE + word;
    for (const word of words(length + 1)) yield word;
  }
}

/** All words of the given length. */
function* lettersOf(length: number): Generator<string> {
  if (length === 0) {
    yield '';
    return;
  }
  for (const head of lettersOf(length - 1)) for (const letter of LETTERS) yield head + letter;
}
