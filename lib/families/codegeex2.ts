import {
  CHATGLM_ARCHITECTURE,
  CHATGLM2_PREFIX,
  CHATGLM2_TOKENS,
  type Family,
  positionInterpolation,
} from './family.js';

/** CodeGeeX2-6B: a ChatGLM2 that was trained further on programs. It continues texts and has no chat format. */
export const codegeex2 = {
  name: 'codegeex2',
  title: 'CodeGeeX2',
  namePattern: /codegeex/i,
  tokenizer: 'sentencepiece-bpe',
  specialTokens: CHATGLM2_TOKENS,
  prefixTokens: CHATGLM2_PREFIX,
  stopTokens: [],
  architecture: CHATGLM_ARCHITECTURE,
  rotary: positionInterpolation,
} as const satisfies Family;
