import { randomBytes } from 'node:crypto';
import { closeSync, createReadStream, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import { open, rm } from 'node:fs/promises';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { ApiError, badRequest } from '../http/errors.js';
import {
  type BatchStatus,
  type Chunk,
  type Counts,
  isOver,
  type LineResult,
  nowSeconds,
  type StoredBatch,
  type StoredFile,
} from './records.js';
import { type Database, openDatabase, type Statement, transaction } from './sqlite.js';
import type { Lease, Page, PageQuery, Staged, Store } from './store.js';

/** The version of the tables below. */
const SCHEMA_VERSION = 1;

const SCHEMA = `
CREATE TABLE IF NOT EXISTS files (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL, expires INTEGER NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner, seq);
CREATE TABLE IF NOT EXISTS batches (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
  input TEXT NOT NULL, is_over INTEGER NOT NULL, ended INTEGER, record TEXT NOT NULL, chunks TEXT);
CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner, seq);
CREATE INDEX IF NOT EXISTS batches_by_end ON batches (is_over, seq);
CREATE TABLE IF NOT EXISTS results (
  batch TEXT NOT NULL, line INTEGER NOT NULL, ok INTEGER NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (batch, line)) WITHOUT ROWID;
`;

/** How many answers are deleted in one go. */
const LINES_AT_ONCE = 256;

interface Row {
  seq: number;
  record: string;
}

/** How long a batch is kept after its end, in seconds. */
export const KEEP_BATCH = 30 * 86_400;

/**
 * Files and batches in a directory of one server: the bytes of files are files of their own, under generated names, and all
 * else is in one SQLite file. That file is locked by the operating system as long as the process lives, so that a second
 * server cannot use the same directory, and no lock outlives a process.
 */
export class DiskStore implements Store {
  readonly #directory: string;
  readonly #most: number;
  readonly #database: Database;
  readonly #statements = new Map<string, Statement>();
  readonly #counts = new Map<string, Counts>();
  readonly #leased = new Set<string>();
  #staging = 0;

  /**
   * Opens or makes the directory. Throws where another process uses it.
   *
   * @param most How many bytes all files together may have.
   */
  constructor(directory: string, most: number) {
    this.#directory = directory;
    this.#most = most;
    mkdirSync(path.join(directory, 'files'), { recursive: true, mode: 0o700 });
    const file = path.join(directory, 'batches.db');
    // SQLite gives its other files the mode of this one.
    closeSync(openSync(file, 'a', 0o600));
    this.#database = this.#open(file);
    this.#removeOrphans();
  }

  #open(file: string): Database {
    const database = openDatabase(file);
    try {
      database.exec('PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; BEGIN EXCLUSIVE; COMMIT');
    } catch (cause) {
      database.close();
      if (!/lock|busy/i.test(String((cause as Error).message))) throw cause;
      throw new DirectoryInUseError(this.#directory, cause);
    }
    const { user_version: version } = database.prepare('PRAGMA user_version').get() as { user_version: number };
    if (version > SCHEMA_VERSION) {
      database.close();
      throw new Error(`${file} was written by a newer version of this package`);
    }
    database.exec(SCHEMA);
    database.exec(`PRAGMA user_version = ${SCHEMA_VERSION}; PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL`);
    return database;
  }

  /** Bytes that were staged, or whose file was deleted, when an earlier process ended. */
  #removeOrphans(): void {
    const known = new Set((this.#all('SELECT id FROM files') as { id: string }[]).map(({ id }) => id));
    for (const name of readdirSync(path.join(this.#directory, 'files'))) {
      if (!known.has(name)) rmSync(path.join(this.#directory, 'files', name), { force: true });
    }
  }

  async stage(source: AsyncIterable<Buffer>, most: number): Promise<Staged> {
    const id = `file-${randomBytes(16).toString('hex')}`;
    const staged = { id, bytes: 0 };
    const { used } = this.#get('SELECT coalesce(sum(bytes), 0) AS used FROM files') as { used: number };
    const handle = await open(this.#pathOf(id), 'wx', 0o600);
    try {
      for await (const piece of source) {
        staged.bytes += piece.length;
        this.#staging += piece.length;
        if (staged.bytes > most) throw tooLarge(most);
        if (used + this.#staging > this.#most) throw noRoom(this.#most);
        await handle.writeFile(piece);
      }
      await handle.sync();
      await handle.close();
    } catch (error) {
      await handle.close();
      await this.discard(staged);
      throw error;
    } finally {
      this.#staging -= staged.bytes;
    }
    return staged;
  }

  async discard({ id }: Staged): Promise<void> {
    await rm(this.#pathOf(id), { force: true });
  }

  async addFile(file: StoredFile): Promise<void> {
    try {
      this.#insertFile(file);
    } catch (error) {
      await this.discard(file);
      throw error;
    }
  }

  #insertFile(file: StoredFile): void {
    this.#run(
      'INSERT INTO files (id, owner, purpose, bytes, expires, record) VALUES (?, ?, ?, ?, ?, ?)',
      file.id,
      file.owner,
      file.purpose,
      file.bytes,
      file.expires,
      JSON.stringify(file),
    );
  }

  async file(id: string): Promise<StoredFile | undefined> {
    const row = this.#get('SELECT record FROM files WHERE id = ? AND expires > ?', id, nowSeconds());
    return row ? (JSON.parse((row as Row).record) as StoredFile) : undefined;
  }

  async files(owner: string, query: PageQuery): Promise<Page<StoredFile>> {
    return this.#page('files', owner, query, `AND expires > ${nowSeconds()} AND (? IS NULL OR purpose = ?)`, [
      query.purpose ?? null,
      query.purpose ?? null,
    ]);
  }

  #page<T>(
    table: 'files' | 'batches',
    owner: string,
    { after, limit, order }: PageQuery,
    condition = '',
    values: (string | null)[] = [],
  ): Page<T> {
    let from: number | undefined;
    if (after !== undefined) {
      from = (this.#get(`SELECT seq FROM ${table} WHERE id = ? AND owner = ?`, after, owner) as Row | undefined)?.seq;
      if (from === undefined) throw noSuchEntry(after);
    }
    const [sign, direction] = order === 'asc' ? ['>', 'ASC'] : ['<', 'DESC'];
    const rows = this.#all(
      `SELECT record FROM ${table} WHERE owner = ? AND (? IS NULL OR seq ${sign} ?) ${condition} ORDER BY seq ${direction} LIMIT ?`,
      owner,
      from ?? null,
      from ?? null,
      ...values,
      limit + 1,
    ) as Row[];
    return {
      data: rows.slice(0, limit).map(({ record }) => JSON.parse(record) as T),
      hasMore: rows.length > limit,
    };
  }

  async deleteFile(id: string): Promise<'deleted' | 'in use' | 'absent'> {
    const outcome = transaction(this.#database, () => {
      if (this.#get('SELECT 1 AS one FROM batches WHERE input = ? AND is_over = 0', id)) return 'in use';
      const { changes } = this.#run('DELETE FROM files WHERE id = ?', id);
      return Number(changes) > 0 ? 'deleted' : 'absent';
    });
    if (outcome === 'deleted') await rm(this.#pathOf(id), { force: true });
    return outcome;
  }

  async *read(id: string, start = 0, end = Number.MAX_SAFE_INTEGER): AsyncIterable<Buffer> {
    if (end <= start) return;
    yield* createReadStream(this.#pathOf(id), { start, end: end - 1, highWaterMark: 256 * 1024 });
  }

  async addBatch(batch: StoredBatch): Promise<boolean> {
    return transaction(this.#database, () => {
      if (!this.#get('SELECT 1 AS one FROM files WHERE id = ? AND expires > ?', batch.input, nowSeconds()))
        return false;
      this.#run(
        'INSERT INTO batches (id, owner, status, input, is_over, record) VALUES (?, ?, ?, ?, 0, ?)',
        batch.id,
        batch.owner,
        batch.status,
        batch.input,
        JSON.stringify(batch),
      );
      return true;
    });
  }

  async batch(id: string): Promise<StoredBatch | undefined> {
    return this.#batch(id);
  }

  #batch(id: string): StoredBatch | undefined {
    const row = this.#get('SELECT record FROM batches WHERE id = ?', id) as Row | undefined;
    return row && (JSON.parse(row.record) as StoredBatch);
  }

  async batches(owner: string, query: PageQuery): Promise<Page<StoredBatch>> {
    return this.#page('batches', owner, query);
  }

  async update(id: string, change: (batch: StoredBatch) => StoredBatch | undefined): Promise<StoredBatch | undefined> {
    // Nothing else runs meanwhile: SQLite answers at once, and this process is the only one.
    const batch = this.#batch(id);
    const next = batch && change(batch);
    if (next) this.#save(next);
    return next ?? batch;
  }

  #save(batch: StoredBatch): void {
    const over = isOver(batch);
    this.#run(
      'UPDATE batches SET status = ?, is_over = ?, ended = ?, record = ? WHERE id = ?',
      batch.status,
      over ? 1 : 0,
      over ? nowSeconds() : null,
      JSON.stringify(batch),
      batch.id,
    );
  }

  async finish(batch: StoredBatch, from: BatchStatus, files: readonly StoredFile[]): Promise<boolean> {
    const done = transaction(this.#database, () => {
      if (this.#batch(batch.id)?.status !== from) return false;
      for (const file of files) this.#insertFile(file);
      this.#save(batch);
      this.#run('UPDATE batches SET chunks = NULL WHERE id = ?', batch.id);
      return true;
    });
    if (done) await this.#forgetResults(batch.id);
    return done;
  }

  /** Deletes the answers of a batch, a few at a time, so that other requests are not held up. */
  async #forgetResults(id: string): Promise<void> {
    for (;;) {
      const { changes } = this.#run(
        'DELETE FROM results WHERE batch = ? AND line < (SELECT min(line) FROM results WHERE batch = ?) + ?',
        id,
        id,
        LINES_AT_ONCE,
      );
      if (Number(changes) === 0) break;
      await setImmediate();
    }
    this.#counts.delete(id);
  }

  async unfinished(): Promise<string[]> {
    return (this.#all('SELECT id FROM batches WHERE is_over = 0 ORDER BY seq') as { id: string }[]).map(({ id }) => id);
  }

  async lease(id: string): Promise<Lease | undefined> {
    if (this.#leased.has(id)) return undefined;
    this.#leased.add(id);
    const release = async () => {
      this.#leased.delete(id);
    };
    return { lost: new AbortController().signal, release };
  }

  async setChunks(id: string, chunks: readonly Chunk[]): Promise<void> {
    this.#run('UPDATE batches SET chunks = ? WHERE id = ?', JSON.stringify(chunks), id);
  }

  async chunks(id: string): Promise<Chunk[]> {
    const row = this.#get('SELECT chunks FROM batches WHERE id = ?', id) as { chunks: string | null } | undefined;
    return row?.chunks ? (JSON.parse(row.chunks) as Chunk[]) : [];
  }

  async put(id: string, results: readonly LineResult[]): Promise<boolean> {
    const counts = this.#countsOf(id);
    // An answer that a power failure takes is computed again; waiting for the disk would hold up all other requests.
    this.#database.exec('PRAGMA synchronous = NORMAL');
    try {
      return transaction(this.#database, () => {
        const row = this.#get('SELECT status FROM batches WHERE id = ?', id) as { status: string } | undefined;
        if (row?.status !== 'in_progress') return false;
        for (const { line, isOk, text } of results) {
          const { changes } = this.#run(
            'INSERT OR IGNORE INTO results (batch, line, ok, text) VALUES (?, ?, ?, ?)',
            id,
            line,
            isOk ? 1 : 0,
            text,
          );
          if (Number(changes) > 0) counts[isOk ? 'completed' : 'failed']++;
        }
        return true;
      });
    } catch (error) {
      this.#counts.delete(id);
      throw error;
    } finally {
      this.#database.exec('PRAGMA synchronous = FULL');
    }
  }

  async results(id: string, first: number, count: number): Promise<(LineResult | undefined)[]> {
    const found = new Array<LineResult | undefined>(count).fill(undefined);
    const rows = this.#all(
      'SELECT line, ok, text FROM results WHERE batch = ? AND line >= ? AND line < ?',
      id,
      first,
      first + count,
    ) as { line: number; ok: number; text: string }[];
    for (const { line, ok, text } of rows) found[line - first] = { line, isOk: ok === 1, text };
    return found;
  }

  async answered(id: string, first: number, count: number): Promise<boolean[]> {
    const found = new Array<boolean>(count).fill(false);
    const rows = this.#all(
      'SELECT line FROM results WHERE batch = ? AND line >= ? AND line < ?',
      id,
      first,
      first + count,
    ) as { line: number }[];
    for (const { line } of rows) found[line - first] = true;
    return found;
  }

  async counts(id: string): Promise<Counts> {
    return { ...this.#countsOf(id) };
  }

  #countsOf(id: string): Counts {
    let counts = this.#counts.get(id);
    if (!counts) {
      const { total, ok } = this.#get(
        'SELECT count(*) AS total, coalesce(sum(ok), 0) AS ok FROM results WHERE batch = ?',
        id,
      ) as { total: number; ok: number };
      counts = { completed: ok, failed: total - ok };
      this.#counts.set(id, counts);
    }
    return counts;
  }

  async sweep(): Promise<void> {
    const now = nowSeconds();
    const expired = this.#all(
      'SELECT id FROM files WHERE expires <= ? AND id NOT IN (SELECT input FROM batches WHERE is_over = 0)',
      now,
    ) as { id: string }[];
    for (const { id } of expired) {
      this.#run('DELETE FROM files WHERE id = ?', id);
      await rm(this.#pathOf(id), { force: true });
    }
    this.#run('DELETE FROM batches WHERE is_over = 1 AND ended <= ?', now - KEEP_BATCH);
    // A process may have ended before it had forgotten all of them.
    const left = this.#all(
      'SELECT id FROM batches WHERE is_over = 1 AND EXISTS (SELECT 1 FROM results WHERE batch = batches.id)',
    ) as { id: string }[];
    for (const { id } of left) await this.#forgetResults(id);
  }

  async close(): Promise<void> {
    this.#statements.clear();
    // libsql keeps its file open until statements are collected: the lock has to be given up by hand, which is possible
    // without a write-ahead log only.
    this.#database.exec('PRAGMA journal_mode = DELETE; PRAGMA locking_mode = NORMAL');
    this.#database.prepare('SELECT count(*) AS files FROM files').get();
    this.#database.close();
  }

  /** Ids of files are generated here, and are the only names in the directory. */
  #pathOf(id: string): string {
    if (!/^file-[0-9a-f]{32}$/.test(id)) throw new Error('this is no id of a file');
    return path.join(this.#directory, 'files', id);
  }

  #statement(sql: string): Statement {
    let statement = this.#statements.get(sql);
    if (!statement) {
      statement = this.#database.prepare(sql);
      if (this.#statements.size < 100) this.#statements.set(sql, statement);
    }
    return statement;
  }

  #run(sql: string, ...values: (string | number | null)[]): { changes: number | bigint } {
    return this.#statement(sql).run(...values);
  }

  #get(sql: string, ...values: (string | number | null)[]): unknown {
    return this.#statement(sql).get(...values);
  }

  #all(sql: string, ...values: (string | number | null)[]): unknown[] {
    return this.#statement(sql).all(...values);
  }
}

/** Another process has the directory. */
export class DirectoryInUseError extends Error {
  constructor(directory: string, cause: unknown) {
    super(`the directory ${directory} is in use by another server: give each its own (--data)`, { cause });
    this.name = 'DirectoryInUseError';
  }
}

export function tooLarge(most: number): ApiError {
  return new ApiError(`The file is larger than ${most} bytes, which is the most that this server takes.`, {
    status: 413,
    code: 'file_too_large',
    param: 'file',
  });
}

export function noRoom(most: number): ApiError {
  return new ApiError(
    `The files on this server would be more than ${most} bytes: delete some, or wait until they expire.`,
    {
      status: 507,
      code: 'storage_full',
      param: 'file',
    },
  );
}

export function noSuchEntry(after: string): ApiError {
  return badRequest(`There is no entry with the id '${after.slice(0, 100)}' to list after.`, 'after', 'invalid_value');
}
