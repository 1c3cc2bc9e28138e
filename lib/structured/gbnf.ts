/** A part of GBNF that is no name of a rule: a literal, a class, a comment, the id of a token; or a name. */
const PART = /"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*|<\[\d+\]>|[A-Za-z_][\w-]*/gs;

/**
 * A grammar whose rules have other names, so that it can be a part of another one.
 *
 * @param prefix What comes before each name.
 */
export function renameRules(grammar: string, prefix: string): string {
  return grammar.replaceAll(PART, (part) => (/^[A-Za-z_]/.test(part) ? prefix + part : part));
}
