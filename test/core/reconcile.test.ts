import { describe, expect, it } from "vitest";
import { z } from "zod";
import type { Context } from "../../provider/core/context.ts";
import { defineResource, type ResourceDefinition } from "../../provider/core/define.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import { create, read, update } from "../../provider/core/reconcile.ts";
import { toyContext } from "../fakes/toy.ts";

const inputs = z.strictObject({ name: z.string().meta({ replaces: true }), content: z.string().default("") });
type World = { node: Record<string, unknown> | undefined; reaches: boolean; fails?: CloudletError; ignores?: boolean };

function definitionOver(world: World): ResourceDefinition {
  return defineResource({
    token: "cloudlet:index:Thing",
    description: "For tests.",
    inputs,
    outputs: z.object({ size: z.int() }),
    identity: ({ name }) => name,
    observe: () => Promise.resolve(world.node === undefined ? undefined : { ...inputs.parse(world.node), size: 1 }),
    async apply(want, _old, context) {
      if (world.reaches) await context.host({ host: "gw" });
      if (!world.ignores) world.node = want;
      if (world.fails) throw world.fails;
    },
    remove: () => Promise.resolve(),
  });
}

const context: Context = {
  ...toyContext({ status: () => undefined, warn: () => undefined }),
  host: () => Promise.resolve({ label: "gw" } as never),
};
const want = { name: "a", content: "x" };

describe("reconcile", () => {
  it("returns what was observed, not what was asked", async () => {
    expect(await create(definitionOver({ node: undefined, reaches: true }), want, context)).toEqual({
      id: "a",
      state: { ...want, size: 1 },
    });
  });

  it("keeps id and state where a failed create left something behind", async () => {
    const world: World = { node: undefined, reaches: true, fails: new CloudletError("TIMEOUT", "a did not start") };
    await expect(create(definitionOver(world), want, context)).rejects.toMatchObject({
      code: "PARTIAL",
      id: "a",
      state: { ...want, size: 1 },
      reasons: [expect.stringContaining("a did not start")],
    });
  });

  it("keeps nothing where the node says that nothing was made, or was never reached", async () => {
    const nothing: World = { node: undefined, reaches: true, ignores: true, fails: new CloudletError("CONFLICT", "a is taken") };
    await expect(create(definitionOver(nothing), want, context)).rejects.toMatchObject({ code: "CONFLICT" });
    const unreached: World = { node: undefined, reaches: false, ignores: true, fails: new CloudletError("UNREACHABLE", "no answer") };
    await expect(create(definitionOver(unreached), want, context)).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it("names the field that still differs after it was applied", async () => {
    const world: World = { node: { name: "a", content: "old" }, reaches: true, ignores: true };
    await expect(update(definitionOver(world), { id: "a", inputs: want, old: { ...want, content: "old" } }, context)).rejects.toMatchObject(
      { id: "a", reasons: [expect.stringContaining("content still differs")] },
    );
  });

  it("tells gone from unreachable", async () => {
    expect(await read(definitionOver({ node: undefined, reaches: true }), want, context)).toBeUndefined();
    const silent = {
      ...definitionOver({ node: undefined, reaches: true }),
      observe: () => Promise.reject(new CloudletError("UNREACHABLE", "no answer")),
    };
    await expect(read(silent, want, context)).rejects.toMatchObject({ code: "UNREACHABLE" });
  });
});
