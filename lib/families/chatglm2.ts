import { invalidArgument } from '../common/errors.js';
import {
  CHATGLM_ARCHITECTURE,
  CHATGLM2_PREFIX,
  CHATGLM2_TOKENS,
  type Family,
  positionInterpolation,
} from './family.js';
import type { ChatMessage, Role } from './messages.js';
import type { PromptPart } from './prompt.js';
import { fillIn, type Outcome, type Segment, TextSegment } from './reply.js';

/** ChatGLM2-6B: rounds of questions and answers in one text, without roles and tools. */
export const chatglm2 = {
  name: 'chatglm2',
  title: 'ChatGLM2',
  namePattern: /chatglm-?2/i,
  tokenizer: 'sentencepiece-bpe',
  specialTokens: CHATGLM2_TOKENS,
  prefixTokens: CHATGLM2_PREFIX,
  stopTokens: [],
  architecture: CHATGLM_ARCHITECTURE,
  rotary: positionInterpolation,
  chat: {
    hasTools: false,
    endsWithQuestion: true,
    prompt: (messages: readonly ChatMessage[]): PromptPart[] => [
      ...CHATGLM2_PREFIX.map((token) => ({ token })),
      roundsText(messages),
    ],
    openSegment: (): Segment => new TextSegment(),
    // THUDM's code keeps the answer as it was shown.
    toMessage: ({ content }: Outcome): ChatMessage => ({ role: 'assistant', content: fillIn(content) }),
  },
} as const satisfies Family;

/** A prompt is one text, encoded at once. */
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
