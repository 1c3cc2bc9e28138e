const wideOutsideEmoji =
  /[\u1100-\u115f\u2329\u232a\u2e80-\u303e\u3041-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\ufe10-\ufe19\ufe30-\ufe6f\uff01-\uff60\uffe0-\uffe6\u{16fe0}-\u{18aff}\u{1aff0}-\u{1b2ff}\u{1f200}-\u{1f265}\u{20000}-\u{3fffd}]/u;
const wideEmoji = /\p{Emoji_Presentation}/u;
const regionalIndicator = /\p{Regional_Indicator}/u;
const zeroWidth = /[\p{Mn}\p{Me}\p{Cf}\u1160-\u11ff]/u;

/**
 * How many columns a terminal shows a text in. Characters count one by one, as wcwidth() has it and most terminals do: what
 * is joined to one emoji takes the columns of its parts.
 */
export function displayWidth(text: string): number {
  let width = 0;
  for (const char of text) width += charWidth(char);
  return width;
}

function charWidth(char: string): number {
  const code = char.codePointAt(0) as number;
  if (code >= 0x20 && code < 0x7f) return 1;
  if (code === 0xad) return 1;
  if (zeroWidth.test(char)) return 0;
  return isWide(char) ? 2 : 1;
}

/** Whether a character, such as 中 or 👋, takes two columns. */
export function isWide(char: string): boolean {
  return wideOutsideEmoji.test(char) || (wideEmoji.test(char) && !regionalIndicator.test(char));
}

const graphemes = new Intl.Segmenter(undefined, { granularity: 'grapheme' });

/** The characters as people count them: a letter with its accents, or a joined emoji, is one. */
export function splitGraphemes(text: string): string[] {
  return Array.from(graphemes.segment(text), ({ segment }) => segment);
}

/** Text cut to so many columns, with an ellipsis where something is missing. */
export function cutToWidth(text: string, columns: number): string {
  if (displayWidth(text) <= columns) return text;
  let width = 0;
  let cut = '';
  for (const grapheme of splitGraphemes(text)) {
    width += displayWidth(grapheme);
    if (width > columns - 1) break;
    cut += grapheme;
  }
  return `${cut}…`;
}
