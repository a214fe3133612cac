import * as fc from "fast-check";
import structPb from "google-protobuf/google/protobuf/struct_pb.js";
import { describe, expect, it } from "vitest";
import { unknownValue } from "../../../provider/core/values.ts";
import { fromStruct, toStruct, type Decoded } from "../../../provider/doors/plugin/codec.ts";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const signatureKey = "4dabf18193072939515e22adb298388d";
const key = fc.string({ maxLength: 8 }).filter((text) => text !== signatureKey && text !== "*");
const leaf = fc.oneof(
  fc.constant(null),
  fc.boolean(),
  fc.double({ noNaN: true, noDefaultInfinity: true }),
  fc.string(),
  fc.constant(unknownValue),
);
const { value } = fc.letrec<{ value: Json }>((tie) => ({
  value: fc.oneof({ maxDepth: 4 }, leaf, fc.array(tie("value"), { maxLength: 4 }), fc.dictionary(key, tie("value"), { maxKeys: 4 })),
}));
const values = fc.dictionary(key, value, { maxKeys: 5 });

/** What travels, so that nothing is shared between the two ends. */
const wire = (struct: InstanceType<typeof structPb.Struct>) => structPb.Struct.deserializeBinary(struct.serializeBinary());

/** Every path to a part that is there and not null, elements of lists as "*". */
function pathsOf(item: unknown, path: string[] = []): string[][] {
  if (item === null || item === undefined) return [];
  const steps = Array.isArray(item) ? item.map((part) => ["*", part] as const) : typeof item === "object" ? Object.entries(item) : [];
  return [...(path.length > 0 ? [path] : []), ...steps.flatMap(([step, part]) => pathsOf(part, [...path, step]))];
}

const special = (signature: string, fields: Record<string, unknown>) => ({ [signatureKey]: signature, ...fields });
const secretOf = (inner: unknown) => special("1b47061264138c4ac30d75fd1eb44270", { value: inner });
const outputOf = (fields: Record<string, unknown>) => special("d0e6a833031e9bbcd3f4e8bde6ca49a4", fields);
const received = (plain: Record<string, unknown>) => fromStruct(wire(toStruct(plain)));

describe("values on their way to the engine and back", () => {
  it("come back as they were", () => {
    fc.assert(
      fc.property(values, (given) => {
        const { values: back, secrets } = fromStruct(wire(toStruct(given)));
        expect(back).toEqual(given);
        expect(secrets).toEqual([]);
      }),
    );
  });

  it("come back with exactly the secrets that were marked", () => {
    const marked = values.chain((given) => {
      const paths = pathsOf(given);
      return fc.tuple(
        fc.constant(given),
        paths.length === 0 ? fc.constant([]) : fc.uniqueArray(fc.constantFrom(...paths), { maxLength: 3 }),
      );
    });
    fc.assert(
      fc.property(marked, ([given, secrets]) => {
        const decoded = fromStruct(wire(toStruct(given, secrets)));
        expect(decoded.values).toEqual(given);
        const isMarked = (path: string[]) =>
          secrets.some((top) => top.length === path.length && top.every((step, index) => step === path[index] || step === "*"));
        const outermost = pathsOf(given).filter((path) => isMarked(path) && !path.some((_, length) => isMarked(path.slice(0, length))));
        expect(new Set(decoded.secrets.map((path) => path.join("\n")))).toEqual(new Set(outermost.map((path) => path.join("\n"))));
      }),
    );
  });

  it("that are marked twice come back with the same marks", () => {
    fc.assert(
      fc.property(values, (given) => {
        const all = pathsOf(given).filter((path) => path.length === 1);
        const once = fromStruct(wire(toStruct(given, all)));
        expect(fromStruct(wire(toStruct(once.values, once.secrets)))).toEqual(once);
      }),
    );
  });

  it("are what the protocol's own library makes of them", () => {
    fc.assert(
      fc.property(fc.dictionary(fc.stringMatching(/^[a-z]{1,6}$/), value), (given) => {
        expect(wire(toStruct(given)).toObject()).toEqual(structPb.Struct.fromJavaScript(given).toObject());
      }),
    );
  });

  it("leave out what is undefined", () => {
    expect(received({ a: undefined, b: { c: undefined } }).values).toEqual({ b: {} });
  });
});

describe("what only the engine sends", () => {
  it.each<[string, unknown, Decoded]>([
    ["a secret", secretOf("hunter2"), { values: { a: "hunter2" }, secrets: [["a"]] }],
    ["a secret that is not known yet", secretOf(unknownValue), { values: { a: unknownValue }, secrets: [["a"]] }],
    ["an output", outputOf({ value: 5, dependencies: ["urn"] }), { values: { a: 5 }, secrets: [] }],
    ["an output that is not known yet", outputOf({ dependencies: [] }), { values: { a: unknownValue }, secrets: [] }],
    ["a secret output", outputOf({ value: { b: 1 }, secret: true }), { values: { a: { b: 1 } }, secrets: [["a"]] }],
    ["a secret in a list", [{ b: secretOf("hunter2") }], { values: { a: [{ b: "hunter2" }] }, secrets: [["a", "*", "b"]] }],
    ["a resource", special("5cf8f73096256a8f31e491e813e4eb8e", { urn: "urn:a", id: "gw1/kvm" }), { values: { a: "gw1/kvm" }, secrets: [] }],
    [
      "a resource that is not there yet",
      special("5cf8f73096256a8f31e491e813e4eb8e", { urn: "urn:a", id: "" }),
      { values: { a: unknownValue }, secrets: [] },
    ],
    ["an unknown number of older SDKs", "3eeb2bf0-c639-47a8-9e75-3b44932eb421", { values: { a: unknownValue }, secrets: [] }],
  ])("%s", (_what, sent, expected) => {
    expect(received({ a: sent })).toEqual(expected);
  });

  it.each([
    ["an asset", "c44067f5952c0a294b673a41bacd8c17"],
    ["an archive", "0def7320c3a5731c473e5ecbe6d01bc7"],
    ["a value of an unknown kind", "f00d"],
  ])("%s is refused by its path, and its content is not repeated", (what, signature) => {
    const send = () => received({ files: [{ content: special(signature, { text: "hunter2" }) }] });
    expect(send).toThrow(`files[0].content: is ${what}`);
    expect(send).not.toThrow("hunter2");
  });
});
