import * as pulumi from "@pulumi/pulumi";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { checkInputs } from "../../provider/core/check.ts";
import { Declarations } from "../../provider/core/declarations.ts";
import { defineResource } from "../../provider/core/define.ts";
import { formatPath, unknownValue } from "../../provider/core/values.ts";
import { resources } from "../../provider/index.ts";

const inputs = z.strictObject({
  name: z.string().regex(/^[a-z]+$/, "must be lower-case letters"),
  kind: z.enum(["kvm", "lxd"]).default("kvm"),
  count: z.int().min(1).max(9).default(3),
  ports: z.array(z.strictObject({ port: z.int().max(65535), protocol: z.string().default("tcp") })).default([]),
  environment: z.record(z.string(), z.string()).default({}),
  probe: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("tcp"), port: z.int() }),
      z.strictObject({ type: z.literal("log"), line: z.string() }),
    ])
    .optional(),
  size: z.union([z.int(), z.strictObject({ mib: z.int() })]).optional(),
  capacity: z.int().optional().meta({ checkOnly: true }),
});
const thing = defineResource({
  token: "cloudlet:index:Thing",
  description: "For tests.",
  inputs,
  outputs: z.object({}),
  identity: ({ name }) => name,
  constraints: ({ count, capacity }) =>
    count !== undefined && capacity !== undefined && count > capacity ? [{ path: "count", message: "is too much; ask for less" }] : [],
  observe: () => Promise.resolve(undefined),
  apply: () => Promise.resolve(),
  remove: () => Promise.resolve(),
});

const zeros = () => Promise.resolve("0".repeat(64));
const local = { digestFile: zeros, digestDirectory: zeros, digestOverlay: zeros };
const check = (news: Record<string, unknown>, definition: Parameters<typeof checkInputs>[0] = thing) =>
  checkInputs(definition, { news, declarations: new Declarations(), local });
const said = async (news: Record<string, unknown>) => (await check(news)).issues.map(({ path, message }) => `${path}: ${message}`);

describe("check", () => {
  it("applies defaults and drops what is only there for the check", async () => {
    expect(await check({ name: "a", ports: [{ port: 1 }], kind: null, capacity: 5 })).toEqual({
      inputs: { name: "a", kind: "kvm", count: 3, ports: [{ port: 1, protocol: "tcp" }], environment: {} },
      issues: [],
    });
  });

  it.each([
    [{}, "name: is missing; set it"],
    [{ name: "A" }, "name: must be lower-case letters; correct it"],
    [{ name: 5 }, "name: must be text, and is a number; correct it"],
    [{ name: "a", kind: "xen" }, 'kind: must be "kvm" or "lxd"; use one of these'],
    [{ name: "a", count: 10 }, "count: must be at most 9; use a smaller one"],
    [{ name: "a", count: 1.5 }, "count: must be a whole number, and is a number with a fraction; correct it"],
    [{ name: "a", conut: 1 }, 'conut: is not a property here (did you mean "count"?); correct its name or remove it'],
    [
      { name: "a", ports: [{ port: 1, protocl: "udp" }] },
      'ports[0].protocl: is not a property here (did you mean "protocol"?); correct its name or remove it',
    ],
    [{ name: "a", ports: [{ port: 70_000 }] }, "ports[0].port: must be at most 65535; use a smaller one"],
    [{ name: "a", ports: { port: 1 } }, "ports: must be a list, and is an object; correct it"],
    [{ name: "a", environment: { "a.b": 1 } }, 'environment["a.b"]: must be text, and is a number; correct it'],
    [{ name: "a", probe: { type: "ping" } }, 'probe.type: must be "tcp" or "log"; use one of these'],
    [{ name: "a", size: "big" }, "size: must be a number, and is text, or must be an object, and is text; correct it"],
    [{ name: "a", count: 3, capacity: 2 }, "count: is too much; ask for less"],
  ])("says of %j: %s", async (news, text) => {
    expect(await said(news)).toEqual([text]);
  });

  it("keeps unknown values in place, says nothing about them, and still checks the rest", async () => {
    const news = {
      name: unknownValue,
      ports: [unknownValue, { port: unknownValue, protocol: "udp" }, { port: 70_000 }],
      environment: { A: unknownValue, B: 1 },
      probe: { type: unknownValue },
    };
    expect(await said(news)).toEqual([
      "ports[2].port: must be at most 65535; use a smaller one",
      "environment.B: must be text, and is a number; correct it",
    ]);
    const good = await check({ ...news, ports: [{ port: unknownValue }], environment: {}, capacity: 1, count: unknownValue });
    expect(good).toEqual({
      inputs: {
        name: unknownValue,
        kind: "kvm",
        count: unknownValue,
        ports: [{ port: unknownValue, protocol: "tcp" }],
        environment: {},
        probe: { type: unknownValue },
      },
      issues: [],
    });
  });

  it("keeps defaults and unknown values where a whole list is unknown", async () => {
    expect((await check({ name: "a", ports: unknownValue })).inputs).toMatchObject({ ports: unknownValue, count: 3 });
  });

  it.each(resources.map((resource) => [resource.token, resource] as const))(
    "never throws for %s, whatever JSON it gets",
    async (_token, resource) => {
      const definition = resource;
      const leaf = fc.oneof(fc.constant(unknownValue), fc.string(), fc.integer(), fc.boolean(), fc.constant(null), fc.double());
      const { value } = fc.letrec((tie) => ({
        value: fc.oneof(
          { maxDepth: 3 },
          leaf,
          fc.array(tie("value"), { maxLength: 3 }),
          fc.dictionary(fc.string(), tie("value"), { maxKeys: 4 }),
        ),
      }));
      const known = fc.record(Object.fromEntries(Object.keys(definition.inputs.shape).map((key) => [key, value])), { requiredKeys: [] });
      await fc.assert(
        fc.asyncProperty(known, async (news) => {
          const { issues } = await check(news, definition);
          for (const { path, message } of issues) expect(`${path}: ${message}`).toMatch(/^\S.*: .+;? .+/s);
        }),
        { numRuns: 200 },
      );
    },
  );
});

describe("values", () => {
  it("has the same marker of unknown values as the SDK", () => {
    expect(unknownValue).toBe(Reflect.get(pulumi.runtime, "unknownValue"));
  });

  it("writes paths in Pulumi's notation", () => {
    expect([formatPath(["ports", 0, "hostPort"]), formatPath(["files", "a.b"]), formatPath(["a-b", "c"])]).toEqual([
      "ports[0].hostPort",
      'files["a.b"]',
      '["a-b"].c',
    ]);
  });
});
