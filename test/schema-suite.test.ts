// The official JSON-Schema-Test-Suite (json-schema-org on GitHub), where CHATGLM_TEST_SCHEMA_SUITE names a copy of its folder
// tests/draft2020-12; the registry has no package with its files.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { schemaToGrammar } from '../lib/structured/schema-grammar.js';
import { parseGbnf, randomOf, recognizer, sentences } from './support/gbnf.js';
import { type Schema, validatorOf, written } from './support/schemas.js';

interface Group {
  description: string;
  schema: Schema;
  tests: { description: string; data: unknown; valid: boolean }[];
}

const folder = process.env.CHATGLM_TEST_SCHEMA_SUITE;
const files = folder === undefined ? [] : readdirSync(folder, { recursive: true, encoding: 'utf8' });

(folder === undefined ? describe.skip : describe)('JSON-Schema-Test-Suite', () => {
  test.each(files.filter((file) => file.endsWith('.json')))('%s', (file) => {
    for (const { description, schema, tests } of JSON.parse(
      readFileSync(join(folder ?? '', file), 'utf8'),
    ) as Group[]) {
      let grammar: string;
      try {
        grammar = schemaToGrammar(schema);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARGUMENT' });
        continue;
      }
      const rules = parseGbnf(grammar);
      const isValid = validatorOf(schema);
      const sentence = sentences(rules, randomOf(1));
      for (let size = 0; size < 30; size++) {
        const answer = sentence(size * size);
        expect([description, answer, isValid(JSON.parse(answer))]).toEqual([description, answer, true]);
      }
      const accepts = recognizer(rules);
      for (const { description: what, data, valid } of tests) {
        if (valid) continue;
        for (const text of [written(data, ''), written(data, ' ')]) {
          expect([description, what, text, accepts(text)]).toEqual([description, what, text, false]);
        }
      }
    }
  });
  test('has files, or is left out', () => expect(files.length).toBeGreaterThan(0));
});
