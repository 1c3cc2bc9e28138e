import type { IncomingHttpHeaders } from 'node:http';
import type { ModelCard } from '../models/pool.js';

/** Whether a request of a path that both APIs have comes from a client of Anthropic's: those always say their version. */
export function isAnthropicClient(headers: IncomingHttpHeaders): boolean {
  return headers['anthropic-version'] !== undefined;
}

/** A model as Anthropic tells of it. */
export function toAnthropicModel({ id, created, contextLength }: ModelCard): object {
  return {
    type: 'model',
    id,
    display_name: id,
    created_at: new Date(created * 1000).toISOString(),
    capabilities: null,
    max_input_tokens: contextLength ?? null,
    max_tokens: contextLength ?? null,
  };
}

/** All models, on one page. */
export function toAnthropicModels(cards: readonly ModelCard[]): object {
  return {
    data: cards.map(toAnthropicModel),
    has_more: false,
    first_id: cards[0]?.id ?? null,
    last_id: cards.at(-1)?.id ?? null,
  };
}
