import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";

type Described = Record<string, { description?: string }>;
interface Schema {
  types: Record<string, { properties: Described }>;
  resources: Record<string, { properties: Described; inputProperties: Described }>;
  functions: Record<string, { inputs: { properties: Described }; outputs: { properties: Described } }>;
  config: { variables: Described };
  provider: { inputProperties: Described };
}

it("every field in schema.json has a description, those of nested types included", async () => {
  const text = await readFile(join(import.meta.dirname, "../../schema.json"), "utf8");
  const { types, resources, functions, config, provider } = JSON.parse(text) as Schema;
  const places: (readonly [string, Described])[] = [
    ...Object.entries(types).map(([name, { properties }]) => [name, properties] as const),
    ...Object.entries(resources).flatMap(([name, { properties, inputProperties }]): [string, Described][] => [
      [name, properties],
      [name, inputProperties],
    ]),
    ...Object.entries(functions).flatMap(([name, { inputs, outputs }]): [string, Described][] => [
      [name, inputs.properties],
      [name, outputs.properties],
    ]),
    ["config", config.variables],
    ["provider", provider.inputProperties],
  ];
  const silent = places.flatMap(([place, fields]) =>
    Object.entries(fields).flatMap(([name, { description = "" }]) => (description === "" ? [`${place}.${name}`] : [])),
  );
  expect(silent).toEqual([]);
});
