import type { ChatFamily } from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import type { AnswerOptions } from './chat-options.js';

/** What `toJSON()` of a chat gives. With it `createChat()` goes on with the conversation. Options that are plain data are part of it. */
export interface SavedChat extends Omit<AnswerOptions, 'signal' | 'onTrace' | 'onStep' | 'tools'> {
  /** The format of the prompts. */
  family: ChatFamily;
  /** The conversation. */
  history: ChatMessage[];
}
