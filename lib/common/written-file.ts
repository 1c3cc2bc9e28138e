/** A file that is complete. */
export interface WrittenFile {
  /** Its absolute path. */
  path: string;
  /** Its size. */
  bytes: number;
}
