import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { z } from "zod";
import { openStack } from "./engine.ts";
import { doors, toldSchema, upgraded } from "./upgrade/program.ts";

const deployment = z.looseObject({
  version: z.int(),
  deployment: z.looseObject({ resources: z.array(z.looseObject({ type: z.string() })) }),
});
const recordedSchema = z.object({ build: z.string(), told: toldSchema, states: z.object({ plugin: deployment, dynamic: deployment }) });

const directory = join(import.meta.dirname, "upgrade/recorded");

describe.each(readdirSync(directory))("the state in %s, which an older build has left", (file) => {
  const { told, states } = recordedSchema.parse(JSON.parse(readFileSync(join(directory, file), "utf8")));

  it.each(doors)("is what this build wants through the %s door, and no node is asked", { timeout: 120_000 }, async (door) => {
    const stack = await openStack({ program: () => Promise.resolve({}) });
    try {
      await stack.importState(states[door]);
      expect(await stack.stateText()).not.toContain("hunter2");
      const shown = await stack.preview(upgraded(stack.directory, door, told));
      expect(shown, shown.text).toMatchObject({ ok: true });
      expect(shown.steps.filter(({ op }) => op !== "same")).toEqual([]);
      // the provider itself is no step
      const kept = states[door].deployment.resources.filter(({ type }) => !type.startsWith("pulumi:providers:"));
      expect(shown.counts).toEqual({ same: kept.length });
    } finally {
      await stack.close();
    }
  });
});
