import { callNative, loadNative, type NativeTokenizer } from '../addon/native.js';
import { invalidArgument } from '../common/errors.js';
import { booleanOption, choiceOption, type Nullable, readOptions, show, tokenIds } from '../common/options.js';
import {
  CHAT_FAMILIES,
  type ChatFamily,
  chatPrompt,
  DEFAULT_FAMILY,
  familyNamed,
  type ModelFamily,
  type SpecialTokens,
  specialId,
  specialTokens,
} from '../families/index.js';
import type { ChatMessage } from '../families/messages.js';
import { validateMessages } from '../families/messages.js';
import { type PromptPart, promptIds } from '../families/prompt.js';
import type { TokenizerData } from './data.js';

/** Options of `tokenizer.decode()`. */
export interface DecodeOptions {
  /** Write special tokens by their names, such as `<|user|>`. Default: they have no text. */
  special?: boolean | undefined;
}

/** Decodes ids as they come: the texts, joined, are `decode()` of all ids, and no text ends within a character. */
export interface TokenDecoder {
  /** The text that is complete with this id; nothing for a special token. */
  push(id: number): string;
  /** What was held back of a character that never became complete, as U+FFFD. */
  flush(): string;
}

/**
 * Text to token ids and back: ChatGLM's SentencePiece BPE, id for id as SentencePiece does it.
 *
 * @example
 * ```ts
 * const tokenizer = await loadTokenizer('./chatglm3-6b');
 * const ids = tokenizer.encode('Hello, 世界');
 * console.log(ids.length, tokenizer.decode(ids)); // Hello, 世界
 * ```
 */
export class Tokenizer {
  /** Ids of the special tokens. No text encodes to one. */
  readonly special: SpecialTokens;

  readonly #native: NativeTokenizer;
  readonly #family: ModelFamily;
  readonly #longestPiece: number;

  /** @internal Use `loadTokenizer()` or `model.tokenizer`. */
  constructor(data: TokenizerData, family: ModelFamily) {
    this.#native = callNative(() => new (loadNative().Tokenizer)(data.pieces, data.offsets, data.scores, data.types));
    this.special = specialTokens(this.#native.size, family);
    Object.freeze(this.special);
    if (this.special.roles) Object.freeze(this.special.roles);
    this.#longestPiece = data.offsets.reduce((most, end, i) => Math.max(most, end - (data.offsets[i - 1] ?? 0)), 1);
    this.#family = family;
  }

  /** How many pieces there are, special tokens not counted. Their ids follow. */
  get size(): number {
    return this.#native.size;
  }

  /**
   * The ids of a text on its own, nothing put before or behind it; none for an empty text. Text that looks like a special
   * token, such as `<|user|>`, is text.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if it is no string.
   *
   * @example
   * ```ts
   * console.log(tokenizer.encode('<|user|>').some((id) => id >= tokenizer.size)); // false: it is text
   * ```
   */
  encode(text: string): number[] {
    if (typeof text !== 'string') throw invalidArgument(`text must be a string, got ${show(text)}`);
    return Array.from(this.#native.encode(text));
  }

  /**
   * The text of ids. Bytes that are no UTF-8 become U+FFFD.
   *
   * @example
   * ```ts
   * const prompt = tokenizer.encodePrompt('你好');
   * console.log(tokenizer.decode(prompt)); // 你好
   * console.log(tokenizer.decode(prompt, { special: true })); // [gMASK]sop你好
   * ```
   */
  decode(ids: ArrayLike<number>, options: Nullable<DecodeOptions> = {}): string {
    const set = readOptions<DecodeOptions>(options, ['special'], 'decode()');
    const special = booleanOption('special', set.special, false);
    const all = tokenIds('ids', ids);
    if (!special) return this.#native.decode(all);
    const names = familyNamed(this.#family).specialTokens;
    let text = '';
    let begin = 0;
    all.forEach((id, index) => {
      const name = id >= this.size ? names[id - this.size] : undefined;
      if (name === undefined) return;
      text += this.#native.decode(all.subarray(begin, index)) + name;
      begin = index + 1;
    });
    return text + this.#native.decode(all.subarray(begin));
  }

  /**
   * The prompt for the next answer in a conversation, with exactly the ids that THUDM's code builds.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message, where the family's format cannot express them.
   *
   * @example
   * ```ts
   * const history = [{ role: 'user' as const, content: '你好' }];
   * const ids = tokenizer.encodeChat(history, { family: 'chatglm3' });
   * console.log(ids.length, 'tokens of the context are taken');
   * ```
   */
  encodeChat(messages: readonly ChatMessage[], options: { family: ChatFamily }): number[] {
    const set = readOptions<{ family: ChatFamily }>(options, ['family'], 'encodeChat()');
    const family = choiceOption('family', set.family ?? null, CHAT_FAMILIES, DEFAULT_FAMILY);
    const checked = validateMessages(messages, 'messages');
    return this.encodeParts(chatPrompt(family, checked), family);
  }

  /** @internal The ids of a prompt of a family, which need not be the tokenizer's own. */
  encodeParts(parts: readonly PromptPart[], family: ModelFamily): number[] {
    const idOf = (token: string) => specialId(familyNamed(family), this.size, token);
    return promptIds(parts, (text) => this.#native.encode(text), idOf);
  }

  /**
   * The ids of a text to be continued: `[gMASK]`, `sop` and the text's, as THUDM's tokenizer gives them.
   *
   * @example
   * ```ts
   * const ids = tokenizer.encodePrompt('The capital of France is');
   * console.log(ids[0] === tokenizer.special.gmask, ids[1] === tokenizer.special.sop); // true true
   * ```
   */
  encodePrompt(text: string): number[] {
    if (typeof text !== 'string') throw invalidArgument(`text must be a string, got ${show(text)}`);
    const prefix = familyNamed(this.#family).prefixTokens.map((token) => ({ token }));
    return this.encodeParts([...prefix, text], this.#family);
  }

  /** @internal No text of so many UTF-16 units has fewer tokens. */
  leastTokens(length: number): number {
    return Math.ceil(length / this.#longestPiece);
  }

  /**
   * Decodes a stream of ids.
   *
   * @example
   * ```ts
   * const decoder = tokenizer.createDecoder();
   * for (const id of tokenizer.encode('你好 👋')) process.stdout.write(decoder.push(id));
   * process.stdout.write(decoder.flush());
   * ```
   */
  createDecoder(): TokenDecoder {
    const decoder = this.#native.createDecoder();
    return { push: (id) => callNative(() => decoder.push(id)), flush: () => decoder.flush() };
  }
}
