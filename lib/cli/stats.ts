import type { ChatReply } from '../index.js';
import { formatMilliseconds, significant } from './format.js';

/** What `--stats` prints. */
export function statsLine({ usage, timings }: Pick<ChatReply, 'usage' | 'timings'>): string {
  const cached = usage.cachedTokens > 0 ? `, ${usage.cachedTokens} of them cached` : '';
  return [
    `[prompt: ${usage.promptTokens} tokens${cached}, ${significant(timings.prefillTokensPerSecond)} tokens/s`,
    `first token after ${formatMilliseconds(timings.firstTokenMs)}`,
    `answer: ${usage.generatedTokens} tokens, ${significant(timings.decodeTokensPerSecond)} tokens/s]`,
  ].join('; ');
}
