import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { diffInputs, withOrigins } from "../../provider/core/diff.ts";
import { unknownValue } from "../../provider/core/values.ts";

const schema = z.strictObject({
  name: z.string().meta({ replaces: true }),
  mode: z.int().default(420),
  limits: z.strictObject({ cores: z.int().default(1), disk: z.int().optional() }).prefault({}),
  tags: z.array(z.string()).default([]).meta({ set: true }),
  ports: z
    .array(z.strictObject({ port: z.int(), protocol: z.enum(["tcp", "udp"]).default("tcp") }))
    .default([])
    .meta({ set: true }),
  steps: z.array(z.string()).optional(),
  environment: z.record(z.string(), z.string()).optional(),
  where: z.strictObject({ rack: z.string().meta({ replaces: true }), note: z.string().optional() }).optional(),
  capacity: z.int().optional().meta({ checkOnly: true }),
});

const optional = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
const port = fc.record({ port: fc.integer({ min: 1, max: 9 }), protocol: optional(fc.constantFrom("tcp", "udp")) });
// a key that Pulumi's own decoding loses before anybody sees it
const key = fc.string().filter((text) => text !== "__proto__");
const inputs = fc.record({
  name: fc.string(),
  mode: optional(fc.integer()),
  limits: optional(fc.record({ cores: optional(fc.integer()), disk: optional(fc.integer()) })),
  tags: optional(fc.array(fc.string({ maxLength: 2 }))),
  ports: optional(fc.array(port)),
  steps: optional(fc.array(fc.string())),
  environment: optional(fc.dictionary(key, fc.string())),
  where: optional(fc.record({ rack: fc.string(), note: optional(fc.string()) })),
});
const diff = (have: object, want: object) => diffInputs(schema, { ...have }, { ...want });

describe("diff", () => {
  it("is empty between a value and itself", () => {
    fc.assert(fc.property(inputs, (value) => diff(value, structuredClone(value)).length === 0));
  });

  it("is empty between a value and the same with its defaults filled in", () => {
    fc.assert(fc.property(inputs, (value) => diff(value, schema.parse(value)).length === 0));
  });

  it("does not see the order of sets, nor outputs and foreign keys", () => {
    const reversed = inputs.map(
      (value) =>
        [value, { ...value, tags: value.tags?.toReversed(), ports: value.ports?.toReversed(), serial: 1, __provider: "x" }] as const,
    );
    fc.assert(fc.property(reversed, ([value, other]) => diff(value, other).length === 0));
  });

  it("is empty in both directions or in none, and an addition one way is a deletion the other", () => {
    fc.assert(
      fc.property(inputs, inputs, (a, b) => {
        const [there, back] = [diff(a, b), diff(b, a)];
        const count = (changes: typeof there, kind: string) => changes.filter((change) => change.kind === kind).length;
        expect(there.length).toBe(back.length);
        expect(count(there, "add")).toBe(count(back, "delete"));
      }),
    );
  });

  it("replaces exactly where a field is marked, also below an object", () => {
    expect(diff({ name: "a", where: { rack: "1" } }, { name: "b", where: { rack: "2", note: "n" } })).toEqual([
      { path: "name", kind: "update", replaces: true },
      { path: "where.rack", kind: "update", replaces: true },
      { path: "where.note", kind: "add", replaces: false },
    ]);
  });

  it("names the element and the leaf that differ", () => {
    expect(diff({ name: "a", ports: [{ port: 1 }, { port: 2 }] }, { name: "a", ports: [{ port: 2 }, { port: 3 }] })).toEqual([
      { path: "ports[1].port", kind: "update", replaces: false },
    ]);
    expect(diff({ name: "a", environment: {} }, { name: "a", environment: { "a.b": "c" } })).toEqual([
      { path: 'environment["a.b"]', kind: "add", replaces: false },
    ]);
  });

  it("counts an unknown value as a change", () => {
    expect(diff({ name: "a", mode: 420 }, { name: unknownValue })).toEqual([{ path: "name", kind: "update", replaces: true }]);
  });

  it("does not compare what is only there for the check", () => {
    expect(diff({ name: "a" }, { name: "a", capacity: 5 })).toEqual([]);
  });
});

describe("diff of what a digest identifies", () => {
  const described = z.strictObject({
    base: z.strictObject({ file: z.string().optional().meta({ origin: true }), digest: z.string().optional() }).optional(),
    script: z.string().optional().meta({ origin: true }),
    files: z.array(z.string()).default([]).meta({ origin: true }),
    digest: z.string().optional().meta({ computed: true }),
  });
  const paths = (have: object, want: object) => diffInputs(described, { ...have }, { ...want }).map(({ path }) => path);

  it("takes the same content for the same wherever it comes from, and other content for what it is", () => {
    const have = { base: { file: "/home/a/image", digest: "1" } };
    expect(paths(have, { base: { file: "/home/b/image", digest: "1" } })).toEqual([]);
    expect(paths(have, { base: { file: "/home/b/image", digest: "2" } })).toEqual(["base.file", "base.digest"]);
    expect(paths({ base: { digest: "1" } }, { base: { file: "/home/b/image", digest: "1" } })).toEqual([]);
    expect(paths(have, { base: { file: "/home/b/image", digest: unknownValue } })).toEqual(["base.file", "base.digest"]);
  });

  it("believes the program once where an import has left the origin open, and compares from then on", () => {
    const imported = { digest: "1", files: [] };
    const first = { script: "a", files: ["x"] };
    expect(paths(imported, first)).toEqual([]);
    const then = withOrigins(described, imported, () => first);
    expect(paths(then, first)).toEqual([]);
    expect(paths(then, { ...first, script: "b" })).toEqual(["script"]);
    expect(paths(then, { ...first, files: [] })).toEqual(["files[0]"]);
    expect(paths(imported, { ...first, digest: "2" })).toEqual(["script", "files[0]", "digest"]);
  });
});
