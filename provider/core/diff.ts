import { isDeepStrictEqual } from "node:util";
import type { z } from "zod";
import { fieldsOf, type Field, type FieldType } from "./fields.ts";
import { formatPath, isRecord, unknownValue, withoutNulls, type PropertyPath } from "./values.ts";

export interface Change {
  path: string;
  kind: "add" | "delete" | "update";
  replaces: boolean;
}

/** How what is wanted differs from what is there, by the input fields alone: outputs and foreign keys are not looked at. */
export function diffInputs(inputs: z.ZodObject, have: Record<string, unknown>, want: Record<string, unknown>): Change[] {
  return diffFields(fieldsOf(inputs), { have, want }, { path: [], replaces: false });
}

/** An imported state with the origins that the program has told since. */
export function withOrigins(
  inputs: z.ZodObject,
  have: Record<string, unknown>,
  tell: () => Record<string, unknown>,
): Record<string, unknown> {
  const fields = fieldsOf(inputs);
  if (!fields.some(({ meta }) => meta.origin) || !isImported(fields, have)) return have;
  const told = tell();
  const origins = fields.filter(({ name, meta }) => meta.origin && !isNone(told[name]));
  return { ...have, ...Object.fromEntries(origins.map(({ name }) => [name, told[name]])) };
}

/** Without what the program says to ignore: paths in Pulumi's notation, and all below them. */
export function withoutIgnored(changes: Change[], ignored: readonly string[]): Change[] {
  const below = (path: string, top: string): boolean => path === top || (path.startsWith(top) && /^[.[]/.test(path.slice(top.length)));
  return changes.filter(({ path }) => !ignored.some((top) => top === "*" || below(path, top)));
}

/** Top-level properties whose change replaces the resource. */
export function replacing(changes: Change[]): string[] {
  return [...new Set(changes.filter(({ replaces }) => replaces).map(({ path }) => path.split(/[.[]/, 1)[0] ?? path))];
}

interface Pair {
  have: unknown;
  want: unknown;
}

interface Place {
  path: PropertyPath;
  replaces: boolean;
}

interface Records {
  have: Record<string, unknown>;
  want: Record<string, unknown>;
}

function diffFields(fields: readonly Field[], { have, want }: Records, place: Place): Change[] {
  const compared = isSameContent(fields, { have, want }) ? fields.filter(({ meta }) => !meta.origin) : fields;
  return compared.flatMap((field) => diffField(field, { have: have[field.name], want: want[field.name] }, below(place, field.name)));
}

function isSameContent(fields: readonly Field[], { have, want }: Records): boolean {
  if (isNone(have["digest"])) return false;
  return have["digest"] === want["digest"] || (isNone(want["digest"]) && isImported(fields, have));
}

/** What was made here always has an origin. */
function isImported(fields: readonly Field[], have: Record<string, unknown>): boolean {
  return fields.every(({ name, meta, fallback }) => !meta.origin || isNone(have[name], fallback));
}

function isNone(value: unknown, fallback?: unknown): boolean {
  return value === undefined || value === null || isDeepStrictEqual(value, fallback);
}

function diffField(field: Field, pair: Pair, place: Place): Change[] {
  if (field.meta.checkOnly || field.meta.carried) return [];
  const replaces = place.replaces || field.meta.replaces === true;
  const have = pair.have ?? field.fallback;
  const want = pair.want ?? field.fallback;
  if (field.meta.computed && want === undefined) return [];
  const change = (kind: Change["kind"]): Change[] => [{ path: formatPath(place.path), kind, replaces }];
  if (want === unknownValue) return change(have === undefined ? "add" : "update");
  if (have === undefined) return want === undefined ? [] : change("add");
  if (want === undefined) return change("delete");
  return diffContent(field, { have, want }, { path: place.path, replaces }) ?? change("update");
}

/** undefined = the values differ and have no parts to look into. */
function diffContent(field: Field, { have, want }: Pair, place: Place): Change[] | undefined {
  const { type } = field;
  if (type.kind === "object" && isRecord(have) && isRecord(want)) {
    return diffFields(type.fields, { have, want }, place);
  }
  if (type.kind === "record" && isRecord(have) && isRecord(want)) {
    const keys = [...new Set([...Object.keys(have), ...Object.keys(want)])];
    return keys.flatMap((key) => diffField(type.values, { have: have[key], want: want[key] }, below(place, key)));
  }
  if (type.kind === "array" && Array.isArray(have) && Array.isArray(want)) {
    return field.meta.set ? diffSet(type, { have, want }, place) : diffList(type, { have, want }, place);
  }
  return isDeepStrictEqual(withoutNulls(have), withoutNulls(want)) ? [] : undefined;
}

interface Lists {
  have: unknown[];
  want: unknown[];
}

function diffList(type: FieldType & { kind: "array" }, { have, want }: Lists, place: Place): Change[] {
  const length = Math.max(have.length, want.length);
  return Array.from({ length }, (_, index) => diffField(type.items, { have: have[index], want: want[index] }, below(place, index))).flat();
}

// equal elements cancel out wherever they stand; the rest is compared in order, at the position in the wanted list
function diffSet(type: FieldType & { kind: "array" }, { have, want }: Lists, place: Place): Change[] {
  const left = [...have];
  const added: { item: unknown; index: number }[] = [];
  for (const [index, item] of want.entries()) {
    const match = left.findIndex((other) => diffField(type.items, { have: other, want: item }, place).length === 0);
    if (match === -1) added.push({ item, index });
    else left.splice(match, 1);
  }
  const removed = left.map((item) => ({ item, index: have.indexOf(item) }));
  return Array.from({ length: Math.max(added.length, removed.length) }, (_, position) => {
    const [from, to] = [removed[position], added[position]];
    return diffField(type.items, { have: from?.item, want: to?.item }, below(place, to?.index ?? from?.index ?? position));
  }).flat();
}

function below(place: Place, step: string | number): Place {
  return { path: [...place.path, step], replaces: place.replaces };
}
