import type { FastifyRequest } from 'fastify';
import { ApiError } from './errors.js';

/** A field of a JSON schema that may be null, as most of OpenAI's optional fields may. */
export const optional = {
  boolean: { type: 'boolean', nullable: true },
  string: { type: 'string', nullable: true },
  object: { type: 'object', nullable: true },
  array: { type: 'array', nullable: true },
  number: (minimum: number, maximum: number) => ({ type: 'number', nullable: true, minimum, maximum }),
  integer: (minimum: number, maximum: number) => ({ type: 'integer', nullable: true, minimum, maximum }),
  choice: (...values: string[]) => ({ enum: [...values, null] }),
  /** A field that is read by hand, or not at all. */
  any: {},
} as const;

/** What is wrong with a body, as Fastify's validator tells it. */
interface SchemaProblem {
  keyword: string;
  instancePath: string;
  params: Record<string, unknown>;
  message?: string | undefined;
}

/**
 * Refuses a body that its route's schema does not allow, in the words of the API. For routes with `attachValidation`, whose
 * handlers call this first.
 *
 * @throws {ApiError} 400, with the field in `param`.
 */
export function checkBody(request: FastifyRequest): void {
  const { validationError } = request as { validationError?: { validation?: SchemaProblem[] } };
  refuseDeep(request.body);
  const problem = validationError?.validation?.[0];
  if (problem) throw problemError(problem, request.body);
}

/** How deep a body's arrays and objects may lie within each other. No schema of a person's comes near. */
const MOST_LEVELS = 200;

/** Refuses a body whose levels are so many that code which goes down into it would run out of stack. */
function refuseDeep(body: unknown): void {
  let level: unknown[] = [body];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > MOST_LEVELS) {
      throw invalid(`The body has more than ${MOST_LEVELS} levels of arrays and objects.`, null, 'invalid_value');
    }
    const next: unknown[] = [];
    for (const value of level) {
      if (typeof value !== 'object' || value === null) continue;
      for (const inner of Array.isArray(value) ? value : Object.values(value)) {
        if (typeof inner === 'object' && inner !== null) next.push(inner);
      }
    }
    level = next;
  }
}

function problemError({ keyword, instancePath, params, message = '' }: SchemaProblem, body: unknown): ApiError {
  const names = instancePath.split('/').slice(1).map(unescaped);
  const param = pathOf(names);
  const value = names.reduce<unknown>((inner, name) => (inner as Record<string, unknown>)?.[name], body);
  if (param === '' && keyword === 'type') {
    return invalid(`The body must be a JSON object, got ${kindOf(value)}.`, null, 'invalid_type');
  }
  switch (keyword) {
    case 'additionalProperties': {
      const name = pathOf([...names, String(params.additionalProperty)]);
      return invalid(`Unrecognized request argument supplied: ${name}`, name, 'unknown_parameter');
    }
    case 'required': {
      const name = pathOf([...names, String(params.missingProperty)]);
      return invalid(`Missing required parameter: '${name}'.`, name, 'missing_required_parameter');
    }
    case 'type': {
      const expected = [params.type].flat().filter((type) => type !== 'null');
      return invalid(
        `Invalid type for '${param}': expected ${expected.map((type) => articled(String(type))).join(' or ')}, got ${kindOf(value)}.`,
        param,
        'invalid_type',
      );
    }
    case 'minimum':
    case 'maximum': {
      const kind = Number.isInteger(params.limit) && Number.isInteger(value) ? 'integer' : 'decimal';
      const isLow = keyword === 'minimum';
      return invalid(
        `Invalid '${param}': expected a value ${isLow ? '>=' : '<='} ${params.limit}, got ${String(value)}.`,
        param,
        `${kind}_${isLow ? 'below_min' : 'above_max'}_value`,
      );
    }
    case 'enum': {
      const allowed = (params.allowedValues as unknown[]).filter((each) => each !== null);
      return invalid(
        `Invalid value for '${param}': ${shown(value)}. Supported values are: ${allowed.map(shown).join(', ')}.`,
        param,
        'invalid_value',
      );
    }
    default:
      return invalid(`Invalid '${param}': ${message}.`, param, 'invalid_value');
  }
}

function invalid(message: string, param: string | null, code: string): ApiError {
  return new ApiError(message, { status: 400, code, param });
}

/** `messages[0].content`, of the parts of a JSON pointer. */
function pathOf(names: readonly string[]): string {
  return names.reduce((path, name) => {
    if (/^\d+$/.test(name) && path !== '') return `${path}[${name}]`;
    return path === '' ? name : `${path}.${name}`;
  }, '');
}

function unescaped(name: string): string {
  return name.replaceAll('~1', '/').replaceAll('~0', '~');
}

function articled(type: string): string {
  return /^[aeiou]/.test(type) ? `an ${type}` : `a ${type}`;
}

/** What kind of JSON a value is, in words. */
export function kindOf(value: unknown): string {
  if (value === undefined) return 'nothing';
  if (value === null) return 'null';
  return articled(Array.isArray(value) ? 'array' : typeof value);
}

/** A value for a message: as JSON, cut where it is long. */
export function shown(value: unknown): string {
  const json = JSON.stringify(value) ?? 'undefined';
  return json.length > 60 ? `${json.slice(0, 57)}…` : json;
}
