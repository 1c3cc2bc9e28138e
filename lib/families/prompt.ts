import type { ModelFamily } from '../checkpoint/types.js';
import { invalidArgument } from '../common/errors.js';
import { dumpJson } from '../common/python-text.js';
import type { ChatMessage, Role } from './messages.js';

/** The families that have a chat format. */
export type ChatFamily = 'chatglm2' | 'chatglm3';

/** Ids of the tokens that no text encodes to. ChatGLM appends all but the first to the tokenizer's pieces. */
export interface SpecialTokens {
  /** The end of a text: the piece `</s>`. */
  readonly eos: number;
  readonly mask: number;
  readonly gmask: number;
  readonly smask: number;
  readonly sop: number;
  readonly eop: number;
  /** `<|system|>`, `<|user|>`, `<|assistant|>`, `<|observation|>`: of ChatGLM3 only. */
  readonly roles?: Readonly<Record<Role, number>>;
}

/** The special tokens that follow `pieceCount` pieces. */
export function specialTokens(pieceCount: number, family: ModelFamily): SpecialTokens {
  const tokens = {
    eos: 2,
    mask: pieceCount,
    gmask: pieceCount + 1,
    smask: pieceCount + 2,
    sop: pieceCount + 3,
    eop: pieceCount + 4,
  };
  if (family !== 'chatglm3') return tokens;
  const roles = {
    system: pieceCount + 5,
    user: pieceCount + 6,
    assistant: pieceCount + 7,
    observation: pieceCount + 8,
  };
  return { ...tokens, roles };
}

/**
 * The tokens that end an answer. `<|assistant|>` is none of them: what stands behind it belongs to the same answer,
 * which is how ChatGLM3 says something and calls a tool at once.
 */
export function stopTokens(special: SpecialTokens): number[] {
  return special.roles ? [special.eos, special.roles.user, special.roles.observation] : [special.eos];
}

/**
 * The prompt for the next answer, with the ids that THUDM's code gives. All text goes through `encode`, which knows
 * plain pieces only, so that no message can produce a special token.
 *
 * @param encode Ids of a text on its own: dummy prefix included, special tokens never.
 * @param special Must have roles for `chatglm3`.
 * @param messages Not empty. For `chatglm2`: an optional system message, then user and assistant in turn, user last.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's format cannot express the messages.
 */
export function encodeChat(
  encode: (text: string) => number[],
  special: SpecialTokens,
  messages: readonly ChatMessage[],
  family: ChatFamily,
): number[] {
  if (messages.length === 0) throw invalidArgument('messages must not be empty');
  if (family === 'chatglm2') return [special.gmask, special.sop, ...encode(roundsText(messages))];
  if (family === 'chatglm3') return encodeRoles(encode, special, messages);
  throw invalidArgument(`family must be chatglm2 or chatglm3, got ${JSON.stringify(family)}`);
}

/** ChatGLM2's prompt is one text, encoded at once. */
function roundsText(messages: readonly ChatMessage[]): string {
  const system = messages[0]?.role === 'system' ? messages[0] : undefined;
  if (system?.tools !== undefined) throw invalidArgument('ChatGLM2 has no tools: messages[0].tools must be left out');
  const first = system ? 1 : 0;
  let text = '';
  for (let index = first; index < messages.length; index += 2) {
    const query = roundPart(messages, index, 'user').content;
    const isLast = index === messages.length - 1;
    // The current query is where THUDM's server puts the system message, whatever was said before.
    const question = isLast && system ? system.content + query : query;
    text += `[Round ${(index - first) / 2 + 1}]\n\n问：${question}\n\n答：`;
    if (isLast) return text;
    text += `${roundPart(messages, index + 1, 'assistant').content}\n\n`;
  }
  throw invalidArgument('ChatGLM2 answers a user message: the last of messages must be one');
}

function roundPart(messages: readonly ChatMessage[], index: number, role: Role): ChatMessage {
  const message = messages[index] as ChatMessage;
  if (message.role === 'observation') {
    throw invalidArgument(`messages[${index}].role: ChatGLM2 has no observations`);
  }
  if (message.role !== role) {
    throw invalidArgument(
      `messages[${index}].role is ${message.role}, expected ${role}: ChatGLM2 takes a system message at most first, then user and assistant in turn`,
    );
  }
  if (message.metadata) throw invalidArgument(`messages[${index}].metadata: ChatGLM2 has no metadata`);
  return message;
}

/** ChatGLM3's: each message is its role's token, its metadata's line and its content, the two encoded apart. */
function encodeRoles(
  encode: (text: string) => number[],
  special: SpecialTokens,
  messages: readonly ChatMessage[],
): number[] {
  const { roles } = special;
  if (!roles) throw invalidArgument('this tokenizer has no role tokens: it is not of ChatGLM3');
  const ids = [special.gmask, special.sop];
  const append = (part: readonly number[]) => {
    // Not push(...part): a long document has more ids than a call may have arguments.
    for (const id of part) ids.push(id);
  };
  for (const { role, content, metadata, tools } of messages) {
    ids.push(roles[role]);
    append(encode(`${metadata ?? ''}\n`));
    append(encode(tools ? `${content}\n${dumpJson(tools)}` : content));
  }
  ids.push(roles.assistant);
  return ids;
}
