/** A text file that was given with a question. */
export interface TextFile {
  name: string;
  text: string;
}

/** A file that the model's code wrote, or the name of one that was too large to send. */
export interface ResultFile {
  name: string;
  mediaType: string;
  /** A data URL. */
  url?: string | undefined;
}

export interface TextPart {
  type: 'text';
  text: string;
}

export interface ToolPart {
  type: 'tool';
  id: string;
  name: string;
  /** JSON. */
  arguments: string;
  result?: { content: string; ok: boolean } | undefined;
}

export interface CodePart {
  type: 'code';
  id: string;
  code: string;
  result?: { status: string; text: string; files: ResultFile[]; tookMs?: number | undefined } | undefined;
}

/** What an answer is made of, in the order in which it came. */
export type Part = TextPart | ToolPart | CodePart;

export interface Usage {
  prompt: number;
  generated: number;
  cached?: number | undefined;
}

export interface Timings {
  firstTokenMs?: number | undefined;
  tokensPerSecond?: number | undefined;
}

/** What went wrong. The texts for people are made from it where it is shown. */
export interface Problem {
  kind: 'offline' | 'broken' | 'key' | 'context' | 'busy' | 'limit' | 'model' | 'stopping' | 'request' | 'server';
  /** The server's own words. */
  message?: string | undefined;
  /** Seconds after which another try may succeed. */
  retryAfter?: number | undefined;
}

/** A question, or an answer. Turns make a tree: an edited question and another answer are siblings. */
export interface Turn {
  id: string;
  /** '' for the first question. */
  parent: string;
  role: 'user' | 'assistant';
  created: number;
  parts: Part[];
  files?: TextFile[] | undefined;
  model?: string | undefined;
  /** Why the answer ended; none while it is written. */
  finish?: 'stop' | 'length' | 'stopped' | 'failed' | 'cut' | undefined;
  /** What a later question tells the model of an answer with steps, as the server wrote it. */
  messages?: unknown[] | undefined;
  usage?: Usage | undefined;
  timings?: Timings | undefined;
  problem?: Problem | undefined;
}

/** What the list shows of a conversation. */
export interface Summary {
  id: string;
  title: string;
  created: number;
  updated: number;
}

/** A conversation. */
export interface Chat extends Summary {
  /** Whether somebody gave the title, so that it is not made from the first question. */
  isNamed: boolean;
  system: string;
  model?: string | undefined;
  turns: Record<string, Turn>;
  /** Which child of a turn is shown; '' for the first questions. */
  chosen: Record<string, string>;
  /** The question with which begins what the model is told: those before it were left out, as the context was full. */
  from?: string | undefined;
}
