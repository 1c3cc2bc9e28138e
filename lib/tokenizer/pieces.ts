import { isUtf8 } from 'node:buffer';
import { invalid } from '../common/invalid.js';
import { PieceType, type TokenizerData } from './data.js';

const BYTE_PIECES = 256;
/** `<unk>`, `<s>` and `</s>` come first. */
export const FIRST_BYTE_PIECE = 3;
const FIRST_ORDINARY_PIECE = FIRST_BYTE_PIECE + BYTE_PIECES;
const HEAD_TYPES = [PieceType.unknown, PieceType.control, PieceType.control] as const;

/** `<0xNN>`: the piece of a byte that no other piece covers. */
export function bytePiece(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
}

const BYTE_TEXTS = Array.from({ length: BYTE_PIECES }, (_, byte) => bytePiece(byte));

const FIRST_CAPACITY = 1024;

/** What native/text/tokenizer.h allows, too. ChatGLM's longest piece has 48 bytes. */
const MOST_PIECE_BYTES = 256;

/**
 * The pieces of a tokenizer while it is read. Checks that they are laid out as in every ChatGLM tokenizer (unknown, two
 * control pieces, the 256 bytes, ordinary pieces), which the tokenizer in C++ relies on. All texts lie in one buffer.
 */
export class PieceList {
  private readonly known = new Set<string>();
  /** Of the first piece that does not fit. */
  private problem: { id: number; text: string } | undefined;
  private bytes = new Uint8Array(8 * FIRST_CAPACITY);
  private end = 0;
  private offsets = new Uint32Array(FIRST_CAPACITY + 1);
  private scores = new Float32Array(FIRST_CAPACITY);
  private types = new Uint8Array(FIRST_CAPACITY);
  private length = 0;

  /** `file` is for messages. */
  constructor(private readonly file: string) {}

  /** Adds a piece; one that does not fit is told by {@link pack}, so that better reasons to refuse the file come first. */
  add(text: Uint8Array, score: number, type: number): void {
    const id = this.length++;
    if (this.problem !== undefined) return;
    // As Latin-1: every byte is one letter of a short string, which is quick to make and to compare.
    const key = Buffer.from(text.buffer, text.byteOffset, text.length).toString('latin1');
    const problem = this.known.has(key) ? 'occurs twice' : problemOf(text, score, type, id, key);
    if (problem !== undefined) {
      this.problem = { id, text: problem };
      return;
    }
    this.known.add(key);
    if (id === this.scores.length) {
      this.offsets = grown(this.offsets, new Uint32Array(2 * id + 1));
      this.scores = grown(this.scores, new Float32Array(2 * id));
      this.types = grown(this.types, new Uint8Array(2 * id));
    }
    const end = this.end + text.length;
    if (end > this.bytes.length) this.bytes = grown(this.bytes, new Uint8Array(2 * end));
    this.bytes.set(text, this.end);
    this.end = end;
    this.offsets[id + 1] = end;
    this.scores[id] = score;
    this.types[id] = type;
  }

  /** @param addDummyPrefix SentencePiece's setting of this name, see {@link TokenizerData}. */
  pack(addDummyPrefix: boolean): TokenizerData {
    const { length, file, problem } = this;
    if (problem !== undefined) {
      throw invalid(file, `piece ${problem.id} of the tokenizer ${problem.text}`, { piece: problem.id });
    }
    if (length < FIRST_ORDINARY_PIECE) {
      throw invalid(file, `the tokenizer has ${length} pieces; 3 special and 256 byte pieces are the least`);
    }
    return {
      pieces: this.bytes.slice(0, this.end),
      offsets: this.offsets.slice(0, length + 1),
      scores: this.scores.slice(0, length),
      types: this.types.slice(0, length),
      addDummyPrefix,
    };
  }
}

/** The larger array with the contents of the smaller one. */
function grown<T extends Uint8Array | Uint32Array | Float32Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

function problemOf(text: Uint8Array, score: number, type: number, id: number, key: string): string | undefined {
  if (text.length === 0) return 'is empty';
  if (text.length > MOST_PIECE_BYTES) return `has ${text.length} bytes; ${MOST_PIECE_BYTES} are the most`;
  if (!isUtf8(text)) return 'is not UTF-8';
  if (!Number.isFinite(score)) return `has the score ${score}`;
  if (!typeFits(id, type)) return `has the type ${type}`;
  if (type === PieceType.byte && key !== BYTE_TEXTS[id - FIRST_BYTE_PIECE]) return 'is not the byte it should be';
  return undefined;
}

function typeFits(id: number, type: number): boolean {
  if (id < FIRST_BYTE_PIECE) return type === HEAD_TYPES[id];
  if (id < FIRST_ORDINARY_PIECE) return type === PieceType.byte;
  return type === PieceType.normal || type === PieceType.userDefined || type === PieceType.unused;
}

/** The text of each piece. */
export function pieceTexts(data: TokenizerData): Uint8Array[] {
  return Array.from(data.types, (_, id) => data.pieces.subarray(data.offsets[id], data.offsets[id + 1]));
}
