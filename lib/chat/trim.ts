import type { ChatMessage } from '../families/messages.js';

/** A conversation that was made to fit. */
export interface Trimmed {
  /** What is left: the same objects, in their order. */
  messages: ChatMessage[];
  /** How many messages were left out. */
  dropped: number;
  /** Whether what is left fits. If not, the system message and the last question alone are too long. */
  fits: boolean;
}

/**
 * Leaves out the oldest rounds of a conversation until its prompt fits. A round is a user message and all that follows up to
 * the next one, so that calls of tools and what the tools gave go with their question. The system messages that begin the
 * conversation stay, and so does the last round. As few rounds as possible are dropped: none while the conversation fits.
 *
 * @param tokensOf How many tokens the prompt of messages has. It is called for one candidate after another, as in a binary
 *   search: a number that does not grow with the messages may drop a round too much, never one too few.
 * @param limit How many tokens the prompt may have.
 */
export function dropOldestRounds(
  messages: readonly ChatMessage[],
  tokensOf: (messages: readonly ChatMessage[]) => number,
  limit: number,
): Trimmed {
  const afterSystem = messages.findIndex(({ role }) => role !== 'system');
  const begin = afterSystem < 0 ? messages.length : afterSystem;
  const system = messages.slice(0, begin);
  // Where a candidate may begin: first with nothing dropped, last with the last round alone.
  const starts = [begin];
  for (let index = begin + 1; index < messages.length; index++) {
    if (messages[index]?.role === 'user') starts.push(index);
  }
  const candidate = (round: number) => [...system, ...messages.slice(starts[round])];
  const fits = (round: number) => tokensOf(candidate(round)) <= limit;
  const result = (round: number, isFitting: boolean): Trimmed => {
    const kept = candidate(round);
    return { messages: kept, dropped: messages.length - kept.length, fits: isFitting };
  };

  if (fits(0)) return result(0, true);
  const last = starts.length - 1;
  if (last === 0 || !fits(last)) return result(last, false);
  // `tooLong` does not fit, `short` does.
  let tooLong = 0;
  let short = last;
  while (short - tooLong > 1) {
    const middle = (short + tooLong) >> 1;
    if (fits(middle)) short = middle;
    else tooLong = middle;
  }
  return result(short, true);
}
