import type { GenerateOptions } from 'node-chatglm';

/**
 * The options that all of the APIs have, in OpenAI's names. `top_k`, `min_p` and `repetition_penalty` are no fields of
 * OpenAI's: vLLM and others have them, and clients send them as extra fields.
 */
export interface SamplingFields {
  temperature?: number | null | undefined;
  top_p?: number | null | undefined;
  top_k?: number | null | undefined;
  min_p?: number | null | undefined;
  repetition_penalty?: number | null | undefined;
  presence_penalty?: number | null | undefined;
  frequency_penalty?: number | null | undefined;
  logit_bias?: Readonly<Record<string, number>> | null | undefined;
  seed?: number | null | undefined;
  stop?: string | readonly string[] | null | undefined;
}

/**
 * The facade's options. What a request does not set is as OpenAI has it: temperature 1, all tokens of all probabilities;
 * THUDM's own defaults are narrower.
 */
export function samplingOptions(fields: SamplingFields): GenerateOptions {
  const options: GenerateOptions = {
    temperature: fields.temperature ?? 1,
    topP: fields.top_p ?? 1,
    topK: fields.top_k ?? 0,
  };
  if (fields.min_p != null) options.minP = fields.min_p;
  if (fields.repetition_penalty != null) options.repetitionPenalty = fields.repetition_penalty;
  if (fields.presence_penalty != null) options.presencePenalty = fields.presence_penalty;
  if (fields.frequency_penalty != null) options.frequencyPenalty = fields.frequency_penalty;
  if (fields.logit_bias != null) options.logitBias = fields.logit_bias as Record<number, number>;
  if (fields.seed != null) options.seed = seedOf(fields.seed);
  if (fields.stop != null) options.stop = fields.stop;
  return options;
}

/** OpenAI's seeds are any whole numbers of 64 bits, negative ones included; a model's are whole numbers from 0 that are safe. */
function seedOf(seed: number): number {
  const rest = seed % 2 ** 53;
  return rest < 0 ? rest + 2 ** 53 : rest;
}
