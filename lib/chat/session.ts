import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { ChatGLMError, throwIfAborted } from '../common/errors.js';
import { isPlainObject } from '../common/options.js';
import { isSystemError, systemError } from '../common/system-errors.js';
import { Pace } from '../common/turns.js';
import { writeBytes, writeWhole } from '../common/whole-file.js';
import type { WrittenFile } from '../common/written-file.js';

// A session's file, all numbers little-endian:
//   8 bytes   magic and version
//   u32       bytes of the header
//   header    JSON: SessionHeader
//   u32 each  the tokens
//   pages     the tokens' keys and values, pageBytes for each page
//   32 bytes  SHA-256 of everything before
const MAGIC = Buffer.from('GLMCHAT1', 'latin1');
const HASH_BYTES = 32;
/** A history of more text than this is no conversation. */
const MOST_HEADER_BYTES = 256 << 20;
/** What is hashed between two turns of the event loop, in bytes. */
const HASHED_AT_ONCE = 1 << 20;

/** Pages of keys and values that somebody holds. */
export interface HeldPages {
  /** How many there are. */
  readonly pages: number;
  /** The bytes of one page. */
  read(page: number): Promise<Uint8Array>;
  /** Gives the pages back: they stay in the cache until others are wanted. */
  release(): void;
}

/** Pages of keys and values that are filled from outside. */
export interface FilledPages {
  /** Sets the bytes of one page. */
  write(page: number, bytes: Uint8Array): Promise<void>;
  /** Gives the pages to the cache if all of them were written; else what was written is lost. */
  release(): void;
}

/** A model's key/value memory, as sessions use it. */
export interface KvStore {
  readonly pageTokens: number;
  readonly pageBytes: number;
  /** The type of keys and values, and the order of a page's bytes. */
  readonly layout: string;
  /** What names the weights, and whatever else decides what is computed from a token. */
  fingerprint(): Promise<string>;
  /** Computes what is not kept of a prompt, and holds its pages. */
  hold(ids: ArrayLike<number>, signal: AbortSignal | undefined): Promise<HeldPages>;
  /** Takes pages for the keys and values of these tokens. */
  fill(ids: Uint32Array): FilledPages;
}

/** What a session's file says of itself. */
interface SessionHeader {
  model: string;
  layout: string;
  pageTokens: number;
  pageBytes: number;
  tokens: number;
  /** What the chat wants to find again. */
  chat: unknown;
}

/** Why a session does not fit the model that is to go on with it; `reason` is for people. */
export interface SessionMismatch {
  what: 'model' | 'layout' | 'memory';
  reason: string;
}

/** Writes a chat and the keys and values of its prompt. The file is seen only as a whole. */
export async function saveSession(
  path: string,
  { store, ids, chat }: { store: KvStore; ids: ArrayLike<number>; chat: unknown },
  { signal }: { signal: AbortSignal | undefined },
): Promise<WrittenFile> {
  const model = await store.fingerprint();
  const { layout, pageTokens, pageBytes } = store;
  const held = await store.hold(ids, signal);
  try {
    return await writeWhole(path, { overwrite: true, signal }, async (handle, name) => {
      const hash = createHash('sha256');
      const pace = new Pace(signal);
      let bytes = 0;
      const write = async (data: Uint8Array) => {
        throwIfAborted(signal);
        await hashInTurns(hash, data, pace);
        await writeBytes(handle, data, bytes, name);
        bytes += data.length;
      };
      const header: SessionHeader = { model, layout, pageTokens, pageBytes, tokens: ids.length, chat };
      const json = Buffer.from(JSON.stringify(header));
      const length = Buffer.alloc(4);
      length.writeUInt32LE(json.length);
      await write(Buffer.concat([MAGIC, length, json]));
      const tokens = Buffer.alloc(4 * ids.length);
      for (let i = 0; i < ids.length; i++) tokens.writeUInt32LE(ids[i] as number, 4 * i);
      await write(tokens);
      for (let page = 0; page < held.pages; page++) await write(await held.read(page));
      const digest = hash.digest();
      await writeBytes(handle, digest, bytes, name);
      return bytes + digest.length;
    });
  } finally {
    held.release();
  }
}

/** A session whose file is whole: every byte was compared with the file's hash. */
export interface OpenedSession {
  chat: unknown;
  /** Why the keys and values were not taken over; undefined if they were. */
  mismatch: SessionMismatch | undefined;
}

/**
 * Reads a session's file, and gives the keys and values to the model if they are its own. Nothing of the file is used
 * before all of it has been compared with its hash.
 *
 * @throws {ChatGLMError} ERR_SESSION_INVALID for a file that is no session or not what was written; the codes of the system.
 */
