import { callNative, type NativeTokenizer, native } from '../addon/native.js';
import { readTokenizer } from '../checkpoint/open.js';
import { type ModelFamily, PieceType, type TokenizerData } from '../checkpoint/types.js';
import { invalidArgument, throwIfAborted } from '../common/errors.js';
import { booleanOption, checkOptions, show, signalOption, tokenIds } from '../common/options.js';
import type { ChatMessage } from '../families/messages.js';
import { validateMessages } from '../families/messages.js';
import { type ChatFamily, encodeChat, type SpecialTokens, specialTokens } from '../families/prompt.js';
import { specialTokens as specialTokenNames } from '../families/special-tokens.js';
import { encodeOnThread } from './encoding.js';

export interface DecodeOptions {
  /** Write special tokens by their names, such as `<|user|>`. Default: they have no text. */
  special?: boolean | undefined;
}

export interface EncodeOptions {
  /** Ends the encoding early. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Decodes ids as they come: the texts, joined, are `decode()` of all ids, and no text ends within a character. */
export interface TokenDecoder {
  /**
   * The text that is complete with this id; nothing for an id that has no piece, such as a special token's.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if it is no whole number from 0 to 4,294,967,295.
   */
  push(id: number): string;
  /** What was held back of a character that never became complete, as U+FFFD. */
  flush(): string;
}

/** Shorter texts are encoded at once, in a millisecond or so. UTF-16 units. */
const MOST_SYNC_UNITS = 1 << 15;

/**
 * Text to token ids and back: ChatGLM's SentencePiece BPE, id for id as SentencePiece does it. The time that it takes is
 * linear in the length of the text, whatever the text.
 */
export class Tokenizer {
  /** Ids of the special tokens. No text encodes to one. */
  readonly special: SpecialTokens;

  readonly #native: NativeTokenizer;
  readonly #specialNames: readonly string[];
  readonly #addsDummyPrefix: boolean;
  /** UTF-16 units. */
  readonly #longestPiece: number;

