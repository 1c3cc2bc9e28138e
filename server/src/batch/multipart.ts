import { finished, type Readable } from 'node:stream';
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
  // What the parser calls must not throw: nobody is there to catch what it would.
  parser.on('file', (name: string | undefined, body: BusboyFileStream, filename: string) => {
    // Where the form ends too early, the parser tells it of the form as a whole; whoever reads the file has to hear of it.
    body.on('error', () => {});
    failed.signal.addEventListener('abort', () => body.destroy(failed.signal.reason as Error), { once: true });
    if (name === undefined) fail(malformed('a file has no name'));
    else files = files.then(() => onFile({ name, filename, body })).catch(fail);
  });
  parser.on('field', (name: string | undefined, value: string, isNameCut: boolean, isValueCut: boolean) => {
    const shown = name?.slice(0, 100);
    if (name === undefined) fail(malformed('a part has no name'));
    else if (isNameCut || isValueCut) fail(badRequest(`The field '${shown}' is too long.`, shown));
    else fields.set(name, value);
  });
  parser.on('partsLimit', () => fail(malformed(`it has more than ${MOST_PARTS} parts`)));
  try {
    await parsed(source, parser, failed.signal);
  } catch (error) {
    if (!failed.signal.aborted) fail(malformed((error as Error).message));
  }
  await files;
  if (failed.signal.aborted) throw failed.signal.reason;
  return fields;
}

/**
 * Resolves once the form is complete. The parser takes nothing behind a form's last line, so that a source that goes on would
 * never come to its end in a pipeline: what is left of it is read and thrown away.
 */
function parsed(source: Readable, parser: BusboyInstance, signal: AbortSignal): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    parser.once('finish', resolve).on('error', reject);
    finished(source, (error) => {
      if (error) reject(error);
    });
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
    source.pipe(parser);
  }).finally(() => {
    source.unpipe(parser);
    source.resume();
  });
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
