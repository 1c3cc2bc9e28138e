// Regular languages over code points: expressions, and the deterministic automata that intersect and subtract them. Sizes
// are bounded: a schema comes from outside, and an automaton may be exponentially larger than its expression.
import { ALL_CHARS, type CharSet, charsOf, includes, intersect, subtract, union } from './char-set.js';

/**
 * A regular expression. `rest` is any text, and an automaton the texts that it accepts: both stand only at the very end.
 * `start` and `end` are the anchors. A lookahead is for `withoutLookaheads()`, which puts an automaton in its place.
 */
export type Regex =
  | { readonly kind: 'chars'; readonly set: CharSet }
  | { readonly kind: 'sequence'; readonly items: readonly Regex[] }
  | { readonly kind: 'choice'; readonly items: readonly Regex[] }
  | { readonly kind: 'repeat'; readonly item: Regex; readonly least: number; readonly most: number }
  | { readonly kind: 'start' | 'end' | 'rest' }
  | { readonly kind: 'automaton'; readonly automaton: Automaton }
  | { readonly kind: 'ahead'; readonly body: Regex; readonly isNegated: boolean };

export const chars = (set: CharSet): Regex => ({ kind: 'chars', set });
export const sequence = (...items: Regex[]): Regex => ({ kind: 'sequence', items });
export const choice = (...items: Regex[]): Regex => ({ kind: 'choice', items });
export const repeat = (item: Regex, least: number, most = Number.POSITIVE_INFINITY): Regex => ({
  kind: 'repeat',
  item,
  least,
  most,
});
export const optional = (item: Regex): Regex => repeat(item, 0, 1);
export const text = (literal: string): Regex => sequence(...Array.from(literal, (char) => chars(charsOf(char))));
export const ANYTHING: Regex = repeat(chars(ALL_CHARS), 0);

/** Whether the text has no halves of surrogate pairs, which no UTF-8 text has. */
export function isWellFormed(literal: string): boolean {
  return !/\p{Cs}/u.test(literal);
}

/** An automaton, or an expression with its repetitions written out, would be too large. */
export class TooLarge extends Error {}

/** States of one automaton; more are no use to a model's answer, and each costs a line of the grammar. */
const MOST_STATES = 3000;

/** What the automata of one grammar may cost together, in steps of their construction. */
export class Budget {
  #left = 3_000_000;

  spend(steps: number): void {
    this.#left -= steps;
    if (this.#left < 0) throw new TooLarge();
  }
}

interface Edge {
  set: CharSet;
  to: number;
}

interface State {
  accepts: boolean;
  /** Sets of one state's edges have nothing in common. */
  edges: Edge[];
}

/** A deterministic automaton. State 0 is where it begins; characters without an edge lead nowhere. */
export class Automaton {
  private constructor(readonly states: readonly State[]) {}

  /** The automaton of an expression; of texts that it matches as a whole. */
  static of(regex: Regex, budget: Budget): Automaton {
    const nfa = new Nfa(budget);
    const end = nfa.state();
    const start = nfa.state();
    nfa.add(regex, start, end);
    return new Automaton(determine(nfa, start, end, budget)).#trimmed();
  }

  /** The automaton of some texts, or of all texts but those. */
  static ofTexts(texts: Iterable<string>, budget: Budget, isInverted = false): Automaton {
    const nodes: { accepts: boolean; next: Map<string, number> }[] = [{ accepts: false, next: new Map() }];
    for (const literal of texts) {
      if (!isWellFormed(literal)) continue;
      let at = 0;
      for (const char of literal) {
        const node = nodes[at] as (typeof nodes)[number];
        let next = node.next.get(char);
        if (next === undefined) {
          budget.spend(8);
          next = nodes.push({ accepts: false, next: new Map() }) - 1;
          node.next.set(char, next);
        }
        at = next;
      }
      (nodes[at] as (typeof nodes)[number]).accepts = true;
    }
    const free = nodes.length;
    const states: State[] = nodes.map(({ accepts, next }) => {
      const edges: Edge[] = Array.from(next, ([char, to]) => ({ set: charsOf(char), to }));
      if (isInverted) edges.push({ set: subtract(ALL_CHARS, charsOf([...next.keys()].join(''))), to: free });
      return { accepts: accepts !== isInverted, edges };
    });
    if (isInverted) states.push({ accepts: true, edges: [{ set: ALL_CHARS, to: free }] });
    return new Automaton(states).#trimmed();
  }

