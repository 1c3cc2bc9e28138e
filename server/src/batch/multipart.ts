import { badRequest } from '../http/errors.js';

/** A part of a form: a field, or a file where it has a file name. */
export interface Part {
  name: string;
  filename: string | undefined;
  /** Has to be read to its end before the next part. */
  body: AsyncIterable<Buffer>;
}

const MOST_HEADER_BYTES = 16 * 1024;
const MOST_PARTS = 32;

/**
 * The parts of a form as they arrive (RFC 7578), each in pieces, so that a large file is never in memory. Throws ApiError 400
 * for what is no such form.
 */
export async function* partsOf(source: AsyncIterable<Buffer>, contentType: string): AsyncGenerator<Part, void, void> {
  const boundary = boundaryOf(contentType);
  // A boundary stands at the beginning of a line, and the first one at the beginning of the form.
  const reader = new Reader(source, Buffer.from('\r\n'));
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  for await (const _ of reader.until(delimiter)) {
    // What stands before the first part is for readers of mail from before there were forms.
  }
  for (let parts = 0; !(await isLast(reader)); parts++) {
    if (parts === MOST_PARTS) throw malformed(`it has more than ${MOST_PARTS} parts`);
    const headers = await headersOf(reader);
    const body = reader.until(delimiter);
    yield { ...dispositionOf(headers), body };
    for await (const _ of body) {
      // What was not read is skipped.
    }
  }
  await reader.skipAll();
}

/** Reads a field, which is a short text. */
export async function textOf({ name, body }: Part): Promise<string> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of body) {
    length += piece.length;
    if (length > MOST_HEADER_BYTES)
      throw badRequest(`The field '${name.slice(0, 100)}' is too long.`, name.slice(0, 100));
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString();
}

class Reader {
  readonly #source: AsyncIterator<Buffer>;
  #kept: Buffer;

  constructor(source: AsyncIterable<Buffer>, first: Buffer) {
    this.#source = source[Symbol.asyncIterator]();
    this.#kept = first;
  }

  /** What stands before a mark, in pieces; the mark itself is left out. */
  async *until(mark: Buffer): AsyncGenerator<Buffer, void, void> {
    for (;;) {
      const found = this.#kept.indexOf(mark);
      if (found >= 0) {
        const piece = this.#kept.subarray(0, found);
        this.#kept = this.#kept.subarray(found + mark.length);
        if (piece.length > 0) yield piece;
        return;
      }
      // The beginning of a mark may stand at the end.
      const sure = this.#kept.length - mark.length + 1;
      if (sure > 0) {
        const piece = this.#kept.subarray(0, sure);
        this.#kept = this.#kept.subarray(sure);
        yield piece;
      }
      await this.#pull();
    }
  }

  async take(count: number): Promise<Buffer> {
    while (this.#kept.length < count) await this.#pull();
    const taken = this.#kept.subarray(0, count);
    this.#kept = this.#kept.subarray(count);
    return taken;
  }

  /** Text up to a mark. */
  async line(mark: Buffer): Promise<string> {
    const pieces: Buffer[] = [];
    let length = 0;
    for await (const piece of this.until(mark)) {
      length += piece.length;
      if (length > MOST_HEADER_BYTES) throw malformed('the headers of a part are too long');
      pieces.push(piece);
    }
    return Buffer.concat(pieces).toString();
  }

  /** Reads what is left, so that the connection can be used again. */
  async skipAll(): Promise<void> {
    while (!(await this.#source.next()).done);
  }

  async #pull(): Promise<void> {
    const { done, value } = await this.#source.next();
    if (done) throw malformed('it ends within a part');
    this.#kept = this.#kept.length === 0 ? value : Buffer.concat([this.#kept, value]);
  }
}

const LINE_END = Buffer.from('\r\n');
const HEADERS_END = Buffer.from('\r\n\r\n');

async function isLast(reader: Reader): Promise<boolean> {
  const next = await reader.take(2);
  if (next.toString('latin1') === '--') return true;
  if (next.equals(LINE_END)) return false;
  const padding = next.toString('latin1') + (await reader.line(LINE_END));
  if (padding.trim() !== '') throw malformed('a boundary has something behind it');
  return false;
}

async function headersOf(reader: Reader): Promise<Map<string, string>> {
  const headers = new Map<string, string>();
  for (const line of (await reader.line(HEADERS_END)).split('\r\n')) {
    const colon = line.indexOf(':');
    if (colon <= 0) throw malformed('a part has a header without a colon');
    headers.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
  }
  return headers;
}

function boundaryOf(contentType: string): string {
  const [, quoted, plain] = /;\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(contentType) ?? [];
  const boundary = quoted ?? plain;
  if (boundary === undefined) throw malformed('its content type has no boundary');
  return boundary;
}

function dispositionOf(headers: Map<string, string>): { name: string; filename: string | undefined } {
  const disposition = headers.get('content-disposition') ?? '';
  const name = parameterOf(disposition, 'name');
  if (!/^form-data\s*;/i.test(disposition) || name === undefined) throw malformed('a part has no name');
  const [, encoded] = /;\s*filename\*=UTF-8''([^\s;]+)/i.exec(disposition) ?? [];
  return { name, filename: decoded(encoded) ?? parameterOf(disposition, 'filename') };
}

/** Browsers, and Node, write a quotation mark as %22 (WHATWG's multipart/form-data); others put a backslash before it. */
function parameterOf(disposition: string, name: string): string | undefined {
  const [, quoted, plain] =
    new RegExp(`;\\s*${name}=(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s;"]+))`, 'i').exec(disposition) ?? [];
  return quoted?.replace(/\\(["\\])/g, '$1').replace(/%22/g, '"') ?? plain;
}

function decoded(text: string | undefined): string | undefined {
  try {
    return text === undefined ? undefined : decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

function malformed(why: string) {
  return badRequest(`The body is no multipart/form-data that can be read: ${why}.`, null, 'invalid_multipart');
}
