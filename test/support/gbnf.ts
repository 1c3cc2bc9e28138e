// GBNF for tests: a parser of the subset that the native matcher reads, random sentences, and a recognizer.

export type Node =
  | { kind: 'literal'; points: number[] }
  | { kind: 'class'; ranges: [number, number][]; isNegated: boolean }
  | { kind: 'sequence'; items: Node[] }
  | { kind: 'choice'; items: Node[] }
  | { kind: 'repeat'; item: Node; least: number; most: number }
  | { kind: 'rule'; name: string };

export type Rules = Map<string, Node>;

/** Reads a grammar; throws for what is none, and for rules that are missing. */
export function parseGbnf(text: string): Rules {
  const rules: Rules = new Map();
  let at = 0;
  const fail = (what: string): never => {
    throw new Error(`${what} at ${at}: ${JSON.stringify(text.slice(at, at + 40))}`);
  };
  const space = (withBreaks: boolean) => {
    for (;;) {
      if (text[at] === '#') while (at < text.length && text[at] !== '\n') at++;
      const isSpace = text[at] === ' ' || text[at] === '\t' || (withBreaks && /[\r\n]/.test(text[at] ?? ''));
      if (!isSpace) return;
      at++;
    }
  };
  const take = (pattern: RegExp): string => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0] ?? fail(String(pattern));
    at += found.length;
    return found;
  };
  const point = (): number => {
    if (text[at] !== '\\') {
      const found = text.codePointAt(at) ?? fail('a character');
      at += found > 0xffff ? 2 : 1;
      return found;
    }
    const taken = take(/\\(?:["\\nrt\][^-]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})/y);
    const letter = taken.charAt(1);
    if ('xuU'.includes(letter)) return Number.parseInt(taken.slice(2), 16);
    return ({ n: '\n', r: '\r', t: '\t' }[letter] ?? letter).charCodeAt(0);
  };
  const primary = (): Node => {
    if (text[at] === '"') {
      at++;
      const points: number[] = [];
      while (text[at] !== '"') {
        if (at >= text.length || text[at] === '\n') fail('the end of a literal');
        points.push(point());
      }
      at++;
      return { kind: 'literal', points };
    }
    if (text[at] === '[') {
      at++;
      const isNegated = text[at] === '^';
      if (isNegated) at++;
      const ranges: [number, number][] = [];
      while (text[at] !== ']') {
        if (at >= text.length) fail('the end of a class');
        const first = point();
        if (text[at] === '-' && text[at + 1] !== ']') {
          at++;
          ranges.push([first, point()]);
        } else {
          ranges.push([first, first]);
        }
      }
      at++;
      return { kind: 'class', ranges, isNegated };
    }
    if (text[at] === '.') {
      at++;
      return { kind: 'class', ranges: [], isNegated: true };
    }
    if (text[at] === '(') {
      at++;
      space(true);
      const inner = choice(true);
      space(true);
      if (text[at] !== ')') fail('a parenthesis');
      at++;
      return inner;
    }
    return { kind: 'rule', name: take(/[a-zA-Z][a-zA-Z0-9-]*/y) };
  };
  const sequence = (inGroup: boolean): Node => {
    const items: Node[] = [];
    for (space(inGroup); at < text.length && !/[|)\r\n]/.test(text.charAt(at)); space(inGroup)) {
      let item = primary();
      if (/[*+?{]/.test(text[at] ?? '')) {
        const count = take(/[*+?]|\{\d+(?:,\d*)?\}/y);
        const [, low, comma, high] = /\{(\d+)(,?)(\d*)\}/.exec(count) ?? [];
        const least = low === undefined ? (count === '+' ? 1 : 0) : Number(low);
        let most = count === '?' ? 1 : Number.POSITIVE_INFINITY;
        if (low !== undefined) most = comma === '' ? least : high === '' ? most : Number(high);
        if (most < least) fail('a count');
        item = { kind: 'repeat', item, least, most };
        if (/[*+?{]/.test(text[at] ?? '')) fail('one postfix only');
      }
      items.push(item);
    }
    return items.length === 1 ? (items[0] as Node) : { kind: 'sequence', items };
  };
  const choice = (inGroup: boolean): Node => {
    const items = [sequence(inGroup)];
    while (text[at] === '|') {
      at++;
      space(true);
      items.push(sequence(inGroup));
    }
    return items.length === 1 ? (items[0] as Node) : { kind: 'choice', items };
  };
  for (space(true); at < text.length; space(true)) {
    const name = take(/[a-zA-Z][a-zA-Z0-9-]*/y);
    space(false);
    take(/::=/y);
    if (rules.has(name)) fail(`${name} twice`);
    rules.set(name, choice(false));
  }
  const check = (node: Node): void => {
    if (node.kind === 'rule' && !rules.has(node.name)) throw new Error(`no rule ${node.name}`);
    if ('items' in node) node.items.forEach(check);
    if ('item' in node) check(node.item);
  };
  for (const node of rules.values()) check(node);
  if (!rules.has('root')) throw new Error('no rule root');
  return rules;
}

/** Numbers from 0 up to 1 that are the same for the same seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const SPECIAL = Array.from(
  'aZ09 _-"\'\\/<>{}[]:,.\n\t\0\x1f\x7fé你好😀\u2028\ufeff\u{10ffff}',
  (it) => it.codePointAt(0) as number,
);

/** Makes random sentences of a grammar. */
export function sentences(rules: Rules, random: () => number): (size: number) => string {
  // The length of the shortest sentence of each rule.
  const shortest = new Map<string, number>();
  const cost = (node: Node): number => {
    switch (node.kind) {
      case 'literal':
        return node.points.length;
      case 'class':
        return 1;
      case 'rule':
        return (shortest.get(node.name) ?? Number.POSITIVE_INFINITY) + 0.001;
      case 'sequence':
        return node.items.reduce((sum, item) => sum + cost(item), 0);
      case 'choice':
        return Math.min(...node.items.map(cost));
      case 'repeat':
        return node.least === 0 ? 0 : node.least * cost(node.item);
    }
  };
  for (let changed = true; changed; ) {
    changed = false;
    for (const [name, node] of [...rules].reverse()) {
      const found = cost(node);
      if (found >= (shortest.get(name) ?? Number.POSITIVE_INFINITY)) continue;
      shortest.set(name, found);
      changed = true;
    }
  }
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)] as T;
  const isIn = ({ ranges, isNegated }: Node & { kind: 'class' }, point: number) =>
    ranges.some(([first, last]) => point >= first && point <= last) !== isNegated;
  const pointOf = (node: Node & { kind: 'class' }): number => {
    const fitting = SPECIAL.filter((point) => isIn(node, point));
    if (node.isNegated || (fitting.length > 0 && random() < 0.3)) {
      for (let tries = 0; tries < 20 && random() < 0.7; tries++) {
        const point = 0x20 + Math.floor(random() * 0x5f);
        if (isIn(node, point)) return point;
      }
      return pick(fitting);
    }
    for (;;) {
      const [first, last] = pick(node.ranges);
      const point = first + Math.floor(random() * (last - first + 1));
      if (point < 0xd800 || point > 0xdfff) return point;
    }
  };
  return (size) => {
    let left = size;
    const parts: string[] = [];
    // What is still to be written, last first: sentences may be deeper than the stack.
    const stack: Node[] = [{ kind: 'rule', name: 'root' }];
    for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
      left--;
      if (node.kind === 'literal') parts.push(String.fromCodePoint(...node.points));
      else if (node.kind === 'class') parts.push(String.fromCodePoint(pointOf(node)));
      else if (node.kind === 'rule') stack.push(rules.get(node.name) as Node);
      else if (node.kind === 'sequence') stack.push(...[...node.items].reverse());
      else if (node.kind === 'choice') {
        const costs = node.items.map(cost);
        const least = Math.min(...costs);
        stack.push(
          pick(node.items.filter((_, at) => (left > 0 ? costs[at] !== Number.POSITIVE_INFINITY : costs[at] === least))),
        );
      } else {
        const { item, least, most } = node;
        if (least > 0) {
          // One at a time, so that what is left is known by then.
          stack.push({ kind: 'repeat', item, least: least - 1, most: most - 1 }, item);
        } else if (most > 0 && left > 0 && random() < 0.7 && cost(item) !== Number.POSITIVE_INFINITY) {
          stack.push({ kind: 'repeat', item, least: 0, most: most - 1 }, item);
        }
      }
    }
    return parts.join('');
  };
}