  /** Multiples of `divisor` in decimal digits, with a sign or without one; other texts may be accepted, too. */
  static ofMultiples(divisor: number, budget: Budget): Automaton {
    if (divisor > MOST_STATES) throw new TooLarge();
    budget.spend(divisor * 10);
    const states: State[] = [];
    for (let rest = 0; rest < divisor; rest++) {
      const edges = new Map<number, CharSet>();
      for (let digit = 0; digit < 10; digit++) {
        const to = (rest * 10 + digit) % divisor;
        edges.set(to, union(edges.get(to) ?? [], charsOf(String(digit))));
      }
      if (rest === 0) edges.set(0, union(edges.get(0) ?? [], charsOf('-')));
      states.push({ accepts: rest === 0, edges: Array.from(edges, ([to, set]) => ({ set, to })) });
    }
    return new Automaton(states);
  }

  and(other: Automaton, budget: Budget): Automaton {
    return this.#with(other, budget, 'and');
  }

  without(other: Automaton, budget: Budget): Automaton {
    return this.#with(other, budget, 'without');
  }

  or(other: Automaton, budget: Budget): Automaton {
    return this.#with(other, budget, 'or');
  }

  /** The same texts with `char` before each. */
  after(char: string): Automaton {
    const moved = this.states.map(({ accepts, edges }) => ({
      accepts,
      edges: edges.map(({ set, to }) => ({ set, to: to + 1 })),
    }));
    return new Automaton([{ accepts: false, edges: [{ set: charsOf(char), to: 1 }] }, ...moved]).#trimmed();
  }

  get isEmpty(): boolean {
    return this.states.length === 1 && !this.states[0]?.accepts;
  }

  accepts(literal: string): boolean {
    let at = 0;
    for (const char of literal) {
      const point = char.codePointAt(0) as number;
      const edge = this.states[at]?.edges.find(({ set }) => includes(set, point));
      if (edge === undefined) return false;
      at = edge.to;
    }
    return this.states[at]?.accepts ?? false;
  }

  /** Code points of the shortest text; Infinity where there is none. */
  get shortest(): number {
    const seen = new Set([0]);
    let front = [0];
    for (let length = 0; front.length > 0; length++) {
      if (front.some((at) => this.states[at]?.accepts)) return length;
      const next = front.flatMap((at) => this.states[at]?.edges.map(({ to }) => to) ?? []);
      front = [...new Set(next)].filter((to) => !seen.has(to));
      for (const to of front) seen.add(to);
    }
    return Number.POSITIVE_INFINITY;
  }

  /** Code points of the longest text; Infinity where there is no end to them. */
  get longest(): number {
    if (hasCircle(this.states)) return Number.POSITIVE_INFINITY;
    const lengths = new Array<number>(this.states.length).fill(0);
    for (const at of postorder(this.states)) {
      // In a postorder every edge leads to a state before.
      for (const { to } of this.states[at]?.edges ?? []) {
        lengths[at] = Math.max(lengths[at] as number, (lengths[to] as number) + 1);
      }
    }
    return lengths[0] as number;
  }

  #with(other: Automaton, budget: Budget, how: 'and' | 'without' | 'or'): Automaton {
    const NOWHERE = -1;
    const numbers = new Map<string, number>();
    const waiting: [number, number][] = [];
    const numberOf = (a: number, b: number) => {
      const key = `${a} ${b}`;
      let found = numbers.get(key);
      if (found === undefined) {
        found = waiting.push([a, b]) - 1;
        numbers.set(key, found);
        if (found > 4 * MOST_STATES) throw new TooLarge();
      }
      return found;
    };
    numberOf(0, 0);
    const states: State[] = [];
    for (let at = 0; at < waiting.length; at++) {
      const [a, b] = waiting[at] as [number, number];
      const [mine, theirs] = [this.states[a], other.states[b]];
      const [x, y] = [mine?.accepts ?? false, theirs?.accepts ?? false];
      const targets = new Map<number, CharSet>();
      const lead = (set: CharSet, toA: number, toB: number) => {
        if (set.length === 0) return;
        const to = numberOf(toA, toB);
        targets.set(to, union(targets.get(to) ?? [], set));
      };
      let free = how === 'or' ? (theirs?.edges ?? []) : [];
      for (const { set, to } of mine?.edges ?? []) {
        let rest = set;
        for (const edge of theirs?.edges ?? []) {
          budget.spend(1 + edge.set.length / 8);
          const common = intersect(rest, edge.set);
          if (common.length === 0) continue;
          lead(common, to, edge.to);
          rest = subtract(rest, common);
        }
        if (how !== 'and') lead(rest, to, NOWHERE);
        if (how === 'or') free = free.map((edge) => ({ set: subtract(edge.set, set), to: edge.to }));
      }
      for (const edge of free) lead(edge.set, NOWHERE, edge.to);
      const accepts = how === 'and' ? x && y : how === 'or' ? x || y : x && !y;
      states.push({ accepts, edges: Array.from(targets, ([to, set]) => ({ set, to })) });
    }
    return new Automaton(states).#trimmed();
  }

