import type { StandardSchema } from './standard-schema.js';

/** Types as they are shown by editors: one object instead of intersections. */
type Flat<T> = { [K in keyof T]: T[K] };

interface TypeNames {
  null: null;
  boolean: boolean;
  integer: number;
  number: number;
  string: string;
}

/** What `const` and `enum` list, without `readonly`. */
type ValueOf<V> = V extends readonly unknown[]
  ? { -readonly [K in keyof V]: ValueOf<V[K]> }
  : V extends object
    ? { -readonly [K in keyof V]: ValueOf<V[K]> }
    : V;

type RequiredNames<S> = S extends { readonly required: readonly (infer N)[] } ? N : never;

/** Other properties than those that are declared. */
type Others<S> = S extends { readonly additionalProperties: infer A }
  ? A extends false
    ? unknown
    : { [name: string]: unknown }
  : unknown;

type Declared<S, P> = Flat<
  { -readonly [K in keyof P as K extends RequiredNames<S> ? K : never]: FromSchema<P[K]> } & {
    -readonly [K in keyof P as K extends RequiredNames<S> ? never : K]?: FromSchema<P[K]>;
  } & Others<S>
>;

type ObjectOf<S> = S extends { readonly properties: infer P }
  ? Declared<S, P>
  : S extends { readonly additionalProperties: infer A }
    ? A extends false
      ? Record<string, never>
      : { [name: string]: FromSchema<A> }
    : { [name: string]: unknown };

type TupleOf<P extends readonly unknown[]> = { -readonly [K in keyof P]: FromSchema<P[K]> };

type ArrayOf<S> = S extends { readonly prefixItems: infer P extends readonly unknown[] }
  ? S extends { readonly minItems: number }
    ? FromSchema<P[number]>[]
    : S extends { readonly items: infer I }
      ? I extends false
        ? TupleOf<P>
        : (FromSchema<P[number]> | FromSchema<I>)[]
      : TupleOf<P>
  : S extends { readonly items: infer I }
    ? FromSchema<I>[]
    : unknown[];

type OfType<S, T> = T extends keyof TypeNames
  ? TypeNames[T]
  : T extends 'object'
    ? ObjectOf<S>
    : T extends 'array'
      ? ArrayOf<S>
      : unknown;

type EachOf<B extends readonly unknown[]> = { [K in keyof B]: FromSchema<B[K]> }[number];

type OfJsonSchema<S> = S extends { readonly $ref: string }
  ? unknown
  : S extends { readonly const: infer V }
    ? ValueOf<V>
    : S extends { readonly enum: readonly (infer V)[] }
      ? ValueOf<V>
      : S extends { readonly anyOf: infer B extends readonly unknown[] }
        ? EachOf<B>
        : S extends { readonly oneOf: infer B extends readonly unknown[] }
          ? EachOf<B>
          : S extends { readonly allOf: readonly unknown[] }
            ? unknown
            : S extends { readonly type: infer T }
              ? T extends readonly (infer N)[]
                ? OfType<S, N>
                : OfType<S, T>
              : S extends { readonly properties: object }
                ? ObjectOf<S>
                : unknown;

/**
 * The type of the answers that a schema lets pass: of a JSON Schema that is written `as const`, or of a Standard Schema
 * validator, whose output it is. `unknown` where the schema says more than this type follows: behind a `$ref` or an `allOf`,
 * and for a schema whose own type is not literal.
 */
export type FromSchema<S> =
  S extends StandardSchema<infer _Input, infer Output>
    ? Output
    : S extends true
      ? unknown
      : S extends false
        ? never
        : OfJsonSchema<S>;
