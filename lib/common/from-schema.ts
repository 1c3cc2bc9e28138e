/** Makes the members of an intersection show as one object. */
type Flat<T> = { [K in keyof T]: T[K] };

type ByName<T extends string> = T extends 'string'
  ? string
  : T extends 'number' | 'integer'
    ? number
    : T extends 'boolean'
      ? boolean
      : T extends 'null'
        ? null
        : T extends 'array'
          ? unknown[]
          : T extends 'object'
            ? Record<string, unknown>
            : unknown;

type RequiredOf<S> = S extends { readonly required: readonly (infer K)[] } ? K : never;

type ObjectOf<P, R> = Flat<
  { -readonly [K in keyof P as K extends R ? K : never]: FromSchema<P[K]> } & {
    -readonly [K in keyof P as K extends R ? never : K]?: FromSchema<P[K]>;
  }
>;

/**
 * The type of what a JSON schema describes, where the schema is written `as const`: objects with their required and optional
 * properties, arrays, tuples, `enum`, `const`, `anyOf`, `oneOf` and lists of types; `unknown` for what it cannot tell.
 *
 * @example
 * ```ts
 * const schema = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] } as const;
 * const value: FromSchema<typeof schema> = { city: '北京' };
 * console.log(value.city);
 * ```
 */
export type FromSchema<S> = S extends { readonly const: infer C }
  ? C
  : S extends { readonly enum: readonly (infer E)[] }
    ? E
    : S extends { readonly anyOf: readonly (infer A)[] }
      ? FromSchema<A>
      : S extends { readonly oneOf: readonly (infer A)[] }
        ? FromSchema<A>
        : S extends { readonly type: 'object'; readonly properties: infer P }
          ? ObjectOf<P, RequiredOf<S>>
          : S extends { readonly type: 'array'; readonly prefixItems: infer T extends readonly unknown[] }
            ? { -readonly [K in keyof T]: FromSchema<T[K]> }
            : S extends { readonly type: 'array'; readonly items: infer I }
              ? FromSchema<I>[]
              : S extends { readonly type: readonly (infer T extends string)[] }
                ? ByName<T>
                : S extends { readonly type: infer T extends string }
                  ? ByName<T>
                  : unknown;
