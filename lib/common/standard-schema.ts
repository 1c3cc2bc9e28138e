import { ChatGLMError, invalidArgument } from './errors.js';
import { isPlainObject, messageOf } from './options.js';

// What validators of zod, valibot, arktype and others have in common: https://standardschema.dev, version 1.

/** What a validator says of a value. */
export type StandardResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: readonly StandardIssue[] };

/** One thing that is wrong with a value. */
export interface StandardIssue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

/** A validator of any library that follows Standard Schema. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly '~standard': {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>;
    readonly types?: { readonly input: Input; readonly output: Output } | undefined;
    /** Standard JSON Schema, which not all libraries have. */
    readonly jsonSchema?: { readonly input: (options: { target: string }) => Record<string, unknown> } | undefined;
  };
}

/** What a validator gives for a value that fits. */
export type InferOutput<S> =
  S extends StandardSchema<unknown, unknown> ? NonNullable<S['~standard']['types']>['output'] : never;

export function isStandardSchema(value: unknown): value is StandardSchema<unknown, unknown> {
  // Arktype's validators are functions.
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false;
  const standard = (value as Partial<StandardSchema>)['~standard'];
  return standard?.version === 1 && typeof standard.validate === 'function';
}

/**
 * The JSON schema of what a validator takes.
 *
 * @param name How errors call the validator.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT for a library that does not convert its validators.
 */
export function toJsonSchema(validator: StandardSchema<unknown, unknown>, name: string): Record<string, unknown> {
  const { jsonSchema, vendor } = validator['~standard'];
  if (typeof jsonSchema?.input !== 'function') {
    throw invalidArgument(
      `${name}: ${vendor} gives no JSON schema of its validators; give one beside it as jsonSchema`,
    );
  }
  let schema: unknown;
  try {
    schema = jsonSchema.input({ target: 'draft-2020-12' });
  } catch (cause) {
    throw invalidArgument(`${name} has no JSON schema: ${messageOf(cause)}`, cause);
  }
  if (!isPlainObject(schema)) throw invalidArgument(`${name}: ${vendor} gave no JSON schema`);
  const { $schema: _, ...rest } = schema;
  return rest;
}

/**
 * The value as a validator gives it.
 *
 * @param name What the value is, for messages.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT with what is wrong, each by its path.
 */
export async function validated<Output>(
  validator: StandardSchema<unknown, Output>,
  value: unknown,
  name: string,
): Promise<Output> {
  const result = await validator['~standard'].validate(value);
  if (result.issues === undefined) return result.value;
  const problems = result.issues.map(({ message, path = [] }) => {
    const keys = path.map((part) => String(typeof part === 'object' ? part.key : part));
    return `${[name, ...keys].join('.')}: ${message}`;
  });
  throw new ChatGLMError('ERR_INVALID_ARGUMENT', problems.join('; '));
}
