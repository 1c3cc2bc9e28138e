import { isUtf8 } from 'node:buffer';
import type { GenerationChunk, GenerationResult, Tokenizer, TokenLogprobs } from 'node-chatglm';
import type { ChoiceWriter } from '../chat/choices.js';
import type { ChunkFrame } from './chat-answer.js';
import { likeliestOf, type ShownToken, TokenAligner, type TokenText, toldLogprob } from './token-texts.js';

export function finishReason({ finishReason: reason }: GenerationResult): 'stop' | 'length' {
  return reason === 'length' ? 'length' : 'stop';
}

/** The prompt as part of the answer. */
export interface Echo {
  text: string;
  /** Of its tokens, where they were asked for; NaN where there is none. */
  logprobs: readonly TokenLogprobs[];
}

/** A token in the lists of OpenAI's old format. */
interface TextToken {
  token: string;
  logprob: number | null;
  top: Record<string, number> | null;
  offset: number;
}

/** A token's text; where its bytes are no text, they are written as OpenAI does: the format has no other place for them. */
function nameOf({ text, bytes }: TokenText): string {
  if (isUtf8(bytes)) return text;
  return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}`;
}

/** Log-probabilities of a completion, which counts the characters that its tokens begin at. */
export class TextLogprobs {
  readonly #tokenizer: Tokenizer;
  #aligner: TokenAligner;
  #offset = 0;

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    this.#aligner = new TokenAligner(tokenizer);
  }

  /** Those of the prompt, which come before all others. */
  ofEcho({ text, logprobs }: Echo): TextToken[] {
    const tokens = [...this.push(text, logprobs), ...this.end()];
    this.#aligner = new TokenAligner(this.#tokenizer);
    return tokens;
  }

  push(text: string, logprobs: readonly TokenLogprobs[]): TextToken[] {
    return this.#aligner.push(text, logprobs).map((token) => this.#toToken(token));
  }

  end(): TextToken[] {
    return this.#aligner.end().map((token) => this.#toToken(token));
  }

  #toToken(token: ShownToken): TextToken {
    const { shown } = token;
    const { logprob } = token.logprobs;
    const offset = this.#offset;
    // A character begins with a byte that continues no other.
    for (const byte of shown.bytes) if ((byte & 0xc0) !== 0x80) this.#offset++;
    const isKnown = !Number.isNaN(logprob);
    const likeliest = likeliestOf(this.#tokenizer, token).map(([text, each]) => [nameOf(text), toldLogprob(each)]);
    const name = nameOf(shown);
    return {
      token: name,
      logprob: isKnown ? toldLogprob(logprob) : null,
      // The chosen token is always among them.
      top: isKnown ? { ...Object.fromEntries(likeliest), [name]: toldLogprob(logprob) } : null,
      offset,
    };
  }

  /** OpenAI's four lists. */
  static toObject(tokens: readonly TextToken[]): object {
    return {
      tokens: tokens.map(({ token }) => token),
      token_logprobs: tokens.map(({ logprob }) => logprob),
      top_logprobs: tokens.map(({ top }) => top),
      text_offset: tokens.map(({ offset }) => offset),
    };
  }
}

/** Writes a choice of a completion as chunks. */
export class CompletionWriter implements ChoiceWriter<GenerationChunk, GenerationResult> {
  readonly #logprobs: TextLogprobs | undefined;
  readonly #before: string;
  readonly #after: string;
  readonly #frame: ChunkFrame;
  readonly #index: number;
  #text = '';
  #tokens: TextToken[] = [];

  constructor(
    frame: ChunkFrame,
    { index, logprobs, echo }: { index: number; logprobs: TextLogprobs | undefined; echo: Echo | undefined },
  ) {
    this.#frame = frame;
    this.#index = index;
    this.#before = `data: ${frame.head}{"index":${index},"text":`;
    this.#after = `,"logprobs":null,"finish_reason":null}${frame.tail}\n\n`;
    this.#logprobs = logprobs;
    if (echo) {
      this.#text = echo.text;
      if (logprobs) this.#tokens = logprobs.ofEcho(echo);
    }
  }

  push({ text, logprobs = [] }: GenerationChunk): void {
    this.#text += text;
    if (this.#logprobs) this.#tokens.push(...this.#logprobs.push(text, logprobs));
  }

  flush(): string {
    if (this.#text === '' && this.#tokens.length === 0) return '';
    const text = JSON.stringify(this.#text);
    this.#text = '';
    return this.#logprobs ? this.#chunk(text, null) : this.#before + text + this.#after;
  }

  end(result: GenerationResult): string {
    if (this.#logprobs) this.#tokens.push(...this.#logprobs.end());
    return this.flush() + this.#chunk('""', finishReason(result));
  }

  /** @param text JSON of the text. */
  #chunk(text: string, finish: string | null): string {
    const tokens = this.#tokens;
    this.#tokens = [];
    const logprobs = tokens.length > 0 ? JSON.stringify(TextLogprobs.toObject(tokens)) : 'null';
    const choice = `{"index":${this.#index},"text":${text},"logprobs":${logprobs},"finish_reason":${JSON.stringify(finish)}}`;
    return `data: ${this.#frame.head}${choice}${this.#frame.tail}\n\n`;
  }
}
