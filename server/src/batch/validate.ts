import { isPlainObject } from '../checks.js';
import { linesOf } from './lines.js';
import type { BatchError, Chunk } from './records.js';

/** What a line of an input file says. */
export interface BatchRequest {
  customId: string;
  body: Record<string, unknown>;
}

export interface InputLimits {
  lines: number;
  lineBytes: number;
  /** How many lines are handed out together. */
  chunkLines: number;
}

export interface Validated {
  errors: BatchError[];
  total: number;
  chunks: Chunk[];
  /** The model that all lines name; null where they name none. */
  model: string | null;
}

/** How many errors are told. A file that is wrong in each line is one mistake. */
const MOST_ERRORS = 100;

/** As in OpenAI's; what a program uses to find its answers again is short. */
const MOST_ID_LENGTH = 512;

/**
 * Reads an input file once, as it comes: what is wrong with its lines, and where they are.
 *
 * @param refuse What is wrong with a model of that name; undefined where a batch may use it.
 */
export async function validateInput(
  source: AsyncIterable<Buffer>,
  endpoint: string,
  limits: InputLimits,
  refuse: (model: string | undefined) => Omit<BatchError, 'line'> | undefined,
): Promise<Validated> {
  const errors: BatchError[] = [];
  const chunks: Chunk[] = [];
  const ids = new Set<string>();
  let total = 0;
  let model: string | null | undefined;
  for await (const { number, bytes, start, end } of linesOf(source, limits.lineBytes)) {
    if (errors.length >= MOST_ERRORS) break;
    if (total === limits.lines) {
      const message = `The batch has more than ${limits.lines} requests: split it into several.`;
      errors.push({ code: 'too_many_tasks', message, param: null, line: null });
      break;
    }
    const problem = (code: string, message: string, param: string | null = null) =>
      errors.push({ code, message, param, line: number });
    if (bytes === undefined) {
      problem('request_too_large', `This line is longer than ${limits.lineBytes} bytes.`);
      continue;
    }
    const request = readRequest(bytes, endpoint, problem);
    if (!request) continue;
    const { customId, body } = request;
    if (ids.has(customId)) {
      problem(
        'duplicate_custom_id',
        'The custom_id for this request is a duplicate of another request. The custom_id parameter must be unique for each request in a batch.',
        'custom_id',
      );
      continue;
    }
    ids.add(customId);
    const named = typeof body.model === 'string' ? body.model : null;
    if (model === undefined) {
      model = named;
      const refused = refuse(named ?? undefined);
      if (refused) errors.push({ ...refused, line: number });
    } else if (model !== named) {
      problem(
        'mismatched_model',
        `The model for this request is ${named ?? 'not given'}, that of the first is ${model ?? 'not given'}. A batch is for one model.`,
        'body.model',
      );
    }
    const last = chunks.at(-1);
    if (last && last.count < limits.chunkLines) {
      last.count++;
      last.end = end;
    } else {
      chunks.push({ first: total, count: 1, start, end });
    }
    total++;
  }
  if (total === 0 && errors.length === 0) {
    errors.push({ code: 'empty_file', message: 'The input file has no requests.', param: null, line: null });
  }
  return { errors, total, chunks, model: model ?? null };
}

/** A line of a file that was validated. */
export function parseRequest(bytes: Buffer | undefined): BatchRequest {
  const { custom_id: customId, body } = JSON.parse((bytes as Buffer).toString()) as {
    custom_id: string;
    body: Record<string, unknown>;
  };
  return { customId, body };
}

type Problem = (code: string, message: string, param?: string | null) => void;

function readRequest(bytes: Buffer, endpoint: string, problem: Problem): BatchRequest | undefined {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString());
  } catch {
    value = undefined;
  }
  if (!isPlainObject(value)) {
    problem('invalid_json_line', 'This line is not parseable as valid JSON, or is no object.');
    return undefined;
  }
  const { custom_id: customId, method, url, body } = value;
  if (typeof customId !== 'string' || customId === '' || customId.length > MOST_ID_LENGTH) {
    problem('invalid_custom_id', `custom_id must be a text of 1 to ${MOST_ID_LENGTH} characters.`, 'custom_id');
    return undefined;
  }
  if (method !== 'POST') {
    problem('invalid_method', 'method must be POST.', 'method');
    return undefined;
  }
  if (url !== endpoint) {
    problem('invalid_url', `The url must be the batch's endpoint, which is ${endpoint}.`, 'url');
    return undefined;
  }
  if (!isPlainObject(body)) {
    problem('invalid_body', 'body must be an object.', 'body');
    return undefined;
  }
  return { customId, body };
}
