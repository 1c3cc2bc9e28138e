/** The strings of a metadata array. They stay bytes: pieces of a tokenizer need not be whole characters. */
export class GgufStrings {
  /** `bytes` is the array as it lies in the file, each string behind its length; `offsets`, (length + 1), where each begins. */
  constructor(
    private readonly bytes: Buffer,
    private readonly offsets: Uint32Array,
  ) {}

  get length(): number {
    return this.offsets.length - 1;
  }

  at(index: number): Buffer {
    return this.bytes.subarray((this.offsets[index] ?? 0) + LENGTH_BYTES, this.offsets[index + 1] ?? 0);
  }

  /** The first string that equals the text; -1 where there is none. */
  indexOf(text: string): number {
    const wanted = Buffer.from(text);
    for (let i = 0; i < this.length; i++) {
      const length = (this.offsets[i + 1] ?? 0) - (this.offsets[i] ?? 0) - LENGTH_BYTES;
      if (length === wanted.length && this.at(i).equals(wanted)) return i;
    }
    return -1;
  }
}

/** Bytes of a string's length. */
export const LENGTH_BYTES = 8;