  /** The same language without states that lead to no text's end, and with states that are alike made one. */
  #trimmed(): Automaton {
    const order = postorder(this.states);
    const alive = new Set<number>();
    // Backwards from the states that accept.
    const sources: number[][] = this.states.map(() => []);
    for (const at of order) for (const { to } of this.states[at]?.edges ?? []) sources[to]?.push(at);
    const waiting = order.filter((at) => this.states[at]?.accepts);
    for (const at of waiting) alive.add(at);
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      for (const source of sources[at] as number[]) {
        if (alive.has(source)) continue;
        alive.add(source);
        waiting.push(source);
      }
    }
    if (!alive.has(0)) return new Automaton([{ accepts: false, edges: [] }]);
    // States whose ways on are alike: in one pass, which finds all of them but those on circles.
    const same = new Map<number, number>();
    const known = new Map<string, number>();
    for (const at of order) {
      if (!alive.has(at)) continue;
      const targets = new Map<number, CharSet>();
      for (const { set, to } of this.states[at]?.edges ?? []) {
        if (!alive.has(to)) continue;
        const target = to === at ? -1 : (same.get(to) ?? to);
        targets.set(target, union(targets.get(target) ?? [], set));
      }
      const ways = Array.from(targets, ([to, set]) => `${to}:${set.join()}`).sort();
      const key = `${this.states[at]?.accepts} ${ways.join(';')}`;
      const found = known.get(key);
      if (found === undefined) known.set(key, at);
      else same.set(at, found);
    }
    const kept = [...alive].filter((at) => !same.has(at)).sort((a, b) => a - b);
    const first = same.get(0) ?? 0;
    const ordered = [first, ...kept.filter((at) => at !== first)];
    if (ordered.length > MOST_STATES) throw new TooLarge();
    const numbers = new Map(ordered.map((at, number) => [at, number]));
    const states = ordered.map((at): State => {
      const targets = new Map<number, CharSet>();
      for (const { set, to } of this.states[at]?.edges ?? []) {
        const target = numbers.get(same.get(to) ?? to);
        if (alive.has(to) && target !== undefined) targets.set(target, union(targets.get(target) ?? [], set));
      }
      const { accepts } = this.states[at] as State;
      return { accepts, edges: Array.from(targets, ([to, set]) => ({ set, to })) };
    });
    return new Automaton(states);
  }
}

/** The states that state 0 leads to, each behind those that it leads to first. */
function postorder(states: readonly State[]): number[] {
  const order: number[] = [];
  const seen = new Set([0]);
  const stack: { at: number; edge: number }[] = [{ at: 0, edge: 0 }];
  for (let top = stack.at(-1); top !== undefined; top = stack.at(-1)) {
    const to = states[top.at]?.edges[top.edge++]?.to;
    if (to === undefined) {
      order.push(top.at);
      stack.pop();
    } else if (!seen.has(to)) {
      seen.add(to);
      stack.push({ at: to, edge: 0 });
    }
  }
  return order;
}

function hasCircle(states: readonly State[]): boolean {
  const rank = new Map(postorder(states).map((at, index) => [at, index]));
  return states.some(({ edges }, at) => edges.some(({ to }) => (rank.get(to) ?? 0) >= (rank.get(at) ?? 0)));
}

/** A nondeterministic automaton, by Thompson's construction. */
class Nfa {
  readonly edges: Edge[][] = [];
  /** Ways that read nothing: always, only before the first character, only behind the last. */
  readonly free: number[][] = [];
  readonly atStart: number[][] = [];
  readonly atEnd: number[][] = [];
  /** The states from which every text is accepted. */
  readonly rest = new Set<number>();

  constructor(private readonly budget: Budget) {}

  state(): number {
    this.budget.spend(1);
    if (this.edges.length > 20 * MOST_STATES) throw new TooLarge();
    this.free.push([]);
    this.atStart.push([]);
    this.atEnd.push([]);
    return this.edges.push([]) - 1;
  }

