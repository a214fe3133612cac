import type { z } from "zod";
import { fieldsOf, type Field } from "./fields.ts";

type Mark = "secret" | "mayBeSecret";

const known = new WeakMap<z.ZodObject, readonly string[][]>();

/** Where secrets are: `["connection", "password"]`; `"*"` stands for each element of a list or map. */
export function secretPaths(schema: z.ZodObject): readonly string[][] {
  const paths = known.get(schema) ?? markedPaths(schema, "secret");
  known.set(schema, paths);
  return paths;
}

/** Where there is what only a program could say to be secret. */
export function possiblySecretPaths(schema: z.ZodObject): string[][] {
  return markedPaths(schema, "mayBeSecret");
}

function markedPaths(schema: z.ZodObject, mark: Mark): string[][] {
  return fieldsOf(schema).flatMap((field) => pathsIn(field, [field.name], mark));
}

function pathsIn(field: Field, path: string[], mark: Mark): string[][] {
  if (field.meta[mark]) return [path];
  const { type } = field;
  if (type.kind === "object") return type.fields.flatMap((inner) => pathsIn(inner, [...path, inner.name], mark));
  if (type.kind === "array") return pathsIn(type.items, [...path, "*"], mark);
  if (type.kind === "record") return pathsIn(type.values, [...path, "*"], mark);
  return [];
}
