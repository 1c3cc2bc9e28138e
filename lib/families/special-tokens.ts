import type { ModelFamily } from '../checkpoint/types.js';

/** The tokens that THUDM's tokenization_chatglm.py appends to the SentencePiece pieces, in the order of their ids. */
const SPECIAL_TOKENS = ['[MASK]', '[gMASK]', '[sMASK]', 'sop', 'eop'] as const;

/** ChatGLM3 appends these too. */
const ROLE_TOKENS = ['<|system|>', '<|user|>', '<|assistant|>', '<|observation|>'] as const;

/** The special tokens of a family. The first has the id that follows the last piece's. */
export function specialTokens(family: ModelFamily): readonly string[] {
  return family === 'chatglm3' ? [...SPECIAL_TOKENS, ...ROLE_TOKENS] : SPECIAL_TOKENS;
}