  add(regex: Regex, from: number, to: number): void {
    switch (regex.kind) {
      case 'chars':
        if (regex.set.length > 0) this.edges[from]?.push({ set: regex.set, to });
        return;
      case 'sequence': {
        let at = from;
        regex.items.forEach((item, index) => {
          const next = index === regex.items.length - 1 ? to : this.state();
          this.add(item, at, next);
          at = next;
        });
        if (regex.items.length === 0) this.free[from]?.push(to);
        return;
      }
      case 'choice':
        for (const item of regex.items) {
          const start = this.state();
          this.free[from]?.push(start);
          this.add(item, start, to);
        }
        return;
      case 'repeat':
        this.#repeat(regex.item, regex.least, regex.most, from, to);
        return;
      case 'start':
        this.atStart[from]?.push(to);
        return;
      case 'end':
        this.atEnd[from]?.push(to);
        return;
      case 'rest': {
        const rest = this.state();
        this.rest.add(rest);
        this.free[from]?.push(rest);
        this.edges[rest]?.push({ set: ALL_CHARS, to: rest });
        return;
      }
      case 'automaton': {
        const { states } = regex.automaton;
        const numbers = states.map(() => this.state());
        this.free[from]?.push(numbers[0] as number);
        for (const [index, { accepts, edges }] of states.entries()) {
          const at = numbers[index] as number;
          if (accepts) this.free[at]?.push(to);
          for (const edge of edges) this.edges[at]?.push({ set: edge.set, to: numbers[edge.to] as number });
          const isRest = accepts && edges.length === 1 && edges[0]?.to === index;
          if (isRest && edges[0]?.set.join() === ALL_CHARS.join()) this.rest.add(at);
        }
        return;
      }
      case 'ahead':
        throw new Error('a lookahead is no part of an automaton');
    }
  }

  #repeat(item: Regex, least: number, most: number, from: number, to: number): void {
    if (Math.max(least, Number.isFinite(most) ? most : 0) > 10 * MOST_STATES) throw new TooLarge();
    let at = from;
    for (let count = 0; count < least; count++) at = this.#once(item, at);
    if (most === Number.POSITIVE_INFINITY) {
      const loop = this.state();
      this.free[at]?.push(loop);
      this.free[this.#once(item, loop)]?.push(loop);
      at = loop;
    } else {
      for (let count = least; count < most; count++) {
        this.free[at]?.push(to);
        at = this.#once(item, at);
      }
    }
    this.free[at]?.push(to);
  }

  #once(item: Regex, from: number): number {
    const next = this.state();
    this.add(item, from, next);
    return next;
  }
}

function determine(nfa: Nfa, start: number, end: number, budget: Budget): State[] {
  const closure = (from: Iterable<number>, ...ways: number[][][]): number[] => {
    const seen = new Set(from);
    const waiting = [...seen];
    for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
      for (const way of ways) {
        for (const to of way[at] as number[]) {
          if (seen.has(to)) continue;
          seen.add(to);
          waiting.push(to);
        }
      }
    }
    budget.spend(seen.size);
    for (const rest of nfa.rest) if (seen.has(rest)) return [rest];
    return [...seen].sort((a, b) => a - b);
  };
  const sets: number[][] = [closure([start], nfa.free, nfa.atStart)];
  const numbers = new Map<string, number>();
  const states: State[] = [];
  for (let at = 0; at < sets.length; at++) {
    const set = sets[at] as number[];
    const ways = at === 0 ? [nfa.free, nfa.atEnd, nfa.atStart] : [nfa.free, nfa.atEnd];
    const accepts = closure(set, ...ways).some((it) => it === end || nfa.rest.has(it));
    const targets = new Map<number, CharSet>();
    for (const [chars, reached] of split(
      set.flatMap((it) => nfa.edges[it] as Edge[]),
      budget,
    )) {
      const next = closure(reached, nfa.free);
      const key = next.join();
      let to = numbers.get(key);
      if (to === undefined) {
        to = sets.push(next) - 1;
        numbers.set(key, to);
        if (to > 2 * MOST_STATES) throw new TooLarge();
      }
      targets.set(to, union(targets.get(to) ?? [], chars));
    }
    states.push({ accepts, edges: Array.from(targets, ([to, set]) => ({ set, to })) });
  }
  return states;
}

/** Sets without common characters, and where each leads. */
function split(edges: readonly Edge[], budget: Budget): [CharSet, number[]][] {
  let parts: [CharSet, number[]][] = [];
  const byTarget = new Map<number, CharSet>();
  for (const { set, to } of edges) byTarget.set(to, union(byTarget.get(to) ?? [], set));
  for (const [to, set] of byTarget) {
    let rest = set;
    const next: [CharSet, number[]][] = [];
    budget.spend(parts.length + 1);
    for (const [part, reached] of parts) {
      const common = intersect(part, rest);
      if (common.length === 0) {
        next.push([part, reached]);
        continue;
      }
      const others = subtract(part, common);
      if (others.length > 0) next.push([others, reached]);
      next.push([common, [...reached, to]]);
      rest = subtract(rest, common);
    }
    if (rest.length > 0) next.push([rest, [to]]);
    parts = next;
  }
  return parts;
}