interface Stack {
  id: number;
  top: Node;
  below: Stack | undefined;
}

/** Tells whether texts belong to a grammar: all ways to read the text are followed at once. */
export function recognizer(rules: Rules): (text: string) => boolean {
  const nodeIds = new Map<Node, number>();
  const idOf = (node: Node) => {
    let id = nodeIds.get(node);
    if (id === undefined) {
      id = nodeIds.size;
      nodeIds.set(node, id);
    }
    return id;
  };
  const repeats = new Map<string, Node>();
  const repeatOf = (item: Node, least: number, most: number): Node => {
    const key = `${idOf(item)} ${least} ${most}`;
    let node = repeats.get(key);
    if (node === undefined) {
      node = { kind: 'repeat', item, least, most };
      repeats.set(key, node);
    }
    return node;
  };
  const suffixes = new Map<string, Node>();
  const suffixOf = (node: Node & { kind: 'literal' }): Node => {
    const key = node.points.slice(1).join();
    let found = suffixes.get(key);
    if (found === undefined) {
      found = { kind: 'literal', points: node.points.slice(1) };
      suffixes.set(key, found);
    }
    return found;
  };
  return (text) => {
    const known = new Map<string, Stack>();
    const push = (top: Node, below: Stack | undefined): Stack => {
      const key = `${idOf(top)} ${below?.id ?? -1}`;
      let stack = known.get(key);
      if (stack === undefined) {
        stack = { id: known.size, top, below };
        known.set(key, stack);
      }
      return stack;
    };
    /** Stacks whose top reads a character, and whether the text may end here. */
    const expanded = (from: (Stack | undefined)[]): { ready: Set<Stack>; mayEnd: boolean } => {
      const ready = new Set<Stack>();
      let mayEnd = false;
      const seen = new Set<Stack>();
      const waiting = [...from];
      while (waiting.length > 0) {
        const stack = waiting.pop();
        if (stack === undefined) {
          mayEnd = true;
          continue;
        }
        if (seen.has(stack)) continue;
        seen.add(stack);
        if (seen.size > 100_000) throw new Error('left recursion, or far too many ways');
        const { top, below } = stack;
        if (top.kind === 'class' || (top.kind === 'literal' && top.points.length > 0)) ready.add(stack);
        else if (top.kind === 'literal') waiting.push(below);
        else if (top.kind === 'rule') waiting.push(push(rules.get(top.name) as Node, below));
        else if (top.kind === 'choice') for (const item of top.items) waiting.push(push(item, below));
        else if (top.kind === 'sequence') {
          waiting.push(top.items.reduceRight<Stack | undefined>((under, item) => push(item, under), below));
        } else {
          const { item, least, most } = top;
          if (least === 0) waiting.push(below);
          if (most > 0) waiting.push(push(item, push(repeatOf(item, Math.max(0, least - 1), most - 1), below)));
        }
      }
      return { ready, mayEnd };
    };
    let now = expanded([push({ kind: 'rule', name: 'root' }, undefined)]);
    for (const char of text) {
      const point = char.codePointAt(0) as number;
      const next: (Stack | undefined)[] = [];
      for (const { top, below } of now.ready) {
        if (top.kind === 'literal' && top.points[0] === point) {
          next.push(top.points.length === 1 ? below : push(suffixOf(top), below));
        } else if (top.kind === 'class') {
          const isIn = top.ranges.some(([first, last]) => point >= first && point <= last);
          if (isIn !== top.isNegated) next.push(below);
        }
      }
      if (next.length === 0) return false;
      now = expanded(next);
    }
    return now.mayEnd;
  };
}
