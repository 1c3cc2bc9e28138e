// Standard Schema (standardschema.dev): the interface by which validators of different libraries can be used alike, and its
// extension by which they give a JSON Schema. Typed here by hand from the public specification: no validator is imported.
import { invalidArgument } from './errors.js';
import { messageOf, reading, show } from './options.js';

/** A validator of any library that implements Standard Schema, version 1: zod, valibot, arktype and others. */
export interface StandardSchema<Input = unknown, Output = Input> {
  /** What the validator can do. */
  readonly '~standard': StandardSchemaProps<Input, Output>;
}

/** What a validator offers by Standard Schema. */
export interface StandardSchemaProps<Input = unknown, Output = Input> {
  /** The version of the interface. */
  readonly version: 1;
  /** The library's name. */
  readonly vendor: string;
  /** Checks a value, and gives what the validator makes of it, or what is wrong. */
  readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>;
  /** Gives a JSON Schema of what the validator takes, and of what it makes of that. */
  readonly jsonSchema?:
    | {
        readonly input: (options: { readonly target: string }) => Record<string, unknown>;
        readonly output: (options: { readonly target: string }) => Record<string, unknown>;
      }
    | undefined;
  /** Types, for the compiler only. */
  readonly types?: { readonly input: Input; readonly output: Output } | undefined;
}

/** What a validator found. */
export type StandardResult<Output> =
  | {
      /** What the validator made of the value. */
      readonly value: Output;
      /** Absent where the value is valid. */
      readonly issues?: undefined;
    }
  | {
      /** What is wrong with the value. */
      readonly issues: readonly StandardIssue[];
    };

/** Something that is wrong with a value. */
export interface StandardIssue {
  /** For people. */
  readonly message: string;
  /** Where in the value: keys, or objects with a key. */
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

/** Whether the value is a validator. Those of arktype are functions. */
export function isStandardSchema(value: unknown): value is StandardSchema {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return false;
  try {
    const standard = (value as Partial<StandardSchema>)['~standard'];
    return standard?.version === 1 && typeof standard.validate === 'function';
  } catch {
    return false; // a getter or a proxy that throws
  }
}

/**
 * The JSON Schema (draft 2020-12) of the values that a validator takes, before it changes them.
 *
 * @param name What errors call the validator.
 * @throws {ChatGLMError} ERR_INVALID_ARGUMENT where the validator's library offers none, or cannot say this one as JSON Schema.
 */
export function toJsonSchema(validator: StandardSchema, name = 'schema'): unknown {
  const { vendor, jsonSchema } = reading(name, () => validator['~standard']);
  if (typeof jsonSchema?.input !== 'function') {
    const help =
      vendor === 'valibot'
        ? 'pass it through toStandardJsonSchema() of @valibot/to-json-schema'
        : 'give a JSON schema, or a validator of a library that offers Standard JSON Schema';
    throw invalidArgument(`${name} is a validator of ${show(vendor)} that gives no JSON schema: ${help}`);
  }
  try {
    return jsonSchema.input({ target: 'draft-2020-12' });
  } catch (error) {
    throw invalidArgument(`${name}: ${show(vendor)} cannot say it as a JSON schema: ${messageOf(error)}`, error);
  }
}

/** The type of what a validator makes of the values that it takes. */
export type InferOutput<S> = S extends StandardSchema<infer _Input, infer Output> ? Output : never;
