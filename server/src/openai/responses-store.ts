import type { Item } from './responses-input.js';

/** What is kept of the responses that clients may come back to. */
export interface StoreLimits {
  /** The most responses. */
  responses: number;
  /** The most memory of all of them, as UTF-16 units of their JSON. */
  units: number;
  /** How long a response is kept that nobody asks for, in milliseconds. */
  ageMs: number;
}

/** OpenAI keeps responses for 30 days and on disk; these are in memory and gone with the process. */
export const STORE_LIMITS: StoreLimits = { responses: 10_000, units: 64 * 1024 * 1024, ageMs: 24 * 60 * 60 * 1000 };

/**
 * The items that a response added to its conversation, behind those of the response before. Conversations that go on from
 * the same response share its turn, and a turn lives as long as a response or a later turn needs it: forgetting a response
 * does not break the conversations that went on from it.
 */
interface Turn {
  readonly before: Turn | undefined;
  readonly items: readonly Item[];
  readonly units: number;
  /** Responses and later turns that need this one. */
  users: number;
}

interface Stored {
  readonly owner: string | undefined;
  readonly response: Readonly<Record<string, unknown>>;
  readonly inputCount: number;
  readonly turn: Turn;
  readonly units: number;
  usedAt: number;
}

/** A response that was found. */
export interface StoredResponse {
  /** As it was answered. */
  readonly response: Readonly<Record<string, unknown>>;
  /** What the response answered: the whole conversation until then, without instructions. */
  input(): Item[];
  /** The conversation with the answer. */
  conversation(): Item[];
}

/**
 * Responses in memory. Each belongs to the key that made it and is not there for others. Where a limit is passed, those go
 * first that were not asked for the longest.
 */
export class ResponseStore {
  readonly #limits: StoreLimits;
  readonly #now: () => number;
  /** The one that was used least recently comes first. */
  readonly #stored = new Map<string, Stored>();
  #units = 0;

  /** @param now The time in milliseconds. */
  constructor(limits: StoreLimits = STORE_LIMITS, now: () => number = Date.now) {
    this.#limits = limits;
    this.#now = now;
  }

  /** How many responses there are, and the memory that they take. */
  get size(): { responses: number; units: number } {
    return { responses: this.#stored.size, units: this.#units };
  }

  get(id: string, owner: string | undefined): StoredResponse | undefined {
    this.#dropOld();
    const stored = this.#stored.get(id);
    if (stored === undefined || stored.owner !== owner) return undefined;
    stored.usedAt = this.#now();
    this.#stored.delete(id);
    this.#stored.set(id, stored);
    const { response, turn, inputCount } = stored;
    return {
      response,
      input: () => [...itemsOf(turn.before), ...turn.items.slice(0, inputCount)],
      conversation: () => itemsOf(turn),
    };
  }

  /**
   * Keeps a response.
   *
   * @param input What came with the request, without what the response before had.
   * @param before The response that the conversation goes on from. If it is gone by now, so is what was said until then: the
   *   caller gives `earlier`, which it read before it began to answer.
   */
  add(
    id: string,
    {
      owner,
      response,
      input,
      output,
      before,
      earlier,
    }: {
      owner: string | undefined;
      response: Readonly<Record<string, unknown>>;
      input: readonly Item[];
      output: readonly Item[];
      before: string | undefined;
      earlier: readonly Item[];
    },
  ): void {
    const previous = before === undefined ? undefined : this.#stored.get(before)?.turn;
    const own = previous === undefined ? [...earlier, ...input] : [...input];
    const items = [...own, ...output];
    const turn: Turn = { before: previous, items, units: unitsOf(items), users: 1 };
    if (previous) previous.users++;
    const units = unitsOf(response);
    this.#units += turn.units + units;
    this.#stored.set(id, { owner, response, inputCount: own.length, turn, units, usedAt: this.#now() });
    this.#dropOld();
    for (const oldest of this.#stored.keys()) {
      if (this.#stored.size <= this.#limits.responses && this.#units <= this.#limits.units) break;
      this.#drop(oldest);
    }
  }

  /** Forgets a response. Returns whether there was one. */
  delete(id: string, owner: string | undefined): boolean {
    if (this.get(id, owner) === undefined) return false;
    this.#drop(id);
    return true;
  }

  /** Those that were used least recently come first, so that nothing is left behind the first one that is young enough. */
  #dropOld(): void {
    const oldest = this.#now() - this.#limits.ageMs;
    for (const [id, { usedAt }] of this.#stored) {
      if (usedAt > oldest) return;
      this.#drop(id);
    }
  }

  #drop(id: string): void {
    const stored = this.#stored.get(id);
    if (stored === undefined) return;
    this.#stored.delete(id);
    this.#units -= stored.units;
    for (let turn: Turn | undefined = stored.turn; turn !== undefined && --turn.users === 0; turn = turn.before) {
      this.#units -= turn.units;
    }
  }
}

function itemsOf(last: Turn | undefined): Item[] {
  const turns: Turn[] = [];
  for (let turn = last; turn !== undefined; turn = turn.before) turns.push(turn);
  return turns.reverse().flatMap(({ items }) => items);
}

function unitsOf(value: unknown): number {
  return JSON.stringify(value).length;
}
