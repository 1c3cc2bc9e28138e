import { invalidArgument } from '../common/errors.js';
import { chatglm2 } from './chatglm2.js';
import { chatglm3 } from './chatglm3.js';
import { codegeex2 } from './codegeex2.js';
import type { ChatFormat, Family } from './family.js';
import type { ChatMessage, Role } from './messages.js';
import type { PromptPart } from './prompt.js';

/** All families that this package knows. A new one is a file of its own and a name here. */
const FAMILIES = [chatglm2, chatglm3, codegeex2] as const satisfies readonly Family[];

type Known = (typeof FAMILIES)[number];

/** The names of the families. */
export type ModelFamily = Known['name'];

/** The names of the families that have a chat format. */
export type ChatFamily = Extract<Known, { chat: ChatFormat }>['name'];

export const families: readonly (Family & { name: ModelFamily })[] = FAMILIES;

/** The names of all families, as the option `family` takes them. */
export const MODEL_FAMILIES: readonly ModelFamily[] = FAMILIES.map(({ name }) => name);

/** The names of the families that have a chat format. */
export const CHAT_FAMILIES: readonly ChatFamily[] = families
  .filter(({ chat }) => chat !== undefined)
  .map(({ name }) => name as ChatFamily);

/**
 * The family of what tells none: random weights, and a tokenizer.model by itself, which is the same file in all families.
 * Its special tokens include the others'.
 */
export const DEFAULT_FAMILY = chatglm3.name;

/** The family of a name. */
export function familyNamed(name: ModelFamily): Family & { name: ModelFamily } {
  const family = families.find((known) => known.name === name);
  if (family === undefined) throw new RangeError(`no family ${String(name)}`);
  return family;
}

/** The chat format of a family that has one. */
export function chatFormat(name: ChatFamily): ChatFormat {
  return familyNamed(name).chat as ChatFormat;
}

/**
 * The prompt for the next answer in a conversation.
 *
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's format cannot express the messages.
 */
export function chatPrompt(name: ChatFamily, messages: readonly ChatMessage[]): PromptPart[] {
  if (messages.length === 0) throw invalidArgument('messages must not be empty');
  return chatFormat(name).prompt(messages);
}

/** Ids of the tokens that no text encodes to. ChatGLM appends all but the first to the tokenizer's pieces. */
export interface SpecialTokens {
  /** The end of a text: the piece `</s>`. */
  readonly eos: number;
  /** `[MASK]`. */
  readonly mask: number;
  /** `[gMASK]`, which every prompt begins with. */
  readonly gmask: number;
  /** `[sMASK]`. */
  readonly smask: number;
  /** `sop`, which follows `[gMASK]`. */
  readonly sop: number;
  /** `eop`. */
  readonly eop: number;
  /** `<|system|>`, `<|user|>`, `<|assistant|>`, `<|observation|>`: of ChatGLM3 only. */
  readonly roles?: Readonly<Record<Role, number>>;
}

/** The piece `</s>`, which ends a text in every family. */
const END_OF_TEXT = 2;

/** The id of one special token of a family whose tokenizer has `pieceCount` pieces. */
export function specialId(family: Family, pieceCount: number, token: string): number {
  const index = family.specialTokens.indexOf(token);
  if (index < 0) throw new RangeError(`${family.title} has no token ${token}`);
  return pieceCount + index;
}

/** The special tokens that follow `pieceCount` pieces. */
export function specialTokens(pieceCount: number, name: ModelFamily): SpecialTokens {
  const family = familyNamed(name);
  const id = (token: string) => specialId(family, pieceCount, token);
  const tokens = {
    eos: END_OF_TEXT,
    mask: id('[MASK]'),
    gmask: id('[gMASK]'),
    smask: id('[sMASK]'),
    sop: id('sop'),
    eop: id('eop'),
  };
  const { roleTokens } = family;
  if (roleTokens === undefined) return tokens;
  const roles = Object.entries(roleTokens).map(([role, token]) => [role, id(token)]);
  return { ...tokens, roles: Object.fromEntries(roles) as Record<Role, number> };
}

/** The tokens that end an answer of a family whose tokenizer has `pieceCount` pieces. */
export function stopTokens(pieceCount: number, name: ModelFamily): number[] {
  const family = familyNamed(name);
  return [END_OF_TEXT, ...family.stopTokens.map((token) => specialId(family, pieceCount, token))];
}
