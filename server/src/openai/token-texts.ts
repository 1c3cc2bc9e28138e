import type { Tokenizer, TokenLogprobs } from 'node-chatglm';

/** What a token is shown as. */
export interface TokenText {
  /** Its bytes; none of a special token. */
  bytes: Uint8Array;
  /** The bytes as text; what is no UTF-8 is U+FFFD. */
  text: string;
  /** `"token":…,"bytes":[…]`: the part of a JSON object that never changes. */
  json: string;
}

const known = new WeakMap<Tokenizer, Map<number, TokenText>>();

/** The text of a token. Each is made once. */
export function tokenText(tokenizer: Tokenizer, id: number): TokenText {
  let texts = known.get(tokenizer);
  if (texts === undefined) {
    texts = new Map();
    known.set(tokenizer, texts);
  }
  let found = texts.get(id);
  if (found === undefined) {
    found = textOf(tokenizer.tokenBytes(id));
    texts.set(id, found);
  }
  return found;
}

function textOf(bytes: Uint8Array): TokenText {
  const text = Buffer.from(bytes).toString();
  return { bytes, text, json: `"token":${JSON.stringify(text)},"bytes":[${bytes.join()}]` };
}

/** A token of an answer's text. */
export interface ShownToken {
  /** As it stands in the text: without what the text does not have, such as the space before the first word. */
  shown: TokenText;
  logprobs: TokenLogprobs;
}

const SPACES: ReadonlySet<number | undefined> = new Set([0x20, 0x0a, 0x0d, 0x09]);
const LINE_BREAK = 0x0a;

/**
 * Tells which of the generated tokens make the text that is shown, so that the tokens' texts, joined, are the text. Special
 * tokens are no part of it, nor calls of tools, stop sequences and the spaces around an answer. Text may come later than its
 * tokens, but not before them.
 */
export class TokenAligner {
  readonly #tokenizer: Tokenizer;
  /** Bytes of the text that no token was found for yet. */
  #text: Buffer = Buffer.alloc(0);
  /** Tokens whose text has not come. Those before `#next` are done. */
  #tokens: TokenLogprobs[] = [];
  #next = 0;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The tokens whose text has come in full with this piece of the answer. */
  push(text: string, logprobs: readonly TokenLogprobs[]): ShownToken[] {
    if (text !== '') this.#text = Buffer.concat([this.#text, Buffer.from(text)]);
    if (this.#next > 0) {
      this.#tokens.splice(0, this.#next);
      this.#next = 0;
    }
    this.#tokens.push(...logprobs);
    const found: ShownToken[] = [];
    while (this.#next < this.#tokens.length && this.#text.length > 0) {
      const token = this.#tokens[this.#next] as TokenLogprobs;
      const whole = tokenText(this.#tokenizer, token.token);
      const shown = this.#match(whole);
      if (shown === 'later') break;
      this.#next++;
      if (shown === undefined) continue;
      this.#text = this.#text.subarray(shown.bytes.length);
      found.push({ shown, logprobs: token });
    }
    return found;
  }

  /** The answer is complete: a token that the text was cut within, or of which it has the last spaces only. */
  end(): ShownToken[] {
    const logprobs = this.#tokens[this.#next];
    if (this.#text.length === 0 || logprobs === undefined) return [];
    const whole = tokenText(this.#tokenizer, logprobs.token);
    const { bytes } = whole;
    const text = this.#text;
    let start = bytes.every((byte) => SPACES.has(byte)) ? Math.max(0, bytes.length - text.length) : 0;
    while (SPACES.has(bytes[start]) && !startsWith(bytes.subarray(start), text)) start++;
    this.#next = this.#tokens.length;
    this.#text = Buffer.alloc(0);
    return [{ shown: start === 0 ? whole : textOf(bytes.subarray(start)), logprobs }];
  }

  /** How the text has the token next; undefined where it does not have it. */
  #match(token: TokenText): TokenText | 'later' | undefined {
    const { bytes } = token;
    if (bytes.length === 0) return undefined;
    const text = this.#text;
    if (startsWith(text, bytes)) return token;
    if (startsWith(bytes, text)) return 'later';
    // An answer begins without the spaces and line breaks that its first tokens have.
    for (let start = 1; start < bytes.length && SPACES.has(bytes[start - 1]); start++) {
      const trimmed = bytes.subarray(start);
      if (startsWith(text, trimmed)) return textOf(trimmed);
      if (startsWith(trimmed, text)) return 'later';
    }
    // Between two parts of an answer stands a line break that no token has made.
    if (text[0] !== LINE_BREAK || bytes.every((byte) => SPACES.has(byte))) return undefined;
    this.#text = text.subarray(1);
    const shown = this.#text.length === 0 ? undefined : this.#match(token);
    if (shown === undefined) this.#text = text;
    return shown;
  }
}

function startsWith(bytes: Uint8Array, start: Uint8Array): boolean {
  return bytes.length >= start.length && start.every((byte, index) => bytes[index] === byte);
}

/** The likeliest tokens in a token's place, that token as it stands in the text. */
export function likeliestOf(
  tokenizer: Tokenizer,
  { shown, logprobs }: ShownToken,
): [text: TokenText, logprob: number][] {
  return logprobs.top.map(({ token, logprob }) => [
    token === logprobs.token ? shown : tokenText(tokenizer, token),
    logprob,
  ]);
}

/** Logarithms are told down to this: JSON has no minus infinity, and OpenAI's clients know the number. */
const LEAST_LOGPROB = -9999;

export function toldLogprob(logprob: number): number {
  return Math.max(LEAST_LOGPROB, logprob);
}

/** The entries of `logprobs.content` of a chat completion, as JSON without brackets. */
export function chatLogprobs(tokenizer: Tokenizer, tokens: readonly ShownToken[]): string {
  return tokens
    .map((token) => {
      const { shown, logprobs } = token;
      const { logprob } = logprobs;
      const likeliest = likeliestOf(tokenizer, token).map(
        ([text, each]) => `{${text.json},"logprob":${toldLogprob(each)}}`,
      );
      return `{${shown.json},"logprob":${toldLogprob(logprob)},"top_logprobs":[${likeliest.join()}]}`;
    })
    .join();
}
