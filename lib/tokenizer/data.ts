/** SentencePiece's piece types, https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto */
export const PieceType = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** The pieces of a SentencePiece BPE model, without the special tokens that ChatGLM appends to them. */
export interface TokenizerData {
  /** All pieces' UTF-8 bytes, one after the other. */
  pieces: Uint8Array;
  /** Where each piece begins in `pieces`, and the end of the last: (count + 1). */
  offsets: Uint32Array;
  /** (count) */
  scores: Float32Array;
  /** {@link PieceType} of each: (count). */
  types: Uint8Array;
  /**
   * Whether a space is put before every text, which decoding takes away again: SentencePiece's `add_dummy_prefix`. Of the
   * ChatGLM family only CodeGeeX2's tokenizer.model says no.
   */
  addDummyPrefix: boolean;
}
