export function schemaToGrammar(_schema: unknown, _options?: unknown): string { throw new Error('not yet'); }
