/** A piece of a prompt: a text, which is encoded on its own, or a special token by its text. */
export type PromptPart = string | { readonly token: string };

/** How many UTF-16 units all texts of a prompt have: what the tokens of a prompt are at least estimated from. */
export function promptLength(parts: readonly PromptPart[]): number {
  return parts.reduce((sum, part) => sum + (typeof part === 'string' ? part.length : 0), 0);
}

/**
 * The ids of a prompt. Only `part.token` gives special ids: whatever a user's text looks like, `encode` knows pieces only.
 *
 * @param encode Ids of a text on its own: dummy prefix included, special tokens never.
 * @param idOf The id of a special token.
 */
export function promptIds(
  parts: readonly PromptPart[],
  encode: (text: string) => ArrayLike<number>,
  idOf: (token: string) => number,
): number[] {
  const ids: number[] = [];
  for (const part of parts) {
    if (typeof part !== 'string') {
      ids.push(idOf(part.token));
      continue;
    }
    const encoded = encode(part);
    // Not push(...encoded): a long document has more ids than a call may have arguments.
    for (let i = 0; i < encoded.length; i++) ids.push(encoded[i] as number);
  }
  return ids;
}
