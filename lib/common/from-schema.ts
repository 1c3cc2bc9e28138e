import type { InferOutput, StandardSchema } from './standard-schema.js';

interface Primitives {
  string: string;
  number: number;
  integer: number;
  boolean: boolean;
  null: null;
}

/** `const` and `enum` of a schema that is written `as const`, without `readonly`. */
type Writable<V> = V extends object ? { -readonly [K in keyof V]: Writable<V[K]> } : V;

/** One object as editors show it, instead of an intersection. */
type Flat<T> = { [K in keyof T]: T[K] };

type RequiredOf<S> = S extends { readonly required: readonly (infer N)[] } ? N : never;

type ObjectOf<S> = S extends { readonly properties: infer P }
  ? Flat<
      { -readonly [K in keyof P as K extends RequiredOf<S> ? K : never]: FromSchema<P[K]> } & {
        -readonly [K in keyof P as K extends RequiredOf<S> ? never : K]?: FromSchema<P[K]>;
      }
    >
  : S extends { readonly additionalProperties: infer A extends object }
    ? Record<string, FromSchema<A>>
    : Record<string, unknown>;

type TupleOf<P extends readonly unknown[]> = { -readonly [K in keyof P]: FromSchema<P[K]> };

type ArrayOf<S> = S extends { readonly prefixItems: infer P extends readonly unknown[] }
  ? S extends { readonly items: false }
    ? TupleOf<P>
    : S extends { readonly items: infer I }
      ? [...TupleOf<P>, ...FromSchema<I>[]]
      : [...TupleOf<P>, ...unknown[]]
  : S extends { readonly items: infer I }
    ? FromSchema<I>[]
    : unknown[];

type OfType<S, T> = T extends keyof Primitives
  ? Primitives[T]
  : T extends 'object'
    ? ObjectOf<S>
    : T extends 'array'
      ? ArrayOf<S>
      : unknown;

/**
 * The type of the values that a schema lets pass: of a JSON schema whose type is literal (`as const`), or of a Standard
 * Schema validator, whose output it is. Tuples count as complete: `prefixItems` without `minItems` would let shorter ones
 * pass. `unknown` where the schema says more than this type follows, such as `$ref` and `allOf`.
 */
export type FromSchema<S> = S extends StandardSchema
  ? InferOutput<S>
  : S extends { readonly $ref: unknown } | { readonly allOf: unknown }
    ? unknown
    : S extends { readonly const: infer V }
      ? Writable<V>
      : S extends { readonly enum: readonly (infer V)[] }
        ? Writable<V>
        : S extends { readonly anyOf: readonly (infer B)[] } | { readonly oneOf: readonly (infer B)[] }
          ? B extends unknown
            ? FromSchema<B>
            : never
          : S extends { readonly type: readonly (infer T)[] }
            ? OfType<S, T>
            : S extends { readonly type: infer T }
              ? OfType<S, T>
              : S extends { readonly properties: object }
                ? ObjectOf<S>
                : unknown;
