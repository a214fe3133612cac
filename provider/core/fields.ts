import { z } from "zod";
import type { FieldMeta } from "./define.ts";

export type FieldType =
  | { kind: "string" | "integer" | "number" | "boolean" | "any" }
  | { kind: "enum"; values: string[] }
  | { kind: "array"; items: Field }
  | { kind: "record"; values: Field }
  | { kind: "object"; fields: readonly Field[]; shape: object };

/** One field of a resource as diff, secrets, schema.json and the docs see it. */
export interface Field {
  name: string;
  type: FieldType;
  description: string;
  required: boolean;
  /** What a missing value means; undefined where nothing stands in for it. */
  fallback: unknown;
  meta: FieldMeta;
}

const known = new WeakMap<z.ZodObject, readonly Field[]>();

// each check and each diff of each resource asks; a schema never changes
export function fieldsOf(schema: z.ZodObject): readonly Field[] {
  const fields = known.get(schema) ?? Object.entries(schema.shape).map(([name, field]) => toField(name, asSchema(field)));
  known.set(schema, fields);
  return fields;
}

/** The schema below optional(), default(), prefault() and the like. */
export function unwrap(schema: z.ZodType): z.ZodType {
  const inner = innerOf(schema);
  return inner === undefined ? schema : unwrap(inner);
}

export function asSchema(value: unknown): z.ZodType {
  if (value instanceof z.ZodType) return value;
  throw new TypeError("not a zod schema");
}

function innerOf(schema: z.ZodType): z.ZodType | undefined {
  const wrapped =
    schema instanceof z.ZodOptional ||
    schema instanceof z.ZodDefault ||
    schema instanceof z.ZodPrefault ||
    schema instanceof z.ZodNullable ||
    schema instanceof z.ZodReadonly;
  if (wrapped) return asSchema(schema.unwrap());
  return schema instanceof z.ZodPipe ? asSchema(schema.in) : undefined;
}

function toField(name: string, schema: z.ZodType): Field {
  const absent = schema.safeParse(undefined);
  const { description, ...meta } = allMeta(schema);
  return {
    name,
    type: typeOf(unwrap(schema)),
    description: typeof description === "string" ? description : "",
    required: !absent.success,
    fallback: absent.success ? absent.data : undefined,
    meta,
  };
}

// meta written before .optional() or .default() is not visible on the outer schema, so all layers are read
function allMeta(schema: z.ZodType): FieldMeta & { description?: unknown } {
  const inner = innerOf(schema);
  return { ...(inner && allMeta(inner)), ...schema.meta() };
}

function typeOf(schema: z.ZodType): FieldType {
  if (schema instanceof z.ZodObject) return { kind: "object", fields: fieldsOf(schema), shape: schema.shape };
  if (schema instanceof z.ZodArray) return { kind: "array", items: toField("", asSchema(schema.element)) };
  if (schema instanceof z.ZodRecord) return { kind: "record", values: toField("", asSchema(schema.valueType)) };
  if (schema instanceof z.ZodEnum) return { kind: "enum", values: schema.options.map(String) };
  if (schema instanceof z.ZodLiteral) return { kind: "enum", values: [...schema.values].map(String) };
  if (schema instanceof z.ZodBoolean) return { kind: "boolean" };
  if (schema instanceof z.ZodNumber) return { kind: schema.isInt ? "integer" : "number" };
  if (schema instanceof z.ZodString || schema instanceof z.ZodStringFormat) return { kind: "string" };
  return { kind: "any" };
}
