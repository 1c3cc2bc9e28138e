import { invalid, shown } from '../../common/invalid.js';
import { specialTokens } from '../../families/special-tokens.js';
import { type Piece, packPieces } from '../../tokenizer/pieces.js';
import { PieceType, type TokenizerData } from '../types.js';
import { type GgufHeader, GgufStrings, type GgufValue } from './header.js';

/** llama.cpp's converter renames the first three pieces; theirs are the names in tokenizer.model. */
const HEAD = [
  { text: '<unk>', aliases: ['<unk>'], type: PieceType.unknown },
  { text: '<s>', aliases: ['<s>', '<bos>'], type: PieceType.control },
  { text: '</s>', aliases: ['</s>', '<eos>'], type: PieceType.control },
] as const;

/** GGUF's name of SentencePiece's `add_dummy_prefix`, a bool. */
export const ADD_SPACE_PREFIX = 'tokenizer.ggml.add_space_prefix';

const USER = '<|user|>';

/**
 * Takes the SentencePiece pieces out of GGUF's `tokenizer.ggml` keys, as set_vocab_chatglm3() of llama.cpp's
 * convert_hf_to_gguf.py writes them: the pieces, the special tokens, then padding. The result equals tokenizer.model's.
 */
export function ggufTokenizer({ metadata }: GgufHeader, file: string): TokenizerData | undefined {
  const model = metadata.get('tokenizer.ggml.model');
  const tokens = metadata.get('tokenizer.ggml.tokens');
  if (model === undefined && tokens === undefined) return undefined;
  if (model !== 'llama') {
    throw invalid(file, `has a tokenizer of the kind ${shown(String(model))}; ChatGLM2's and ChatGLM3's is "llama"`);
  }
  if (!(tokens instanceof GgufStrings)) throw invalid(file, 'has no tokenizer.ggml.tokens');
  const texts = tokens.items;
  const scores = numbers(metadata.get('tokenizer.ggml.scores'), texts.length, 'tokenizer.ggml.scores', file);
  const types = numbers(metadata.get('tokenizer.ggml.token_type'), texts.length, 'tokenizer.ggml.token_type', file);

  const count = countPieces(texts, file);
  const pieces: Piece[] = texts
    .slice(0, count)
    .map((text, id) => ({ text, score: scores[id] ?? 0, type: types[id] ?? PieceType.normal }));
  HEAD.forEach(({ text, aliases, type }, id) => {
    const found = Buffer.from(texts[id] ?? []).toString();
    if (!aliases.some((alias) => alias === found))
      throw invalid(file, `token ${id} is ${shown(found)} instead of ${text}`);
    pieces[id] = { text: Buffer.from(text), score: pieces[id]?.score ?? 0, type };
  });
  return packPieces(pieces, addSpacePrefix(metadata.get(ADD_SPACE_PREFIX), file), file);
}

/** Only ChatGLM3's tokenizer has role tokens. */
export function hasRoleTokens({ metadata }: GgufHeader): boolean {
  const tokens = metadata.get('tokenizer.ggml.tokens');
  return tokens instanceof GgufStrings && tokens.items.some((token) => Buffer.compare(token, USER_BYTES) === 0);
}

const USER_BYTES = Buffer.from(USER);

/** Pieces end where the special tokens begin. */
function countPieces(texts: readonly Uint8Array[], file: string): number {
  const special = specialTokens('chatglm2');
  const first = Buffer.from(special[0] ?? '');
  const count = texts.findIndex((text) => Buffer.compare(text, first) === 0);
  special.forEach((token, i) => {
    const found = Buffer.from(texts[count + i] ?? []).toString();
    if (count < 0 || found !== token) throw invalid(file, `the tokenizer lacks ${token} where ChatGLM's has it`);
  });
  return count;
}

/** llama.cpp, too, takes a missing key for true in tokenizers of this kind. */
function addSpacePrefix(value: GgufValue | undefined, file: string): boolean {
  if (value === undefined) return true;
  if (typeof value !== 'boolean') throw invalid(file, `${ADD_SPACE_PREFIX} is no bool`);
  return value;
}

function numbers(value: GgufValue | undefined, length: number, key: string, file: string): readonly number[] {
  if (!Array.isArray(value) || value.length !== length || !value.every((item) => typeof item === 'number')) {
    throw invalid(file, `${key} does not have a number for each of the ${length} tokens`);
  }
  return value as number[];
}
