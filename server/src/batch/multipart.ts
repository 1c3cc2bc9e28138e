import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Busboy, type BusboyFileStream, type BusboyInstance } from '@fastify/busboy';
import { badRequest } from '../http/errors.js';

/** A file of a form. */
export interface FormFile {
  /** The field's name. */
  name: string;
  filename: string;
  /** Has to be read to its end. */
  body: AsyncIterable<Buffer>;
}

const MOST_FIELD_BYTES = 16 * 1024;
const MOST_PARTS = 32;

/**
 * Reads a form as it arrives (RFC 7578), so that a large file is never in memory. Throws ApiError 400 for what is no such
 * form, and what `onFile` throws.
 *
 * @returns The fields that are no files. Of several with one name the last one counts.
 */
export async function readForm(
  source: Readable,
  contentType: string,
  onFile: (file: FormFile) => Promise<void>,
): Promise<Map<string, string>> {
  const fields = new Map<string, string>();
  const failed = new AbortController();
  const fail = (error: unknown) => failed.abort(error);
  const parser = open(contentType);
  let files = Promise.resolve();
  parser.on('file', (name: string, body: BusboyFileStream, filename: string) => {
    // Where the form ends too early, the parser tells it of the form as a whole; whoever reads the file has to hear of it.
    body.on('error', () => {});
    failed.signal.addEventListener('abort', () => body.destroy(failed.signal.reason as Error), { once: true });
    files = files.then(() => onFile({ name, filename, body })).catch(fail);
  });
  parser.on('field', (name: string, value: string, isNameCut: boolean, isValueCut: boolean) => {
    const shown = name.slice(0, 100);
    if (isNameCut || isValueCut) fail(badRequest(`The field '${shown}' is too long.`, shown));
    else fields.set(name, value);
  });
  parser.on('partsLimit', () => fail(malformed(`it has more than ${MOST_PARTS} parts`)));
  try {
    await pipeline(source, parser, { signal: failed.signal });
  } catch (error) {
    if (!failed.signal.aborted) fail(malformed((error as Error).message));
  }
  await files;
  if (failed.signal.aborted) throw failed.signal.reason;
  return fields;
}

function open(contentType: string): BusboyInstance {
  try {
    return new Busboy({
      headers: { 'content-type': contentType },
      limits: {
        fieldSize: MOST_FIELD_BYTES,
        parts: MOST_PARTS,
        headerPairs: 16,
        headerSize: 16 * 1024,
      },
    });
  } catch (error) {
    throw malformed((error as Error).message);
  }
}

function malformed(why: string): Error {
  return badRequest(`The body is no multipart/form-data that can be read: ${why}.`, null, 'invalid_multipart');
}
