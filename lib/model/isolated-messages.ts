import type { NativeError, NativeEvent, NativeModelSpec, NativeModelStats, NativeRequest } from '../addon/native.js';
import type { TokenizerData } from '../tokenizer/data.js';

// What an isolated model's parent and its process tell each other.

/** What the parent asks of the child. Numbers are the parent's. */
export type IsolatedCall =
  | { call: 'load'; spec: NativeModelSpec; tokenizer: TokenizerData | undefined }
  | { call: 'submit'; number: number; request: NativeRequest }
  | { call: 'cancel' | 'release'; number: number }
  | { call: 'importPages'; number: number; tokens: Uint32Array }
  | { call: 'readPages'; number: number; pin: number; first: number; count: number }
  | { call: 'writePages'; number: number; pin: number; first: number; data: Uint8Array }
  | { call: 'clearCache' | 'dispose' };

/** What the child tells. */
export interface IsolatedReport {
  events: NativeEvent[];
  stats: NativeModelStats | undefined;
}

/** The event that ends a request, or a call for pages, with an error. */
export function endOf(request: number, kind: 'request' | 'pages', error: NativeError): NativeEvent {
  return kind === 'request'
    ? { type: 'error', request, error }
    : { type: 'pages', request, data: new Uint8Array(), error };
}
