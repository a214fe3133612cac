import type { z } from "zod";
import { fieldsOf, type Field } from "./fields.ts";

const known = new WeakMap<z.ZodObject, readonly string[][]>();

/** Where secrets are: `["connection", "password"]`; `"*"` stands for each element of a list or map. */
export function secretPaths(schema: z.ZodObject): readonly string[][] {
  const paths = known.get(schema) ?? fieldsOf(schema).flatMap((field) => pathsIn(field, [field.name]));
  known.set(schema, paths);
  return paths;
}

function pathsIn(field: Field, path: string[]): string[][] {
  if (field.meta.secret) return [path];
  const { type } = field;
  if (type.kind === "object") return type.fields.flatMap((inner) => pathsIn(inner, [...path, inner.name]));
  if (type.kind === "array") return pathsIn(type.items, [...path, "*"]);
  if (type.kind === "record") return pathsIn(type.values, [...path, "*"]);
  return [];
}
