import { invalid, shown } from '../../common/invalid.js';
import type { Work } from '../../common/turns.js';
import { CHATGLM2_TOKENS } from '../../families/family.js';
import { PieceType, type TokenizerData } from '../../tokenizer/data.js';
import { PieceList } from '../../tokenizer/pieces.js';
import { GgufStrings } from './arrays.js';
import type { GgufHeader, GgufValue } from './header.js';

const TOKENS = 'tokenizer.ggml.tokens';
const SCORES = 'tokenizer.ggml.scores';
const TYPES = 'tokenizer.ggml.token_type';

/** The long arrays that a tokenizer is made of. */
export const TOKENIZER_ARRAYS = [TOKENS, SCORES, TYPES] as const;

/** Pieces between two looks at the clock. */
const PIECES_PER_YIELD = 256;

/** llama.cpp's converter renames the first three pieces; theirs are the names in tokenizer.model. */
const HEAD = [
  { text: '<unk>', aliases: ['<unk>'], type: PieceType.unknown },
  { text: '<s>', aliases: ['<s>', '<bos>'], type: PieceType.control },
  { text: '</s>', aliases: ['</s>', '<eos>'], type: PieceType.control },
] as const;

/** GGUF's name of SentencePiece's `add_dummy_prefix`, a bool. */
export const ADD_SPACE_PREFIX = 'tokenizer.ggml.add_space_prefix';

/**
 * Takes the SentencePiece pieces out of GGUF's `tokenizer.ggml` keys, as set_vocab_chatglm3() of llama.cpp's
 * convert_hf_to_gguf.py writes them: the pieces, the special tokens, then padding. The result equals tokenizer.model's.
 */
export function* ggufTokenizer({ metadata }: GgufHeader, file: string): Work<TokenizerData | undefined> {
  const model = metadata.get('tokenizer.ggml.model');
  const tokens = metadata.get(TOKENS);
  if (model === undefined && tokens === undefined) return undefined;
  if (model !== 'llama') {
    throw invalid(file, `has a tokenizer of the kind ${shown(model)}; ChatGLM2's and ChatGLM3's is "llama"`);
  }
  if (!(tokens instanceof GgufStrings)) throw invalid(file, `has no ${TOKENS}`);
  const scores = numbers(metadata.get(SCORES), tokens.length, SCORES, file);
  const types = numbers(metadata.get(TYPES), tokens.length, TYPES, file);

  const count = countPieces(tokens, file);
  const pieces = new PieceList(file);
  for (let id = 0; id < count; id++) {
    if (id % PIECES_PER_YIELD === 0) yield;
    const text = tokens.at(id);
    const head = HEAD[id];
    if (head === undefined) {
      pieces.add(text, scores[id] ?? 0, types[id] ?? PieceType.normal);
      continue;
    }
    const found = text.toString('utf8');
    if (!head.aliases.some((alias) => alias === found)) {
      throw invalid(file, `token ${id} is ${shown(found)} instead of ${head.text}`);
    }
    pieces.add(Buffer.from(head.text), scores[id] ?? 0, head.type);
  }
  return pieces.pack(addSpacePrefix(metadata.get(ADD_SPACE_PREFIX), file));
}

/** Whether the vocabulary has a token of this text. */
export function hasToken({ metadata }: GgufHeader, text: string): boolean {
  const tokens = metadata.get(TOKENS);
  return tokens instanceof GgufStrings && tokens.indexOf(text) >= 0;
}

/** Pieces end where the special tokens begin. */
function countPieces(tokens: GgufStrings, file: string): number {
  const count = tokens.indexOf(CHATGLM2_TOKENS[0]);
  CHATGLM2_TOKENS.forEach((token, i) => {
    const isThere = count >= 0 && count + i < tokens.length && tokens.at(count + i).toString('utf8') === token;
    if (!isThere) throw invalid(file, `the tokenizer lacks ${token} where ChatGLM's has it`);
  });
  return count;
}

/** llama.cpp, too, takes a missing key for true in tokenizers of this kind. */
function addSpacePrefix(value: GgufValue | undefined, file: string): boolean {
  if (value === undefined) return true;
  if (typeof value !== 'boolean') throw invalid(file, `${ADD_SPACE_PREFIX} is no bool`);
  return value;
}

function numbers(value: GgufValue | undefined, length: number, key: string, file: string): Float64Array {
  if (value instanceof Float64Array && value.length === length) return value;
  throw invalid(file, `${key} does not have a number for each of the ${length} tokens`);
}
