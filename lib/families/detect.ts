import { basename } from 'node:path';
import type { ModelFamily } from '../checkpoint/types.js';

/** Guesses the family from a model's name, such as `THUDM/chatglm2-6b-int4`. */
export function familyOfName(name: string): ModelFamily | undefined {
  // First: CodeGeeX2 is a ChatGLM2, and some of its copies say both.
  if (/codegeex/i.test(name)) return 'codegeex2';
  const generation = /chatglm-?([23])/i.exec(name)?.[1];
  return generation === undefined ? undefined : generation === '3' ? 'chatglm3' : 'chatglm2';
}

/** What tells the family of a Hugging Face directory, the most reliable first. */
export interface FamilyEvidence {
  /** Texts of tokenizer_config.json and tokenization_chatglm.py, where they exist. */
  tokenizerSources: readonly string[];
  /** `_name_or_path` of config.json, if it has one. */
  nameOrPath: string | undefined;
  directory: string;
}

/**
 * The generations share config.json and the names of all tensors, but not what rope_ratio means nor the prompt format.
 * Only ChatGLM3's tokenizer knows role tokens; CodeGeeX2 and ChatGLM2 differ by name alone.
 */
export function detectFamily({ tokenizerSources, nameOrPath, directory }: FamilyEvidence): ModelFamily | undefined {
  if (tokenizerSources.some((text) => /<\|(user|assistant)\|>/.test(text))) return 'chatglm3';
  return (nameOrPath === undefined ? undefined : familyOfName(nameOrPath)) ?? familyOfName(basename(directory));
}
