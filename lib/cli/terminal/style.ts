/** How a piece of text stands out. */
export type Style = 'plain' | 'bold' | 'dim' | 'code';

const codes: Readonly<Record<Exclude<Style, 'plain'>, readonly [on: number, off: number]>> = {
  bold: [1, 22],
  dim: [2, 22],
  code: [36, 39],
};

/** Text between the escape sequences of a style; as it is where there are no colours. */
export function styled(text: string, style: Style, hasColors: boolean): string {
  if (!hasColors || style === 'plain' || text === '') return text;
  const [on, off] = codes[style];
  return `\x1b[${on}m${text}\x1b[${off}m`;
}

/**
 * Whether a stream gets colours: a terminal does, unless NO_COLOR is set to something or TERM is dumb. FORCE_COLOR decides
 * over both, as it does in Node: `0` and `false` turn colours off, anything else on, also where there is no terminal.
 */
export function hasColors(stream: { isTTY?: boolean }, env: NodeJS.ProcessEnv = process.env): boolean {
  const forced = env.FORCE_COLOR;
  if (forced !== undefined) return forced !== '0' && forced !== 'false';
  return stream.isTTY === true && !env.NO_COLOR && env.TERM !== 'dumb';
}