export async function openSession(
  path: string,
  store: KvStore,
  { signal }: { signal: AbortSignal | undefined },
): Promise<OpenedSession> {
  const file = resolve(path);
  let handle: FileHandle;
  try {
    handle = await open(file);
  } catch (error) {
    throw readError(file, error);
  }
  let filled: FilledPages | undefined;
  try {
    const reader = new Reader(file, handle, (await handle.stat()).size, signal);
    const head = await reader.read(MAGIC.length + 4);
    if (head.subarray(0, 7).compare(MAGIC.subarray(0, 7)) !== 0) throw invalid(file, 'is not a saved chat');
    if (head[7] !== MAGIC[7]) throw invalid(file, 'was saved by another version of this package');
    const header = parseHeader(file, await reader.read(head.readUInt32LE(MAGIC.length), MOST_HEADER_BYTES));
    const pages = Math.ceil(header.tokens / header.pageTokens);
    const size = reader.position + 4 * header.tokens + pages * header.pageBytes + HASH_BYTES;
    if (reader.size !== size) throw invalid(file, `has ${reader.size} bytes instead of ${size}: it is cut or damaged`);
    const ids = Uint32Array.from({ length: header.tokens }, u32At(await reader.read(4 * header.tokens)));

    let mismatch = await mismatchOf(header, store);
    filled = mismatch ? undefined : store.fill(ids);
    const fill = async (page: number, bytes: Buffer) => {
      if (mismatch) return;
      try {
        await filled?.write(page, bytes);
      } catch (error) {
        if (!(error instanceof ChatGLMError && error.code === 'ERR_OUT_OF_MEMORY')) throw error;
        mismatch = { what: 'memory', reason: `does not fit: ${error.message}` };
      }
    };
    // The last page waits until the hash is known to be right: without it, no page can be found in the cache.
    let last: Buffer | undefined;
    for (let page = 0; page < pages; page++) {
      const bytes = await reader.read(header.pageBytes);
      if (page < pages - 1) await fill(page, bytes);
      else last = bytes;
    }
    const digest = reader.digest();
    if ((await reader.read(HASH_BYTES)).compare(digest) !== 0) {
      throw invalid(file, 'is not what was written: its hash is another one');
    }
    if (last) await fill(pages - 1, last);
    return { chat: header.chat, mismatch };
  } finally {
    filled?.release();
    await handle.close();
  }
}

async function mismatchOf(header: SessionHeader, store: KvStore): Promise<SessionMismatch | undefined> {
  if (header.model !== (await store.fingerprint())) {
    return { what: 'model', reason: 'was saved with other weights, or weights that were quantized otherwise' };
  }
  const { layout, pageTokens, pageBytes } = store;
  if (header.layout === layout && header.pageTokens === pageTokens && header.pageBytes === pageBytes) return undefined;
  const reason = `holds keys and values as ${header.layout}, and the model computes with ${layout}: see device and kvCacheType`;
  return { what: 'layout', reason };
}

function parseHeader(file: string, json: Buffer): SessionHeader {
  let header: unknown;
  try {
    header = JSON.parse(json.toString());
  } catch (cause) {
    throw invalid(file, 'has a header that is no JSON', cause);
  }
  const count = (name: string, least: number, most: number) => {
    const value = isPlainObject(header) ? header[name] : undefined;
    return Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;
  };
  const isText = (name: string) => isPlainObject(header) && typeof header[name] === 'string';
  const isRight =
    isText('model') &&
    isText('layout') &&
    count('tokens', 1, 2 ** 31) &&
    count('pageTokens', 1, 2 ** 16) &&
    count('pageBytes', 1, 2 ** 36);
  if (!isRight) throw invalid(file, 'has a header that says too little');
  return header as unknown as SessionHeader;
}

/** Reads a file from its beginning on, and hashes what was read. */
class Reader {
  position = 0;
  readonly #hash = createHash('sha256');
  readonly #pace: Pace;

  constructor(
    readonly file: string,
    readonly handle: FileHandle,
    readonly size: number,
    signal: AbortSignal | undefined,
  ) {
    this.#pace = new Pace(signal);
  }

  async read(length: number, most = Number.MAX_SAFE_INTEGER): Promise<Buffer> {
    if (length > most || this.position + length > this.size) throw invalid(this.file, 'is cut or damaged');
    const buffer = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.handle
        .read(buffer, done, length - done, this.position + done)
        .catch((error: unknown) => {
          throw readError(this.file, error);
        });
      if (bytesRead === 0) throw invalid(this.file, 'was cut while it was read');
      done += bytesRead;
    }
    this.position += length;
    if (!this.#isDigested) await hashInTurns(this.#hash, buffer, this.#pace);
    return buffer;
  }

  #isDigested = false;

  /** The hash of everything that was read so far. What is read later is not hashed. */
  digest(): Buffer {
    this.#isDigested = true;
    return this.#hash.digest();
  }
}

async function hashInTurns(hash: { update(data: Uint8Array): unknown }, data: Uint8Array, pace: Pace): Promise<void> {
  for (let begin = 0; begin < data.length; begin += HASHED_AT_ONCE) {
    if (pace.isOver) await pace.rest();
    hash.update(data.subarray(begin, begin + HASHED_AT_ONCE));
  }
}

function u32At(bytes: Buffer): (value: unknown, index: number) => number {
  return (_, index) => bytes.readUInt32LE(4 * index);
}

function invalid(file: string, problem: string, cause?: unknown): ChatGLMError {
  return new ChatGLMError('ERR_SESSION_INVALID', `${file} ${problem}`, { file }, cause);
}

function readError(file: string, error: unknown): unknown {
  if (!isSystemError(error)) return error;
  if (error.code === 'ENOENT') {
    return new ChatGLMError('ERR_SESSION_INVALID', `${file}: there is no such file`, { file }, error);
  }
  return systemError(file, 'read', error);
}
