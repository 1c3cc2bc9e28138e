import { basename } from 'node:path';
import { ChatGLMError, type ErrorDetails } from './errors.js';

/** A checkpoint's file is damaged or of a kind that cannot be read. The message begins with the file's name. */
export function invalid(file: string, problem: string, details: ErrorDetails = {}, cause?: unknown): ChatGLMError {
  return new ChatGLMError('ERR_CHECKPOINT_INVALID', `${basename(file)}: ${problem}`, { file, ...details }, cause);
}

export function invalidTensor(file: string, tensor: string, problem: string): ChatGLMError {
  return invalid(file, `tensor ${shown(tensor)} ${problem}`, { tensor: shown(tensor) });
}

/** Text from a file as a message may show it: short, without control characters. */
export function shown(text: string): string {
  const clean = text.replace(/[\p{Cc}\p{Cs}]/gu, '?');
  return clean.length > 100 ? `${clean.slice(0, 100)}…` : clean;
}
