// Shows answers of a given form: JSON of a schema, or what a regular expression takes. Each token is chosen among those that
// keep the answer valid, so that there is nothing to repair.
//
// Run:    node examples/structured.mjs [CHECKPOINT]
// Prints: an answer that is JSON, its value, and an answer that a regular expression describes.
import { loadModel } from 'node-chatglm';

const model = await loadModel(process.argv[2]);
const chat = model.createChat({ temperature: 0, maxTokens: 200 });

const { text, parsed } = await chat.send('What is the capital of France?', {
  responseFormat: {
    type: 'json_schema',
    schema: {
      type: 'object',
      properties: {
        capital: { type: 'string', maxLength: 20 },
        country: { enum: ['France', 'Germany', 'Italy'] },
        confidence: { type: 'integer', minimum: 0, maximum: 100 },
      },
      required: ['capital', 'country', 'confidence'],
    },
  },
});
console.log('text:', text);
console.log('country:', parsed?.country); // there is no value where the answer was cut

const sum = await chat.send('What is 7 times 8?', { responseFormat: { type: 'regex', pattern: '[0-9]{1,4}' } });
console.log('number:', Number(sum.text));
await model.dispose();
