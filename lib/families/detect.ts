import { basename } from 'node:path';
import { families, MODEL_FAMILIES, type ModelFamily } from './index.js';

/** What a message ends with where nothing tells the family. */
export const FAMILY_HINT = `say which family with the option family (--family): ${MODEL_FAMILIES.join(', ')}`;

/** What tells the family of a Hugging Face directory. */
export interface FamilyEvidence {
  /** The text of tokenization_chatglm.py, where there is one. */
  tokenizerCode: string | undefined;
  /** The text of tokenizer_config.json, where there is one. */
  tokenizerConfig: string | undefined;
  /** What config.json and tokenizer_config.json call the model, where they do, the more reliable first. */
  names: readonly string[];
  directory: string;
}

/** Guesses the family from a model's name, such as `THUDM/chatglm2-6b-int4`. */
export function familyOfName(name: string): ModelFamily | undefined {
  const matching = families.filter(({ namePattern }) => namePattern.test(name));
  // CodeGeeX2 is a ChatGLM2, and some of its copies say both: the family without a chat format is the narrower one.
  return (matching.find(({ chat }) => chat === undefined) ?? matching[0])?.name;
}

/**
 * The family of a directory, or undefined where nothing tells. The generations share config.json and the names of all
 * tensors, but not what rope_ratio means nor the prompt format, so the files beside the weights count: first marks in the
 * tokenizer's code and configuration, then names. Code without a mark rules out the families that have one.
 */
export function detectFamily({
  tokenizerCode,
  tokenizerConfig,
  names,
  directory,
}: FamilyEvidence): ModelFamily | undefined {
  const sources = [tokenizerCode ?? '', tokenizerConfig ?? ''];
  const marked = families.find(({ tokenizerMark }) => sources.some((text) => tokenizerMark?.test(text)));
  if (marked !== undefined) return marked.name;
  const isPossible = (name: ModelFamily | undefined) =>
    tokenizerCode === undefined ||
    families.some((family) => family.name === name && family.tokenizerMark === undefined);
  const named = [...names, basename(directory)]
    .map(familyOfName)
    .find((name) => name !== undefined && isPossible(name));
  if (named !== undefined || tokenizerCode === undefined) return named;
  return families.find(({ tokenizerMark, chat }) => tokenizerMark === undefined && chat !== undefined)?.name;
}

/** The family of a vocabulary, by the special tokens in it, and by the model's name where several families share those. */
export function familyOfVocabulary(has: (token: string) => boolean, name: string): ModelFamily | undefined {
  const complete = families.filter(({ specialTokens }) => specialTokens.every(has));
  const most = Math.max(...complete.map(({ specialTokens }) => specialTokens.length));
  const fitting = complete.filter(({ specialTokens }) => specialTokens.length === most);
  const named = familyOfName(name);
  return (
    families.find((family) => family.name === named && family.chat === undefined && complete.includes(family)) ??
    fitting.find(({ chat }) => chat !== undefined) ??
    fitting[0]
  )?.name;
}
