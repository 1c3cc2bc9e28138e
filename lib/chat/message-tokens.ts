import { ChatGLMError } from '../common/errors.js';
import type { ChatMessage } from '../families/messages.js';
import { type PromptPart, promptLength } from '../families/prompt.js';

/** What counting needs of a family and a tokenizer. */
export interface PromptCounter {
  /** The prompt of messages. Throws ERR_INVALID_ARGUMENT where the family cannot say them. */
  prompt(messages: readonly ChatMessage[]): PromptPart[];
  /** The tokens of a text that is encoded on its own. */
  count(text: string): number;
  /** No texts of so many UTF-16 units in all have fewer tokens. */
  atLeast(length: number): number;
}

/** What is remembered, in UTF-16 units of all texts together. The texts are mostly the history's own. */
const MOST_UNITS = 1 << 22;
/** Short texts take more memory than their units. */
const MOST_TEXTS = 1 << 14;

/**
 * Counts the tokens of prompts. What a text has is remembered by the text itself, and not by its message: histories are
 * edited in place. Of ChatGLM3, each message is texts of its own, so that a conversation that has grown, or has been cut,
 * costs what is new; of ChatGLM2, the prompt is one text, which is encoded anew.
 */
export class MessageTokens {
  readonly #counter: PromptCounter;
  /** By age of the last use: a Map keeps the order of insertion. */
  readonly #known = new Map<string, number>();
  #units = 0;

  constructor(counter: PromptCounter) {
    this.#counter = counter;
  }

  /** How many texts are remembered. */
  get size(): number {
    return this.#known.size;
  }

  /**
   * The tokens of the prompt of messages, exactly; above `limit` maybe a smaller number that is above it too, so that nobody
   * encodes a book to learn that a book is too long.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the family's format cannot express the messages.
   */
  ofPrompt(messages: readonly ChatMessage[], limit = Number.POSITIVE_INFINITY): number {
    const parts = this.#counter.prompt(messages);
    const least = this.#counter.atLeast(promptLength(parts));
    if (least > limit) return least;
    return parts.reduce((sum, part) => sum + (typeof part === 'string' ? this.#ofText(part) : 1), 0);
  }

  /**
   * What a message adds to a prompt, as the difference of two prompts: exact where a family encodes each message on its own;
   * where a prompt is one text, a token more or less, as texts that are encoded together share pieces at their seams.
   */
  ofMessage(message: ChatMessage): number {
    const question: ChatMessage = { role: 'user', content: '' };
    const answer: ChatMessage = { role: 'assistant', content: '' };
    const comparisons: [more: ChatMessage[], less: ChatMessage[]][] = [
      [[message, message], [message]],
      // The others are for families in which users and assistants take turns: a system message, a question, an answer.
      [[message, question], [question]],
      [[question, answer, message], [question]],
      [
        [question, message, question],
        [question, answer, question],
      ],
    ];
    for (const [more, less] of comparisons) {
      const tokens = this.#difference(more, less);
      if (tokens !== undefined) return tokens;
    }
    // The family cannot say the message at all.
    return this.#ofText(message.content) + this.#ofText(message.metadata ?? '');
  }

  #difference(more: ChatMessage[], less: ChatMessage[]): number | undefined {
    try {
      return this.ofPrompt(more) - this.ofPrompt(less);
    } catch (error) {
      if (error instanceof ChatGLMError && error.code === 'ERR_INVALID_ARGUMENT') return undefined;
      throw error;
    }
  }

  #ofText(text: string): number {
    const known = this.#known.get(text);
    if (known !== undefined) {
      this.#known.delete(text);
      this.#known.set(text, known);
      return known;
    }
    const tokens = this.#counter.count(text);
    if (text.length > MOST_UNITS) return tokens;
    this.#known.set(text, tokens);
    this.#units += text.length;
    for (const [oldest] of this.#known) {
      if (this.#units <= MOST_UNITS && this.#known.size <= MOST_TEXTS) break;
      this.#known.delete(oldest);
      this.#units -= oldest.length;
    }
    return tokens;
  }
}
