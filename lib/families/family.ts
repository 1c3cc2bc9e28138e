import type { Architecture } from '../addon/native.js';
import type { ChatMessage, Role } from './messages.js';
import type { PromptPart } from './prompt.js';
import type { ExpectedCalls, Outcome, Segment } from './reply.js';

/**
 * What one family of models is: data and functions, in one file beside this one. Nothing outside `lib/families/` compares
 * the names of families; whoever needs to know how a family differs reads a field of this interface.
 */
export interface Family {
  /** What options, GGUF files and `model.info.family` call the family. */
  readonly name: string;
  /** What messages for people call the family. */
  readonly title: string;
  /** Matches the names that people give to models of this family, such as `THUDM/chatglm3-6b-32k`. */
  readonly namePattern: RegExp;
  /**
   * Matches the texts of tokenizer_config.json or tokenization_chatglm.py of this family and of no other. Absent where the
   * tokenizer's code has nothing of its own.
   */
  readonly tokenizerMark?: RegExp;
  /** The kind of tokenizer. `sentencepiece-bpe`: the pieces of a tokenizer.model, with bytes for what no piece covers. */
  readonly tokenizer: 'sentencepiece-bpe';
  /** Texts of the tokens that follow the tokenizer's pieces, in the order of their ids. No user's text encodes to one. */
  readonly specialTokens: readonly string[];
  /** The token of each role; absent where the family marks roles by text. */
  readonly roleTokens?: Readonly<Record<Role, string>>;
  /** Tokens that begin every prompt. */
  readonly prefixTokens: readonly string[];
  /** Tokens that end an answer, besides the piece `</s>`. */
  readonly stopTokens: readonly string[];
  /** How the layers compute, as far as config.json does not say. */
  readonly architecture: Architecture;
  /** What `rope_ratio` of config.json means for the rotary embedding. */
  rotary(ropeRatio: number): Rotary;
  /** How the family converses. Absent: the models continue texts and have no chat format. */
  readonly chat?: ChatFormat;
}

export interface Rotary {
  /** Base of the frequencies. */
  ropeBase: number;
  /** What positions are divided by. */
  ropeScale: number;
}

/** How a family writes conversations. */
export interface ChatFormat {
  /** Whether a system message may list tools. */
  readonly hasTools: boolean;
  /** Whether a prompt can end with nothing but a user's message. Default: false. */
  readonly endsWithQuestion?: boolean;
  /** What the text of an answer begins with, before the space that a tokenizer puts before a text. Default: nothing. */
  readonly answerPrefix?: string;
  /** What code for the interpreter begins with. Absent: there is no interpreter. */
  readonly codePrefix?: string;
  /** How an answer calls a tool, for answers that have to. Absent: no grammar can ask for a call. */
  readonly toolCall?: {
    /** What comes before the arguments. */
    open(name: string): string;
    /** What comes behind the arguments. */
    readonly close: string;
  };
  /** The token that separates parts of one answer. Absent: an answer has one part. */
  readonly partToken?: string;
  /** The format in Jinja for GGUF files, as far as Jinja can say it. */
  readonly jinjaTemplate?: string;
  /**
   * The prompt for the next answer.
   *
   * @param messages Checked, and not empty.
   * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the format cannot express the messages.
   */
  prompt(messages: readonly ChatMessage[]): PromptPart[];
  /** Reads the next part of an answer. Where nothing is expected, a part is text whatever it looks like. */
  openSegment(expected: ExpectedCalls): Segment;
  /** The message of a finished part as the history keeps it. */
  toMessage(outcome: Outcome): ChatMessage;
}

/** The base of the rotary frequencies before rope_ratio. */
export const ROPE_BASE = 10_000;

/** The second generation divides positions by rope_ratio (chatglm2-6b-32k; position interpolation, arXiv 2306.15595). */
export function positionInterpolation(ropeRatio: number): Rotary {
  return { ropeBase: ROPE_BASE, ropeScale: ropeRatio };
}

/** What ChatGLM2, ChatGLM3 and CodeGeeX2 compute (modeling_chatglm.py). */
export const CHATGLM_ARCHITECTURE: Architecture = {
  norm: 'rms',
  activation: 'swiglu',
  rotary: 'interleaved',
  mask: 'causal',
  qkvBias: true,
};

/** The tokens that tokenization_chatglm.py of the second generation appends to the SentencePiece pieces. */
export const CHATGLM2_TOKENS = ['[MASK]', '[gMASK]', '[sMASK]', 'sop', 'eop'] as const;

/** What THUDM's tokenizers put before every text. */
export const CHATGLM2_PREFIX = ['[gMASK]', 'sop'] as const;
