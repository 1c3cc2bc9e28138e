import { createRequire } from 'node:module';

/** What this package uses of SQLite. Node's own and better-sqlite3's interfaces both have it. */
export interface Database {
  exec(sql: string): void;
  prepare(sql: string): Statement;
  close(): void;
}

export interface Statement {
  run(...values: Value[]): { changes: number | bigint };
  get(...values: Value[]): unknown;
  all(...values: Value[]): unknown[];
}

type Value = string | number | null;

/** Opens a file: by `node:sqlite` where Node has it, by the package `libsql` elsewhere. */
export function openDatabase(file: string): Database {
  const builtin = process.getBuiltinModule?.('node:sqlite') as
    | { DatabaseSync: new (file: string) => Database }
    | undefined;
  if (builtin) return new builtin.DatabaseSync(file);
  const Libsql = loadLibsql();
  return new Libsql(file);
}

function loadLibsql(): new (file: string) => Database {
  try {
    return createRequire(__filename)('libsql') as new (
      file: string,
    ) => Database;
  } catch (cause) {
    throw new Error(
      `batches need SQLite: Node 22.13 and newer have it, ${process.version} needs the package libsql (npm install libsql)`,
      { cause },
    );
  }
}

/** Runs a function between BEGIN and COMMIT. */
export function transaction<T>(database: Database, run: () => T): T {
  database.exec('BEGIN IMMEDIATE');
  try {
    const result = run();
    database.exec('COMMIT');
    return result;
  } catch (error) {
    database.exec('ROLLBACK');
    throw error;
  }
}
