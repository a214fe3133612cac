import { z } from "zod";
import type { Issue } from "./define.ts";
import { asSchema, unwrap } from "./fields.ts";
import { didYouMean, issueText } from "./issueText.ts";
import { containsUnknown, formatPath, isRecord, unknownValue, withoutNulls, type PropertyPath } from "./values.ts";

export interface Parsed {
  /** With defaults; where there are issues, the value as it came. */
  value: unknown;
  issues: Issue[];
}

/** Parses what is known and passes what is unknown: unknown values keep their place, and nothing is said about them. */
export function parseKnown(schema: z.ZodType, raw: unknown): Parsed {
  return parseAt(schema, withoutNulls(raw), []);
}

function parseAt(schema: z.ZodType, raw: unknown, path: PropertyPath): Parsed {
  if (raw === unknownValue) return { value: raw, issues: [] };
  return containsUnknown(raw) ? parseParts(unwrap(schema), raw, path) : parseWhole(schema, raw, path);
}

function parseWhole(schema: z.ZodType, raw: unknown, path: PropertyPath): Parsed {
  const result = schema.safeParse(raw, { reportInput: true });
  if (result.success) return { value: result.data, issues: [] };
  return { value: raw, issues: result.error.issues.flatMap((issue) => toIssues(issue, { schema, path })) };
}

// where one part is unknown, zod could not parse the whole and would give no defaults for the rest
function parseParts(schema: z.ZodType, raw: unknown, path: PropertyPath): Parsed {
  if (schema instanceof z.ZodObject && isRecord(raw)) {
    const foreign = Object.keys(raw).filter((key) => !(key in schema.shape));
    const parts = Object.entries(schema.shape).map(([key, field]) => [key, parseAt(asSchema(field), raw[key], [...path, key])] as const);
    const rejected =
      schema.def.catchall instanceof z.ZodNever ? foreign.map((key) => foreignKey(key, Object.keys(schema.shape), path)) : [];
    return { value: fromParts(parts), issues: [...parts.flatMap(([, part]) => part.issues), ...rejected] };
  }
  if (schema instanceof z.ZodRecord && isRecord(raw)) {
    const values = asSchema(schema.valueType);
    const parts = Object.entries(raw).map(([key, value]) => [key, parseAt(values, value, [...path, key])] as const);
    return { value: fromParts(parts), issues: parts.flatMap(([, part]) => part.issues) };
  }
  if (schema instanceof z.ZodArray && Array.isArray(raw)) {
    const items = asSchema(schema.element);
    const parts = raw.map((item, index) => parseAt(items, item, [...path, index]));
    return { value: parts.map((part) => part.value), issues: parts.flatMap((part) => part.issues) };
  }
  // of a union and the like nothing can be said while a part is unknown
  return isComposite(schema) ? { value: raw, issues: [] } : parseWhole(schema, raw, path);
}

function isComposite(schema: z.ZodType): boolean {
  return (
    schema instanceof z.ZodUnion ||
    schema instanceof z.ZodTuple ||
    schema instanceof z.ZodIntersection ||
    schema instanceof z.ZodAny ||
    schema instanceof z.ZodUnknown
  );
}

function fromParts(parts: readonly (readonly [string, Parsed])[]): Record<string, unknown> {
  return Object.fromEntries(parts.filter(([, part]) => part.value !== undefined).map(([key, part]) => [key, part.value]));
}

function toIssues(issue: z.core.$ZodIssue, at: { schema: z.ZodType; path: PropertyPath }): Issue[] {
  const inner = issue.path.map((step) => (typeof step === "number" ? step : String(step)));
  const path = [...at.path, ...inner];
  if (issue.code === "unrecognized_keys") {
    const owner = schemaAt(at.schema, inner);
    const known = owner instanceof z.ZodObject ? Object.keys(owner.shape) : [];
    return issue.keys.map((key) => foreignKey(key, known, path));
  }
  const allowed = issue.code === "invalid_union" ? discriminators(at.schema, inner) : [];
  if (allowed.length > 0)
    return [{ path: formatPath(path), message: `must be ${allowed.map((value) => JSON.stringify(value)).join(" or ")}; use one of these` }];
  return [{ path: formatPath(path), message: issueText(issue) }];
}

/** What the field that tells a union's forms apart may be, where `path` leads to that field. */
function discriminators(schema: z.ZodType, path: PropertyPath): unknown[] {
  const key = String(path.at(-1));
  const union = schemaAt(schema, path.slice(0, -1));
  if (!(union instanceof z.ZodDiscriminatedUnion) || union.def.discriminator !== key) return [];
  return union.options.flatMap((option: unknown) => {
    const field: unknown = option instanceof z.ZodObject ? option.shape[key] : undefined;
    return field instanceof z.ZodLiteral ? [...field.values] : [];
  });
}

function foreignKey(key: string, known: string[], path: PropertyPath): Issue {
  return { path: formatPath([...path, key]), message: `is not a property here${didYouMean(key, known)}; correct its name or remove it` };
}

function schemaAt(schema: z.ZodType, path: PropertyPath): z.ZodType | undefined {
  const [step, ...rest] = path;
  const here = unwrap(schema);
  if (step === undefined) return here;
  if (here instanceof z.ZodObject) {
    const field: unknown = here.shape[String(step)];
    return field === undefined ? undefined : schemaAt(asSchema(field), rest);
  }
  if (here instanceof z.ZodArray) return schemaAt(asSchema(here.element), rest);
  return here instanceof z.ZodRecord ? schemaAt(asSchema(here.valueType), rest) : undefined;
}
