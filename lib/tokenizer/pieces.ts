import { isUtf8 } from 'node:buffer';
import { PieceType, type TokenizerData } from '../checkpoint/types.js';
import { invalid } from '../common/invalid.js';

/** One piece while a tokenizer is read. */
export interface Piece {
  text: Uint8Array;
  score: number;
  type: number;
}

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

/** What native/text/tokenizer.h allows, too. ChatGLM's longest piece has 48 bytes. */
const MOST_PIECE_BYTES = 256;

/**
 * Checks that the pieces are laid out as in every ChatGLM tokenizer (unknown, two control pieces, the 256 bytes, ordinary
 * pieces) and packs them. The tokenizer in C++ relies on it.
 */
export function packPieces(pieces: readonly Piece[], addDummyPrefix: boolean, file: string): TokenizerData {
  if (pieces.length < FIRST_ORDINARY_PIECE) {
    throw invalid(file, `the tokenizer has ${pieces.length} pieces; 3 special and 256 byte pieces are the least`);
  }
  const known = new Set<string>();
  let bytes = 0;
  pieces.forEach((piece, id) => {
    // As Latin-1: every byte is one letter of a short string, which is quick to make and to compare.
    const key = Buffer.from(piece.text.buffer, piece.text.byteOffset, piece.text.length).toString('latin1');
    const problem = known.has(key) ? 'occurs twice' : problemOf(piece, id, key);
    if (problem !== undefined) throw invalid(file, `piece ${id} of the tokenizer ${problem}`, { piece: id });
    known.add(key);
    bytes += piece.text.length;
  });

  const data: TokenizerData = {
    pieces: new Uint8Array(bytes),
    offsets: new Uint32Array(pieces.length + 1),
    scores: Float32Array.from(pieces, (piece) => piece.score),
    types: Uint8Array.from(pieces, (piece) => piece.type),
    addDummyPrefix,
  };
  let end = 0;
  pieces.forEach(({ text }, id) => {
    data.pieces.set(text, end);
    end += text.length;
    data.offsets[id + 1] = end;
  });
  return data;
}

function problemOf({ text, score, type }: Piece, id: number, key: string): string | undefined {
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
