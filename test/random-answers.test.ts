import type { Model } from 'node-chatglm';
import { ChatGLMError } from '../lib/common/errors.js';
import { schemaToGrammar } from '../lib/structured/schema-grammar.js';
import { loadModel } from './support/device';
import { randomOf } from './support/gbnf.js';
import { randomSchema, SCHEMAS, type Schema, validatorOf } from './support/schemas.js';

let model: Model;
beforeAll(async () => {
  model = await loadModel(undefined, { maxQueue: 4096 });
});
afterAll(() => model.dispose());

/** At this temperature all tokens that are allowed are as good as equally likely: the grammar alone makes the answer. */
const drawn = { temperature: 100, topK: 0, topP: 1, maxTokens: 150 } as const;

/** Schemas that a grammar can hold an answer to. */
function schemas(count: number): Schema[] {
  const found = [...SCHEMAS];
  const random = randomOf(20);
  while (found.length < count) {
    const schema = randomSchema(random);
    try {
      schemaToGrammar(schema);
      found.push(schema);
    } catch (error) {
      if (!(error instanceof ChatGLMError)) throw error;
    }
  }
  return found.slice(0, Math.max(count, SCHEMAS.length));
}

test('2,000 answers of random logits, over 200 schemas and more, all parse and validate', async () => {
  const tried = schemas(220);
  const answers = Math.ceil(2000 / tried.length);
  let complete = 0;
  let cut = 0;
  await Promise.all(
    tried.map(async (schema, index) => {
      const isValid = validatorOf(schema);
      for (let seed = 0; seed < answers; seed++) {
        const { text, finishReason } = await model.generate('x', {
          ...drawn,
          seed: 1000 * index + seed,
          responseFormat: { type: 'json_schema', schema: schema as Record<string, unknown> },
        }).result;
        if (finishReason === 'length') {
          // The shortest answer that the schema allows has more tokens than were allowed.
          cut += 1;
          continue;
        }
        complete += 1;
        const verdict = isValid(JSON.parse(text));
        expect({ schema, text, verdict }).toEqual({ schema, text, verdict: true });
      }
    }),
  );
  expect(complete).toBeGreaterThanOrEqual(2000 * 0.97);
  expect(cut).toBeLessThan(2000 * 0.03);
}, 300_000);
