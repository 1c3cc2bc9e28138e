import { createHash } from 'node:crypto';
import type { Model, Timings, Usage } from 'node-chatglm';
import type { ModelLease } from '../models/pool.js';

/** Tokens of a request, in OpenAI's names. Choices of one prompt share it. */
export interface ApiUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number; audio_tokens: number };
  completion_tokens_details: {
    reasoning_tokens: number;
    audio_tokens: number;
    accepted_prediction_tokens: number;
    rejected_prediction_tokens: number;
  };
}

/**
 * Adds up what the choices of a request took.
 *
 * @param prompts For each prompt, what its choices took: the prompt counts once.
 */
export function apiUsage(prompts: readonly (readonly Usage[])[]): ApiUsage {
  const first = prompts.flatMap(([usage]) => usage ?? []);
  const prompt = first.reduce((sum, { promptTokens }) => sum + promptTokens, 0);
  const cached = first.reduce((sum, { cachedTokens }) => sum + cachedTokens, 0);
  const completion = prompts.flat().reduce((sum, { generatedTokens }) => sum + generatedTokens, 0);
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: 0,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0,
    },
  };
}

/** How long a choice took, in the names of llama.cpp's server, which its clients know. */
export function apiTimings({ usage, timings }: { usage: Usage; timings: Timings }): Record<string, number> {
  const { promptTokens, cachedTokens, generatedTokens } = usage;
  return {
    cache_n: cachedTokens,
    prompt_n: promptTokens - cachedTokens,
    prompt_ms: rounded(timings.prefillMs),
    prompt_per_second: rounded(timings.prefillTokensPerSecond),
    predicted_n: generatedTokens,
    predicted_ms: rounded(timings.decodeMs),
    predicted_per_second: rounded(timings.decodeTokensPerSecond),
    queue_ms: rounded(timings.queueMs),
    first_token_ms: rounded(timings.firstTokenMs),
  };
}

function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

const fingerprints = new WeakMap<Model, string>();

/** What tells one set of weights and kernels from another: the same seed gives the same answer where this is the same. */
export function systemFingerprint({ id, model }: ModelLease): string {
  const known = fingerprints.get(model);
  if (known !== undefined) return known;
  const { name, parameters, device, kernels, bytesPerToken, kvCacheType } = model.info;
  const facts = JSON.stringify([id, name, parameters, device, kernels, bytesPerToken, kvCacheType]);
  const fingerprint = `fp_${createHash('sha256').update(facts).digest('hex').slice(0, 10)}`;
  fingerprints.set(model, fingerprint);
  return fingerprint;
}
