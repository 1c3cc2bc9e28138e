import {
  callNative,
  fromNative,
  loadNative,
  type NativeError,
  type NativeGrammars,
  type NativeTokenizer,
} from '../addon/native.js';
import { invalidArgument, throwIfAborted } from '../common/errors.js';
import {
  booleanOption,
  choiceOption,
  type Nullable,
  readOptions,
  show,
  signalOption,
  tokenIds,
} from '../common/options.js';
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
import { type PromptPart, promptIds, promptLength } from '../families/prompt.js';
import { PieceType, type TokenizerData } from './data.js';
import { encodeOnThread } from './encoding.js';
import { FIRST_BYTE_PIECE } from './pieces.js';

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

/** Options of `tokenizer.encodeAsync()`. */
export interface EncodeOptions {
  /** Ends the encoding with ERR_ABORTED. Default: none. */
  signal?: AbortSignal | undefined;
}

/** Shorter texts are encoded at once, in a millisecond or so. UTF-16 units. */
const MOST_SYNC_UNITS = 1 << 15;

/**
 * Text to token ids and back: ChatGLM's SentencePiece BPE, id for id as SentencePiece does it. The time that encoding takes
 * is linear in the length of the text, whatever the text.
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
  readonly #addsDummyPrefix: boolean;
  readonly #data: TokenizerData;
  /** UTF-16 units. */
  readonly #longestPiece: number;

  /** @internal A tokenizer whose tables were built on a thread. */
  static async create(data: TokenizerData, family: ModelFamily): Promise<Tokenizer> {
    const tokenizer = new Tokenizer(data, family);
    await new Promise<void>((resolve, reject) => {
      const onEnd = (error?: NativeError) => (error ? reject(fromNative(error)) : resolve());
      callNative(() => tokenizer.#native.prepare(onEnd));
    });
    return tokenizer;
  }

  /** @internal Use `loadTokenizer()` or `model.tokenizer`. */
  constructor(data: TokenizerData, family: ModelFamily) {
    const { pieces, offsets, scores, types, addDummyPrefix } = data;
    this.#native = callNative(() => new (loadNative().Tokenizer)(pieces, offsets, scores, types, addDummyPrefix));
    this.special = specialTokens(this.#native.size, family);
    Object.freeze(this.special);
    if (this.special.roles) Object.freeze(this.special.roles);
    this.#longestPiece = longestPiece(data);
    this.#addsDummyPrefix = addDummyPrefix;
    this.#data = data;
    this.#family = family;
  }

  /** @internal Where a model of so many ids keeps its grammars. */
  createGrammars(vocabSize: number): NativeGrammars {
    return callNative(() => this.#native.createGrammars(vocabSize));
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
    return this.size + familyNamed(this.#family).specialTokens.length;
  }

  /**
   * The ids of a text on its own, nothing put before or behind it; none for an empty text. Text that looks like a special
   * token, such as `<|user|>`, is text. Surrogates without their other half count as U+FFFD.
   *
   * The event loop waits meanwhile, for tens of milliseconds a megabyte: {@link encodeAsync} is for long texts.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if `text` is no string.
   *
   * @example
   * ```ts
   * console.log(tokenizer.encode('<|user|>').some((id) => id >= tokenizer.size)); // false: it is text
   * ```
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
   *
   * @example
   * ```ts
   * import { readFile } from 'node:fs/promises';
   *
   * const ids = await tokenizer.encodeAsync(await readFile('book.txt', 'utf8'));
   * console.log(ids.length, 'tokens');
   * ```
   */
  async encodeAsync(text: string, options: Nullable<EncodeOptions> = {}): Promise<Uint32Array> {
    checkText(text);
    const set = readOptions<EncodeOptions>(options, ['signal'], 'encodeAsync()');
    const signal = signalOption(set.signal);
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
    if (!special) return callNative(() => this.#native.decode(all));
    // Texts between special tokens were encoded by themselves: each has a dummy prefix of its own.
    const names = familyNamed(this.#family).specialTokens;
    let text = '';
    let begin = 0;
    all.forEach((id, index) => {
      const name = id >= this.size ? names[id - this.size] : undefined;
      if (name === undefined) return;
      text += callNative(() => this.#native.decode(all.subarray(begin, index))) + name;
      begin = index + 1;
    });
    return text + callNative(() => this.#native.decode(all.subarray(begin)));
  }

  /**
   * The bytes that a token stands for, in UTF-8. They need not be whole characters: a character that no piece has comes as
   * one token for each of its bytes. The bytes of a text's tokens, joined, are the text, behind the one space that encoding
   * puts before it. Special tokens, and ids that no token has, have no bytes. The array is the caller's own.
   *
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT if `id` is no whole number from 0 to 4,294,967,295.
   *
   * @example
   * ```ts
   * const bytes = tokenizer.encode('你好 👋').map((id) => tokenizer.tokenBytes(id));
   * console.log(Buffer.concat(bytes).toString()); // ' 你好 👋'
   * ```
   */
  tokenBytes(id: number): Uint8Array {
    if (typeof id !== 'number' || id >>> 0 !== id) {
      throw invalidArgument(`id must be a token id from 0 to ${0xffff_ffff}, got ${show(id)}`);
    }
    const { pieces, offsets, types } = this.#data;
    switch (types[id]) {
      case PieceType.byte:
        return Uint8Array.of(id - FIRST_BYTE_PIECE);
      case PieceType.unknown:
        return Uint8Array.from(UNKNOWN_TEXT);
      case PieceType.control:
      case undefined:
        return new Uint8Array();
      default:
        return withSpaces(pieces.subarray(offsets[id], offsets[id + 1]));
    }
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
   * @internal The ids that {@link encodeParts} gives: at once for a short prompt; for a long one a promise of them, and the
   * event loop is not held up.
   */
  encodePrompted(
    parts: readonly PromptPart[],
    family: ModelFamily,
    signal: AbortSignal | undefined,
  ): number[] | Promise<number[]> {
    if (promptLength(parts) <= MOST_SYNC_UNITS) return this.encodeParts(parts, family);
    return this.#encodeLong(parts, family, signal);
  }

  async #encodeLong(
    parts: readonly PromptPart[],
    family: ModelFamily,
    signal: AbortSignal | undefined,
  ): Promise<number[]> {
    const ids = new Map<string, Uint32Array>();
    for (const part of parts) {
      if (typeof part === 'string' && !ids.has(part)) ids.set(part, await this.encodeAsync(part, { signal }));
    }
    const idOf = (token: string) => specialId(familyNamed(family), this.size, token);
    return promptIds(parts, (text) => ids.get(text) as Uint32Array, idOf);
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
    checkText(text);
    return this.encodeParts(this.promptParts(text), this.#family);
  }

  /** @internal What {@link encodePrompt} encodes. */
  promptParts(text: string): PromptPart[] {
    return [...familyNamed(this.#family).prefixTokens.map((token) => ({ token })), text];
  }

  /** @internal Whether a text is encoded with a space before it. */
  get addsDummyPrefix(): boolean {
    return this.#addsDummyPrefix;
  }

  /**
   * @internal No text of so many UTF-16 units has fewer tokens. Of texts that are encoded apart, such as the metadata, the
   * content and the tools of messages, the sum counts.
   */
  leastTokens(length: number): number {
    return length === 0 ? 0 : Math.ceil((length + (this.#addsDummyPrefix ? 1 : 0)) / this.#longestPiece);
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
    return {
      push(id) {
        if (typeof id !== 'number' || id >>> 0 !== id) {
          throw invalidArgument(`id must be a token id from 0 to ${0xffff_ffff}, got ${show(id)}`);
        }
        return callNative(() => decoder.push(id));
      },
      flush: () => callNative(() => decoder.flush()),
    };
  }
}

/** What SentencePiece writes for its unknown piece. */
const UNKNOWN_TEXT = new TextEncoder().encode(' \u2047 ');

/** The bytes of a piece, in which U+2581 stands for a space. */
function withSpaces(piece: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(piece.length);
  let length = 0;
  for (let i = 0; i < piece.length; i++) {
    const isSpace = piece[i] === 0xe2 && piece[i + 1] === 0x96 && piece[i + 2] === 0x81;
    bytes[length++] = isSpace ? 0x20 : (piece[i] as number);
    if (isSpace) i += 2;
  }
  return bytes.slice(0, length);
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