  /** @internal Use `loadTokenizer()` or `model.tokenizer`. */
  constructor(data: TokenizerData, family: ModelFamily) {
    const { pieces, offsets, scores, types, addDummyPrefix } = data;
    this.#native = callNative(() => new native.Tokenizer(pieces, offsets, scores, types, addDummyPrefix));
    this.special = specialTokens(this.#native.size, family);
    Object.freeze(this.special);
    if (this.special.roles) Object.freeze(this.special.roles);
    this.#addsDummyPrefix = addDummyPrefix;
    this.#longestPiece = longestPiece(data);
    this.#specialNames = specialTokenNames(family);
  }

  /** How many pieces there are, special tokens not counted. Their ids follow. */
  get size(): number {
    return this.#native.size;
  }

  /**
   * How many tokens there are: pieces and, behind them, special tokens. No text has an id from here on. A model's
   * `info.vocabSize` may be larger, by rows that no token has.
   */
  get tokenCount(): number {
    return this.size + this.#specialNames.length;
  }

  /**
   * The ids of a text on its own, nothing put before or behind it; none for an empty text. Text that looks like a special
   * token, such as `<|user|>`, is text. Surrogates without their other half count as U+FFFD.
   *
   * The event loop waits meanwhile, for tens of milliseconds a megabyte: {@link encodeAsync} is for long texts.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if `text` is no string.
   * @example
   * const tokenizer = await loadTokenizer('./chatglm3-6b');
   * tokenizer.encode('你好'); // [36474, 54591]
   */
  encode(text: string): number[] {
    checkText(text);
    const ids = callNative(() => this.#native.encode(text));
    // Array.from() takes four times as long.
    const result = new Array<number>(ids.length);
    for (let i = 0; i < ids.length; i++) result[i] = ids[i] as number;
    return result;
  }

  /**
   * The ids that {@link encode} gives, of a text of any length, without holding up the event loop: long texts are encoded
   * on a thread, one after the other.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, ERR_ABORTED, ERR_OUT_OF_MEMORY, ERR_THREAD_UNAVAILABLE.
   * @example
   * const ids = await tokenizer.encodeAsync(await readFile('book.txt', 'utf8'));
   * console.log(`${ids.length} tokens`);
   */
  async encodeAsync(text: string, options: EncodeOptions = {}): Promise<Uint32Array> {
    checkText(text);
    checkOptions(options, ['signal'], 'encodeAsync()');
    const signal = signalOption(options.signal);
    throwIfAborted(signal);
    // Copied, because native code makes arrays of the main realm.
    if (text.length <= MOST_SYNC_UNITS) return new Uint32Array(callNative(() => this.#native.encode(text)));
    return await encodeOnThread((units) => this.#native.createEncoding(units), text, signal);
  }

  /**
   * The text of ids. Bytes that are no UTF-8 become U+FFFD. Special tokens have no text unless `special` is set; ids from
   * {@link tokenCount} on, which a model can give but no text has, never have any.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if `ids` is no array of whole numbers from 0 to 4,294,967,295.
   * @example
   * tokenizer.decode([36474, 54591]); // '你好'
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    checkOptions(options, ['special'], 'decode()');
    const all = tokenIds('ids', ids);
    if (!booleanOption('special', options.special, false)) return callNative(() => this.#native.decode(all));
    // What stands between special tokens was encoded by itself: each part has a dummy prefix of its own.
    const size = this.size;
    let text = '';
    let begin = 0;
    all.forEach((id, index) => {
      const name = this.#specialNames[id - size];
      if (name === undefined) return;
      text += callNative(() => this.#native.decode(all.subarray(begin, index))) + name;
      begin = index + 1;
    });
    return text + callNative(() => this.#native.decode(all.subarray(begin)));
  }

  /**
   * The prompt for the next answer in a conversation, with exactly the ids that THUDM's code builds.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT, naming the message, where the family's format cannot express them.
   * @example
   * tokenizer.encodeChat([{ role: 'user', content: '你好' }], { family: 'chatglm3' });
   */
  encodeChat(messages: readonly ChatMessage[], options: { family: ChatFamily }): number[] {
    checkOptions(options, ['family'], 'encodeChat()');
    const { family } = options;
    const special = specialTokens(this.size, family);
    return encodeChat((text) => this.encode(text), special, validateMessages(messages, 'messages'), family);
  }

  /** The ids of a text to be continued: `[gMASK]`, `sop` and the text's, as THUDM's tokenizer gives them. */
  encodePrompt(text: string): number[] {
    // Not [..., ...ids]: a long document would be walked through by an iterator.
    return [this.special.gmask, this.special.sop].concat(this.encode(text));
  }

  /**
   * @internal No text of so many UTF-16 units has fewer tokens. Of texts that are encoded apart, such as the metadata,
   * the content and the tools of messages, the sum counts.
   */
  leastTokens(length: number): number {
    return length === 0 ? 0 : Math.ceil((length + (this.#addsDummyPrefix ? 1 : 0)) / this.#longestPiece);
  }

  /**
   * Decodes a stream of ids.
   *
   * @example
   * const decoder = tokenizer.createDecoder();
   * for (const id of ids) process.stdout.write(decoder.push(id));
   * process.stdout.write(decoder.flush());
   */
  createDecoder(): TokenDecoder {
    const decoder = this.#native.createDecoder();
    return {
      push(id) {
        if (typeof id !== 'number' || id >>> 0 !== id) {
          throw invalidArgument(`id must be a token id from 0 to ${0xffff_ffff}, got ${show(id)}`);
        }
        return decoder.push(id);
      },
      flush: () => decoder.flush(),
    };
  }
}

function checkText(text: unknown): void {
  if (typeof text !== 'string') throw invalidArgument(`text must be a string, got ${show(text)}`);
}

/** UTF-16 units of the longest piece that a text can encode to; a byte's piece covers one at most. */
function longestPiece({ pieces, offsets, types }: TokenizerData): number {
  let longest = 1;
  for (let id = 0; id < types.length; id++) {
    if (types[id] !== PieceType.normal) continue;
    let units = 0;
    for (let i = offsets[id] as number; i < (offsets[id + 1] as number); i++) {
      // Each character begins with a byte that is no continuation; one of four bytes is two units.
      const byte = pieces[i] as number;
      if ((byte & 0xc0) !== 0x80) units += byte >= 0xf0 ? 2 : 1;
    }
    longest = Math.max(longest, units);
  }
  return longest;
}

/**
 * Reads a tokenizer alone: from a tokenizer.model, a checkpoint's directory or a GGUF file.
 *
 * @param path The file or directory.
 * @throws {ChatGLMError} ERR_CHECKPOINT_NOT_FOUND, ERR_CHECKPOINT_INVALID.
 * @example
 * const tokenizer = await loadTokenizer('./chatglm3-6b/tokenizer.model');
 */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  const { data, family } = await readTokenizer(path);
  // A lone tokenizer.model is the same file in both generations; ChatGLM3's special tokens include ChatGLM2's.
  return new Tokenizer(data, family ?? 'chatglm3');
}
