import type { Typed } from './quoted.js';

/** Where a chat's messages come from: a terminal, a pipe or a file. */
export interface ChatInput {
  /** Whether somebody sits at a terminal. */
  readonly isInteractive: boolean;
  /**
   * The next message, or undefined when there is none any more.
   *
   * @param prompt What stands before it.
   * @param initial What may be edited. Default: nothing.
   */
  next(prompt: string, initial?: string): Promise<Typed | undefined>;
  /** Asks a question that is answered by y or n; where nobody can be asked, the answer is no. */
  confirm(question: string): Promise<boolean>;
  /** Gives the terminal back. */
  close(): void;
}
