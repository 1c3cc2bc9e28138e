import { basename } from 'node:path';
import { ChatGLMError, type ErrorDetails } from './errors.js';

/** A checkpoint's file is damaged or of a kind that cannot be read. The message begins with the file's name. */
export function invalid(file: string, problem: string, details: ErrorDetails = {}, cause?: unknown): ChatGLMError {
  const name = shown(basename(file));
  return new ChatGLMError('ERR_CHECKPOINT_INVALID', `${name}: ${problem}`, { file, ...details }, cause);
}

export function invalidTensor(file: string, tensor: string, problem: string): ChatGLMError {
  return invalid(file, `tensor ${shown(tensor)} ${problem}`, { tensor: shown(tensor) });
}

/** Characters of a text or value from a file that a message shows. */
const SHOWN_LENGTH = 100;

/** A value from a file as a message may show it: short, plain text, and without running any code of it. */
export function shown(value: unknown): string {
  if (typeof value === 'string') {
    const clean = plainText(value.slice(0, SHOWN_LENGTH));
    return value.length > SHOWN_LENGTH ? `${clean}…` : clean;
  }
  if (Array.isArray(value)) return 'an array';
  // An object from JSON may have a field toString that is no function.
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}

/**
 * The text without what a terminal or a log would obey instead of showing it: control characters, which begin escape
 * sequences, changes of the writing direction, line separators, and halves of characters.
 */
export function plainText(text: string): string {
  return text.replace(/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, '?');
}
