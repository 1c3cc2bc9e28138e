/** A line of a file that is not empty. */
export interface Line {
  /** Its number in the file, from 1. */
  number: number;
  /** Its bytes without the newline; undefined where they are more than allowed. */
  bytes: Buffer | undefined;
  /** Where it begins in the file, and where the next line does. */
  start: number;
  end: number;
}

const NEWLINE = 0x0a;

/** The lines of a file as its bytes come, without those that are blank. */
export async function* linesOf(source: AsyncIterable<Buffer>, mostBytes: number): AsyncGenerator<Line, void, void> {
  let number = 0;
  let start = 0;
  let position = 0;
  let kept: Buffer[] = [];
  let length = 0;
  const take = (piece: Buffer) => {
    length += piece.length;
    if (length <= mostBytes) kept.push(piece);
    else kept = [];
  };
  const line = (end: number): Line | undefined => {
    number++;
    const bytes = length > mostBytes ? undefined : kept.length === 1 ? (kept[0] as Buffer) : Buffer.concat(kept);
    const read = { number, bytes, start, end };
    start = end;
    kept = [];
    length = 0;
    return bytes === undefined || !isBlank(bytes) ? read : undefined;
  };
  for await (const buffer of source) {
    let from = 0;
    for (;;) {
      const newline = buffer.indexOf(NEWLINE, from);
      if (newline < 0) break;
      take(buffer.subarray(from, newline));
      from = newline + 1;
      const read = line(position + from);
      if (read) yield read;
    }
    if (from < buffer.length) take(buffer.subarray(from));
    position += buffer.length;
  }
  if (length > 0) {
    const read = line(position);
    if (read) yield read;
  }
}

function isBlank(bytes: Buffer): boolean {
  return bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d);
}
