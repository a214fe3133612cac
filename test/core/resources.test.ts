import { describe, expect, it } from "vitest";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { fieldsOf, type Field } from "../../provider/core/fields.ts";
import { secretPaths } from "../../provider/core/secrets.ts";
import { resources } from "../../provider/index.ts";

const all = resources.map((resource) => [resource.token, resource satisfies ResourceDefinition as ResourceDefinition] as const);

function leaves(field: Field, path: string): [string, Field][] {
  const inner =
    field.type.kind === "object"
      ? field.type.fields
      : field.type.kind === "array" && field.type.items.type.kind === "object"
        ? field.type.items.type.fields
        : [];
  return [[path, field], ...inner.flatMap((child) => leaves(child, `${path}.${child.name}`))];
}

describe.each(all)("%s", (_token, definition) => {
  it("describes every input", () => {
    const silent = fieldsOf(definition.inputs)
      .filter(({ meta }) => !meta.internal)
      .flatMap((field) => leaves(field, field.name))
      .filter(([, { description }]) => description === "");
    expect(silent.map(([path]) => path)).toEqual([]);
  });

  it("has an identity made of fields whose change replaces, so that an id never changes", () => {
    const used = new Set<string>();
    const probe = new Proxy({}, { get: (_target, key) => (used.add(String(key)), "x") });
    definition.identity(probe);
    const fixed = new Set(
      fieldsOf(definition.inputs)
        .filter(({ meta }) => meta.replaces)
        .map(({ name }) => name),
    );
    expect([...used].filter((name) => !fixed.has(name))).toEqual([]);
  });

  it("marks what is named like a secret", () => {
    const marked = new Set(secretPaths(definition.inputs).map((path) => path.filter((step) => step !== "*").join(".")));
    const named = fieldsOf(definition.inputs)
      .flatMap((field) => leaves(field, field.name))
      .map(([path]) => path)
      .filter((path) => /(password|privateKey|clientKey|token)\w*$/i.test(path));
    expect(named.filter((path) => !marked.has(path))).toEqual([]);
  });
});
